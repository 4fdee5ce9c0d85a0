"""Layers that cannot attend along trees are found before anything runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

tree_attention = pytest.importorskip("adaseek_vllm._compat.tree_attention")


def layer(**changes: Any) -> SimpleNamespace:
    impl = object.__new__(tree_attention.TreeAttentionImpl)
    plain = {"attn_type": "decoder", "alibi_slopes": None, "sinks": None, "is_fp8_kv_cache": False}
    vars(impl).update(plain | changes)
    return SimpleNamespace(impl=impl)


def test_plain_attention_is_fit() -> None:
    assert tree_attention.layers_without_trees({"a": layer()}) == {}


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
    assert tree_attention.cache_layout(layers) == "amx"


@pytest.mark.parametrize("found", [("neon",), ("amx", "vec")])
def test_unknown_or_mixed_layouts_are_refused(found: tuple[str, ...]) -> None:
    layers = {name: SimpleNamespace(isa=name) for name in found}
    with pytest.raises(ValueError, match=f"laid out for {', '.join(found)} kernels"):
        tree_attention.cache_layout(layers)


PLAIN_MODEL = {"is_encoder_decoder": False, "uses_mrope": False}


def test_plain_model_is_fit() -> None:
    assert tree_attention.model_obstacle(SimpleNamespace(**PLAIN_MODEL)) is None


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_encoder_decoder": True}, "an encoder and a decoder"),
        ({"uses_mrope": True}, "several dimensions"),
    ],
)
def test_model_with_other_positions_is_unfit(changes: dict[str, Any], reason: str) -> None:
    found = tree_attention.model_obstacle(SimpleNamespace(**PLAIN_MODEL | changes))
    assert found is not None
    assert reason in found
