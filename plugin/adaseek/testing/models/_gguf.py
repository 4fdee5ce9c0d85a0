"""Turns a GGUF file of a Llama or Qwen2 model into a model directory of bf16 safetensors.

Needs the packages `gguf` and `tokenizers`, but no torch: tensors are dequantised with numpy and
written one by one, so memory stays at the size of the largest tensor.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adaseek.errors import AdaseekError
from adaseek.testing.models._progress import ModelProgress

# Bump when the same GGUF file must give another directory: cached models are then rebuilt.
CONVERTER_VERSION = 1

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_TENSOR = re.compile(r"blk\.(?P<layer>\d+)\.(?P<name>\w+)\.(?P<kind>weight|bias)")

_ARCHITECTURES: dict[str, dict[str, object]] = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "mlp_bias": False,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "use_sliding_window": False,
    },
}


class ConversionError(AdaseekError, RuntimeError):
    """A GGUF file cannot be converted."""


@dataclass(frozen=True)
class GgufFile:
    """An opened GGUF file: metadata by key, and its tensors by name.

    `tensors` holds `gguf.ReaderTensor`; Any, because `gguf` ships no types.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Any]

    @property
    def architecture(self) -> str:
        return str(self.metadata["general.architecture"])

    def setting(self, key: str) -> Any:
        """Returns the value of an architecture's own key, e.g. "block_count"."""
        return self.metadata[f"{self.architecture}.{key}"]

    def read(self, name: str) -> NDArray[np.float32]:
        """Returns the dequantised tensor `name`, rows first."""
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        return np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)


def open_gguf(path: Path) -> GgufFile:
    """Returns the GGUF file at `path`, its tensors memory-mapped.

    Raises:
        ConversionError: `gguf` is not installed, or the architecture is not supported.
    """
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise ConversionError(
            "Converting a GGUF file needs the package `gguf`, which is not installed: "
            "pip install 'adaseek[models]'."
        ) from error
    reader = GGUFReader(path)
    file = GgufFile(
        metadata={key: field.contents() for key, field in reader.fields.items()},
        tensors={tensor.name: tensor for tensor in reader.tensors},
    )
    if file.architecture not in _ARCHITECTURES:
        raise ConversionError(
            f"The GGUF architecture is {file.architecture!r}, but must be one of "
            f"{sorted(_ARCHITECTURES)}: use a model of those families."
        )
    return file


def convert(gguf_path: Path, into: Path, progress: ModelProgress) -> str:
    """Writes config.json, model.safetensors and the tokenizer to `into`.

    Returns:
        The sha256 of model.safetensors.
    """
    from adaseek.testing.models._tokenizer import write_tokenizer

    file = open_gguf(gguf_path)
    write_tokenizer(file.metadata, into)
    _write_json(into / "config.json", _model_config(file))
    _write_json(into / "generation_config.json", _generation_config(file))
    return _write_weights(file, into / "model.safetensors", progress)


def _write_weights(file: GgufFile, path: Path, progress: ModelProgress) -> str:
    names = _safetensors_names(file)
    num_heads = {
        "attn_q": file.setting("attention.head_count"),
        "attn_k": file.setting("attention.head_count_kv"),
    }
    digest = hashlib.sha256()
    with path.open("wb") as output:
        header = _safetensors_header(file, names)
        digest.update(header)
        output.write(header)
        for done, source in enumerate(names):
            progress("converting tensors", done, len(names))
            weights = file.read(source)
            part = source.split(".")[-2]
            # GGUF stores the rotary halves of Llama's queries and keys interleaved.
            if file.architecture == "llama" and part in num_heads:
                weights = unpermute(weights, num_heads[part])
            row = to_bfloat16(weights).tobytes()
            digest.update(row)
            output.write(row)
    progress("converting tensors", len(names), len(names))
    return digest.hexdigest()


def _safetensors_names(file: GgufFile) -> dict[str, str]:
    """Returns source name -> target name of every tensor to write.

    The Qwen files store input embedding and output separately, quantised differently, although
    the model ties them. Only the output is written, the more precise one, under the tied name.
    """
    embedding = "output.weight" if "output.weight" in file.tensors else "token_embd.weight"
    names = {embedding: "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
    for source in file.tensors:
        if match := _LAYER_TENSOR.fullmatch(source):
            part = _LAYER_NAMES[match["name"]]
            names[source] = f"model.layers.{match['layer']}.{part}.{match['kind']}"
    return names


def _safetensors_header(file: GgufFile, names: dict[str, str]) -> bytes:
    """Returns the start of a safetensors file: length, then shape and place of each tensor."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for source, target in names.items():
        shape = [int(size) for size in reversed(file.tensors[source].shape)]
        start, end = end, end + 2 * int(np.prod(shape))
        entries[target] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Returns the bits of `values` as bfloat16, rounded to nearest, ties to even.

    Weights are finite, so NaN needs no care.
    """
    bits = np.ascontiguousarray(values).view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + half) >> np.uint32(16)).astype("<u2")


def unpermute(rows: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Returns a Llama query or key projection with each head's rotary halves apart again."""
    pairs = rows.reshape(num_heads, rows.shape[0] // num_heads // 2, 2, *rows.shape[1:])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


def _model_config(file: GgufFile) -> dict[str, object]:
    num_heads = file.setting("attention.head_count")
    hidden_size = file.setting("embedding_length")
    # GGUF keeps 1e-5 as the nearest float32.
    epsilon = float(f"{file.setting('attention.layer_norm_rms_epsilon'):.6g}")
    return {
        **_ARCHITECTURES[file.architecture],
        **_token_ids(file),
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "head_dim": hidden_size // num_heads,
        "hidden_act": "silu",
        "hidden_size": hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": file.setting("feed_forward_length"),
        "max_position_embeddings": file.setting("context_length"),
        "num_attention_heads": num_heads,
        "num_hidden_layers": file.setting("block_count"),
        "num_key_value_heads": file.setting("attention.head_count_kv"),
        "rms_norm_eps": epsilon,
        "rope_theta": file.setting("rope.freq_base"),
        "tie_word_embeddings": True,
        # Without a version transformers warns, wrongly, about a Mistral tokenizer.
        "transformers_version": "5.0.0",
        "use_cache": True,
        "vocab_size": int(file.tensors["token_embd.weight"].shape[1]),
    }


def _generation_config(file: GgufFile) -> dict[str, object]:
    ids = _token_ids(file)
    if file.architecture == "qwen2":
        # A Qwen turn ends with <|im_end|>, a text with <|endoftext|>, which is its padding.
        ids["eos_token_id"] = [ids["eos_token_id"], ids["pad_token_id"]]
    return ids


def _token_ids(file: GgufFile) -> dict[str, object]:
    metadata = file.metadata
    return {
        "bos_token_id": metadata["tokenizer.ggml.bos_token_id"],
        "eos_token_id": metadata["tokenizer.ggml.eos_token_id"],
        "pad_token_id": metadata["tokenizer.ggml.padding_token_id"],
    }


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
