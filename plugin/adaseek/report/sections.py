"""The page's content in reading order: what came out, what changes, how it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from adaseek._comparison import Comparison, compare
from adaseek._units import format_change, format_value, label, plain_number, unit
from adaseek._version import __version__
from adaseek.report._html import Html, details, join, table, tag
from adaseek.report.diff import changed_steps, recipe_diff
from adaseek.report.graph import draw, mermaid
from adaseek.report.search_sections import (
    duration,
    estimate_cell,
    importance,
    search,
    spending,
    trade_offs,
)
from adaseek.result import Candidate, TuningResult

__all__ = ["body", "title"]

_ENDINGS = {"budget": "budget used up", "converged": "stopped early: converged"}
_MARKS = {"better": "▲ better", "worse": "▼ worse", "no clear difference": "● no clear difference"}
_UNMEASURED = "not measured"
_EVIDENCE = {
    "trace": "solid: seen in real runs",
    "probe": "long dashes: found by probing",
    "order": "dashes: ran one after the other",
    "static": "dots: read from the code",
}


def title(result: TuningResult) -> str:
    """Returns the page's title."""
    name = result.workflow.name or f"{result.workflow.framework} program"
    return f"AdaSeek report: {name}"


def body(result: TuningResult) -> Html:
    """Returns everything between the body tags, scripts left out."""
    links = (tag("li", tag("a", name, href=f"#{key}")) for key, name, _ in _SECTIONS)
    blocks = [
        tag("section", section(result), id=key, aria_label=name) for key, name, section in _SECTIONS
    ]
    return join(
        tag("a", "Skip to the result", href="#result", class_="skip"),
        _header(result),
        tag("nav", tag("ul", *links), aria_label="Sections"),
        tag("main", _tiles(result), *blocks),
        _footer(result),
    )


def _has_gain(result: TuningResult) -> bool:
    return result.recommended.name != result.original.name


def _header(result: TuningResult) -> Html:
    ending = _ENDINGS.get(result.ended, "ended early: best so far")
    num_steps = len(result.workflow.steps)
    program = f"{result.workflow.framework} · {num_steps} step{'' if num_steps == 1 else 's'}"
    outcome, colour = ("▲ gain", " better") if _has_gain(result) else ("● original kept", "")
    badges = (
        tag("span", outcome, class_=f"badge{colour}"),
        *(
            tag("span", text, class_="badge")
            for text in (ending, program, "objectives: " + ", ".join(result.objectives))
        ),
    )
    return tag(
        "header",
        tag("h1", title(result)),
        tag("p", result.verdict, class_="verdict"),
        tag("div", *badges, class_="badges"),
        class_="top",
    )


def _tiles(result: TuningResult) -> Html:
    used = result.spending
    replayed = f", {used.num_replayed:,} from the journal" if used.num_replayed else ""
    budget = f"of a budget of {used.budget:,}{replayed}"
    money = "unknown" if used.cost_usd is None else f"${plain_number(used.cost_usd)}"
    return tag(
        "div",
        *(_objective_tile(result, comparison) for comparison in compare(result)),
        _tile("Workflow runs", f"{used.num_runs:,}", budget),
        _tile("Spent on tuning", money, f"in {duration(used.seconds)}"),
        class_="tiles",
    )


def _objective_tile(result: TuningResult, comparison: Comparison) -> Html:
    objective, old, new = comparison.objective, comparison.original, comparison.recommended
    name = f"{label(objective)} ({unit(objective)})"
    if old is None or new is None:
        return _tile(name, "unknown", "not known for both programs")
    if not _has_gain(result):
        mean = format_value(objective, old.mean)
        return _tile(name, mean, f"original program, {comparison.source} mean")
    before, after = format_value(objective, old.mean), format_value(objective, new.mean)
    value = join(tag("span", f"{before} → ", class_="before"), after)
    if comparison.reading is None:
        return _tile(name, value, "training means, not confirmed")
    note = f"{_MARKS[comparison.reading]} {format_change(comparison.change)}".strip()
    return _tile(name, value, note, class_=comparison.reading.split()[0])


def _tile(name: str, value: str, note: str, *, class_: str = "") -> Html:
    return tag(
        "div",
        tag("div", name, class_="name"),
        tag("div", value, class_="value"),
        tag("div", note, class_=f"note {class_}".strip()),
        class_="tile",
    )


def _result(result: TuningResult) -> Html:
    comparisons = compare(result)
    if not _has_gain(result):
        lead = "No candidate was reliably better, so the original program is recommended."
    elif any(c.difference for c in comparisons):
        lead = (
            "Means with 95% confidence intervals. The difference is paired: both programs ran on "
            "the same examples. Its interval allows for every candidate that was compared, and is "
            "the one that decides."
        )
    else:
        lead = "Nothing was validated: take these training means as a hint, not as a gain."
    headings = ["Objective", "Original", "Recommended", "Paired difference", "Change", "Reading"]
    no_difference = _UNMEASURED if _has_gain(result) else "same program"
    rows = [_comparison_row(comparison, no_difference) for comparison in comparisons]
    return join(
        tag("h2", "Original against recommended"),
        tag("p", lead, class_="lead"),
        table("Estimates per objective", headings, rows, numeric=frozenset({1, 2, 3, 4})),
    )


