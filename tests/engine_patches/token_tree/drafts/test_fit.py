"""Training: it learns, it resumes, and weights change what it learns."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch
from adaseek_vllm.token_tree.drafts.acceptance import hit_rates, ranks
from adaseek_vllm.token_tree.drafts.config import DraftError
from adaseek_vllm.token_tree.drafts.fit import Plan, fit


def rate(toy: ModuleType, model: torch.nn.Module) -> float:
    held_out = toy.documents(6, 1000)
    return hit_rates(ranks(model, toy.corpus(held_out), range(6)), [1])[1]


def test_training_beats_chance_on_texts_it_has_not_seen(toy: ModuleType, tmp_path: Path) -> None:
    model = toy.model()
    chance = rate(toy, model)
    plan = Plan(steps=120, learning_rate=1e-2, batch=48)
    fit(model, toy.corpus(toy.documents(40, 0)), plan, tmp_path / "checkpoint.pt")
    assert chance < 0.15
    assert rate(toy, model) > 0.35


def test_killed_training_ends_where_an_undisturbed_one_does(
    toy: ModuleType, tmp_path: Path
) -> None:
    corpus, whole = toy.corpus(toy.documents(8, 0)), Plan(steps=12, batch=16)
    undisturbed, killed, resumed = toy.model(), toy.model(), toy.model(seed=5)
    fit(undisturbed, corpus, whole, tmp_path / "a.pt")

    class KilledError(Exception):
        pass

    def kill(step: int, _loss: float) -> None:
        if step == 5:
            raise KilledError

    with pytest.raises(KilledError):
        fit(killed, corpus, whole, tmp_path / "b.pt", report=kill, seconds_between_saves=0.0)
    fit(resumed, corpus, whole, tmp_path / "b.pt")
    for name, parameter in undisturbed.state_dict().items():
        assert torch.equal(parameter, resumed.state_dict()[name]), name


def test_finished_training_is_not_repeated(toy: ModuleType, tmp_path: Path) -> None:
    corpus, plan = toy.corpus(toy.documents(4, 0)), Plan(steps=3, batch=8)
    first, again = toy.model(), toy.model(seed=3)
    fit(first, corpus, plan, tmp_path / "a.pt")
    steps = list[int]()
    fit(again, corpus, plan, tmp_path / "a.pt", report=lambda step, _loss: steps.append(step))
    assert steps == []
    assert torch.equal(first.embedding.weight, again.embedding.weight)


def test_damaged_checkpoint_is_named(toy: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(b"no checkpoint")
    with pytest.raises(DraftError, match=r"a\.pt cannot be read"):
        fit(toy.model(), toy.corpus(toy.documents(2, 0)), Plan(steps=1), path)


def test_only_wanted_roots_are_learned(toy: ModuleType, tmp_path: Path) -> None:
    corpus = toy.corpus(toy.documents(10, 0))
    weights = torch.zeros(len(corpus.roots))
    weights[: len(weights) // 2] = 1.0
    chosen, roots = list[int](), corpus.roots
    batch = corpus.batch
    corpus.batch = lambda some: (chosen.extend(some.tolist()), batch(some))[1]
    plan = Plan(steps=4, batch=16, prompt_share=0.0)
    fit(toy.model(), corpus, plan, tmp_path / "a.pt", weights=weights)
    assert set(chosen) <= set(roots[: len(weights) // 2].tolist())
