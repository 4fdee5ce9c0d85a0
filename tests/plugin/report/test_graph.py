"""The workflow as mermaid text and as SVG."""

from __future__ import annotations

from xml.etree import ElementTree

from adaseek.report.graph import draw, mermaid
from adaseek.workflow import Edge, Step, Workflow


def flow(*edges: Edge, steps: str = "a b") -> Workflow:
    return Workflow("dspy", {s: Step(s) for s in steps.split()}, frozenset(edges))


def boxes(workflow: Workflow) -> dict[str, float]:
    """Returns the left side of each step's box by the step's title."""
    root = ElementTree.fromstring(str(draw(workflow)))
    nodes = [g for g in root.findall("g") if g.find("rect") is not None]
    return {g.findtext("title", ""): float(g.find("rect").attrib["x"]) for g in nodes}


def test_mermaid_text_has_steps_edges_and_evidence() -> None:
    text = mermaid(
        flow(
            Edge("INPUT", "a", "question", "question", "trace"),
            Edge("a", "b", "query", "text", "probe"),
            Edge("b", "OUTPUT"),
        )
    )
    assert text == (
        "flowchart LR\n"
        '    n0(["INPUT"])\n'
        '    n1["a (lm)"]\n'
        '    n2["b (lm)"]\n'
        '    n3(["OUTPUT"])\n'
        '    n0 ==>|"question"| n1\n'
        '    n1 -->|"query"| n2\n'
        "    n2 -.-> n3\n"
    )


def test_mermaid_syntax_in_a_name_is_escaped() -> None:
    text = mermaid(Workflow("dspy", {'"]x|#<': Step('"]x|#<')}))
    assert 'n0["#quot;]x#124;#35;#lt; (lm)"]' in text


def test_edges_between_two_steps_are_one_with_the_strongest_evidence() -> None:
    text = mermaid(flow(Edge("a", "b", "x", "x", "static"), Edge("a", "b", "y", "y", "trace")))
    assert text.count("n0") == 2
    assert 'n0 ==>|"x, y"| n1' in text


def test_columns_follow_the_data_and_not_the_program_order() -> None:
    left = boxes(flow(Edge("b", "a"), Edge("a", "OUTPUT")))
    assert left["b"] < left["a"] < left["OUTPUT"]


def test_a_loop_is_drawn_once_and_ends() -> None:
    left = boxes(flow(Edge("INPUT", "a"), Edge("a", "b"), Edge("b", "a"), Edge("a", "a")))
    assert left["INPUT"] < left["a"] < left["b"]


def test_a_workflow_without_edges_is_drawn() -> None:
    assert set(boxes(flow())) == {"a", "b"}
    assert "no known edges" in draw(flow())


def test_a_workflow_without_steps_is_drawn() -> None:
    assert ElementTree.fromstring(str(draw(Workflow("dspy", {})))).tag == "svg"


def test_changed_steps_are_marked() -> None:
    assert draw(flow(), {"b"}).count("node lm changed") == 1


def test_hostile_names_stay_text() -> None:
    name = '"><script>alert(1)</script>'
    picture = draw(Workflow("dspy", {name: Step(name)}, frozenset({Edge(name, "OUTPUT", name)})))
    assert "<script" not in picture
    assert ElementTree.fromstring(str(picture)).tag == "svg"
