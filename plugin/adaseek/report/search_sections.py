"""The sections about the search: trade-offs, budget, spending and what mattered."""

from __future__ import annotations

from collections.abc import Iterable

import plotly.graph_objects as go

from adaseek._units import best_estimates, format_bounds, format_value, label, plain_number
from adaseek.report import figures
from adaseek.report._html import Html, details, join, json_block, table, tag
from adaseek.report.diff import recipe_words
from adaseek.report.history import PHASES, Flow, budget_flow, convergence
from adaseek.result import Candidate, Estimate, TuningResult

__all__ = ["duration", "estimate_cell", "importance", "search", "spending", "trade_offs"]

_MARKERS = {
    "original": '<rect x="2" y="2" width="12" height="12"/>',
    "recommended": '<path d="M8 0l2.3 5.2 5.7.6-4.3 3.8 1.3 5.6L8 12.3 3 15.2l1.3-5.6L0 5.8l5.7'
    '-.6z"/>',
    "front": '<path d="M8 1l6 7-6 7-6-7z"/>',
    "other": '<circle cx="8" cy="8" r="5" fill="none" stroke-width="1.8"/>',
}
_MAX_DIMENSIONS = 15


def estimate_cell(objective: str, estimate: Estimate | None, *, difference: bool = False) -> str:
    """Returns the mean of `estimate` with its interval below it."""
    if estimate is None:
        return "unknown"
    mean = format_value(objective, estimate.mean, signed=difference)
    bounds = format_bounds(estimate, signed=difference)
    if difference:
        bounds += f", n = {estimate.num}"
    return join(mean, tag("span", bounds, class_="bounds"))


