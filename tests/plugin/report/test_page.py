"""The page as written: complete, self-contained, and never at the mercy of the user's text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from adaseek.errors import ConfigurationError
from adaseek.recipe import Demo, Recipe, Setting
from adaseek.report import write_report
from adaseek.report.page import render
from adaseek.result import Candidate, Estimate, Spending, TuningResult
from adaseek.workflow import Note

Make = Callable[..., TuningResult]
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=\"alert('2')\">&amp;<!--"


class Page(HTMLParser):
    """The elements of a page, the text outside scripts, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data
        elif self.cdata_elem is None:
            self.text += data

    def find(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def figures(self) -> dict[str, dict[str, list[dict[str, object]]]]:
        blocks = zip(self.find("script"), self.scripts, strict=True)
        return {str(a["id"]): json.loads(text) for a, text in blocks if "id" in a}


def test_the_page_shows_every_section(make_result: Make) -> None:
    page = Page(render(make_result()))
    ids = [attributes["id"] for attributes in page.find("section")]
    assert ids == [
        "result",
        "changes",
        "trade-offs",
        "budget",
        "spending",
        "importance",
        "workflow",
        "notes",
    ]
    assert set(page.figures()) == {
        "figure-trade-off-0",
        "figure-trade-off-1",
        "figure-trade-off-2",
        "figure-flow",
        "figure-growth",
        "figure-phases",
        "figure-importance",
    }


def test_the_report_is_written_in_one_step(make_result: Make, tmp_path: Path) -> None:
    written = write_report(make_result(), tmp_path / "new" / "report.html")
    assert written == tmp_path / "new" / "report.html"
    assert written.read_text(encoding="utf-8").startswith("<!doctype html>\n<html")
    assert [path.name for path in written.parent.iterdir()] == ["report.html"]


def test_the_result_writes_its_own_report(make_result: Make, tmp_path: Path) -> None:
    assert make_result().report(tmp_path / "report.html").stat().st_size > 1_000_000


def test_the_page_refers_to_nothing_outside(make_result: Make) -> None:
    page = Page(render(make_result()))
    for name, attributes in page.elements:
        assert name not in ("link", "img", "iframe", "object", "form", "base")
        assert "src" not in attributes
        assert attributes.get("href", "#")[0] == "#"
    assert "url(" not in "".join(page.text)


def test_the_policy_allows_these_scripts_and_nothing_else(make_result: Make) -> None:
    page = Page(render(make_result()))
    policy = page.find("meta")[1]["content"] or ""
    code = [
        text
        for attributes, text in zip(page.find("script"), page.scripts, strict=True)
        if "type" not in attributes
    ]
    digests = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in code}
    assert len(code) == 2
    assert digests == set(re.findall(r"'sha256-([^']+)'", policy))
    assert policy.startswith("default-src 'none'")
    assert sum("plotly.js v" in text for text in page.scripts) == 1


def test_a_chart_cannot_be_uploaded(make_result: Make) -> None:
    code = Page(render(make_result())).scripts[-1]
    assert "showSendToCloud: false" in code
    assert 'plotlyServerURL: ""' in code


def test_hostile_text_stays_text(make_result: Make) -> None:
    result = make_result()
    workflow = replace(
        result.workflow,
        name=HOSTILE,
        notes=(Note("warning", HOSTILE, HOSTILE),),
        steps={HOSTILE: replace(result.workflow.steps["check"], id=HOSTILE)},
    )
    recipe = Recipe(
        {HOSTILE: Setting(instructions=HOSTILE, demos=(Demo({HOSTILE: HOSTILE}),))},
        made_with={HOSTILE: HOSTILE},
    )
    config = {HOSTILE: HOSTILE}
    candidates = [replace(c, config=config, recipe=recipe, name=c.name) for c in result.candidates]
    hostile = replace(
        result,
        workflow=workflow,
        candidates=tuple(candidates),
        recommended=replace(result.recommended, recipe=recipe),
        verdict=HOSTILE,
        importance={HOSTILE: 0.5},
        ended=HOSTILE,
        run_dir=HOSTILE,
    )
    clean, page = Page(render(result)), Page(render(hostile))
    assert len(page.find("script")) == len(clean.find("script"))
    assert page.find("img") == []
    assert HOSTILE in page.text
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    bars = page.figures()["figure-importance"]["data"][0]
    # Plotly reads a little HTML in labels, so there it must be escaped once more.
    assert "<" not in bars["y"][0] and "&lt;/script&gt;" in bars["y"][0]


def test_charts_tell_the_candidates_apart_by_shape_and_colour(make_result: Make) -> None:
    traces = Page(render(make_result())).figures()["figure-trade-off-0"]["data"]
    assert [trace["name"] for trace in traces] == [
        "Other configs",
        "Pareto set",
        "Original program",
        "Recommended",
    ]
    assert len({trace["marker"]["symbol"] for trace in traces}) == 4
    assert len({trace["marker"]["color"] for trace in traces}) == 4
    assert "error_x" not in traces[0] and len(traces[3]["error_y"]["array"]) == 1


