"""How much of a set of programs an adapter covers, as a table that names every miss.

Experimental. One `Finding` per program, way of using the adapter, and promise:

    print_coverage(findings)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["Finding", "coverage_table", "covered", "print_coverage"]


@dataclass(frozen=True)
class Finding:
    """Whether an adapter, used in one way, kept one promise for one program.

    Attributes:
        program: name of the program.
        door: the way of using the adapter, e.g. a handler or a global hook.
        promise: what was checked.
        reason: why the promise was not kept; empty: it was.
    """

    program: str
    door: str
    promise: str
    reason: str = ""

    @property
    def kept(self) -> bool:
        return not self.reason


def covered(findings: Iterable[Finding]) -> Mapping[str, tuple[int, int]]:
    """Returns for each door how many programs had every promise kept, and of how many."""
    missed: dict[str, dict[str, bool]] = {}
    for finding in findings:
        programs = missed.setdefault(finding.door, {})
        programs[finding.program] = programs.get(finding.program, True) and finding.kept
    return {door: (sum(found.values()), len(found)) for door, found in missed.items()}


def coverage_table(findings: Sequence[Finding], *, title: str = "coverage") -> Table:
    """Returns a table with a row per program, a column per door, and the reason of each miss."""
    doors = list(dict.fromkeys(finding.door for finding in findings))
    totals = covered(findings)
    table = Table(title=title, show_lines=False, show_footer=True)
    table.add_column("program", footer="all promises kept")
    for door in doors:
        table.add_column(escape(door), footer=f"{totals[door][0]} of {totals[door][1]}")
    table.add_column("missed, and why", overflow="fold")
    for program in dict.fromkeys(finding.program for finding in findings):
        mine = [finding for finding in findings if finding.program == program]
        cells = [_share([f for f in mine if f.door == door]) for door in doors]
        table.add_row(escape(program), *cells, escape(_misses(mine)))
    return table


def print_coverage(
    findings: Sequence[Finding], *, title: str = "coverage", console: Console | None = None
) -> None:
    """Prints the table of `findings`, to standard output if no console is given."""
    (console or Console()).print(coverage_table(findings, title=title))


def _share(findings: Sequence[Finding]) -> str:
    kept = sum(finding.kept for finding in findings)
    return f"{kept}/{len(findings)}" if findings else "-"


def _misses(findings: Sequence[Finding]) -> str:
    """Returns one line per door and reason, with the promises that it costs."""
    found: dict[tuple[str, str], list[str]] = {}
    for finding in findings:
        if not finding.kept:
            found.setdefault((finding.door, finding.reason), []).append(finding.promise)
    return "\n".join(
        f"{door}: {', '.join(promises)}: {reason}" for (door, reason), promises in found.items()
    )
