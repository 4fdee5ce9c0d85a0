"""Drafts by a small model: level by level, all requests and all open nodes in one pass each."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from adaseek_vllm.token_tree.cost import StepCost
from adaseek_vllm.token_tree.drafts.calibration import Calibration, DraftedTree
from adaseek_vllm.token_tree.drafts.config import TargetFacts, check_target
from adaseek_vllm.token_tree.drafts.corpus import trimmed
from adaseek_vllm.token_tree.drafts.files import load_draft
from adaseek_vllm.token_tree.drafts.model import DraftModel, Memory
from adaseek_vllm.token_tree.drafts.windows import Windows
from adaseek_vllm.token_tree.guesses import Guesses, best_step
from adaseek_vllm.token_tree.sources import DraftRequest, VerifiedRows
from adaseek_vllm.token_tree.tree import ROOT

__all__ = ["DraftModelSource"]

_CHILDREN = 4
"""Guesses below a node."""
_OPEN_NODES = 4
"""Most nodes per request that one pass looks below: so many rows cost hardly more than one."""
_MAX_DEPTH = 16
_MIN_PROBABILITY = 0.02
_STEPS_BETWEEN_TRIALS = 32
"""When drafting does not pay, it is tried again so often, to notice when it does."""


@dataclass
class _Growing:
    """One request's tree and the nodes that the next pass looks below."""

    known: Guesses
    """What other sources guess."""
    merged: Guesses
    """The same and the tree."""
    known_chances: list[float]
    """How likely other sources' guesses are right at each depth if they were before."""
    tree: DraftedTree = field(default_factory=DraftedTree)
    open_nodes: list[int] = field(default_factory=lambda: [ROOT])
    slots: dict[int, int] = field(default_factory=lambda: {ROOT: -1})
    """Node -> its place in the memory behind the window; the root is the window's last."""
    merged_nodes: dict[int, int] = field(default_factory=lambda: {ROOT: ROOT})
    """Node -> the node of `merged`."""

    @classmethod
    def beside(cls, known: Guesses) -> _Growing:
        reach = [1.0, *known.reach()]
        chances = [below / above if above else 0.0 for above, below in pairwise(reach)]
        return cls(known, known.copy(), chances)

    def add(self, parent: int, token: int, stated: float, chance: float) -> int:
        node = self.tree.add(parent, token, stated, chance)
        probability = self.tree.guesses.probability(node)
        self.merged_nodes[node] = self.merged.add(self.merged_nodes[parent], token, probability)
        return node


