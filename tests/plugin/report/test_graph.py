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


def test_steps_are_called_by_their_names_if_an_id_is_long_and_the_name_unique() -> None:
    long, other = "1/RunnableParallel<context>/context/1.rewrite/2.lm", "2.answer/2.lm"
    steps = {key: Step(key, name=name) for key, name in ((long, "rewrite"), (other, "answer"))}
    text = mermaid(Workflow("langchain", steps))
    assert '"rewrite (lm)"' in text
    assert '"answer (lm)"' in text
    namesakes = {key: Step(key, name="lm") for key in steps}
    assert f'"{other} (lm)"' in mermaid(Workflow("langchain", namesakes))
    assert f'"{other} (lm)"' in mermaid(Workflow("langchain", {other: steps[other]}))


def test_arrows_there_and_back_run_beside_each_other() -> None:
    root = ElementTree.fromstring(str(draw(flow(Edge("a", "b"), Edge("b", "a")))))
    shapes = [path.attrib["d"] for path in root.findall("g/path")]
    starts = [shape.split()[0].removeprefix("M").split(",")[1] for shape in shapes]
    assert len(set(starts)) == 2
    assert all(float(y) >= 0 for y in starts)
    assert all(shape.count("C") == 1 for shape in shapes)


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
