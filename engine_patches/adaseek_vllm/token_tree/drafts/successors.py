"""Guesses that cost no model: what the target finds likely after the last one to three tokens.

A table of that is learned once, from the target's own answers. `recycling` learns the like while
it drafts, but begins with nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from adaseek_vllm.token_tree.drafts.config import (
    SUCCESSORS_FILE,
    DraftError,
    TargetFacts,
    check_target,
)
from adaseek_vllm.token_tree.guesses import Continue
from adaseek_vllm.token_tree.guesses import Path as TokenPath
from adaseek_vllm.token_tree.sources import DraftRequest, VerifiedRows

__all__ = ["ORDER", "Successors", "SuccessorsSource"]

ORDER = 3
"""Most tokens that a guess looks back."""
_WIDTH = 6
"""Guesses after a context."""
_PRIOR = 1.0
"""Times that what is likely after a shorter context counts as having followed a longer one."""
_MAX_CONTEXTS = 1 << 18
"""Of each length, those that occurred most often; 10 MiB of the file, and some 30 in memory."""
_BITS = 21
"""Of a token in a context's key: three fit into a number, so vocabularies end at two million."""
_KIND, _FORMAT = "adaseek-successors", "1"
_ARRAYS = ("keys", "tokens", "chances")


@dataclass(frozen=True)
class Successors:
    """Context -> its likeliest next tokens.

    The chance of a token is the mean of what the target gave it wherever the context occurred,
    together with its chance after the context without its first token, which counts as one
    occurrence. So a context that was seen once says little of its own.

    Source: an n-gram model, smoothed as in MacKay and Peto (1995), of the target's probabilities in
    place of counts.
    """

    target: TargetFacts
    keys: NDArray[np.int64]
    """Contexts as numbers, each once. [contexts]"""
    tokens: NDArray[np.int32]
    """The likeliest first. [contexts, width]"""
    chances: NDArray[np.float32]
    """0 where fewer are known. [contexts, width]"""

    @classmethod
    def learned(
        cls,
        target: TargetFacts,
        contexts: NDArray[np.int64],
        wanted: NDArray[np.int64],
        chances: NDArray[np.float32],
    ) -> Successors:
        """Returns the table of some texts.

        Args:
            target: whose texts these are.
            contexts: the tokens before each place, the latest last, -1 where there is none to be
                known. [places, `ORDER`]
            wanted: what the target finds likely there. [places, k]
            chances: how likely. [places, k]

        Raises:
            DraftError: the vocabulary is too large for the table.
        """
        if target.vocab_size >= 1 << _BITS:
            raise DraftError(
                f"The target's vocabulary has {target.vocab_size} tokens, but a table of "
                f"successors holds fewer than {1 << _BITS}."
            )
        known = np.cumprod(contexts[:, ::-1] >= 0, axis=1).sum(axis=1)
        levels, shorter = list[_Level](), _Level.empty()
        for length in range(1, ORDER + 1):
            here = known >= length
            shorter = _Level.learned(contexts[here, -length:], wanted[here], chances[here], shorter)
            levels.append(shorter)
        return cls(
            target,
            np.concatenate([level.keys for level in levels]),
            np.concatenate([level.tokens for level in levels]).astype(np.int32),
            np.concatenate([level.chances for level in levels]).astype(np.float32),
        )

    def save(self, directory: Path) -> None:
        """Writes the table's file."""
        directory.mkdir(parents=True, exist_ok=True)
        unfinished = directory / f"{SUCCESSORS_FILE}.part"
        facts = {"kind": _KIND, "format": _FORMAT, "target": json.dumps(asdict(self.target))}
        arrays: dict[str, NDArray[Any]] = {name: getattr(self, name) for name in _ARRAYS}
        save_file(arrays, unfinished, metadata=facts)
        unfinished.replace(directory / SUCCESSORS_FILE)

    @classmethod
    def load(cls, directory: Path) -> Successors:
        """Returns the table of a directory.

        Raises:
            DraftError: it is damaged, or of another version.
        """
        path = directory / SUCCESSORS_FILE
        try:
            with safe_open(path, framework="np") as file:
                facts = dict(file.metadata() or {})
                arrays = {name: file.get_tensor(name) for name in _ARRAYS}
        except (OSError, SafetensorError) as error:
            raise DraftError(f"The table {path} cannot be read: {error}.") from error
        if facts.get("kind") != _KIND or facts.get("format") != _FORMAT:
            raise DraftError(
                f"{path} is no table of format {_FORMAT} made by `adaseek drafts train`: "
                "train it again."
            )
        try:
            target = TargetFacts(**json.loads(facts["target"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DraftError(f"{path} is damaged: {error}.") from error
        keys, tokens, chances = (arrays[name].shape for name in _ARRAYS)
        if not (len(keys) == 1 and len(tokens) == 2 and tokens == chances and keys == tokens[:1]):
            raise DraftError(f"The arrays of {path} do not fit each other.")
        successors = arrays["tokens"]
        if successors.size and not 0 <= successors.min() <= successors.max() < target.vocab_size:
            raise DraftError(f"The tokens of {path} must be from 0 to {target.vocab_size - 1}.")
        return cls(target, **arrays)


class _Level(NamedTuple):
    """Contexts of one length, sorted by their keys."""

    keys: NDArray[np.int64]
    tokens: NDArray[np.int64]
    chances: NDArray[np.float64]

    @classmethod
    def empty(cls) -> _Level:
        none = np.empty((0, _WIDTH))
        return cls(np.empty(0, dtype=np.int64), none.astype(np.int64), none)

    @classmethod
    def learned(
        cls,
        contexts: NDArray[np.int64],
        wanted: NDArray[np.int64],
        chances: NDArray[np.float32],
        shorter: _Level,
    ) -> _Level:
        """Returns what follows contexts, all of the same length, given that of shorter ones."""
        keys, owner, counts = np.unique(_keys(contexts), return_inverse=True, return_counts=True)
        whose, at = shorter.ends_of(keys, contexts.shape[1] - 1)
        owners, tokens, weights = _summed(
            np.concatenate([_each(owner, wanted), _each(whose, shorter.tokens)]),
            np.concatenate([wanted.ravel(), shorter.tokens[at].ravel()]),
            np.concatenate(
                [chances.ravel().astype(np.float64), _PRIOR * shorter.chances[at].ravel()]
            ),
        )
        found, likely = _likeliest(owners, tokens, weights, num=len(keys))
        likely /= (counts + _PRIOR * np.bincount(whose, minlength=len(keys)))[:, None]
        kept = np.sort(np.argsort(-counts, kind="stable")[:_MAX_CONTEXTS])
        return cls(keys[kept], found[kept], likely[kept])

    def ends_of(
        self, keys: NDArray[np.int64], length: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which of longer contexts end with contexts of this level, and with which of them."""
        ends = keys & ((1 << _BITS * length) - 1)
        at = np.searchsorted(self.keys, ends)
        is_there = np.append(self.keys, -1)[at] == ends
        return np.flatnonzero(is_there), at[is_there]


def _keys(contexts: NDArray[np.int64]) -> NDArray[np.int64]:
    """One number for each context; the latest token has the lowest bits. [contexts]"""
    keys = np.zeros(len(contexts), dtype=np.int64)
    for token in contexts.T:
        keys = (keys << _BITS) | (token + 1)
    return keys


def _each(owners: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """The owner of each single value, whose rows belong to `owners`."""
    return np.repeat(owners, values.shape[1])


def _summed(
    owners: NDArray[np.int64], tokens: NDArray[np.int64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """The same, sorted by owners, with the weights of an owner's equal tokens added up."""
    order = np.lexsort((tokens, owners))
    owners, tokens, weights = owners[order], tokens[order], weights[order]
    is_new = np.ones(len(owners), dtype=bool)
    is_new[1:] = (owners[1:] != owners[:-1]) | (tokens[1:] != tokens[:-1])
    starts = np.flatnonzero(is_new)
    sums = np.add.reduceat(weights, starts) if len(starts) else weights
    return owners[starts], tokens[starts], sums


def _likeliest(
    owners: NDArray[np.int64],
    tokens: NDArray[np.int64],
    weights: NDArray[np.float64],
    *,
    num: int,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each owner's tokens of most weight, and their weights, both [num, `_WIDTH`]."""
    order = np.lexsort((-weights, owners))
    owners, tokens, weights = owners[order], tokens[order], weights[order]
    rank = np.arange(len(owners)) - np.searchsorted(owners, owners)
    kept = rank < _WIDTH
    place = owners[kept], rank[kept]
    found = np.zeros((num, _WIDTH), dtype=np.int64), np.zeros((num, _WIDTH))
    found[0][place], found[1][place] = tokens[kept], weights[kept]
    return found


class SuccessorsSource:
    """Looks up what the target finds likely after the last tokens, as many as the table knows."""

    num_successors = 0

    def __init__(self, table: Successors) -> None:
        self._rows = {key: row for row, key in enumerate(table.keys.tolist())}
        self._tokens, self._chances = table.tokens, table.chances

    @classmethod
    def load(cls, directory: Path, target: TargetFacts) -> SuccessorsSource:
        """Returns the table of a directory as a source.

        Raises:
            DraftError: it cannot be read, or was learned from another target.
        """
        table = Successors.load(directory)
        check_target(directory, table.target, target)
        return cls(table)

    def begin(self, request: DraftRequest) -> Continue:
        """Returns a look-up of what is likely after a path's last tokens."""
        before = tuple(request.tokens[-ORDER:].tolist())

        def after(path: TokenPath) -> Iterable[tuple[int, float]]:
            return self.after((*before, *path[-ORDER:])[-ORDER:])

        return after

    def after(self, context: Sequence[int]) -> Iterable[tuple[int, float]]:
        """Returns what is likely after the longest part of a context's end that is known, the
        likeliest first."""
        key, row = 0, None
        for place, token in enumerate(reversed(context)):
            key |= (token + 1) << _BITS * place
            if (found := self._rows.get(key)) is None:
                break
            row = found
        if row is None:
            return ()
        return zip(self._tokens[row].tolist(), self._chances[row].tolist(), strict=True)

    def learn(self, rows: VerifiedRows) -> None:
        """Learns nothing: the table stays as it is, the same for all tenants."""

    def forget(self, request_id: str) -> None:
        """Keeps nothing of a request."""
