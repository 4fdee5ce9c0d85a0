"""The workflow drawn: mermaid text for a terminal or a README, SVG for the report."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from adaseek.report._html import Html, tag
from adaseek.workflow import Evidence, Step, Workflow

__all__ = ["draw", "mermaid"]

_STRENGTH: tuple[Evidence, ...] = ("static", "order", "probe", "trace")
_ARROWS = {"static": "-.->", "order": "-.->", "probe": "-->", "trace": "==>"}
# Mermaid reads `#name;` as a character, and takes quotes and angle brackets for syntax.
_MERMAID_CODES = str.maketrans(
    {"#": "#35;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "|": "#124;", "\n": " "}
)
_ENDS = {"INPUT": "input", "OUTPUT": "output"}

_BOX_WIDTH, _BOX_HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 192, 56, 96, 34, 16
_LETTERS_PER_LINE = 24
_TWO_WAY_SHIFT = 10
"""How far arrows between two nodes in both directions are moved apart, in pixels each."""


@dataclass(frozen=True)
class _Link:
    """All edges between two nodes as one, with the strongest evidence for any of them."""

    source: str
    target: str
    fields: tuple[str, ...]
    evidence: Evidence
    is_two_way: bool


@dataclass(frozen=True)
class _Box:
    x: float
    y: float
    column: int


def mermaid(workflow: Workflow) -> str:
    """Returns the workflow as a mermaid flowchart; thick arrows were seen in real runs."""
    names, labels = _nodes(workflow), _labels(workflow)
    ids = {name: f"n{index}" for index, name in enumerate(names)}
    lines = ["flowchart LR"]
    for name, node in ids.items():
        step = workflow.steps.get(name)
        text = _mermaid_text(name if step is None else f"{labels[name]} ({step.kind})")
        lines.append(f'    {node}(["{text}"])' if step is None else f'    {node}["{text}"]')
    for link in _links(workflow):
        fields = _mermaid_text(", ".join(link.fields))
        text = f'|"{fields}"|' if fields else ""
        lines.append(f"    {ids[link.source]} {_ARROWS[link.evidence]}{text} {ids[link.target]}")
    return "\n".join(lines) + "\n"


def draw(workflow: Workflow, changed: Collection[str] = ()) -> Html:
    """Returns the workflow as an SVG image, the `changed` steps marked."""
    links = _links(workflow)
    boxes = _layout(_nodes(workflow), links)
    labels = _labels(workflow)
    width = max(box.x for box in boxes.values()) + _BOX_WIDTH + _MARGIN
    height = max(box.y for box in boxes.values()) + _BOX_HEIGHT + 2 * _MARGIN
    return tag(
        "svg",
        _arrow_head(),
        *(_path(link, boxes) for link in links),
        *(
            _node(n, labels.get(n, n), workflow.steps.get(n), box, n in changed)
            for n, box in boxes.items()
        ),
        class_="workflow",
        width=f"{width:g}",
        height=f"{height:g}",
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        aria_label=_description(workflow, links),
    )


def _mermaid_text(text: str) -> str:
    return text.translate(_MERMAID_CODES)


def _nodes(workflow: Workflow) -> tuple[str, ...]:
    """Returns input, the steps in program order, and whatever else an edge names."""
    ends = {name for edge in workflow.edges for name in (edge.source, edge.target)}
    extra = sorted(ends - set(workflow.steps) - {"INPUT"})
    first = ["INPUT"] if "INPUT" in ends else []
    return (*first, *workflow.steps, *extra)


def _labels(workflow: Workflow) -> dict[str, str]:
    """Returns what each step is called: its id; if not all ids are short, its name, if unique."""
    steps = workflow.steps
    times = Counter(step.name for step in steps.values())
    if all(len(key) <= _LETTERS_PER_LINE for key in steps):
        return {key: key for key in steps}
    return {
        key: step.name if step.name and times[step.name] == 1 else key
        for key, step in steps.items()
    }


def _links(workflow: Workflow) -> tuple[_Link, ...]:
    fields: dict[tuple[str, str], list[str]] = defaultdict(list)
    evidence: dict[tuple[str, str], Evidence] = {}
    for edge in sorted(workflow.edges):
        pair = (edge.source, edge.target)
        name = edge.source_field or edge.target_field
        if name and name not in fields[pair]:
            fields[pair].append(name)
        if pair not in evidence or _is_stronger(edge.evidence, evidence[pair]):
            evidence[pair] = edge.evidence
    return tuple(
        _Link(*pair, tuple(fields[pair]), evidence[pair], is_two_way=pair[::-1] in evidence)
        for pair in evidence
    )


def _is_stronger(evidence: Evidence, other: Evidence) -> bool:
    return _STRENGTH.index(evidence) > _STRENGTH.index(other)


def _layout(nodes: Sequence[str], links: Sequence[_Link]) -> dict[str, _Box]:
    """Returns a place for every node: columns by longest path, rows in program order."""
    columns = _columns(nodes, links)
    members: dict[int, list[str]] = defaultdict(list)
    for node in nodes:
        members[columns[node]].append(node)
    tallest = max((len(m) for m in members.values()), default=1)
    pitch_x, pitch_y = _BOX_WIDTH + _GAP_X, _BOX_HEIGHT + _GAP_Y
    # Links that jump over a column bend upwards: leave them room.
    top = _MARGIN + (44 if any(_jumps(link, columns) for link in links) else 0)
    boxes: dict[str, _Box] = {}
    for column, names in members.items():
        offset = top + (tallest - len(names)) * pitch_y / 2
        for row, name in enumerate(names):
            boxes[name] = _Box(_MARGIN + column * pitch_x, offset + row * pitch_y, column)
    return boxes or {"": _Box(0.0, 0.0, 0)}


def _columns(nodes: Sequence[str], links: Sequence[_Link]) -> dict[str, int]:
    """Returns the longest-path depth of each node; a loop is cut at its first node."""
    columns: dict[str, int] = {}
    waiting = list(nodes)
    while waiting:
        ready = [n for n in waiting if _sources(n, links) <= columns.keys()]
        for node in ready or waiting[:1]:
            before = (columns[s] for s in _sources(node, links) if s in columns)
            columns[node] = max(before, default=-1) + 1
        waiting = [node for node in waiting if node not in columns]
    if "OUTPUT" in columns:
        columns["OUTPUT"] = max(columns.values())
    return columns


def _sources(node: str, links: Sequence[_Link]) -> set[str]:
    return {link.source for link in links if link.target == node} - {node}


def _jumps(link: _Link, columns: Mapping[str, int]) -> bool:
    step = columns[link.target] - columns[link.source]
    return step != 1 and not (step == -1 and link.is_two_way)


def _path(link: _Link, boxes: Mapping[str, _Box]) -> Html:
    source, target = boxes[link.source], boxes[link.target]
    if _jumps(link, {name: box.column for name, box in boxes.items()}):
        shape, label_at = _top_curve(source, target)
    else:
        shift = _TWO_WAY_SHIFT if link.is_two_way else 0
        shape, label_at = _side_curve(source, target, shift)
    title = f"{link.source} to {link.target}: {', '.join(link.fields) or 'message'}"
    return tag(
        "g",
        tag("title", f"{title} (evidence: {link.evidence})"),
        tag("path", d=shape, class_=f"edge {link.evidence}", marker_end="url(#arrow)"),
        _edge_label(link, *label_at),
    )


def _side_curve(source: _Box, target: _Box, shift: int) -> tuple[str, tuple[float, float]]:
    """Returns a curve between facing sides and its label's place; the way back runs below."""
    if target.column > source.column:
        start_x, end_x, down = source.x + _BOX_WIDTH, target.x - 7, -shift
    else:
        start_x, end_x, down = source.x, target.x + _BOX_WIDTH + 7, shift
    start_y, end_y = (box.y + _BOX_HEIGHT / 2 + down for box in (source, target))
    middle = (start_x + end_x) / 2
    shape = f"M{start_x:g},{start_y:g} C{middle:g},{start_y:g} {middle:g},{end_y:g}"
    shape += f" {end_x:g},{end_y:g}"
    # Near the end that has fewer arrows, or the labels of one fan would lie on each other.
    right = max(source, target, key=lambda box: box.x)
    label_y = right.y + _BOX_HEIGHT / 2 + down + (18 if down > 0 else 0)
    return shape, (right.x - _GAP_X * 0.42, label_y)


