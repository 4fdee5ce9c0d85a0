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


def test_cache_of_another_layout_is_refused_when_a_tree_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = tree_attention.CPUAttentionBackendImpl
    monkeypatch.setattr(base, "forward", lambda *_args, **_kwargs: None)
    metadata = SimpleNamespace(tree_forward=object())
    with pytest.raises(ValueError, match="for amx kernels"):
        layer().impl.forward(SimpleNamespace(isa="amx"), 0, 0, 0, 0, metadata, 0)
