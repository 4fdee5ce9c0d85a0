"""The draft model: what it attends to, and that drafting in a tree is reading each path."""

from __future__ import annotations

from types import ModuleType

import torch


def test_hidden_states_change_what_follows_and_nothing_before(toy: ModuleType) -> None:
    model = toy.model(is_random=True)
    tokens = torch.randint(0, 32, (1, 5))
    hidden = torch.randn(1, 5, toy.WIDTH)
    changed = hidden.clone()
    changed[0, 2] += 1.0
    positions = torch.arange(5)[None]
    before, _ = model(model.embed(tokens, hidden), positions, None)
    after, _ = model(model.embed(tokens, changed), positions, None)
    assert torch.allclose(before[:, :2], after[:, :2], atol=1e-5)
    assert not torch.allclose(before[:, 2:], after[:, 2:], atol=1e-3)


def test_reading_in_parts_is_reading_at_once(toy: ModuleType) -> None:
    model = toy.model(is_random=True)
    inputs = model.embed(torch.randint(0, 32, (2, 6)))
    whole, _ = model(inputs, torch.arange(6)[None], None)
    _, memory = model(inputs[:, :5], torch.arange(5)[None], None)
    mask = torch.ones(2, 1, 1, 6, dtype=torch.bool)
    last, _ = model(inputs[:, 5:], torch.tensor([[5]]), mask, memory)
    assert torch.allclose(whole[:, 5:], last, atol=1e-4)


def test_start_keeps_angles_between_the_target_s_rows(toy: ModuleType) -> None:
    draft, rows = toy.model(), toy.rows()[toy.vocabulary()]
    mine = draft.embedding.weight[:-1]
    similar = torch.nn.functional.cosine_similarity
    wanted = similar(rows[:, None], rows[None], dim=-1)
    assert torch.allclose(similar(mine[:, None], mine[None], dim=-1), wanted, atol=1e-3)
    assert draft.embedding.weight[-1].abs().max() == 0


def test_foreseeing_draft_is_right_where_a_line_tells_what_comes(toy: ModuleType) -> None:
    """A target whose next state is a linear map of the last state and the token's row."""
    model, rows = toy.model(), toy.rows()[toy.vocabulary()]
    generator = torch.Generator().manual_seed(3)
    maps = torch.randn(2, toy.WIDTH, toy.WIDTH, generator=generator) / toy.WIDTH**0.5
    before = torch.randn(3000, toy.WIDTH, generator=generator)
    tokens = torch.randint(0, len(rows), (3000,), generator=generator)
    after = before @ maps[0] + rows[tokens] @ maps[1]
    model.foresee(tokens[:2000], before[:2000], after[:2000])
    states, _ = model(
        model.embed(tokens[2000:, None], before[2000:, None]), torch.zeros(1, 1), None
    )
    right = model.logits(states)[:, 0].argmax(-1) == (after[2000:] @ rows.T).argmax(-1)
    assert right.float().mean() > 0.8
