"""Text of an answer's last tokens, in the engine's process (vLLM 0.32)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["AnswerText"]


class AnswerText:
    """Turns tokens into text with the model's tokenizer, which is loaded when first needed.

    Args:
        model_config: vLLM's.
    """

    def __init__(self, model_config: Any) -> None:
        self._config = model_config
        self._tokenizer: Any = None

    def __call__(self, token_ids: Sequence[int]) -> str:
        """Returns the text with special tokens; "" if the engine runs without a tokenizer."""
        if self._config.skip_tokenizer_init:
            return ""
        if self._tokenizer is None:
            from vllm.tokenizers.registry import cached_tokenizer_from_config

            self._tokenizer = cached_tokenizer_from_config(self._config)
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=False))
