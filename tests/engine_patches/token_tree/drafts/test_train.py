"""The whole training on the toy target, without the engine."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from adaseek_vllm.token_tree.drafts.config import DraftError
from adaseek_vllm.token_tree.drafts.corpus import Document
from adaseek_vllm.token_tree.drafts.files import load_draft
from adaseek_vllm.token_tree.drafts.source import DraftModelSource
from adaseek_vllm.token_tree.drafts.train import TrainSettings, draft_directories, train_on

SHAPE = {
    "hidden_size": 32,
    "num_layers": 1,
    "num_heads": 2,
    "intermediate_size": 32,
    "num_tokens": 36,
    "window": 4,
}


def run(toy: ModuleType, directory: Path, **changes: object) -> str:
    plain = [Document(one.tokens) for one in toy.documents(4, 500)]
    settings = TrainSettings(steps=12, num_drafts=2, shape=SHAPE, **changes)
    answered = toy.documents(8, 0), toy.documents(4, 100)
    target = toy.save_target(directory / "target")
    said = list[str]()
    report = train_on(
        answered, plain, target, toy.FACTS, directory / "out", settings, say=said.append
    )
    assert [line[:3] for line in said if line[0].isdigit()] == ["2/5", "3/5", "4/5", "5/5"]
    return report


def test_drafts_and_report_are_written(toy: ModuleType, tmp_path: Path) -> None:
    report = run(toy, tmp_path)
    first, second = draft_directories(tmp_path / "out", 2)
    one, other = load_draft(first), load_draft(second)
    assert not torch.equal(one.embedding.weight, other.embedding.weight)
    assert DraftModelSource.load(first, toy.FACTS)
    rows = json.loads((first / "acceptance.json").read_text())
    assert [(row["draft"], row["answers"]) for row in rows] == [
        (draft, answers)
        for answers in ("greedy", "sampled")
        for draft in ("successors", "draft 1", "draft 2", "merged")
    ]
    for row in rows:
        rates = list(row["hit_rates"].values())
        assert rates == sorted(rates)
        assert all(1.0 <= value <= 9.0 for value in row["tokens_per_step"].values())
    by_name = {(row["draft"], row["answers"]): row["hit_rates"]["1"] for row in rows}
    assert by_name["merged", "greedy"] >= by_name["draft 1", "greedy"]
    assert (first / "acceptance.md").read_text() == report


def test_same_seed_gives_the_same_drafts(toy: ModuleType, tmp_path: Path) -> None:
    run(toy, tmp_path / "a")
    run(toy, tmp_path / "b")
    weights = [load_draft(tmp_path / name / "out").embedding.weight for name in "ab"]
    assert torch.equal(*weights)


def test_vocabulary_stays_as_the_first_run_chose_it(toy: ModuleType, tmp_path: Path) -> None:
    """More answers on a second run may make other tokens frequent; the checkpoints know none."""
    run(toy, tmp_path)
    work = tmp_path / "out" / "training"
    changed = [*load_draft(tmp_path / "out").tokens.tolist()[:-1], 39]
    (work / "vocabulary.json").write_text(json.dumps(changed))
    for checkpoint in work.glob("*.pt"):
        checkpoint.unlink()
    run(toy, tmp_path)
    assert load_draft(tmp_path / "out").tokens.tolist() == changed
    (work / "vocabulary.json").write_text("[1, 2]")
    with pytest.raises(DraftError, match="begun with a vocabulary of 2 tokens"):
        run(toy, tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("minutes", 0.0), ("num_drafts", -1), ("max_tokens", 3), ("num_tokens", 2)]
)
def test_impossible_setting_is_named(name: str, value: float) -> None:
    with pytest.raises(DraftError, match=f"`{name}` is {value}"):
        TrainSettings(**{name: value})
