"""A model runner of vLLM's that verifies trees, on any device (vLLM 0.32, model runner V1).

Each override calls the original, which vllm/v1/worker/gpu_model_runner.py holds for CPUs as well.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Any, ClassVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from vllm.logger import init_logger
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from adaseek_vllm._compat.tree_attention import (
    TreeForward,
    TreeMetadataBuilder,
    layers_without_trees,
    model_obstacle,
    registered_backend,
)
from adaseek_vllm._compat.tree_sampling import is_for_whole_batches, is_plainly_greedy, narrowed
from adaseek_vllm.config import FeatureSettingsError
from adaseek_vllm.token_tree.kernels import Kernel, best_kernel
from adaseek_vllm.token_tree.metrics import TreeMetrics
from adaseek_vllm.token_tree.proposer import TreeProposer
from adaseek_vllm.token_tree.sources import DraftRequest, VerifiedRows
from adaseek_vllm.token_tree.stats import TreeStats
from adaseek_vllm.token_tree.step import RequestTree, TreeStep, moves
from adaseek_vllm.token_tree.tree import TreeTokens
from adaseek_vllm.token_tree.verify import Verified, batch_walk, greedy_walk

# vLLM's classes are not followed by every type checker, hence the ignored subclassing below.
__all__ = ["TreeModelRunner"]

_NO_TOKEN = -1
_REPORT_INTERVAL_S = 10.0

# One of vLLM's own, or the line would not reach the log.
_logger = init_logger("vllm.adaseek.token_tree")


class TreeModelRunner(GPUModelRunner):  # type: ignore[misc]
    """Goes before a runner of vLLM's; runs trees through the target model, walks them, and moves
    what was accepted into place."""

    tree_backend: ClassVar[tuple[AttentionBackendEnum, type]]
    """The attention backend of vLLM's that is replaced, and what replaces it."""

    # Set once the KV caches are there.
    _layout: str
    _kernel: Kernel
    _metrics: TreeMetrics
    _stats: TreeStats  # since the last report
    _step_stats: TreeStats
    _caches: list[list[torch.Tensor]]  # of each group of layers that share block tables
    _tenants: dict[str, str]  # of the requests that are known
    # One step's drafts and trees; set by `_prepare_inputs`, read until the step's end.
    _drafts: list[TreeTokens]
    _accepted: list[tuple[int, ...]]
    _forward: TreeForward | None = None
    _started_s: float
    _is_decoding: bool

    @property
    def _proposer(self) -> TreeProposer:
        return cast(TreeProposer, self.drafter)

    def _cache_layout(self) -> str:
        """Returns the layout of the model's KV caches, one of `layouts.LAYOUTS`.

        Raises:
            ValueError: it is none of them.
        """
        raise NotImplementedError

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        if (reason := model_obstacle(self.model_config)) is not None:
            raise _unusable(reason)
        with registered_backend(*self.tree_backend):
            super().load_model(*args, **kwargs)
        layers = self.compilation_config.static_forward_context
        for name, reason in layers_without_trees(layers).items():
            # A causal mask over a tree's rows would accept wrong tokens without a sign of it.
            raise _unusable(f"layer {name} does not attend along trees, because {reason}")

    def initialize_kv_cache(
        self,
        kv_cache_config: Any,
        is_profiling: bool = False,
        kv_cache_allocation_context: Any = None,
    ) -> None:
        super().initialize_kv_cache(kv_cache_config, is_profiling, kv_cache_allocation_context)
        if is_profiling:
            # These caches are freed again, so nothing may hold them.
            return
        layers = self.compilation_config.static_forward_context
        self._metrics, self._stats, self._step_stats = TreeMetrics(), TreeStats(), TreeStats()
        self._tenants = {}
        try:
            self._layout = self._cache_layout()
        except ValueError as error:
            raise _unusable(str(error)) from error
        self._kernel = best_kernel(self._layout)
        self._caches = [
            _distinct([layers[name].kv_cache for name in group.layer_names])
            for group in self.kv_cache_config.kv_cache_groups
        ]

    def _prepare_inputs(self, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        self._started_s = time.perf_counter()
        prepared = super()._prepare_inputs(scheduler_output, num_scheduled_tokens)
        drafted = scheduler_output.scheduled_spec_decode_tokens
        request_ids = self.input_batch.req_ids
        self._tenants |= scheduler_output.tenants
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
            # After the slots were computed from them: a row's slot follows its number, its
            # position its depth.
            self.positions[self._placed(step.rows)] += self._placed(step.position_shifts)
            self._forward = TreeForward(step, self._kernel, len(request_ids))
        # What a step costs is learned from steps that hold nothing but drafts.
        self._is_decoding = len(num_scheduled_tokens) + sum(map(len, self._drafts)) == ends[-1]
        return prepared

    def _placed(self, array: NDArray[np.int64]) -> torch.Tensor:
        """Returns a copy on the runner's device."""
        return torch.from_numpy(array).to(self.device)

    def _request_tree(self, index: int, draft: TreeTokens, end: int) -> RequestTree:
        num_tokens = int(self.optimistic_seq_lens_cpu[index])
        num_rows = len(draft) + 1
        return RequestTree(index, end - num_rows, num_tokens - num_rows, draft)

    def _build_attention_metadata(self, *args: Any, **kwargs: Any) -> Any:
        # A dummy run makes metadata too, without a step of ours.
        forward = self._forward if kwargs.get("use_spec_decode") else None
        for group in chain.from_iterable(self.attn_groups):
            builder = group.get_metadata_builder()
            assert isinstance(builder, TreeMetadataBuilder), type(builder)
            builder.tree_forward = forward
        return super()._build_attention_metadata(*args, **kwargs)

    def _sample(self, logits: torch.Tensor | None, spec_decode_metadata: Any) -> SamplerOutput:
        if logits is None:
            return super()._sample(logits, spec_decode_metadata)
        self._step_stats.seconds["forward"] += time.perf_counter() - self._started_s
        with self._step_stats.timed("learn"):
            # Before the sampler works in place.
            rows = self._rows_of(logits)
        if spec_decode_metadata is None:
            output = super()._sample(logits, spec_decode_metadata)
            verified = [Verified((token,), ()) for (token,) in output.sampled_token_ids.tolist()]
        else:
            output, verified = self._walked(logits, rows)
        self._accepted = [one.rows for one in verified]
        with self._step_stats.timed("move"):
            self._move_accepted(verified)
        if self._is_decoding or spec_decode_metadata is not None:
            self._count(verified, num_rows=len(logits))
        if rows is not None:
            with self._step_stats.timed("learn"):
                self._proposer.learn(replace(rows, said=self._said(verified)))
        return output

    def _walked(
        self, logits: torch.Tensor, rows: VerifiedRows | None
    ) -> tuple[SamplerOutput, list[Verified]]:
        """Returns what vLLM's sampler says along the trees, and which rows it went along."""
        with self._step_stats.timed("walk"):
            first_rows = np.cumsum([0, *(len(draft) + 1 for draft in self._drafts[:-1])])
            if is_plainly_greedy(self, self.input_batch.sampling_metadata):
                likeliest = self._likeliest(logits, rows)
                verified = [
                    greedy_walk(draft, likeliest[first : first + len(draft) + 1])
                    for draft, first in zip(self._drafts, first_rows, strict=True)
                ]
                return _merged(verified, [], logits.device), verified
            return self._sampled_walk(logits, first_rows)

    def _likeliest(self, logits: torch.Tensor, rows: VerifiedRows | None) -> list[int]:
        """Returns what vLLM's sampler would choose after each row."""
        if rows is not None and self._kernel.takes_first_of_equals:
            found: list[int] = rows.successors[:, 0].tolist()
            return found
        likeliest: list[int] = self.sampler.greedy_sample(logits.to(torch.float32)).tolist()
        return likeliest

    def _sampled_walk(
        self, logits: torch.Tensor, first_rows: NDArray[np.int64]
    ) -> tuple[SamplerOutput, list[Verified]]:
        """Walks with vLLM's sampler, which is asked for the rows of the paths only."""
        metadata = self.input_batch.sampling_metadata
        taken: list[tuple[list[int], SamplerOutput]] = []

        def choose(
            requests: Sequence[int], rows: Sequence[int], paths: Sequence[Sequence[int]]
        ) -> list[int]:
            # Indexing copies, and the sampler works in place.
            sampled = self.sampler(
                logits=logits[self._placed(first_rows[requests] + np.asarray(rows))],
                sampling_metadata=(
                    narrowed(self, metadata, requests, paths) if taken else metadata
                ),
            )
            taken.append((list(requests), sampled))
            return [token for (token,) in sampled.sampled_token_ids.tolist()]

        drafts = self._drafts
        if is_for_whole_batches(metadata):
            drafts = [TreeTokens() for _ in drafts]
        verified = batch_walk(drafts, choose)
        return _merged(verified, taken, logits.device), verified

    def _count(self, verified: Sequence[Verified], *, num_rows: int) -> None:
        """Learns a step's cost, counts what it did, and logs now and then what was counted."""
        step, total = self._step_stats, self._stats
        if self._is_decoding:
            cost, actual_s = self._proposer.step_cost, time.perf_counter() - self._started_s
            if cost.has_learned:
                step.compare(predicted_s=cost(num_rows), actual_s=actual_s)
            cost.observe(num_rows, actual_s)
        step.add(self._drafts, verified)
        for request_id, one in zip(self.input_batch.req_ids, verified, strict=True):
            step.credit(self._proposer.credit(request_id, one.tokens[:-1]))
        self._metrics.add(step)
        total.merge(step)
        self._step_stats = TreeStats()
        if time.monotonic() - total.since_s >= _REPORT_INTERVAL_S:
            _logger.info(total.describe())
            self._stats = TreeStats()

    def _rows_of(self, logits: torch.Tensor) -> VerifiedRows | None:
        """Returns what the target finds likely after every row; None if no source wants it."""
        if not (num_successors := self._proposer.num_successors):
            return None
        tokens, previous, tenants = list[int](), list[int](), list[str]()
        for index, draft in enumerate(self._drafts):
            root = int(self.optimistic_seq_lens_cpu[index]) - len(draft) - 1
            text = self.input_batch.token_ids_cpu[index]
            rows = [int(text[root]), *draft]
            tokens += rows
            previous.append(int(text[root - 1]) if root else _NO_TOKEN)
            previous += [rows[parent + 1] for parent in draft.parents]
            tenants += [self._tenants[self.input_batch.req_ids[index]]] * len(rows)
        successors = self._kernel.top_tokens(logits, num_successors)
        scores = logits.gather(1, successors).float()
        # Where fewer tokens are possible, the first one is there again.
        scores[:, 1:].masked_fill_(successors[:, 1:] == successors[:, :1], -torch.inf)
        return VerifiedRows(
            tokens=np.array(tokens),
            previous=np.array(previous),
            successors=successors.cpu().numpy(),
            chances=scores.softmax(-1).cpu().numpy(),
            said=np.full(len(tokens), _NO_TOKEN),
            tenants=tenants,
        )

    def _said(self, verified: Sequence[Verified]) -> NDArray[np.int64]:
        """The token emitted after each row, -1 off the paths, [rows]."""
        said = np.full(len(verified) + sum(map(len, self._drafts)), _NO_TOKEN)
        first = 0
        for draft, one in zip(self._drafts, verified, strict=True):
            said[[first, *(first + row for row in one.rows)]] = one.tokens
            first += len(draft) + 1
        return said

    def _move_accepted(self, verified: Sequence[Verified]) -> None:
        forward, self._forward = self._forward, None
        if forward is None:
            return
        pairs = moves(forward.step, [one.rows for one in verified])
        if pairs.shape[1]:
            rows = self._placed(forward.step.rows[pairs])
            for group, caches in enumerate(self._caches):
                slots = self.input_batch.block_table[group].slot_mapping.gpu
                sources, targets = slots[rows].long()
                self._kernel.move_rows(caches, sources, targets, layout=self._layout)

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
            rows = self._kept_rows(index, end - num_rows, end)
            request = DraftRequest(
                request_id=request_id,
                tokens=batch.token_ids_cpu[index, : batch.num_tokens_no_spec[index]],
                num_new_tokens=len(sampled_token_ids[index]),
                # Sources that read them run on CPUs.
                hidden=hidden_states[rows] if hidden_states.is_cpu else None,
                first_hidden=int(self.optimistic_seq_lens_cpu[index]) - num_rows,
                tenant=self._tenants[request_id],
            )
            requests.append(request)
        with self._step_stats.timed("draft"):
            return self._proposer.draft(requests)

    def _kept_rows(self, index: int, start: int, end: int) -> slice | list[int]:
        """Rows of one request among the step's that stay: all but the rejected drafts."""
        root = end - len(self._drafts[index]) - 1
        if not self._accepted[index]:
            return slice(start, root + 1)
        return [*range(start, root + 1), *(root + row for row in self._accepted[index])]

    def _on_request_state_removed(self, req_id: str, req_state: Any) -> None:
        super()._on_request_state_removed(req_id, req_state)
        self._tenants.pop(req_id, None)
        self._proposer.forget(req_id)

    def _input_fits_in_drafter(self, common_attn_metadata: Any) -> bool:
        # The scheduler cuts a tree that would run past the longest sequence.
        return True


def _unusable(reason: str) -> FeatureSettingsError:
    return FeatureSettingsError(
        f"--token-tree cannot be used with this model: {reason}. Leave the flag out."
    )


def _distinct(caches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Layers may share a cache, whose rows must not move twice."""
    return list({cache.data_ptr(): cache for cache in caches}.values())


def _as_tree(drafted: Sequence[int]) -> TreeTokens:
    return drafted if isinstance(drafted, TreeTokens) else TreeTokens(drafted)


def _merged(
    verified: Sequence[Verified],
    taken: Sequence[tuple[list[int], SamplerOutput]],
    device: torch.device,
) -> SamplerOutput:
    """Returns the walk as one output, padded to the longest path, with what calls of the sampler,
    if there were any, say about its tokens."""
    num_columns = max(len(one.tokens) for one in verified)
    tokens = torch.full((len(verified), num_columns), _NO_TOKEN, dtype=torch.int32)
    for request, one in enumerate(verified):
        tokens[request, : len(one.tokens)] = torch.tensor(one.tokens, dtype=torch.int32)
    tokens = tokens.to(device)
    parts = [output.logprobs_tensors for _, output in taken]
    if not parts or parts[0] is None or num_columns == 1:
        return SamplerOutput(sampled_token_ids=tokens, logprobs_tensors=parts[0] if parts else None)
    # [requests * columns, ...], of which vLLM keeps the rows that have a token.
    places = [
        torch.tensor(requests, device=tokens.device) * num_columns + at
        for at, (requests, _) in enumerate(taken)
    ]
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