def _comparison_row(comparison: Comparison, no_difference: str) -> list[str]:
    objective, old, new = comparison.objective, comparison.original, comparison.recommended
    difference, reading = comparison.difference, comparison.reading
    source = f"{comparison.source}, n = {old.num}" if old else _UNMEASURED
    estimated = (
        estimate_cell(objective, difference, difference=True) if difference else no_difference
    )
    return [
        join(label(objective), tag("span", source, class_="bounds")),
        estimate_cell(objective, old),
        estimate_cell(objective, new),
        estimated,
        format_change(comparison.change),
        tag("span", _MARKS[reading], class_=reading.split()[0]) if reading else "",
    ]


def _changes(result: TuningResult) -> Html:
    named = {result.original.name, result.recommended.name}
    others = [c for c in result.pareto() if c.name not in named]
    blocks = (_candidate_block(result, candidate) for candidate in others)
    more = tag("h3", "Other candidates of the Pareto set, against the original", class_="gap")
    words = (
        "Per step: model, reasoning, demos and prompt. Added words are underlined, removed ones "
    )
    return join(
        tag("h2", f"What changes: {result.recommended.name}"),
        tag("p", words + "struck out.", class_="lead"),
        recipe_diff(result.workflow, result.recipe),
        *((more, *blocks) if others else ()),
    )


def _candidate_block(result: TuningResult, candidate: Candidate) -> Html:
    values = ((o, candidate.value(o)) for o in result.objectives)
    known = [f"{label(o).lower()} {format_value(o, v)}" for o, v in values if v is not None]
    diff = recipe_diff(result.workflow, candidate.recipe, is_open=False)
    return details(f"{candidate.name}: {', '.join(known)}", diff)


def _workflow(result: TuningResult) -> Html:
    workflow = result.workflow
    picture = draw(workflow, changed_steps(result.recipe))
    box = tag("div", picture, class_="scroll", tabindex="0", role="region", aria_label="Workflow")
    evidence = {edge.evidence for edge in workflow.edges}
    edges = "; ".join(words for name, words in _EVIDENCE.items() if name in evidence)
    legend = f"Edges: {edges}." if edges else "No edge between the steps is known."
    legend += " Steps that the recipe changes have a thick green border."
    return join(
        tag("h2", "The workflow"),
        tag("figure", box, tag("figcaption", legend)),
        details("As mermaid text", tag("div", mermaid(workflow), class_="prompt"), class_="data"),
    )


def _notes(result: TuningResult) -> Html:
    steps = result.workflow.steps.values()
    refused = [[step.id, cog, why] for step in steps for cog, why in step.blocked.items()]
    notes = [tag("li", text) for text in _note_texts(result)]
    made = [[str(name), str(value)] for name, value in result.recipe.made_with.items()]
    parts: list[Html] = [tag("h2", "Notes")]
    if notes:
        parts.append(tag("ul", *notes, class_="notes"))
    if refused:
        parts.append(table("Cogs that a step does not allow", ["Step", "Cog", "Why"], refused))
    if not notes and not refused:
        parts.append(tag("p", "Nothing to report.", class_="quiet"))
    if made:
        versions = table("Made with", ["What", "Value"], made)
        parts.append(details("Versions and options of the run", versions, class_="data"))
    return join(*parts)


def _note_texts(result: TuningResult) -> Iterable[str]:
    if result.ended not in _ENDINGS:
        yield f"The run ended early and shows the best so far. Reason: {result.ended}"
    for note in result.workflow.notes:
        yield f"{note.step}: {note.text}" if note.step else note.text
    for event in result.events:
        if event.get("type") == "RunEnded":
            yield from map(str, event.get("notes", ()))
    num_failed = sum(candidate.num_failed for candidate in result.candidates)
    if num_failed:
        yield f"{num_failed} workflow runs failed and count with the score of a failure."


def _footer(result: TuningResult) -> Html:
    where = f" · run {result.run_dir}" if result.run_dir else ""
    return tag(
        "footer",
        f"Made by AdaSeek {__version__} · seed {result.seed} · workflow "
        f"{result.workflow.fingerprint}{where}. This page loads nothing and sends nothing.",
    )


_SECTIONS: tuple[tuple[str, str, Callable[[TuningResult], Html]], ...] = (
    ("result", "Result", _result),
    ("changes", "Changes", _changes),
    ("trade-offs", "Trade-offs", trade_offs),
    ("budget", "Budget", search),
    ("spending", "Spending", spending),
    ("importance", "Importance", importance),
    ("workflow", "Workflow", _workflow),
    ("notes", "Notes", _notes),
)
