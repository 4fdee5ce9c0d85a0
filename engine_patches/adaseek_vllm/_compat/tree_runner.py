"""A worker and model runner of vLLM's that verify trees (vLLM 0.32, model runner V1).

Each override calls the original. vllm/v1/worker/cpu_worker.py, cpu_model_runner.py and
gpu_model_runner.py hold the originals.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.worker.cpu_model_runner import CPUModelRunner
from vllm.v1.worker.cpu_worker import CPUWorker

from adaseek_vllm._compat.tree_attention import (
    TreeForward,
    layers_without_trees,
    registered_backend,
)
from adaseek_vllm._compat.tree_sampling import narrowed
from adaseek_vllm.config import FeatureSettingsError
from adaseek_vllm.token_tree.proposer import TreeProposer
from adaseek_vllm.token_tree.sources import DraftRequest
from adaseek_vllm.token_tree.step import RequestTree, TreeStep, moves
from adaseek_vllm.token_tree.tree import TreeTokens
from adaseek_vllm.token_tree.verify import Verified, batch_walk

# vLLM's classes are not followed by every type checker, hence the ignored subclassing below.
__all__ = ["TreeCPUModelRunner", "TreeCPUWorker"]

_NO_TOKEN = -1


class TreeCPUModelRunner(CPUModelRunner):  # type: ignore[misc]
    """Runs trees through the target model, walks them, and moves what was accepted into place."""

    # One step's drafts and trees; set by `_prepare_inputs`, read until the step's end.
    _drafts: list[TreeTokens]
    _accepted: list[tuple[int, ...]]
    _forward: TreeForward | None
    _started_s: float
    _is_decoding: bool

    @property
    def _proposer(self) -> TreeProposer:
        return cast(TreeProposer, self.drafter)

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        with registered_backend():
            super().load_model(*args, **kwargs)
        layers = self.compilation_config.static_forward_context
        for name, reason in layers_without_trees(layers).items():
            # A causal mask over a tree's rows would accept wrong tokens without a sign of it.
            raise FeatureSettingsError(
                f"--token-tree cannot be used with this model: layer {name} does not attend along "
                f"trees, because {reason}. Leave the flag out."
            )

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        self._started_s = time.perf_counter()
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        drafted = scheduler_output.scheduled_spec_decode_tokens
        request_ids = self.input_batch.req_ids
        self._drafts = [_as_tree(drafted.get(request_id, ())) for request_id in request_ids]
        self._accepted = [() for _ in request_ids]
        ends = np.cumsum(num_scheduled_tokens)
        trees = [
            self._request_tree(index, draft, int(ends[index]))
            for index, draft in enumerate(self._drafts)
            if not draft.is_chain
        ]
        self._forward = None
        if trees:
            step = TreeStep(tuple(trees))
            rows = torch.from_numpy(step.rows)
            # After the slots were computed from them: a row's slot follows its number, its
            # position its depth.
            self.positions[rows] += torch.from_numpy(step.position_shifts)
            self._forward = TreeForward(step, rows)
        # What a step costs is learned from steps that hold nothing but drafts.
        self._is_decoding = len(num_scheduled_tokens) + sum(map(len, self._drafts)) == ends[-1]
        return prepared

    def _request_tree(self, index: int, draft: TreeTokens, end: int) -> RequestTree:
        num_tokens = int(self.optimistic_seq_lens_cpu[index])
        num_rows = len(draft) + 1
        return RequestTree(index, end - num_rows, num_tokens - num_rows, draft)

    def _build_attention_metadata(self, *args: Any, **kwargs: Any) -> Any:
        # Layer -> metadata; a list of these only with microbatches, which a CPU has not.
        built: Any = super()._build_attention_metadata(*args, **kwargs)
        # A dummy run makes metadata too, without a step of ours.
        if kwargs.get("use_spec_decode") and self._forward is not None:
            for metadata in {id(item): item for item in built[0].values()}.values():
                metadata.tree_forward = self._forward
        return built

    def _sample(self, logits: torch.Tensor | None, spec_decode_metadata: Any) -> SamplerOutput:
        if spec_decode_metadata is None or logits is None:
            return super()._sample(logits, spec_decode_metadata)
        counts = [len(draft) + 1 for draft in self._drafts]
        first_rows = np.cumsum([0, *counts[:-1]])
        taken: list[tuple[list[int], SamplerOutput]] = []

        def choose(
            requests: Sequence[int], rows: Sequence[int], paths: Sequence[Sequence[int]]
        ) -> list[int]:
            metadata = self.input_batch.sampling_metadata
            if taken:
                metadata = narrowed(self, metadata, requests, paths)
            # Indexing copies, and the sampler works in place.
            sampled = self.sampler(
                logits=logits[torch.from_numpy(first_rows[requests] + np.asarray(rows))],
                sampling_metadata=metadata,
            )
            taken.append((list(requests), sampled))
            return [token for (token,) in sampled.sampled_token_ids.tolist()]

        self._learn(logits, spec_decode_metadata)
        verified = batch_walk(self._walkable_drafts(), choose)
        self._accepted = [one.rows for one in verified]
        self._move_accepted(verified)
        if self._is_decoding:
            self._proposer.step_cost.observe(len(logits), time.perf_counter() - self._started_s)
        return _merged(verified, taken)

    def _learn(self, logits: torch.Tensor, spec_decode_metadata: Any) -> None:
        """Tells the sources what the target found likely after every row, accepted or not."""
        if num_successors := self._proposer.num_successors:
            tokens = self.input_ids.gpu[spec_decode_metadata.logits_indices].long()
            successors = logits.topk(num_successors).indices
            self._proposer.learn(tokens.numpy(), successors.numpy())

    def _walkable_drafts(self) -> list[TreeTokens]:
        """The step's drafts; none where vLLM's sampler cannot be asked for a part of the batch."""
        metadata = self.input_batch.sampling_metadata
        budgets = metadata.thinking_budget_state_holder
        if metadata.logprob_token_ids or (budgets is not None and budgets.has_tracked_requests()):
            return [TreeTokens() for _ in self._drafts]
        return self._drafts

    def _move_accepted(self, verified: Sequence[Verified]) -> None:
        forward, self._forward = self._forward, None
        if forward is None:
            return
        sources, targets = torch.from_numpy(moves(forward.step, [one.rows for one in verified]))
        if len(sources):
            for written in forward.written:
                written.move(sources, targets)

    def propose_draft_token_ids(
        self,
        scheduler_output: Any,
        sampled_token_ids: Any,
        _sampling_metadata: Any,
        hidden_states: torch.Tensor,
        *_args: Any,
        **_kwargs: Any,
    ) -> Any:
        batch, requests, end = self.input_batch, list[DraftRequest](), 0
        for index, request_id in enumerate(batch.req_ids):
            num_rows = scheduler_output.num_scheduled_tokens[request_id]
            end += num_rows
            request = DraftRequest(
                request_id=request_id,
                tokens=batch.token_ids_cpu[index, : batch.num_tokens_no_spec[index]],
                num_new_tokens=len(sampled_token_ids[index]),
                hidden=hidden_states[self._kept_rows(index, end - num_rows, end)],
                first_hidden=int(self.optimistic_seq_lens_cpu[index]) - num_rows,
            )
            requests.append(request)
        return self._proposer.draft(requests)

    def _kept_rows(self, index: int, start: int, end: int) -> slice | list[int]:
        """Rows of one request among the step's that stay: all but the rejected drafts."""
        root = end - len(self._drafts[index]) - 1
        if not self._accepted[index]:
            return slice(start, root + 1)
        return [*range(start, root + 1), *(root + row for row in self._accepted[index])]

    def _on_request_state_removed(self, req_id: str, req_state: Any) -> None:
        super()._on_request_state_removed(req_id, req_state)
        self._proposer.forget(req_id)

    def _input_fits_in_drafter(self, common_attn_metadata: Any) -> bool:
        # The scheduler cuts a tree that would run past the longest sequence.
        return True


