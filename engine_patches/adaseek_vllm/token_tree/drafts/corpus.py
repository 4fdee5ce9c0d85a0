"""Texts laid out for training: windows with the target's hidden states, and what it said next."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adaseek_vllm.token_tree.drafts.config import DraftError

__all__ = ["Batch", "Corpus", "Document", "trimmed", "vocabulary"]

_TEACHER_TOKENS = 16


@dataclass(frozen=True)
class Document:
    """Tokens in a row, with the target's hidden states if it has read them."""

    tokens: NDArray[np.int32]
    first_answer: int = 0
    """Index of the first token that the target itself said."""
    hidden: Tensor | None = None
    """[<= tokens, T]"""
    temperature: float = 0.0


@dataclass(frozen=True)
class Batch:
    """Examples: a window that ends with the root, and `depth` tokens after it."""

    tokens: Tensor
    """[B, window + depth] trimmed ids."""
    hidden: Tensor | None
    """[B, window + depth, T]: the target's states that chose the tokens."""
    wanted: Tensor
    """[B, depth + 1, k] what the root and each later token should be followed by: trimmed ids"""
    chances: Tensor
    """[B, depth + 1, k] and their chances; all zero where nothing is known."""
    said: Tensor
    """[B, depth + 1] what did follow, in trimmed ids; -1 behind the end."""


def vocabulary(documents: Iterable[Document], num_tokens: int, vocab_size: int) -> Tensor:
    """Returns the most frequent tokens, sorted, [V] int64; the target's own count tenfold."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for document in documents:
        np.add.at(counts, document.tokens, 1)
        if document.hidden is not None:
            np.add.at(counts, document.tokens[document.first_answer :], 9)
    # Among equals lower ids first: they are the more frequent ones in most tokenizers.
    order = np.argsort(-counts, kind="stable")[:num_tokens]
    return torch.from_numpy(np.sort(order))


def trimmed(tokens: Tensor, vocab_size: int) -> Tensor:
    """Returns the target's id -> trimmed id, [vocab_size] int64; V for all others."""
    ids = torch.full((vocab_size,), len(tokens), dtype=torch.int64)
    ids[tokens] = torch.arange(len(tokens))
    return ids