class DraftModelSource:
    """A draft model as a source.

    Its guesses are a top-k, so they are not drawn and sampling from the target verifies them
    without loss. A pass is made if it is expected to raise the tokens per second of the step, by
    guesses that no other source has.
    """

    num_successors = 0

    def __init__(self, model: DraftModel) -> None:
        self._model = model
        vocab_size = model.config.target.vocab_size
        self._windows = Windows(model.config, trimmed(model.tokens, vocab_size))
        self._target_ids: list[int] = model.tokens.tolist()
        self._own_ids = {token: own for own, token in enumerate(self._target_ids)}
        self._calibration = Calibration()
        self._pass_cost, self._num_passes = StepCost(), 0
        # What was guessed about a request that had so many tokens.
        self._drafted: dict[str, tuple[int, _Growing]] = {}
        self._num_skipped = 0
        self.spent_s = 0.0
        """Seconds of the last call of `draft_batch` in the model."""

    @classmethod
    def load(cls, directory: Path, target: TargetFacts) -> DraftModelSource:
        """Returns the draft of a directory.

        Raises:
            DraftError: it cannot be read, or was trained for another target.
        """
        model = load_draft(directory)
        check_target(directory, model.config.target, target)
        return cls(model)

    @property
    def num_requests(self) -> int:
        """Requests of which something is kept."""
        return max(len(self._drafted), len(self._windows))

    def pass_seconds(self, num_rows: int) -> float:
        """Returns what one pass over so many rows takes, as measured so far."""
        return self._pass_cost(num_rows)

    def draft(self, request: DraftRequest, max_nodes: int) -> Guesses:
        """Returns guesses about one request, whatever they cost."""
        return self.draft_batch([request], [Guesses()], max_nodes, None)[0]

    @torch.inference_mode()
    def draft_batch(
        self,
        requests: Sequence[DraftRequest],
        known: Sequence[Guesses],
        max_nodes: int,
        step_cost: Callable[[int], float] | None,
    ) -> list[Guesses]:
        """Returns guesses about each request; none if no pass is expected to pay."""
        for request in requests:
            self._windows.take_in(request)
            self._judge(request)
        growing = [_Growing.beside(one) for one in known]
        self.spent_s = 0.0
        if requests and self._may_begin(growing, max_nodes, step_cost):
            self._grow(requests, growing, max_nodes, step_cost)
        for request, one in zip(requests, growing, strict=True):
            self._drafted[request.request_id] = len(request.tokens), one
        return [one.tree.guesses for one in growing]

    def learn(self, rows: VerifiedRows) -> None:
        """Learns nothing from rows: it judges its guesses by what was said."""

    def forget(self, request_id: str) -> None:
        """Drops what is kept of a request."""
        self._windows.forget(request_id)
        self._drafted.pop(request_id, None)

    def _judge(self, request: DraftRequest) -> None:
        if (known := self._drafted.pop(request.request_id, None)) is not None:
            num_tokens, grown = known
            said = request.tokens[num_tokens:].tolist()
            self._calibration.learn(grown.tree, said, grown.known, grown.known_chances)

    def _may_begin(
        self,
        growing: Sequence[_Growing],
        max_nodes: int,
        step_cost: Callable[[int], float] | None,
    ) -> bool:
        num_rows = len(growing) * self._model.config.window
        if self._pays(growing, 0, num_rows, max_nodes, step_cost):
            return True
        self._num_skipped += 1
        return self._num_skipped % _STEPS_BETWEEN_TRIALS == 0

    def _grow(
        self,
        requests: Sequence[DraftRequest],
        growing: list[_Growing],
        max_nodes: int,
        step_cost: Callable[[int], float] | None,
    ) -> None:
        began_s = time.perf_counter()
        states, memory, is_seen = self._read(requests)
        num_rows = len(growing) * self._model.config.window
        for depth in range(min(_MAX_DEPTH, max_nodes)):
            self._branch(growing, self._model.logits(states), depth, max_nodes)
            self._count(num_rows, began_s)
            num_rows = len(growing) * max(len(one.open_nodes) for one in growing)
            if not num_rows or not self._pays(growing, depth + 1, num_rows, max_nodes, step_cost):
                return
            began_s = time.perf_counter()
            states, memory, is_seen = self._look(growing, states, memory, is_seen, depth + 1)

    def _branch(
        self, growing: Sequence[_Growing], logits: Tensor, depth: int, max_nodes: int
    ) -> None:
        """Adds the likeliest children of the open nodes, and opens the likeliest of those.

        Args:
            logits: after the open nodes, [B, rows, V].
        """
        laws = logits.float().softmax(-1)
        top = laws.topk(min(_CHILDREN, laws.shape[-1]))
        values, places = top.values.tolist(), top.indices.tolist()
        for index, one in enumerate(growing):
            found = [
                (one.tree.guesses.probability(node) * chance, chance, stated, node, place)
                for row, node in enumerate(one.open_nodes)
                for stated, place in zip(values[index][row], places[index][row], strict=True)
                if (chance := self._calibration.chance(depth, stated)) > 0.0
            ]
            found.sort(key=lambda entry: -entry[0])
            room = max_nodes - len(one.tree.stated)
            added = [
                one.add(node, self._target_ids[place], stated, chance)
                for path, chance, stated, node, place in found[:room]
                if path >= _MIN_PROBABILITY
            ]
            one.open_nodes = added[:_OPEN_NODES]

    def _count(self, num_rows: int, began_s: float) -> None:
        seconds = time.perf_counter() - began_s
        self._pass_cost.observe(num_rows, seconds)
        self._num_passes += 1
        self.spent_s += seconds

    def _pays(
        self,
        growing: Sequence[_Growing],
        depth: int,
        pass_rows: int,
        max_nodes: int,
        step_cost: Callable[[int], float] | None,
    ) -> bool:
        """Whether one more pass is expected to raise the tokens per second of this step.

        Args:
            growing: with the nodes that the pass would look below.
            depth: of those nodes.
            pass_rows: rows of the pass.
            max_nodes: most nodes per request in the verification.
            step_cost: seconds of the verification by its rows; None: it pays.
        """
        if step_cost is None:
            return True
        hope = 0.0
        for one in growing:
            chances = [one.tree.guesses.probability(node) for node in one.open_nodes]
            added = self._calibration.added_chance(depth, one.known_chances)
            hope += sum(chances) * added
        merged, spent_s = [one.merged for one in growing], self.spent_s
        num_rows, expected = best_step(
            merged, max_nodes=max_nodes, step_cost=lambda rows: step_cost(rows) + spent_s
        )
        pass_s = self._pass_cost(pass_rows) if self._num_passes else 0.0
        now = expected / (step_cost(num_rows) + spent_s)
        more = step_cost(num_rows + len(growing)) + spent_s + pass_s
        return (expected + hope) / more > now

    def _read(self, requests: Sequence[DraftRequest]) -> tuple[Tensor, Memory, Tensor]:
        """Reads the windows; returns states foreseen after the roots [B, 1, T], memory and mask."""
        model, size = self._model, self._model.config.window
        window = self._windows.of(requests, model.output_rows.dtype)
        causal = torch.ones(size, size, dtype=torch.bool).tril()
        mask = (causal & window.is_there[:, None, :]) | torch.eye(size, dtype=torch.bool)
        inputs = model.embed(window.tokens, window.hidden)
        states, memory = model(inputs, torch.arange(size)[None], mask[:, None])
        return states[:, -1:], memory, window.is_there[:, None, :]

    def _look(
        self,
        growing: Sequence[_Growing],
        states: Tensor,
        memory: Memory,
        is_seen: Tensor,
        depth: int,
    ) -> tuple[Tensor, Memory, Tensor]:
        """Reads the open nodes of all requests.

        Args:
            states: foreseen after the rows of the last pass, [B, rows, T].
            is_seen: what the rows of the last pass attended to, [B, rows, K].

        Returns:
            States foreseen after them [B, rows, T], the memory and what each row attended to.
        """
        num_rows = max(len(one.open_nodes) for one in growing)
        tokens = torch.zeros(len(growing), num_rows, dtype=torch.int64)
        before = torch.zeros(len(growing), num_rows, dtype=torch.int64)
        for index, one in enumerate(growing):
            parents, drafted = one.tree.guesses.tree.parents, one.tree.guesses.tree.tokens
            for row, node in enumerate(one.open_nodes):
                tokens[index, row] = self._own_ids[drafted[node]]
                before[index, row] = one.slots[parents[node]]
                one.slots[node] = row
        before = before.clamp_min(0)[..., None]
        mask = is_seen.gather(1, before.expand(-1, -1, is_seen.shape[2]))
        foreseen = states.gather(1, before.expand(-1, -1, states.shape[2]))
        own = torch.eye(num_rows, dtype=torch.bool).expand(len(growing), -1, -1)
        mask = torch.cat([mask, own], dim=2)
        position = torch.full((1, num_rows), self._model.config.window - 1 + depth)
        inputs = self._model.embed(tokens, foreseen)
        after, memory = self._model(inputs, position, mask[:, None], memory)
        return after, memory, mask
