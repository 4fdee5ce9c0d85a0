"""Tables for a terminal: original against tuned, and the Pareto set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.table import Table
from rich.text import Text

from adaseek._comparison import Comparison, compare, compare_heldout
from adaseek._units import (
    best_estimates,
    format_bounds,
    format_change,
    format_estimate,
    format_value,
    label,
)
from adaseek.result import Estimate, Heldout, TuningResult

__all__ = ["comparison_table", "comparisons_table", "frontier_table", "heldout_table", "text_table"]

_COLOURS = {"better": "green", "worse": "red", "no clear difference": ""}


def comparison_table(result: TuningResult) -> Table:
    """Returns original against recommended, one row per objective."""
    title = f"original against {result.recommended.name}"
    if result.recommended.name == result.original.name:
        title = "original program (nothing was reliably better)"
    return comparisons_table(title, compare(result))


def comparisons_table(title: str, comparisons: Iterable[Comparison]) -> Table:
    """Returns a table of `comparisons` with 95% intervals."""
    table = _table(title, ["objective", "original", "tuned", "difference", "reading"])
    table.show_lines = True
    for comparison in comparisons:
        table.add_row(*_cells(comparison))
    return table


def heldout_table(held: Heldout, *, title: str = "original against recipe") -> Table:
    """Returns the original program and the recipe on the same held-out examples."""
    return comparisons_table(title, compare_heldout(held))


def frontier_table(result: TuningResult) -> Table:
    """Returns the Pareto set, best quality first, with the estimates that are known."""
    rows = []
    for candidate in result.pareto():
        estimates = [best_estimates(candidate, o) for o in result.objectives]
        values = [
            format_estimate(o, e) for o, (e, _) in zip(result.objectives, estimates, strict=True)
        ]
        source = next((source for _, source in estimates if source), "")
        chosen = "recommended" if candidate.name == result.recommended.name else ""
        rows.append([candidate.name, *values, source, chosen])
    headings = ["candidate", *map(label, result.objectives), "measured on", ""]
    return text_table("Pareto set", [h.lower() for h in headings], rows)


def text_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """Returns a table whose cells are plain text: square brackets in them are no markup."""
    table = _table(title, headings)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _table(title: str, headings: Sequence[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", title_style="bold")
    for heading in headings:
        table.add_column(Text(heading), overflow="fold")
    return table


def _cells(comparison: Comparison) -> list[Text]:
    """Returns a row of two lines: means, and below them their intervals."""
    objective, old, difference = comparison.objective, comparison.original, comparison.difference
    number = f"\n{comparison.source}, n={old.num}" if old else ""
    reading = comparison.reading or ""
    estimated = _two_lines(objective, difference, signed=True) if difference else ""
    if old and difference and difference.num != old.num:
        estimated += f"\nn={difference.num}"
    return [
        Text(label(objective).lower() + number),
        Text(_two_lines(objective, old)),
        Text(_two_lines(objective, comparison.recommended)),
        Text(estimated),
        Text(
            f"{reading}\n{format_change(comparison.change)}".strip(),
            style=_COLOURS.get(reading, ""),
        ),
    ]


def _two_lines(objective: str, estimate: Estimate | None, *, signed: bool = False) -> str:
    if estimate is None:
        return "unknown"
    mean = format_value(objective, estimate.mean, signed=signed)
    return f"{mean}\n{format_bounds(estimate, signed=signed)}"
