"""What training and loading a draft need to know of its target model's directory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from adaseek_vllm.token_tree.drafts.config import DraftError, TargetFacts
from adaseek_vllm.token_tree.drafts.prompts import Prompt

__all__ = ["facts_of", "load_tokenizer", "output_rows", "tokenised"]

_OUTPUT, _EMBEDDING = "lm_head.weight", "embed_tokens.weight"


# transformers' tokenizers have no common type that can be named without importing it.
def load_tokenizer(target: str) -> Any:
    """Returns the target's tokenizer, None if it has none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(target)
    except (OSError, ValueError):
        return None


def facts_of(target: str, tokenizer: Any) -> TargetFacts:
    """Returns what a draft must share with the target.

    Raises:
        DraftError: the target's configuration cannot be read.
    """
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(target).get_text_config()
    except (OSError, ValueError) as error:
        raise DraftError(f"The target {target} cannot be read: {error}.") from error
    return TargetFacts(config.vocab_size, config.hidden_size, _fingerprint(tokenizer))


def _fingerprint(tokenizer: Any) -> str:
    if tokenizer is None:
        return ""
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]))
    return sha256(vocabulary.encode()).hexdigest()[:16]


def output_rows(directory: Path, tokens: Sequence[int]) -> torch.Tensor:
    """Returns the rows of the target's output layer for `tokens`, [tokens, hidden] float32.

    Raises:
        DraftError: the weights cannot be found: they must be safetensors.
    """
    found: dict[str, Path] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            found |= dict.fromkeys(file.keys(), path)
    for ending in (_OUTPUT, _EMBEDDING):
        for name, path in found.items():
            if name.endswith(ending):
                with safe_open(path, framework="pt") as file:
                    weights: torch.Tensor = file.get_tensor(name)
                return weights[torch.tensor(tokens)].float()
    raise DraftError(
        f"The target {directory} has no {_OUTPUT} or {_EMBEDDING} in *.safetensors files."
    )


def tokenised(prompts: Sequence[Prompt], tokenizer: Any, max_tokens: int) -> list[list[int]]:
    """Returns the tokens of each prompt, cut to its last `max_tokens`."""
    texts: list[list[int]] = []
    for prompt in prompts:
        if prompt.messages:
            tokens = tokenizer.apply_chat_template(
                list(prompt.messages), add_generation_prompt=True, return_dict=False
            )
        else:
            tokens = tokenizer(prompt.text)["input_ids"]
        texts.append([int(token) for token in tokens[-max_tokens:]])
    return texts
