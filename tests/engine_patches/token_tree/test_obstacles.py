"""Layers that cannot attend along trees are found before anything runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from adaseek_vllm._compat import tree_attention, tree_cpu, tree_gpu
from vllm.v1.kv_cache_interface import KVQuantMode

PLAIN = {"attn_type": "decoder", "alibi_slopes": None, "sinks": None}


def layer(**changes: Any) -> SimpleNamespace:
    impl = object.__new__(tree_cpu.TreeCPUAttention)
    vars(impl).update(PLAIN | {"is_fp8_kv_cache": False} | changes)
    return SimpleNamespace(impl=impl)


def gpu_layer(**changes: Any) -> SimpleNamespace:
    impl = object.__new__(tree_gpu.TreeGPUAttention)
    of_gpus = {"_kv_quant_mode": KVQuantMode.NONE, "chunk_lookback": -1, "head_size": 80}
    vars(impl).update(PLAIN | of_gpus | changes)
    return SimpleNamespace(impl=impl)


def test_plain_attention_is_fit() -> None:
    layers = {"a": layer(), "b": gpu_layer()}
    assert tree_attention.layers_without_trees(layers) == {}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attn_type": "encoder_only"}, "of type encoder_only"),
        ({"sinks": [1.0]}, "linear biases or sinks"),
        ({"_kv_quant_mode": KVQuantMode.FP8_PER_TENSOR}, "quantised"),
        ({"chunk_lookback": 0}, "inside chunks"),
        ({"head_size": 72}, "heads have 72 elements"),
        ({"head_size": 512}, "heads have 512 elements"),
    ],
)
def test_layer_on_a_gpu_with_more_than_a_mask_is_unfit(
    changes: dict[str, Any], reason: str
) -> None:
    unfit = tree_attention.layers_without_trees({"a": gpu_layer(**changes)})
    assert reason in unfit["a"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attn_type": "encoder_only"}, "of type encoder_only"),
        ({"alibi_slopes": [1.0]}, "linear biases or sinks"),
        ({"sinks": [1.0]}, "linear biases or sinks"),
        ({"is_fp8_kv_cache": True}, "quantised"),
    ],
)
def test_layer_with_more_than_a_mask_is_unfit(changes: dict[str, Any], reason: str) -> None:
    unfit = tree_attention.layers_without_trees({"a": layer(), "b": layer(**changes)})
    assert list(unfit) == ["b"]
    assert reason in unfit["b"]


def test_layer_of_another_class_is_unfit() -> None:
    recurrent = SimpleNamespace()
    assert tree_attention.layers_without_trees({"a": recurrent}) == {
        "a": "it is no plain attention"
    }


def test_layout_of_the_caches_is_found() -> None:
    layers = {"a": SimpleNamespace(isa="amx"), "b": SimpleNamespace(isa="amx")}
    assert tree_cpu.cache_layout(layers) == "amx"


@pytest.mark.parametrize("found", [("neon",), ("amx", "vec")])
def test_unknown_or_mixed_layouts_are_refused(found: tuple[str, ...]) -> None:
    layers = {name: SimpleNamespace(isa=name) for name in found}
    with pytest.raises(ValueError, match=f"laid out for {', '.join(found)} kernels"):
        tree_cpu.cache_layout(layers)


PLAIN_MODEL = {"is_encoder_decoder": False, "uses_mrope": False, "rswa_window": None}


def test_plain_model_is_fit() -> None:
    assert tree_attention.model_obstacle(SimpleNamespace(**PLAIN_MODEL)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"uses_mrope": True}, "several dimensions"),
        ({"rswa_window": 128}, "a part of the prompt that is always seen"),
    ],
)
def test_model_with_other_positions_is_unfit(changes: dict[str, Any], reason: str) -> None:
    found = tree_attention.model_obstacle(SimpleNamespace(**PLAIN_MODEL | changes))
    assert found is not None
    assert reason in found
