"""Draft directories: what is written can be read, and what is wrong is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from adaseek_vllm.token_tree.drafts.config import DraftConfig, DraftError
from adaseek_vllm.token_tree.drafts.files import load_draft, save_draft
from adaseek_vllm.token_tree.drafts.source import DraftModelSource


@pytest.fixture
def directory(toy: ModuleType, tmp_path: Path) -> Path:
    save_draft(toy.model(is_random=True), tmp_path / "draft")
    return tmp_path / "draft"


def test_draft_comes_back_as_it_was(toy: ModuleType, directory: Path) -> None:
    loaded, model = load_draft(directory), toy.model(is_random=True)
    assert loaded.config == toy.CONFIG
    assert torch.equal(loaded.tokens, model.tokens)
    assert torch.equal(loaded.embedding.weight, model.embedding.weight.to(torch.bfloat16))


def edited(key: str, value: object) -> Callable[[Path], None]:
    def edit(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))

    return edit


def cut_short(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: (path / "config.json").unlink(), "has no config.json"),
        (lambda path: (path / "config.json").write_text("{"), "cannot be read"),
        (lambda path: (path / "config.json").write_text("[1]"), "not the configuration"),
        (edited("kind", "llama"), "not the configuration"),
        (edited("format", 9), "format 9"),
        (edited("target", {}), "is damaged"),
        (edited("colour", "red"), "is damaged"),
        (edited("num_layers", 0), "`num_layers` is 0"),
        (edited("hidden_size", 33), "`hidden_size` is 33"),
        (edited("hidden_size", 16), "do not fit its configuration"),
        (lambda path: (path / "model.safetensors").unlink(), "cannot be read"),
        (cut_short, "cannot be read"),
    ],
)
def test_damaged_draft_is_refused(
    directory: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(directory)
    with pytest.raises(DraftError, match=message):
        load_draft(directory)


def test_vocabulary_outside_the_target_s_is_refused(toy: ModuleType, tmp_path: Path) -> None:
    model = toy.model()
    model.tokens[0] = toy.VOCABULARY
    save_draft(model, tmp_path)
    with pytest.raises(DraftError, match="numbers from 0 to 39"):
        load_draft(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer": "other"}, "tokenizer toy, but the model that is served has other"),
        ({"vocab_size": 41}, "vocabulary size 40"),
        ({"hidden_size": 64}, "hidden size 32"),
    ],
)
def test_draft_for_another_target_is_refused(
    toy: ModuleType, directory: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(DraftError, match=message):
        DraftModelSource.load(directory, replace(toy.FACTS, **change))
    assert DraftModelSource.load(directory, toy.FACTS)


def test_configuration_is_read_without_torch(directory: Path) -> None:
    assert DraftConfig.load(directory).target.tokenizer == "toy"