def duration(seconds: float) -> str:
    """Returns `seconds` in the two largest units that matter."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def trade_offs(result: TuningResult) -> Html:
    """Returns a chart per pair of objectives, and the Pareto set as a table."""
    front = result.pareto()
    lead = (
        "Every candidate at its best estimate: validated where possible, else on training "
        "examples. Bars are 95% confidence intervals. Hover or tap for the config."
    )
    everyone = details(
        f"All {len(result.candidates)} candidates as a table",
        _candidate_table(result, "All candidates", result.candidates),
        class_="data",
    )
    return join(
        tag("h2", "Trade-offs"),
        tag("p", lead + _unknown(result), class_="lead"),
        _legend(result),
        _trade_off_charts(result),
        _candidate_table(result, "Pareto set", front) if front else Html(""),
        everyone,
    )


def _unknown(result: TuningResult) -> str:
    """Returns a sentence that names the objectives of which no value is known."""
    names = [o for o in result.objectives if all(c.value(o) is None for c in result.candidates)]
    return f" Unknown for every candidate: {', '.join(names)}." if names else ""


def _trade_off_charts(result: TuningResult) -> Html:
    charts = figures.trade_off_figures(result)
    if not charts:
        charts = [("Candidates, best first", figures.ranking_figure(result))]
    words = "{}: each candidate as a point; the table below holds the numbers"
    drawn = (
        tag("div", tag("h3", name), _chart(f"trade-off-{i}", figure, words.format(name)))
        for i, (name, figure) in enumerate(charts)
    )
    return tag("div", *drawn, class_="charts")


def _legend(result: TuningResult) -> Html:
    present = {figures.role(result, c) for c in result.candidates}
    items = (
        tag("li", _marker(name), figures.ROLES[name][0]) for name in _MARKERS if name in present
    )
    return tag("ul", *items, class_="legend")


def _marker(name: str) -> Html:
    colour = figures.COLOURS[name]
    shape = Html(_MARKERS[name])
    return tag(
        "svg", shape, width="16", height="16", aria_hidden="true", fill=colour, stroke=colour
    )


def _candidate_table(result: TuningResult, caption: str, candidates: Iterable[Candidate]) -> Html:
    names = [label(objective) for objective in result.objectives]
    headings = ["Candidate", *names, "Measured on", "Failed", "What changes"]
    rows = [_candidate_row(result, candidate) for candidate in candidates]
    return table(caption, headings, rows, numeric=frozenset(range(1, len(names) + 1)))


def _candidate_row(result: TuningResult, candidate: Candidate) -> list[str]:
    estimates = {o: best_estimates(candidate, o) for o in result.objectives}
    sources = [
        join(source, tag("span", f"n = {e.num}", class_="bounds"))
        for e, source in estimates.values()
        if e
    ]
    return [
        candidate.name,
        *(estimate_cell(objective, e) for objective, (e, _) in estimates.items()),
        sources[0] if sources else "nothing",
        str(candidate.num_failed),
        recipe_words(candidate.recipe),
    ]


def search(result: TuningResult) -> Html:
    """Returns the flow of the budget and the convergence."""
    return join(tag("h2", "How the budget was used"), _flow(budget_flow(result)), _growth(result))


def _flow(flow: Flow) -> Html:
    if not flow.links:
        return tag("p", "No workflow run was recorded.", class_="quiet")
    lead = (
        "Workflow runs from left to right: phases, the arms (outer configs) that the search "
        "opened, and how the trials under them ended."
    )
    name = "Flow of workflow runs; the table below holds the numbers"
    chart = _chart("flow", figures.budget_figure(flow), name)
    rows = [[entry.source, entry.target, f"{entry.num_runs:,}"] for entry in flow.links]
    numbers = table("Workflow runs", ["From", "To", "Workflow runs"], rows, numeric=frozenset({2}))
    return join(
        tag("p", lead, class_="lead"),
        tag("div", chart, class_="wide", tabindex="0", role="region", aria_label="Budget flow"),
        details("The flow as a table", numbers, class_="data"),
    )


def _growth(result: TuningResult) -> Html:
    data = convergence(result)
    if not data.num_runs:
        return Html("")
    words = f"After each of the {len(data.num_runs)} completed trials, on training examples."
    if data.quality:
        first, last = (plain_number(data.quality[i]) for i in (0, -1))
        words += f" The best feasible quality went from {first} to {last}."
    chart = _chart("growth", figures.convergence_figure(data), words)
    return join(tag("h3", "Convergence", class_="gap"), chart, tag("p", words, class_="quiet"))


def spending(result: TuningResult) -> Html:
    """Returns runs per phase and the totals."""
    used = result.spending
    phases = {PHASES.get(name, name): runs for name, runs in used.phases.items() if runs > 0}
    share = f" ({used.num_memo_calls / used.num_calls:.0%})" if used.num_calls else ""
    no_price = "unknown: a model has no price"
    rows = [
        ["Workflow runs", f"{used.num_runs:,} of {used.budget:,}"],
        ["Taken from the journal", f"{used.num_replayed:,} runs"],
        ["Model calls", f"{used.num_calls:,}"],
        ["Answered from memory", f"{used.num_memo_calls:,} calls{share}"],
        ["Money", no_price if used.cost_usd is None else f"${plain_number(used.cost_usd)}"],
        ["Time", duration(used.seconds)],
    ]
    parts: list[str] = [tag("h2", "Where the money went")]
    if phases:
        parts.append(_chart("phases", figures.phases_figure(phases), "Workflow runs per phase"))
    return join(*parts, table("Totals", ["What", "Used"], rows))


def importance(result: TuningResult) -> Html:
    """Returns how much each dimension explains."""
    ranked = sorted(result.importance.items(), key=lambda item: -item[1])
    if not ranked:
        words = "Too few trials to tell which knob mattered."
        return join(tag("h2", "What mattered"), tag("p", words, class_="quiet"))
    shown, num_left = ranked[:_MAX_DIMENSIONS], len(ranked) - _MAX_DIMENSIONS
    objective = label(result.objectives[0]).lower()
    words = f"How much of the variance of {objective} over all trials each knob explains."
    rows = [[name, f"{share:.1%}"] for name, share in ranked]
    numbers = table("Importance", ["Knob", "Share"], rows, numeric=frozenset({1}))
    return join(
        tag("h2", "What mattered"),
        tag("p", words, class_="lead"),
        _chart("importance", figures.importance_figure(shown), words),
        tag("p", f"{num_left} smaller ones are left out.", class_="quiet")
        if num_left > 0
        else Html(""),
        details("As a table", numbers, class_="data"),
    )


def _chart(name: str, figure: go.Figure, description: str) -> Html:
    """Returns the place of a chart with its data block; the page's script draws it."""
    block = f"figure-{name}"
    plot = tag("div", data_figure=block, class_="plot", role="img", aria_label=description)
    spec = figure.to_plotly_json()
    return join(plot, json_block(block, {"data": spec["data"], "layout": spec["layout"]}))
