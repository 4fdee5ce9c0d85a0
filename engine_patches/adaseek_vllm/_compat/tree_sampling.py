"""vLLM's sampling settings for some requests of a batch, further along than the batch knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.logits_processor.interface import BatchUpdate
from vllm.v1.sample.metadata import SamplingMetadata

__all__ = ["narrowed"]


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
    outputs = [[*state.output_token_ids, *path] for state, path in zip(states, paths, strict=True)]
    # With drafts, vLLM has one processor only: the one of `min_tokens`.
    if all(
        len(output) >= state.sampling_params.min_tokens
        for state, output in zip(states, outputs, strict=True)
    ):
        return LogitsProcessors()
    added = [
        (new, state.sampling_params, state.prompt_token_ids, output)
        for new, (state, output) in enumerate(zip(states, outputs, strict=True))
    ]
    update = BatchUpdate(batch_size=len(requests), removed=[], added=added, moved=[])
    processors = [
        type(processor)(runner.vllm_config, runner.device, False)
        for processor in metadata.logitsprocs.all
    ]
    for processor in processors:
        processor.update_state(update)
    return LogitsProcessors(processors)
