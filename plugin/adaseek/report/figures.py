"""The report's charts as plotly figures. Colours of text and grid are set by the page's script,
which knows whether the reader uses a dark theme."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from itertools import combinations

import plotly.graph_objects as go

from adaseek._units import (
    best_estimates,
    format_estimate,
    higher_is_better,
    label,
    unit,
)
from adaseek.report.history import Convergence, Flow
from adaseek.result import Candidate, Estimate, TuningResult

__all__ = [
    "COLOURS",
    "ROLES",
    "budget_figure",
    "convergence_figure",
    "importance_figure",
    "phases_figure",
    "ranking_figure",
    "role",
    "trade_off_figures",
]

# Okabe and Ito's palette: told apart with every common kind of colour blindness, and each has a
# contrast of at least 3 with white and with the page's dark ground.
COLOURS = {
    "original": "#d55e00",
    "recommended": "#009e73",
    "front": "#2a7fc1",
    "other": "#868e99",
    "accent": "#2a7fc1",
    "second": "#c4629b",
    "eliminated": "#b8860b",
}
ROLES = {
    "other": ("Other configs", "circle-open", 7),
    "front": ("Pareto set", "diamond", 11),
    "original": ("Original program", "square", 13),
    "recommended": ("Recommended", "star", 18),
}
"""Role of a candidate -> name, marker symbol and size, in drawing order."""

_MAX_TICK = 30
"""Letters of a name beside its bar: more would squeeze the bars on a narrow chart."""

_STATE_COLOURS = {
    "budget": COLOURS["accent"],
    "phase": COLOURS["accent"],
    "arm": COLOURS["second"],
    "complete": COLOURS["recommended"],
    "eliminated": COLOURS["eliminated"],
    "infeasible": COLOURS["original"],
    "failed": COLOURS["original"],
    "rest": COLOURS["other"],
}
_MAX_RANKED = 24
_MAX_HOVER_LINES = 14


def role(result: TuningResult, candidate: Candidate) -> str:
    """Returns the role under which `candidate` is drawn."""
    if candidate.name == result.recommended.name != result.original.name:
        return "recommended"
    if candidate.name == result.original.name:
        return "original"
    return "front" if candidate.pareto else "other"


def trade_off_figures(result: TuningResult) -> list[tuple[str, go.Figure]]:
    """Returns a title and a scatter for each pair of objectives that has known values."""
    figures = []
    for vertical, horizontal in combinations(result.objectives, 2):
        figure = _trade_off(result, horizontal, vertical)
        if figure.data:
            title = f"{label(vertical)} against {label(horizontal).lower()}"
            figures.append((title, figure))
    return figures


def ranking_figure(result: TuningResult) -> go.Figure:
    """Returns candidates ranked by the only objective, with confidence intervals.

    Original, recommended and Pareto set are always among them.
    """
    objective = result.objectives[0]
    ranked = _ranked(result, objective)
    figure = _figure(height=110 + 22 * len(ranked))
    for name in ROLES:
        members = [c for c in ranked if role(result, c) == name]
        if members:
            values = [c.value(objective) for c in members]
            trace = _points(name, members, values, [_plain(c.name) for c in members], result)
            trace.update(error_x=_error_bars(members, objective, name))
            figure.add_trace(trace)
    order = [_plain(c.name) for c in reversed(ranked)]
    figure.update_yaxes(
        categoryorder="array", categoryarray=order, automargin=True, type="category"
    )
    figure.update_xaxes(title_text=_axis_title(objective), exponentformat="none")
    return figure


def _ranked(result: TuningResult, objective: str) -> list[Candidate]:
    """Returns the candidates to show, best first, at most as many as fit on a screen."""
    sign = -1 if higher_is_better(objective) else 1
    values = {c.name: c.value(objective) for c in result.candidates}
    known = [c for c in result.candidates if values[c.name] is not None]
    ranked = sorted(known, key=lambda c: sign * (values[c.name] or 0.0))
    marked = [c.name for c in ranked if role(result, c) != "other"]
    others = [c.name for c in ranked if c.name not in marked]
    shown = {*marked, *others[: max(0, _MAX_RANKED - len(marked))]}
    return [c for c in ranked if c.name in shown]


def convergence_figure(data: Convergence) -> go.Figure:
    """Returns the best feasible quality and the hypervolume over the workflow runs used."""
    figure = _figure(height=340)
    if data.quality:
        figure.add_trace(_growth(data.num_runs, data.quality, "Best feasible quality", "accent"))
        figure.update_yaxes(title_text="Best feasible quality (training)", rangemode="normal")
    if data.volume:
        trace = _growth(data.num_runs, data.volume, "Hypervolume, share of final", "second")
        trace.update(line={"dash": "dash"}, yaxis="y2" if data.quality else "y")
        figure.add_trace(trace)
        axis = {
            "title": {"text": "Hypervolume, share of final"},
            "range": [0, 1.05],
            "tickmode": "linear",
            "dtick": 0.25,
            "tickformat": ".0%",
        }
        if data.quality:
            figure.update_layout(
                yaxis2={**axis, "overlaying": "y", "side": "right", "showgrid": False},
                margin={"r": 64},
            )
        else:
            figure.update_layout(yaxis=axis)
    figure.update_xaxes(title_text="Workflow runs used", rangemode="tozero")
    figure.update_layout(
        showlegend=True, legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    )
    return figure


def budget_figure(flow: Flow) -> go.Figure:
    """Returns the flow of workflow runs as a Sankey diagram."""
    names = list(flow.nodes)
    index = {name: i for i, name in enumerate(names)}
    colours = [_STATE_COLOURS.get(kind, COLOURS["other"]) for kind in flow.nodes.values()]
    node = {
        "label": [_plain(name) for name in names],
        "color": colours,
        "customdata": [_node_hover(flow, name) for name in names],
        "hovertemplate": "%{customdata}<br>%{value} workflow runs<extra></extra>",
        "pad": 14,
        "thickness": 16,
        "align": "left",
        "line": {"width": 0},
    }
    link = {
        "source": [index[entry.source] for entry in flow.links],
        "target": [index[entry.target] for entry in flow.links],
        "value": [entry.num_runs for entry in flow.links],
        "color": [_faded(colours[index[entry.target]]) for entry in flow.links],
        "hovertemplate": "%{source.label} to %{target.label}<br>%{value} workflow runs"
        "<extra></extra>",
    }
    figure = _figure(height=max(320, 60 + 26 * len(names)))
    figure.add_trace(go.Sankey(node=node, link=link, arrangement="snap", valueformat=",d"))
    figure.update_layout(margin={"l": 8, "r": 8, "t": 16, "b": 16})
    return figure


def phases_figure(phases: dict[str, int]) -> go.Figure:
    """Returns the workflow runs of each phase as bars."""
    names = list(phases)
    return _bars(
        names, [phases[n] for n in names], "Workflow runs", [f"{phases[n]:,}" for n in names]
    )


def importance_figure(importance: Sequence[tuple[str, float]]) -> go.Figure:
    """Returns the share of variance that each dimension explains as bars, largest on top."""
    values = [share for _, share in importance]
    figure = _bars(
        [name for name, _ in importance],
        values,
        "Share of the variance explained",
        [f"{share:.0%}" for share in values],
    )
    figure.update_xaxes(tickformat=".0%")
    return figure


def _trade_off(result: TuningResult, horizontal: str, vertical: str) -> go.Figure:
    figure = _figure(height=380)
    for name in ROLES:
        members = [
            c
            for c in result.candidates
            if role(result, c) == name and None not in (c.value(horizontal), c.value(vertical))
        ]
        if not members:
            continue
        xs = [c.value(horizontal) for c in members]
        trace = _points(name, members, xs, [c.value(vertical) for c in members], result)
        if name != "other":  # theirs would hide the points; the hover has them
            trace.update(
                error_x=_error_bars(members, horizontal, name),
                error_y=_error_bars(members, vertical, name),
            )
        figure.add_trace(trace)
    # Plain numbers: the prefixes of the metric system (50µ) are no way to write money.
    figure.update_xaxes(title_text=_axis_title(horizontal), exponentformat="none")
    figure.update_yaxes(title_text=_axis_title(vertical), exponentformat="none", automargin=True)
    return figure


def _points(
    name: str,
    members: Sequence[Candidate],
    xs: Sequence[float | None],
    ys: Sequence[float | None] | Sequence[str],
    result: TuningResult,
) -> go.Scatter:
    title, symbol, size = ROLES[name]
    return go.Scatter(
        x=list(xs),
        y=list(ys),
        mode="markers",
        name=title,
        marker={
            "symbol": symbol,
            "size": size,
            "color": COLOURS[name],
            "line": {"width": 1.5 if name == "other" else 1, "color": COLOURS[name]},
        },
        customdata=[_hover(result, candidate) for candidate in members],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _error_bars(members: Sequence[Candidate], objective: str, name: str) -> dict[str, object]:
    """Returns the confidence intervals of `members`, the important ones drawn stronger."""
    estimates = [best_estimates(c, objective)[0] for c in members]
    return {
        "type": "data",
        "symmetric": False,
        "array": [_distance(e, "high") for e in estimates],
        "arrayminus": [_distance(e, "low") for e in estimates],
        "color": COLOURS[name],
        "thickness": 1.6 if name in ("original", "recommended") else 0.8,
        "width": 3,
    }


def _distance(estimate: Estimate | None, side: str) -> float:
    if estimate is None:
        return 0.0
    distance = abs(getattr(estimate, side) - estimate.mean)
    return distance if math.isfinite(distance) else 0.0


def _hover(result: TuningResult, candidate: Candidate) -> str:
    lines = [f"<b>{_plain(candidate.name)}</b>"]
    for objective in result.objectives:
        estimate, source = best_estimates(candidate, objective)
        text = format_estimate(objective, estimate)
        note = f" ({source}, {estimate.num} examples)" if estimate else ""
        lines.append(f"{label(objective)}: {_plain(text + note)}")
    config = [f"{_plain(k)} = {_plain(v)}" for k, v in candidate.config.items()]
    lines.extend(_cut(config))
    return "<br>".join(lines)


def _node_hover(flow: Flow, name: str) -> str:
    config = [f"{_plain(k)} = {_plain(v)}" for k, v in flow.arms.get(name, {}).items()]
    return "<br>".join([f"<b>{_plain(name)}</b>", *_cut(config)])


def _cut(lines: Sequence[str]) -> Iterable[str]:
    yield from lines[:_MAX_HOVER_LINES]
    if len(lines) > _MAX_HOVER_LINES:
        yield f"and {len(lines) - _MAX_HOVER_LINES} more"


def _growth(xs: Sequence[int], ys: Sequence[float], name: str, colour: str) -> go.Scatter:
    return go.Scatter(
        x=list(xs),
        y=list(ys),
        mode="lines+markers" if len(xs) < 3 else "lines",
        name=name,
        line={"shape": "hv", "width": 2.5, "color": COLOURS[colour]},
        hovertemplate="%{x:,} runs: %{y:.3g}",
    )


def _bars(
    names: Sequence[str], values: Sequence[float], title: str, texts: Sequence[str]
) -> go.Figure:
    figure = _figure(height=90 + 34 * len(names))
    plain = [_plain(name) for name in names]
    figure.add_trace(
        go.Bar(
            x=list(values),
            y=plain,
            text=list(texts),
            orientation="h",
            textposition="auto",
            marker={"color": COLOURS["accent"]},
            hovertemplate="%{y}: %{text}<extra></extra>",
        )
    )
    figure.update_yaxes(autorange="reversed", automargin=True, type="category", showgrid=False)
    # Of a long path the end tells most; the hover has all of it.
    endings = [f"…{name[-_MAX_TICK:]}" if len(name) > _MAX_TICK + 1 else name for name in names]
    figure.update_yaxes(tickvals=plain, ticktext=[_plain(ending) for ending in endings])
    figure.update_layout(margin={"t": 8})
    figure.update_xaxes(title_text=title, rangemode="tozero")
    return figure


def _figure(*, height: int) -> go.Figure:
    # An empty template: the page's script sets every colour that depends on the theme.
    return go.Figure(
        layout={
            "template": go.layout.Template(),
            "height": height,
            "showlegend": False,
            "margin": {"l": 64, "r": 24, "t": 34, "b": 56},
            "hoverlabel": {"align": "left"},
        }
    )


def _axis_title(objective: str) -> str:
    hint = "higher is better" if higher_is_better(objective) else "lower is better"
    return f"{label(objective)}, {unit(objective)} ({hint})"


def _plain(text: str, limit: int = 90) -> str:
    """Returns `text` such that plotly, which reads a little HTML in labels, shows it as it is."""
    return html.escape(text if len(text) <= limit else text[: limit - 1] + "…", quote=False)


def _faded(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.32)"
