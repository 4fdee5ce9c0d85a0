"""A draft model as a source: trees, batches, what it keeps, and when it stops."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from adaseek_vllm.token_tree.drafts.source import DraftModelSource
from adaseek_vllm.token_tree.guesses import Guesses
from adaseek_vllm.token_tree.sources import BatchDraftSource, DraftRequest
from adaseek_vllm.token_tree.tree import ROOT


def request(
    toy: ModuleType, name: str, tokens: list[int], *, first_hidden: int = 0, seed: int = 0
) -> DraftRequest:
    """A request whose target has just read everything from `first_hidden` on."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(len(tokens) - 1, toy.WIDTH, generator=generator)
    read = states[first_hidden:]
    return DraftRequest(name, np.array(tokens, dtype=np.int32), 1, read, first_hidden, tenant="")


@torch.inference_mode()
def laws_along(toy: ModuleType, model, asked: DraftRequest, path: list[int]) -> torch.Tensor:
    """The law after the root and after each token of `path`, read plainly in one go."""
    own = {token: at for at, token in enumerate(toy.vocabulary().tolist())}
    size, width = toy.CONFIG.window, len(toy.vocabulary())
    tokens = [own.get(int(token), width) for token in asked.tokens[-size:]] + path
    hidden = asked.hidden[-size:][None]
    for length in range(size, len(tokens) + 1):
        inputs = model.embed(torch.tensor([tokens[:length]]), hidden)
        states, _ = model(inputs, torch.arange(length)[None], None)
        hidden = torch.cat([hidden, states[:, -1:]], dim=1)
    return model.logits(states[0, size - 1 :]).softmax(-1)


def test_source_is_one_that_drafts_for_several_requests(toy: ModuleType) -> None:
    assert isinstance(DraftModelSource(toy.model()), BatchDraftSource)


def test_every_guess_has_the_law_of_its_own_path(toy: ModuleType) -> None:
    """Trees of two requests in one batch, each branch as if it were read alone."""
    model = toy.model(is_random=True)
    source = DraftModelSource(model)
    asked = [
        request(toy, "a", [1, 2, 26, 4, 5, 6]),
        request(toy, "b", [7, 8, 9, 10, 11, 12, 13], seed=1),
    ]
    source.draft_batch(asked, [Guesses(), Guesses()], 24, None)
    num_deep = 0
    for one in asked:
        tree = source._drafted[one.request_id][1].tree
        paths = list(tree.guesses.tree.paths())
        own = toy.vocabulary().tolist()
        for path, stated in zip(paths, tree.stated, strict=True):
            laws = laws_along(toy, model, one, [own.index(token) for token in path[:-1]])
            assert float(laws[-1][own.index(path[-1])]) == pytest.approx(stated, abs=1e-4)
            num_deep += len(path) > 2
        assert len({path[:-1] for path in paths}) > 3
    assert num_deep > 4


def test_guesses_stay_within_their_number_and_order(toy: ModuleType) -> None:
    source = DraftModelSource(toy.model(is_random=True))
    (guesses,) = source.draft_batch([request(toy, "a", [1, 2, 3, 4, 5, 6])], [Guesses()], 7, None)
    assert 0 < len(guesses.tree) <= 7
    for node, parent in enumerate(guesses.tree.parents):
        assert parent == ROOT or guesses.probabilities[node] <= guesses.probabilities[parent]


def test_batch_changes_no_request_s_guesses(toy: ModuleType) -> None:
    model = toy.model(is_random=True)
    asked = [request(toy, name, [*range(n, n + 7)], seed=n) for n, name in enumerate("abc")]
    together = DraftModelSource(model).draft_batch(asked, [Guesses() for _ in asked], 9, None)
    for one, guesses in zip(asked, together, strict=True):
        alone = DraftModelSource(model).draft(one, 9)
        assert alone.tree.tokens == guesses.tree.tokens
        assert alone.tree.parents == guesses.tree.parents


