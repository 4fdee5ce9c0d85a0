"""The journal's tables, and how outcomes become rows: JSON text only, no framework object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any  # Any: inputs, outputs and rows hold the user's JSON values

from sqlalchemy import Column, Double, Integer, MetaData, String, Table, Text

from adaseek.evaluation.base import CallRecord, Evaluation, Task
from adaseek.workflow import Call, ModelRef, Score, Usage

__all__ = [
    "CALLS",
    "COMPLETIONS",
    "EVALUATIONS",
    "EXPENSES",
    "METADATA",
    "PREFIX",
    "RECIPES",
    "RUNS",
    "SCHEMA_VERSION",
    "evaluation_from_row",
    "evaluation_row",
    "record_from_json",
    "record_json",
    "usage_from_json",
    "usage_json",
]

SCHEMA_VERSION = 1
"""Version of the tables; raised when an older reader would misread newer rows."""

PREFIX = "adaseek_"
METADATA = MetaData()

RUNS = Table(
    f"{PREFIX}runs",
    METADATA,
    Column("run_id", String(200), primary_key=True),
    Column("schema_version", Integer, nullable=False),
    Column("identity", Text, nullable=False),
    Column("created", String(40), nullable=False),
)
EVALUATIONS = Table(
    f"{PREFIX}evaluations",
    METADATA,
    Column("run_id", String(200), primary_key=True),
    Column("task_key", String(400), primary_key=True),
    Column("sequence", Integer, nullable=False),
    Column("recipe", String(64), nullable=False),
    Column("example", String(300), nullable=False),
    Column("replicate", Integer, nullable=False),
    Column("score", Double),
    Column("feedback", Text, nullable=False),
    Column("usage", Text, nullable=False),
    Column("paid", Text, nullable=False),
    Column("latency_s", Double),
    Column("error", Text),
    Column("error_kind", String(20)),
    Column("calls", Text, nullable=False),
)
RECIPES = Table(
    f"{PREFIX}recipes",
    METADATA,
    Column("run_id", String(200), primary_key=True),
    Column("fingerprint", String(64), primary_key=True),
    Column("body", Text, nullable=False),
)
CALLS = Table(
    f"{PREFIX}calls",
    METADATA,
    Column("run_id", String(200), primary_key=True),
    Column("request_key", String(200), primary_key=True),
    Column("record", Text, nullable=False),
)
COMPLETIONS = Table(
    f"{PREFIX}completions",
    METADATA,
    Column("run_id", String(200), primary_key=True),
    Column("request_key", String(200), primary_key=True),
    Column("text", Text, nullable=False),
    Column("usage", Text, nullable=False),
)
EXPENSES = Table(
    f"{PREFIX}expenses",
    METADATA,
    Column("expense", Integer, primary_key=True, autoincrement=True),
    Column("run_id", String(200), nullable=False),
    Column("task_key", String(400), nullable=False),
    Column("paid", Text, nullable=False),
)

_MAX_TEXT = 20_000
_MAX_REPR = 2_000
_MAX_FIELD = 100_000
_MAX_DEPTH = 12


def evaluation_row(evaluation: Evaluation, task: Task) -> dict[str, Any]:
    """Returns the columns of `evaluation`, without run id and sequence number."""
    score = evaluation.score
    return {
        "task_key": evaluation.task_key,
        "recipe": task.recipe.fingerprint,
        "example": task.example.id,
        "replicate": task.replicate,
        "score": None if score is None else score.value,
        "feedback": "" if score is None else _storable(score.feedback),
        "usage": json.dumps(usage_json(evaluation.usage)),
        "paid": json.dumps(usage_json(evaluation.paid)),
        "latency_s": evaluation.latency_s,
        "error": None if evaluation.error is None else _storable(evaluation.error),
        "error_kind": evaluation.error_kind,
        "calls": json.dumps([_call_json(call) for call in evaluation.calls]),
    }


def evaluation_from_row(row: Mapping[str, Any], *, replayed: bool = True) -> Evaluation:
    """Returns the evaluation that `evaluation_row` wrote."""
    score = None if row["score"] is None else Score(row["score"], row["feedback"])
    return Evaluation(
        task_key=row["task_key"],
        score=score,
        usage=usage_from_json(json.loads(row["usage"])),
        paid=usage_from_json(json.loads(row["paid"])),
        latency_s=row["latency_s"],
        error=row["error"],
        error_kind=row["error_kind"],
        calls=tuple(_call_from_json(call) for call in json.loads(row["calls"])),
        replayed=replayed,
    )


def usage_json(usage: Usage) -> dict[str, Any]:
    """Returns `usage` as JSON values."""
    return {
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
        "requests": usage.requests,
        "cost_usd": usage.cost_usd,
    }


def usage_from_json(body: Mapping[str, Any]) -> Usage:
    """Returns the usage that `usage_json` wrote."""
    return Usage(**body)


def record_json(record: CallRecord) -> str:
    """Returns `record` as JSON text.

    Raises:
        TypeError: if `record.outputs` holds something that JSON has no form for.
    """
    body = {
        "outputs": record.outputs,
        "usage": usage_json(record.usage),
        "duration_s": record.duration_s,
        "model": _model_json(record.model),
        "run": record.run,
        "start_s": record.start_s,
    }
    return json.dumps(body)


def record_from_json(text: str) -> CallRecord:
    """Returns the record that `record_json` wrote."""
    body = json.loads(text)
    return CallRecord(
        outputs=body["outputs"],
        usage=usage_from_json(body["usage"]),
        duration_s=body["duration_s"],
        model=ModelRef(**body["model"]),
        # Journals of older versions lack these.
        run=body.get("run", ""),
        start_s=body.get("start_s", 0.0),
    )


def _call_json(call: Call) -> dict[str, Any]:
    return {
        "id": call.id,
        "step": call.step,
        "parent": call.parent,
        "kind": call.kind,
        "start_s": call.start_s,
        "end_s": call.end_s,
        "duration_s": call.duration_s,
        "inputs": {str(name): _bounded(value) for name, value in call.inputs.items()},
        "outputs": {str(name): _bounded(value) for name, value in call.outputs.items()},
        "model": None if call.model is None else _model_json(call.model),
        "usage": usage_json(call.usage),
        "cached": call.cached,
        "error": call.error,
        "first_token_s": call.first_token_s,
    }


def _call_from_json(body: Mapping[str, Any]) -> Call:
    model = body["model"]
    values = {**body, "usage": usage_from_json(body["usage"])}
    return Call(**{**values, "model": None if model is None else ModelRef(**model)})


def _model_json(model: ModelRef) -> dict[str, str]:
    return {"id": model.id, "endpoint": model.endpoint}


def _bounded(value: Any) -> Any:
    plain = _plain(value, _MAX_DEPTH)
    text = json.dumps(plain)
    return plain if len(text) <= _MAX_FIELD else _cut(text, _MAX_REPR)


def _plain(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, str):
        return _cut(value, _MAX_TEXT)
    if depth and isinstance(value, Mapping):
        return {str(key): _plain(item, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, list | tuple):
        return [_plain(item, depth - 1) for item in value]
    return _cut(_repr(value), _MAX_REPR)


def _repr(value: object) -> str:
    # A true isolation boundary: the object is the user's, its `__repr__` may raise anything, and
    # a run that has been paid for must not be lost over how one of its values prints.
    try:
        return repr(value)
    except Exception as error:
        return f"<{type(value).__name__}: repr raised {type(error).__name__}>"


def _cut(text: str, limit: int) -> str:
    if len(text) <= limit:
        return text
    return f"{text[:limit]} ... ({len(text) - limit} more characters)"


def _storable(text: str) -> str:
    # PostgreSQL refuses NUL in text, and no database encodes a lone surrogate.
    clean = text.encode("utf-8", "replace").decode()
    return _cut(clean.replace("\x00", "\N{REPLACEMENT CHARACTER}"), _MAX_TEXT)