class Corpus:
    """Documents as flat arrays from which examples are gathered."""

    def __init__(
        self,
        documents: Sequence[Document],
        *,
        ids: Tensor,
        output_rows: Tensor,
        window: int,
        depth: int,
    ) -> None:
        """Raises `DraftError` if no text is long enough.

        Args:
        documents: those shorter than a window are left out.
        ids: the target's id -> trimmed id.
        output_rows: the target's output layer for the trimmed vocabulary, [V, T]: with the
            hidden states it tells how likely the target found each token.
        window, depth: of the examples.
        """
        self.window, self.depth = window, depth
        self._unknown = len(output_rows)
        kept = [one for one in documents if len(one.tokens) > window + 1]
        if not kept:
            raise DraftError(f"All {len(documents)} texts are shorter than {window + 2} tokens.")
        lengths = [len(one.tokens) for one in kept]
        self._tokens = torch.cat([ids[torch.from_numpy(one.tokens).long()] for one in kept])
        self._ends = torch.cat(
            [torch.full((n,), end) for n, end in zip(lengths, np.cumsum(lengths), strict=True)]
        )
        self._starts = self._ends - torch.cat([torch.full((n,), n) for n in lengths])
        has_hidden = all(one.hidden is not None for one in kept)
        self._hidden = torch.cat([_padded(one) for one in kept]) if has_hidden else None
        self._teach(output_rows, kept)
        self.roots_by_document: list[Tensor] = []
        """Every root at which the target's own words begin, per document."""
        self.other_roots = torch.empty(0, dtype=torch.int64)
        """Roots inside prompts."""
        self._place_roots(kept, lengths)

    def _place_roots(self, documents: Sequence[Document], lengths: Sequence[int]) -> None:
        start, others = 0, list[Tensor]()
        for document, length in zip(documents, lengths, strict=True):
            first = max(self.window, document.first_answer - 1)
            self.roots_by_document.append(torch.arange(start + first, start + length - 1))
            others.append(torch.arange(start + self.window, start + first))
            start += length
        self.other_roots = torch.cat([self.other_roots, *others])

    @property
    def roots(self) -> Tensor:
        """All roots at which the target's own words begin."""
        return torch.cat(self.roots_by_document)

    def _teach(self, output_rows: Tensor, documents: Sequence[Document]) -> None:
        """Finds what should follow each token, and how sure that is."""
        said = torch.cat([self._tokens[1:], torch.tensor([self._unknown])])
        known = (said != self._unknown) & (torch.arange(len(said)) + 1 < self._ends)
        self._said = torch.where(torch.arange(len(said)) + 1 < self._ends, said, -1)
        if self._hidden is None:
            self._wanted = said.clamp_max(self._unknown - 1)[:, None]
            self._chances = known.float()[:, None]
            return
        has_state = torch.cat(
            [torch.arange(len(one.tokens)) < _num_states(one) for one in documents]
        )
        num = min(_TEACHER_TOKENS, self._unknown)
        rows = output_rows.to(self._hidden.dtype)
        chances, wanted = list[Tensor](), list[Tensor]()
        for hidden in torch.split(self._hidden, 2048):
            top = (hidden @ rows.T).float().softmax(-1).topk(num)
            chances.append(top.values / top.values.sum(-1, keepdim=True))
            wanted.append(top.indices)
        self._wanted = torch.cat(wanted)
        self._chances = torch.cat(chances) * (known & has_state)[:, None]

    def transitions(self, most: int) -> tuple[Tensor, Tensor, Tensor] | None:
        """Returns tokens [N], the states that chose them and those after them, both [N, T].

        At most `most`, evenly spread; None if the target has not read these texts.
        """
        if self._hidden is None:
            return None
        at = torch.cat([self.roots, self.other_roots]).sort().values
        at = at[:: max(1, len(at) // most)]
        return self._tokens[at], self._hidden[at - 1], self._hidden[at]

    def contexts(self, length: int) -> Tensor:
        """Returns each token with those before it, [tokens, length] trimmed ids: -1 before a text's
        beginning, and for a token that is not in the vocabulary with all before that."""
        at = torch.arange(len(self._tokens))
        before = at[:, None] + torch.arange(1 - length, 1)
        tokens = self._tokens[before.clamp_min(0)]
        is_there = (before >= self._starts[:, None]) & (tokens != self._unknown)
        # From the latest on: none counts before one that is missing.
        is_there = is_there.flip(1).cumprod(1).flip(1).bool()
        return torch.where(is_there, tokens, -1)

    @property
    def wanted(self) -> tuple[Tensor, Tensor]:
        """What each token should be followed by, and the chances, as in `Batch`; [tokens, k]."""
        return self._wanted, self._chances

    def batch(self, roots: Tensor) -> Batch:
        """Returns the examples with these roots."""
        steps = torch.arange(1 - self.window, self.depth + 1)
        last = self._ends[roots][:, None] - 1
        wanted_at = roots[:, None] + steps
        at = wanted_at.minimum(last)
        followed = at[:, self.window - 1 :]
        inside = (wanted_at <= last)[:, self.window - 1 :]
        return Batch(
            tokens=self._tokens[at],
            hidden=None if self._hidden is None else self._hidden[at - 1],
            wanted=self._wanted[followed],
            chances=self._chances[followed] * inside[..., None],
            said=torch.where(inside, self._said[followed], -1),
        )


def _num_states(document: Document) -> int:
    return 0 if document.hidden is None else len(document.hidden)


def _padded(document: Document) -> Tensor:
    """The hidden states, with zeros for the last tokens that have none."""
    assert document.hidden is not None
    missing = len(document.tokens) - len(document.hidden)
    return torch.cat(
        [document.hidden, document.hidden.new_zeros(missing, document.hidden.shape[1])]
    )