def _top_curve(source: _Box, target: _Box) -> tuple[str, tuple[float, float]]:
    """Returns a curve over whatever is between two nodes, and its label's place."""
    start_x, start_y = source.x + _BOX_WIDTH * 0.7, source.y
    end_x, end_y = target.x + _BOX_WIDTH * 0.3, target.y - 7
    top = min(start_y, end_y) - 46
    shape = f"M{start_x:g},{start_y:g} C{start_x:g},{top:g} {end_x:g},{top:g}"
    shape += f" {end_x:g},{end_y:g}"
    return shape, ((start_x + end_x) / 2, min(start_y, end_y) - 38)


def _edge_label(link: _Link, x: float, y: float) -> Html:
    text = _shorten(", ".join(link.fields), 12)
    if not text:
        return Html("")
    return tag("text", text, x=f"{x:g}", y=f"{y - 6:g}", class_="edge-label")


def _node(name: str, label: str, step: Step | None, box: _Box, is_changed: bool) -> Html:
    kind = _ENDS.get(name, "other") if step is None else step.kind
    classes = f"node {kind}" + (" changed" if is_changed else "")
    lines = [_shorten(_ENDS.get(name, label), _LETTERS_PER_LINE)]
    if step is not None:
        model = step.model.id.rpartition("/")[2] if step.model else ""
        lines.append(_shorten(f"{step.kind} · {model}" if model else step.kind, 26))
    center = box.x + _BOX_WIDTH / 2
    first = box.y + (_BOX_HEIGHT / 2 + 5 if len(lines) == 1 else 24)
    texts = (
        tag("text", line, x=f"{center:g}", y=f"{first + 18 * i:g}", class_="second" if i else None)
        for i, line in enumerate(lines)
    )
    rectangle = tag(
        "rect",
        x=f"{box.x:g}",
        y=f"{box.y:g}",
        width=str(_BOX_WIDTH),
        height=str(_BOX_HEIGHT),
        rx="28" if step is None else "8",
    )
    title = tag("title", name + (" (changed by the recipe)" if is_changed else ""))
    return tag("g", title, rectangle, *texts, class_=classes)


def _arrow_head() -> Html:
    head = tag("path", d="M0,0 L8,4 L0,8 z", class_="arrow")
    marker = tag(
        "marker",
        head,
        id="arrow",
        viewBox="0 0 8 8",
        refX="4",
        refY="4",
        markerWidth="7",
        markerHeight="7",
        orient="auto",
    )
    return tag("defs", marker)


def _description(workflow: Workflow, links: Sequence[_Link]) -> str:
    edges = "; ".join(f"{link.source} to {link.target}" for link in links) or "no known edges"
    return f"Workflow of {len(workflow.steps)} steps: {edges}"


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