def test_every_chart_and_picture_has_a_description(make_result: Make) -> None:
    page = Page(render(make_result()))
    pictures = [a for _, a in page.elements if a.get("role") == "img"]
    assert len(pictures) == 8
    assert all(len(a["aria-label"] or "") > 10 for a in pictures)


def test_every_column_of_every_table_has_a_header(make_result: Make) -> None:
    page = render(make_result())
    tables = re.findall(r"<table>.*?</table>", page, re.DOTALL)
    assert len(tables) > 5
    for body in tables:
        num_columns = body.count('scope="col"')
        rows = re.findall(r"<tr>(.*?)</tr>", body.partition("<tbody>")[2], re.DOTALL)
        assert {len(re.findall(r"<t[hd][ >]", row)) for row in rows} == {num_columns}


def test_a_single_objective_is_drawn_as_a_ranking(make_result: Make) -> None:
    page = Page(render(make_result(objectives=("quality",))))
    traces = page.figures()["figure-trade-off-0"]["data"]
    shown = {trace["name"]: trace["y"] for trace in traces}
    assert shown["Original program"] == ["original"] and len(shown["Pareto set"]) == 3
    assert sum(map(len, shown.values())) == 24
    assert all(len(trace["error_x"]["array"]) == len(trace["y"]) for trace in traces)
    assert "figure-trade-off-1" not in page.figures()


def test_a_cost_that_is_not_known_is_said_to_be_unknown(make_result: Make) -> None:
    result = make_result()

    def without(candidate: Candidate) -> Candidate:
        train, val = dict(candidate.train), dict(candidate.validation)
        train.pop("cost"), val.pop("cost", None)
        return replace(candidate, train=train, validation=val)

    candidates = {c.name: without(c) for c in result.candidates}
    page = Page(
        render(
            replace(
                result,
                original=candidates["original"],
                recommended=candidates[result.recommended.name],
                candidates=tuple(candidates.values()),
                improvement={"quality": Estimate(0.1, 0.05, 0.15, 60)},
                spending=replace(result.spending, cost_usd=None),
            )
        )
    )
    assert "Unknown for every candidate: cost." in page.text
    assert "unknown: a model has no price" in page.text
    assert "$" not in page.text
    assert "figure-trade-off-0" in page.figures() and "figure-trade-off-1" not in page.figures()


def test_no_gain_keeps_the_original_and_says_so(make_result: Make) -> None:
    result = make_result()
    verdict = "No significant gain on held-out examples: keep the original."
    page = Page(
        render(replace(result, recommended=result.original, improvement={}, verdict=verdict))
    )
    assert verdict in page.text
    assert "● original kept" in page.text and "▲" not in page.text
    assert "same program" in page.text and "not measured" not in page.text
    assert "Nothing changes: this is the original program." in page.text


def test_a_run_that_was_interrupted_before_validation(make_result: Make) -> None:
    result = make_result()
    candidates = {c.name: replace(c, validation={}) for c in result.candidates}
    page = Page(
        render(
            replace(
                result,
                ended="BudgetExhausted: `max_cost_usd` is 1, and 1.02 are used.",
                original=candidates["original"],
                recommended=candidates[result.recommended.name],
                candidates=tuple(candidates.values()),
                improvement={},
            )
        )
    )
    assert "ended early: best so far" in page.text
    assert "Reason: BudgetExhausted: `max_cost_usd` is 1" in page.text
    assert "Nothing was validated" in page.text and "not measured" in page.text
    assert "training means, not confirmed" in page.text


def test_one_candidate_and_no_event(make_result: Make) -> None:
    result = make_result()
    original = replace(result.original, validation={}, pareto=False)
    page = Page(
        render(
            replace(
                result,
                original=original,
                recommended=original,
                candidates=(original,),
                improvement={},
                importance={},
                events=(),
                spending=Spending(budget=10, num_runs=0),
            )
        )
    )
    assert "Too few trials to tell which knob mattered." in page.text
    assert "No workflow run was recorded." not in page.text
    assert set(page.figures()) == {f"figure-trade-off-{i}" for i in range(3)} | {"figure-flow"}


def test_intervals_without_bounds_do_not_break_the_page(make_result: Make) -> None:
    result = make_result()
    wide = Estimate(0.5, float("-inf"), float("inf"), 1)
    original = replace(result.original, train={"quality": wide}, validation={})
    page = Page(render(replace(result, original=original, candidates=(original,))))
    assert "∞" in page.text


def test_without_plotly_the_error_names_the_cure(
    make_result: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'adaseek\[report\]'"):
        write_report(make_result(), tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []
