"""Reads from vLLM's requests how a turn ended (vLLM 0.32)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vllm.v1.request import RequestStatus

from adaseek_vllm._compat.kv_blocks import PrefixCacheBlocks
from adaseek_vllm.retention.hints import Hints
from adaseek_vllm.retention.settings import RetentionSettings
from adaseek_vllm.retention.tool_calls import NUM_TAIL_TOKENS, ToolCall, tool_call_at_end
from adaseek_vllm.retention.turns import EndedTurn

__all__ = ["TurnReader", "extra_args", "owner"]


# Requests are vLLM's and are passed as they are.
class TurnReader:
    """Tells turns that ended by themselves from those that were cut short, and what they end with.

    Args:
        blocks: the prefix cache's blocks.
        answer_text: decodes tokens of an answer.
        settings: of retention.
        block_tokens: tokens of a block.
        keeps_context: whether a turn's tokens may be wanted after its end.
    """

    def __init__(
        self,
        blocks: PrefixCacheBlocks,
        answer_text: Callable[[Sequence[int]], str],
        settings: RetentionSettings,
        *,
        block_tokens: int,
        keeps_context: bool,
    ) -> None:
        self.answer_text: Callable[[Sequence[int]], str] = answer_text
        self._block_tokens = block_tokens
        self._blocks = blocks
        self._pin_aborted = settings.pin_aborted
        self._marker_ids = frozenset(settings.markers)
        self._keeps_context = keeps_context

    def read(self, request: Any, *, looks_for_calls: bool) -> EndedTurn | None:
        """Returns the turn that a request was; None if nothing should be kept of it.

        Args:
            request: has ended; its blocks are not free yet.
            looks_for_calls: whether to look at what it wrote for a tool call.
        """
        stopped_at = self._stopped_at(request)
        is_over = stopped_at is not None or request.status in (
            RequestStatus.FINISHED_STOPPED,
            RequestStatus.FINISHED_LENGTH_CAPPED,
        )
        is_abort = request.status == RequestStatus.FINISHED_ABORTED
        if not (is_over or (is_abort and self._pin_aborted)):
            return None
        hints = Hints.read(extra_args(request))
        call = self._tool_call(request, hints, stopped_at, looks_for_calls=looks_for_calls)
        if hints.pause_at is not None and call is not None:
            hints = replace(hints, is_final=False)
        return self._turn(request, hints, call)

    def _turn(self, request: Any, hints: Hints, call: ToolCall | None) -> EndedTurn:
        blocks, num_tokens = self._blocks.hits(request, request.num_tokens)
        tenant, adapter = owner(request)
        return EndedTurn(
            request_id=request.request_id,
            blocks=blocks,
            context_tokens=num_tokens,
            num_prompt_blocks=request.num_prompt_tokens // self._block_tokens,
            arrival_s=request.arrival_time,
            tenant=tenant,
            adapter=adapter,
            calls_tool=call is not None,
            tool=call.name if call is not None else "",
            hints=hints,
            fingerprint=request.block_hashes[-1] if request.block_hashes else None,
            context=request if self._keeps_context else None,
        )

    def _stopped_at(self, request: Any) -> int | str | None:
        """Returns the token or text that a turn ended at, None if it ended otherwise.

        vLLM's front end looks for stop texts, and then aborts the request in the engine as if its
        client had gone: only the text tells the two apart.
        """
        if request.status == RequestStatus.FINISHED_STOPPED:
            return next(reversed(request.output_token_ids), None)
        params = request.sampling_params
        if request.status != RequestStatus.FINISHED_ABORTED or params is None or not params.stop:
            return None
        text = self.answer_text(request.output_token_ids[-NUM_TAIL_TOKENS:])
        return next((stop for stop in params.stop if stop in text), None)

    def _tool_call(
        self, request: Any, hints: Hints, stopped_at: int | str | None, *, looks_for_calls: bool
    ) -> ToolCall | None:
        """Returns the call that a turn ends with: what the client says, else what can be seen."""
        is_pause = hints.pause_at is not None and stopped_at in hints.pause_at
        if hints.tool is not None and (is_pause or hints.pause_at is None):
            return ToolCall(hints.tool)
        if not looks_for_calls:
            return None
        answer: Sequence[int] = request.output_token_ids
        call = tool_call_at_end(answer, self.answer_text)
        has_marker = not self._marker_ids.isdisjoint(answer[-NUM_TAIL_TOKENS:])
        return ToolCall("") if call is None and (is_pause or has_marker) else call


def extra_args(request: Any) -> dict[str, object] | None:
    """Returns what a request's client sent beside vLLM's own arguments."""
    params = request.sampling_params
    return params.extra_args if params is not None else None


def owner(request: Any) -> tuple[str, str]:
    """Returns a request's tenant and adapter; see `SessionKey`."""
    lora = request.lora_request
    return request.cache_salt or "", lora.lora_name if lora is not None else ""
