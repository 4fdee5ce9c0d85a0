"""vLLM's sampling settings for some requests of a batch, further along than the batch knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.logits_processor.interface import BatchUpdate
from vllm.v1.sample.metadata import SamplingMetadata

__all__ = ["is_for_whole_batches", "is_plainly_greedy", "narrowed"]


def is_for_whole_batches(metadata: SamplingMetadata) -> bool:
    """Whether vLLM's sampler cannot be asked for a part of the batch."""
    budgets = metadata.thinking_budget_state_holder
    has_budgets = budgets is not None and budgets.has_tracked_requests()
    return bool(metadata.logprob_token_ids) or has_budgets


def is_plainly_greedy(runner: Any, metadata: SamplingMetadata) -> bool:
    """Whether every request's next token is the likeliest one, whatever was emitted before it.

    All rows can then be asked at once, and vLLM's sampler need not copy those of the path.
    """
    return (
        metadata.all_greedy
        and metadata.no_penalties
        and metadata.max_num_logprobs is None
        and metadata.allowed_token_ids_mask is None
        and not is_for_whole_batches(metadata)
        and not metadata.bad_words_token_ids
        and all(_has_min_tokens(runner.requests[name], ()) for name in runner.input_batch.req_ids)
    )


def narrowed(
    runner: Any,
    metadata: SamplingMetadata,
    requests: Sequence[int],
    paths: Sequence[Sequence[int]],
) -> SamplingMetadata:
    """Returns the settings of `requests`, as if `paths` had been emitted for them already.

    Args:
        runner: vLLM's model runner.
        metadata: settings of the whole batch.
        requests: indices in the batch.
        paths: the tokens emitted in this step for each of them.
    """
    index = torch.tensor(requests, device=runner.device)

    def rows(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[index]

    def renumbered(by_request: dict[int, Any]) -> dict[int, Any]:
        return {new: by_request[old] for new, old in enumerate(requests) if old in by_request}

    outputs = metadata.output_token_ids
    penalties = {
        name: tensor[index] if not metadata.no_penalties else tensor
        for name in ("frequency_penalties", "presence_penalties", "repetition_penalties")
        if (tensor := getattr(metadata, name)) is not None
    }
    return replace(
        metadata,
        temperature=rows(metadata.temperature),
        top_p=rows(metadata.top_p),
        top_k=rows(metadata.top_k),
        generators=renumbered(metadata.generators),
        prompt_token_ids=rows(metadata.prompt_token_ids),
        output_token_ids=[
            [*outputs[request], *path] if outputs else []
            for request, path in zip(requests, paths, strict=True)
        ],
        allowed_token_ids_mask=rows(metadata.allowed_token_ids_mask),
        bad_words_token_ids=renumbered(metadata.bad_words_token_ids),
        logitsprocs=_processors(runner, metadata, requests, paths),
        spec_token_ids=None,
        **penalties,
    )


def _processors(
    runner: Any,
    metadata: SamplingMetadata,
    requests: Sequence[int],
    paths: Sequence[Sequence[int]],
) -> LogitsProcessors:
    """Returns new processors that know only `requests`, by vLLM's interface for processors."""
    states = [runner.requests[runner.input_batch.req_ids[request]] for request in requests]
    # With drafts, vLLM has one processor only: the one of `min_tokens`.
    if all(_has_min_tokens(state, path) for state, path in zip(states, paths, strict=True)):
        return LogitsProcessors()
    added = [
        (new, state.sampling_params, state.prompt_token_ids, [*state.output_token_ids, *path])
        for new, (state, path) in enumerate(zip(states, paths, strict=True))
    ]
    update = BatchUpdate(batch_size=len(requests), removed=[], added=added, moved=[])
    processors = [
        type(processor)(runner.vllm_config, runner.device, False)
        for processor in metadata.logitsprocs.all
    ]
    for processor in processors:
        processor.update_state(update)
    return LogitsProcessors(processors)


# A request's state in vLLM's model runner.
def _has_min_tokens(state: Any, path: Sequence[int]) -> bool:
    min_tokens: int = state.sampling_params.min_tokens
    return len(state.output_token_ids) + len(path) >= min_tokens
