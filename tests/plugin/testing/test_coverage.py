"""The coverage table: counts programs, and names each miss with its reason."""

from __future__ import annotations

import io

from adaseek.testing.coverage import Finding, covered, print_coverage
from rich.console import Console

FINDINGS = [
    Finding("chain", "handler", "steps"),
    Finding("chain", "handler", "usage"),
    Finding("chain", "hook", "steps"),
    Finding("threads [own]", "handler", "steps", "no context"),
    Finding("threads [own]", "handler", "usage", "no context"),
    Finding("threads [own]", "hook", "steps"),
]


def test_a_program_counts_only_if_every_promise_was_kept() -> None:
    assert covered(FINDINGS) == {"handler": (1, 2), "hook": (2, 2)}
    assert covered([*FINDINGS, Finding("chain", "hook", "usage", "lost")])["hook"] == (1, 2)


def test_the_table_names_every_miss_with_its_reason() -> None:
    console = Console(file=io.StringIO(), width=120)
    print_coverage(FINDINGS, title="of two programs", console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "of two programs" in text
    assert "threads [own]" in text
    assert "handler: steps, usage: no context" in text
    assert "1 of 2" in text and "2 of 2" in text


def test_a_door_without_findings_for_a_program_is_left_open() -> None:
    console = Console(file=io.StringIO(), width=120)
    print_coverage([*FINDINGS, Finding("tool", "hook", "steps")], console=console)
    row = next(line for line in console.file.getvalue().splitlines() if "tool" in line)  # type: ignore[attr-defined]
    assert [cell.strip() for cell in row.strip("│ ").split("│")][:3] == ["tool", "-", "1/1"]
