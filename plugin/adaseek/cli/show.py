"""What the command line shows of results, recipes and programs: for people, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any  # Any: JSON values

import click
from rich.console import Console, Group, RenderableType
from rich.text import Text

from adaseek._comparison import Comparison
from adaseek._units import plain_number
from adaseek.cogs.space import Refusal
from adaseek.recipe import Recipe
from adaseek.result import Candidate, TuningResult
from adaseek.search.base import Space
from adaseek.table import comparison_table, frontier_table, text_table
from adaseek.workflow import Step, Workflow

__all__ = [
    "comparison_json",
    "print_json",
    "print_view",
    "program_json",
    "program_view",
    "recipe_view",
    "result_json",
    "result_view",
]


_WIDTH_OF_FILES = 120
"""Columns of a table that is not written to a terminal."""


def result_view(result: TuningResult) -> RenderableType:
    """Returns verdict, comparison, Pareto set, diff, importance and spending of a run."""
    importance = sorted(result.importance.items(), key=lambda item: -item[1])
    shares = ((name, f"{share:.1%}") for name, share in importance)
    parts: list[RenderableType] = [
        Text(result.verdict, style="bold"),
        comparison_table(result),
        frontier_table(result),
        text_table("changes against the original", ["change"], _changes(result.recipe)),
    ]
    if importance:
        parts.append(text_table("importance", ["dimension", "variance explained"], shares))
    parts.append(text_table("where the money went", ["what", "used"], _spending(result)))
    return Group(*parts)


def result_json(result: TuningResult) -> dict[str, Any]:
    """Returns the same as JSON values."""
    return {
        "verdict": result.verdict,
        "ended": result.ended,
        "objectives": list(result.objectives),
        "recommended": result.recommended.name,
        "candidates": {c.name: _candidate_json(c) for c in (result.original, *result.pareto())},
        "improvement": {name: asdict(e) for name, e in result.improvement.items()},
        "changes": list(Recipe().diff(result.recipe)),
        "importance": dict(result.importance),
        "spending": asdict(result.spending),
    }


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Returns one objective of two programs as JSON values."""
    estimates = {
        "original": comparison.original,
        "tuned": comparison.recommended,
        "difference": comparison.difference,
    }
    return {name: None if e is None else asdict(e) for name, e in estimates.items()}


def recipe_view(recipe: Recipe) -> RenderableType:
    """Returns what a recipe changes and how it was made."""
    made = ((str(name), str(value)) for name, value in recipe.made_with.items())
    parts: list[RenderableType] = [
        text_table("changes against the original", ["change"], _changes(recipe))
    ]
    if recipe.made_with:
        parts.append(text_table("made with", ["what", "value"], made))
    return Group(*parts)


def program_view(workflow: Workflow, space: Space, refused: Sequence[Refusal]) -> RenderableType:
    """Returns a program's steps, what can be tuned at them, and what cannot and why."""
    steps = text_table(
        f"steps of {workflow.name or workflow.framework}",
        ["step", "kind", "signature", "model"],
        (_step_row(step) for step in workflow.steps.values()),
    )
    options = text_table(
        f"what can be tuned: {space.size():,} configs",
        ["dimension", "layer", "options"],
        ((d.name, d.family, _options(d.options, d.num_slots)) for d in space.dimensions),
    )
    parts: list[RenderableType] = [steps, options]
    if refused:
        parts.append(text_table("what cannot", ["step", "cog", "why"], refused))
    notes = [(note.level, note.step, note.text) for note in workflow.notes]
    if notes:
        parts.append(text_table("notes", ["level", "step", "note"], notes))
    return Group(*parts)


def program_json(workflow: Workflow, space: Space, refused: Sequence[Refusal]) -> dict[str, Any]:
    """Returns the same as JSON values."""
    return {
        "workflow": workflow.to_json(),
        "dimensions": {
            d.name: {"family": d.family, "options": list(d.options), "num_slots": d.num_slots}
            for d in space.dimensions
        },
        "refused": [refusal._asdict() for refusal in refused],
        "num_configs": space.size(),
    }


def _changes(recipe: Recipe) -> Iterable[tuple[str]]:
    lines = Recipe().diff(recipe)
    return ((line,) for line in lines or ("nothing: the original program",))


def _spending(result: TuningResult) -> Iterable[tuple[str, str]]:
    used = result.spending
    yield "workflow runs", f"{used.num_runs:,} of {used.budget:,}"
    for phase, runs in used.phases.items():
        yield f"  {phase}", f"{runs:,} runs"
    yield "taken from the journal", f"{used.num_replayed:,} runs"
    yield "model calls", f"{used.num_calls:,}, {used.num_memo_calls:,} of them from memory"
    yield "money", "unknown" if used.cost_usd is None else f"${plain_number(used.cost_usd)}"
    yield "time", f"{used.seconds:,.0f} s"


def _candidate_json(candidate: Candidate) -> Mapping[str, Any]:
    return {
        "config": dict(candidate.config),
        "train": {name: asdict(e) for name, e in candidate.train.items()},
        "validation": {name: asdict(e) for name, e in candidate.validation.items()},
        "pareto": candidate.pareto,
    }


def _step_row(step: Step) -> tuple[str, str, str, str]:
    signature = step.signature
    shown = ""
    if signature is not None:
        inputs, outputs = (
            ", ".join(f.name for f in fields) for fields in (signature.inputs, signature.outputs)
        )
        shown = f"{inputs} -> {outputs}"
    return step.id, step.kind, shown, step.model.key if step.model else ""


def _options(options: tuple[str, ...], num_slots: int) -> str:
    found = f"and up to {num_slots} found while tuning" if num_slots else ""
    return ", ".join((*options, found)) if found else ", ".join(options)


def print_view(view: RenderableType) -> None:
    """Writes `view` to standard output; wide where that is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH_OF_FILES)
    console.print(view)


def print_json(body: Mapping[str, Any]) -> None:
    """Writes `body` to standard output as indented JSON."""
    click.echo(json.dumps(body, indent=2, ensure_ascii=False))