def test_states_in_parts_are_states_at_once(toy: ModuleType) -> None:
    model, tokens = toy.model(is_random=True), [3, 1, 4, 1, 5, 9, 2, 6]
    whole = DraftModelSource(model).draft(request(toy, "a", tokens), 9)
    source = DraftModelSource(model)
    first = request(toy, "a", tokens)
    source.draft(DraftRequest("a", first.tokens[:6], 1, first.hidden[:5], 0, tenant=""), 9)
    rest = DraftRequest("a", first.tokens, 2, first.hidden[5:], 5, tenant="")
    assert source.draft(rest, 9).tree.tokens == whole.tree.tokens


def test_gap_in_the_states_is_not_bridged(toy: ModuleType) -> None:
    """States after a prefix that came from a cache: only those that are there are used."""
    model, tokens = toy.model(is_random=True), [3, 1, 4, 1, 5, 9, 2, 6]
    source = DraftModelSource(model)
    source.draft(request(toy, "a", tokens[:4]), 9)
    late = request(toy, "a", tokens, first_hidden=6)
    fresh = DraftModelSource(model)
    assert source.draft(late, 9).tree.tokens == fresh.draft(late, 9).tree.tokens


def test_request_without_states_is_drafted_for(toy: ModuleType) -> None:
    source = DraftModelSource(toy.model(is_random=True))
    bare = DraftRequest("a", np.array([5], dtype=np.int32), 1, tenant="")
    assert len(source.draft(bare, 5).tree) > 0


def test_ended_requests_leave_nothing(toy: ModuleType) -> None:
    source = DraftModelSource(toy.model())
    for number in range(20):
        source.draft(request(toy, str(number), [*range(200)][: 5 + number]), 4)
        assert source.num_requests == 1
        source.forget(str(number))
    assert source.num_requests == 0
    source.forget("never seen")


def test_long_request_keeps_a_window_only(toy: ModuleType) -> None:
    source = DraftModelSource(toy.model())
    source.draft(request(toy, "a", [1, 2, 3] * 60), 4)
    (_end, states), *_ = source._windows._states.values()
    assert len(states) == toy.CONFIG.window


def test_dear_pass_is_not_made(toy: ModuleType) -> None:
    """Verification next to free of cost: then no pass pays."""
    source = DraftModelSource(toy.model(is_random=True))
    asked = request(toy, "a", [1, 2, 3, 4, 5, 6])

    def size(cost_s: float) -> int:
        return len(source.draft_batch([asked], [Guesses()], 9, lambda _rows: cost_s)[0].tree)

    assert size(1e-9) > 0  # the first is free
    sizes = [size(1e-9) for _ in range(64)]
    assert sizes.count(0) >= 60
    assert max(sizes) > 0  # it is tried again now and then
    assert size(1e9) > 0


def test_pass_is_not_made_for_what_others_know(toy: ModuleType) -> None:
    """Another source is always right: soon the draft has nothing to add."""
    source, tokens = DraftModelSource(toy.model(is_random=True)), [1, 2, 3, 4, 5, 6]
    known = Guesses()
    known.add(ROOT, 7, 0.97)
    asked = request(toy, "a", tokens)

    def size() -> int:
        return len(source.draft_batch([asked], [known], 9, lambda rows: 1.0 + 0.01 * rows)[0].tree)

    assert size() > 0
    for _ in range(100):
        source.forget("a")
        source.draft_batch([asked], [known], 9, None)
        told = request(toy, "a", [*tokens, 7], first_hidden=5)
        source.draft_batch([told], [Guesses()], 9, None)
    source.forget("a")
    assert [size() for _ in range(9)].count(0) >= 8


def test_guesses_are_judged_by_what_was_said(toy: ModuleType) -> None:
    model = toy.model(is_random=True)
    source, tokens = DraftModelSource(model), [1, 2, 3, 4, 5, 6]
    before = source.draft(request(toy, "a", tokens), 9)
    right = before.tree.tokens[0]
    for _ in range(60):
        source.forget("a")
        source.draft(request(toy, "a", tokens), 9)
        source.draft(request(toy, "a", [*tokens, right], first_hidden=5), 9)
    source.forget("a")
    after = source.draft(request(toy, "a", tokens), 9)
    assert after.probabilities[after.tree.child(ROOT, right)] > 0.8
