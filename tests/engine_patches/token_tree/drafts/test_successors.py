"""The table of successors: what it learns, how it is looked up, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from adaseek_vllm.token_tree.drafts import successors
from adaseek_vllm.token_tree.drafts.acceptance import hit_rates, successor_ranks
from adaseek_vllm.token_tree.drafts.config import DraftError, TargetFacts, check_draft
from adaseek_vllm.token_tree.drafts.successors import ORDER, Successors, SuccessorsSource
from adaseek_vllm.token_tree.drafts.train import TrainSettings, train_on
from adaseek_vllm.token_tree.sources import DraftRequest
from safetensors.numpy import load_file, save_file

FACTS = TargetFacts(100, 8, "toy")


def learned(*places: tuple[Sequence[int], dict[int, float]]) -> Successors:
    """The table of places: the tokens before each, and what is likely there."""
    width = max(len(likely) for _, likely in places)
    contexts = np.full((len(places), ORDER), -1, dtype=np.int64)
    wanted = np.zeros((len(places), width), dtype=np.int64)
    chances = np.zeros((len(places), width), dtype=np.float32)
    for row, (before, likely) in enumerate(places):
        contexts[row, ORDER - len(before) :] = before
        wanted[row, : len(likely)], chances[row, : len(likely)] = [*likely], [*likely.values()]
    return Successors.learned(FACTS, contexts, wanted, chances)


def looked_up(table: Successors, *context: int) -> dict[int, float]:
    return {token: chance for token, chance in SuccessorsSource(table).after(context) if chance}


def test_chances_are_means_and_a_shorter_context_counts_as_one_place() -> None:
    table = learned(([7], {1: 0.8, 2: 0.2}), ([7], {1: 0.4}), ([5, 7], {3: 1.0}))
    after_seven = {1: 1.2 / 3, 2: 0.2 / 3, 3: 1.0 / 3}
    assert looked_up(table, 7) == pytest.approx(after_seven)
    # One place of its own, and what follows 7 alone as a second one.
    expected = {1: 0.2, 2: 0.1 / 3, 3: (1.0 + 1.0 / 3) / 2}
    assert looked_up(table, 5, 7) == pytest.approx(expected)


def test_longest_known_end_of_a_context_is_looked_up() -> None:
    table = learned(([4, 5, 6], {1: 1.0}), ([9, 6], {2: 1.0}), ([0], {3: 1.0}))
    assert max(looked_up(table, 4, 5, 6), key=looked_up(table, 4, 5, 6).__getitem__) == 1
    assert looked_up(table, 8, 5, 6) == looked_up(table, 5, 6) != looked_up(table, 6)
    assert looked_up(table, 8, 8, 6) == looked_up(table, 6) == pytest.approx({1: 0.5, 2: 0.5})
    assert looked_up(table, 6, 6, 0) == {3: 1.0}
    assert looked_up(table, 4, 5, 99) == looked_up(table) == {}


def test_likeliest_come_first_and_the_rest_is_dropped() -> None:
    table = learned(([7], {token: token / 100 for token in range(1, 9)}))
    found = list(SuccessorsSource(table).after([7]))
    assert [token for token, _ in found] == [8, 7, 6, 5, 4, 3]


def test_contexts_are_counted_to_the_most_frequent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(successors, "_MAX_CONTEXTS", 2)
    table = learned(*(([token], {token + 10: 1.0}) for token in (1, 2, 3, 3, 1)))
    assert [bool(looked_up(table, token)) for token in (1, 2, 3)] == [True, False, True]


def test_vocabulary_that_no_key_can_hold_is_refused() -> None:
    huge, none = replace(FACTS, vocab_size=1 << 21), np.zeros((0, ORDER), dtype=np.int64)
    with pytest.raises(DraftError, match="has 2097152 tokens, but a table of successors holds"):
        Successors.learned(huge, none, none, none.astype(np.float32))


def test_path_is_looked_up_behind_the_request_s_end() -> None:
    source = SuccessorsSource(learned(([4, 5, 6], {1: 1.0}), ([5, 6, 1], {2: 1.0})))
    tokens = np.array([3, 4, 5, 6], dtype=np.int32)
    after = source.begin(DraftRequest("a", tokens, 1, tenant=""))
    assert [token for token, chance in after(()) if chance] == [1]
    assert [token for token, chance in after((1,)) if chance] == [2]
    assert list(after((50,))) == []


def test_corpus_tells_contexts_within_a_text_and_its_vocabulary(toy: ModuleType) -> None:
    first, second = toy.document(0), toy.document(1)
    corpus, ids = toy.corpus([first, second]), torch.cat([toy.vocabulary(), torch.tensor([-1])])
    contexts = ids[corpus.contexts(ORDER)].tolist()
    known = set(toy.vocabulary().tolist())
    for document, start in ((first, 0), (second, len(first.tokens))):
        tokens = document.tokens.tolist()
        for place in range(len(tokens)):
            expected = list[int]()
            for token in reversed(tokens[max(0, place - ORDER + 1) : place + 1]):
                if token not in known:
                    break
                expected.insert(0, token)
            missing = ORDER - len(expected)
            assert contexts[start + place] == [-1] * missing + expected


@pytest.fixture
def directory(toy: ModuleType, tmp_path: Path) -> Path:
    """A draft of a table alone."""
    settings = TrainSettings(num_drafts=0, num_tokens=36)
    answered, said = (toy.documents(40, 0), toy.documents(6, 100)), list[str]()
    target, out = toy.save_target(tmp_path / "target"), tmp_path / "out"
    report = train_on(answered, [], target, toy.FACTS, out, settings, say=said.append)
    assert [line[:3] for line in said] == ["2/3", "3/3"]
    assert "| successors | greedy |" in report
    assert "draft 1" not in report
    return out


def test_table_alone_is_a_draft(toy: ModuleType, directory: Path) -> None:
    check_draft(directory)
    source = SuccessorsSource.load(directory, toy.FACTS)
    held_out, tokens = toy.corpus(toy.documents(4, 200)), toy.vocabulary()
    rates = hit_rates(successor_ranks(source, held_out, range(4), tokens), (1, 2))
    # The toy's tokens follow from the two before them nine times in ten, if these were seen.
    assert 0.3 < rates[1] < rates[2] <= 1.0


def test_empty_directory_is_no_draft(tmp_path: Path) -> None:
    with pytest.raises(DraftError, match=r"neither config\.json nor successors\.safetensors"):
        check_draft(tmp_path)


def changed(**arrays: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        save_file(load_file(path) | arrays, path, metadata=META)

    return change


META = {"kind": "adaseek-successors", "format": "1", "target": '{"vocab_size": 40, '
        '"hidden_size": 32, "tokenizer": "toy"}'}  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot be read"),
        (lambda path: save_file(load_file(path), path), "no table of format 1"),
        (
            lambda path: save_file(load_file(path), path, metadata=META | {"target": "{}"}),
            "is damaged",
        ),
        (lambda path: save_file({"keys": np.zeros(1)}, path, metadata=META), "cannot be read"),
        (changed(keys=np.zeros(1, dtype=np.int64)), "do not fit each other"),
        (changed(tokens=np.zeros(3, dtype=np.int32)), "do not fit each other"),
        (
            lambda path: changed(tokens=load_file(path)["tokens"] + 40)(path),
            "must be from 0 to 39",
        ),
    ],
)
def test_damaged_table_is_refused(
    toy: ModuleType, directory: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(directory / "successors.safetensors")
    with pytest.raises(DraftError, match=message):
        SuccessorsSource.load(directory, toy.FACTS)


def test_table_for_another_target_is_refused(toy: ModuleType, directory: Path) -> None:
    with pytest.raises(DraftError, match="tokenizer toy, but the model that is served has other"):
        SuccessorsSource.load(directory, replace(toy.FACTS, tokenizer="other"))
