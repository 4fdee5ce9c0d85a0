"""Writes the tokenizer of a GGUF file as tokenizer.json and tokenizer_config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adaseek.errors import AdaseekError

# The kinds of token in `tokenizer.ggml.token_type` that need care.
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5

# How Qwen2's tokenizer splits text into words before byte pairs are merged (its tokenizer.json).
_QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class TokenizerError(AdaseekError, RuntimeError):
    """The tokenizer of a GGUF file cannot be written."""


def write_tokenizer(metadata: dict[str, Any], into: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json to `into`.

    Built from the vocabulary and the merges instead of read through transformers, whose GGUF
    reader loses SmolLM2's rule that every digit is a word of its own.

    Args:
        metadata: the keys of a GGUF file (values Any: the format's own mix of types).
        into: an existing directory.

    Raises:
        TokenizerError: `tokenizers` is missing, or the tokenizer is of another kind.
    """
    build_tokenizer(metadata).save(str(into / "tokenizer.json"))
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    config: dict[str, object] = {
        # Any other class would rebuild the tokenizer by its own rules.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[metadata["tokenizer.ggml.bos_token_id"]],
        "eos_token": tokens[metadata["tokenizer.ggml.eos_token_id"]],
        "pad_token": tokens[metadata["tokenizer.ggml.padding_token_id"]],
        "model_max_length": metadata[f"{metadata['general.architecture']}.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": single_braces(metadata["tokenizer.chat_template"]),
    }
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (into / "tokenizer_config.json").write_text(text, encoding="utf-8")


def build_tokenizer(metadata: dict[str, Any]) -> Any:
    """Returns the `tokenizers.Tokenizer` that the metadata describes.

    Any: `tokenizers` is an optional package, and mypy may run without it.
    """
    try:
        from tokenizers import AddedToken, Tokenizer, decoders
        from tokenizers.models import BPE
    except ImportError as error:
        raise TokenizerError(
            "Converting a tokenizer needs the package `tokenizers`, which is not installed: "
            "pip install 'adaseek[models]'."
        ) from error
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata["tokenizer.ggml.token_type"]
    vocabulary = {token: i for i, token in enumerate(tokens) if kinds[i] != _UNUSED}
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges))
    _set_words(tokenizer, metadata["tokenizer.ggml.pre"])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(
        [
            AddedToken(token, normalized=False, special=kinds[i] == _CONTROL)
            for i, token in enumerate(tokens)
            if kinds[i] in (_CONTROL, _USER_DEFINED)
        ]
    )
    return tokenizer


def _set_words(tokenizer: Any, kind: str) -> None:
    from tokenizers import Regex, normalizers, pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel
    if kind == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
        first: Any = pre_tokenizers.Split(Regex(_QWEN2_WORDS), behavior="isolated")
        second = byte_level(add_prefix_space=False, use_regex=False)
    elif kind == "smollm":
        first = pre_tokenizers.Digits(individual_digits=True)
        second = byte_level(add_prefix_space=False, use_regex=True)
    else:
        raise TokenizerError(
            f"The GGUF file's word splitting is {kind!r}, but must be 'qwen2' or 'smollm'."
        )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([first, second])


def single_braces(chat_template: str) -> str:
    """Returns the template with its example of a tool call in single braces.

    One of the files tells the model to answer `{{"name": ...}}`, which no parser of tool calls
    reads.
    """
    return chat_template.replace(r"<tool_call>\n{{\"name", r"<tool_call>\n{\"name").replace(
        r"<args-json-object>}}\n", r"<args-json-object>}\n"
    )
