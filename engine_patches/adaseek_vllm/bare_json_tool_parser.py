"""vLLM tool parser `bare_json`: calls that a model writes as plain JSON, see `bare_json`.

Loaded by vLLM's own flag, `--tool-parser-plugin FILE --enable-auto-tool-choice --tool-call-parser
bare_json` (`adaseek_vllm.bare_json.TOOL_FLAGS`). Written for vLLM 0.32. In a stream, text comes
piece by piece and every call in one piece, as soon as it is complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any  # Any: vLLM's requests and tools, several types without a common one

from vllm.entrypoints.generate.base.protocol import (
    DeltaFunctionCall,
    DeltaMessage,
    DeltaToolCall,
    ExtractedToolCallInformation,
    FunctionCall,
    ToolCall,
)
from vllm.renderers.chat_utils import make_tool_call_id
from vllm.tool_parsers.abstract_tool_parser import ToolParser, ToolParserManager

from adaseek_vllm.bare_json import CallScanner, FoundCall

__all__ = ["BareJsonToolParser"]


class BareJsonToolParser(ToolParser):  # type: ignore[misc]  # the base is vLLM's, not followed
    """Finds the calls in one reply. vLLM makes a new parser for every reply."""

    # Makes vLLM call `finish_streaming` at the end, so that text kept back is not lost.
    engine_based_streaming = True

    def __init__(self, tokenizer: Any, tools: Any = None) -> None:
        super().__init__(tokenizer, tools)
        self._scanner: CallScanner | None = None
        self._num_calls = 0

    def extract_tool_calls(self, model_output: str, request: Any) -> ExtractedToolCallInformation:
        """Returns the calls of a complete reply, and its text without them."""
        pieces = CallScanner(_tool_names(request)).feed(model_output, last=True)
        calls = [
            ToolCall(
                type="function", function=FunctionCall(name=call.name, arguments=call.arguments)
            )
            for call in pieces
            if isinstance(call, FoundCall)
        ]
        if not calls:
            return ExtractedToolCallInformation(
                tools_called=False, tool_calls=[], content=model_output
            )
        text = "".join(piece for piece in pieces if isinstance(piece, str)).strip()
        return ExtractedToolCallInformation(
            tools_called=True, tool_calls=calls, content=text or None
        )

    def extract_tool_calls_streaming(
        self,
        previous_text: str,
        current_text: str,
        delta_text: str,
        previous_token_ids: Sequence[int],
        current_token_ids: Sequence[int],
        delta_token_ids: Sequence[int],
        request: Any,
    ) -> DeltaMessage | None:
        """Returns what is certain after `delta_text`; only that and `request` are looked at."""
        if self._scanner is None:
            self._scanner = CallScanner(_tool_names(request))
        return self._message(self._scanner.feed(delta_text))

    def finish_streaming(self) -> DeltaMessage | None:
        """Returns what was kept back, when the reply has ended."""
        return self._message(self._scanner.feed("", last=True)) if self._scanner else None

    def _message(self, pieces: Iterable[str | FoundCall]) -> DeltaMessage | None:
        text, calls = "", []
        for piece in pieces:
            if isinstance(piece, str):
                text += piece
                continue
            function = DeltaFunctionCall(name=piece.name, arguments=piece.arguments)
            calls.append(
                DeltaToolCall(
                    index=self._num_calls,
                    type="function",
                    id=make_tool_call_id(),
                    function=function,
                )
            )
            self._num_calls += 1
        if not text and not calls:
            return None
        return DeltaMessage(content=text or None, tool_calls=calls)


def _tool_names(request: Any) -> list[str]:
    """Returns the names that a call may have; none if the client wants no calls."""
    if request.tool_choice == "none":
        return []
    tools = request.tools or []
    # Chat completions nest the function, responses do not.
    return [getattr(tool, "function", tool).name for tool in tools if hasattr(tool, "type")]


ToolParserManager.register_module("bare_json", module=BareJsonToolParser)