class TreeCPUWorker(CPUWorker):  # type: ignore[misc]
    """vLLM's CPU worker with a runner that verifies trees."""

    def init_device(self) -> None:
        super().init_device()
        runner = self.model_runner
        assert type(runner) is CPUModelRunner, type(runner)
        # The runner is made inside a long method, so its class is changed before anything ran.
        runner.__class__ = TreeCPUModelRunner


def _as_tree(drafted: Sequence[int]) -> TreeTokens:
    return drafted if isinstance(drafted, TreeTokens) else TreeTokens(drafted)


def _merged(
    verified: Sequence[Verified], taken: Sequence[tuple[list[int], SamplerOutput]]
) -> SamplerOutput:
    """Returns the walk's calls of the sampler as one output, padded to the longest path."""
    num_columns = len(taken)
    tokens = torch.full((len(verified), num_columns), _NO_TOKEN, dtype=torch.int32)
    for request, one in enumerate(verified):
        tokens[request, : len(one.tokens)] = torch.tensor(one.tokens, dtype=torch.int32)
    parts = [output.logprobs_tensors for _, output in taken]
    if parts[0] is None or num_columns == 1:
        return SamplerOutput(sampled_token_ids=tokens, logprobs_tensors=parts[0])
    # [requests * columns, ...], of which vLLM keeps the rows that have a token.
    places = [torch.tensor(requests) * num_columns + at for at, (requests, _) in enumerate(taken)]
    ids, logprobs, ranks = (
        _scattered([part[field] for part in parts if part is not None], places, tokens.numel())
        for field in range(3)
    )
    return SamplerOutput(tokens, LogprobsTensors(ids, logprobs, ranks))


def _scattered(parts: Sequence[Any], places: Sequence[torch.Tensor], num_rows: int) -> torch.Tensor:
    """Returns the rows of `parts` at their places among `num_rows`, zeros elsewhere."""
    whole: torch.Tensor = parts[0].new_zeros(num_rows, *parts[0].shape[1:])
    for part, rows in zip(parts, places, strict=True):
        whole[rows] = part
    return whole
