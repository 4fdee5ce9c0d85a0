"""The page in a real browser: charts are drawn, nothing is logged, nothing is requested."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from adaseek.report import write_report
from adaseek.result import TuningResult

pytestmark = pytest.mark.browser
BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=8000",
    "--enable-logging=stderr",
)


@dataclass(frozen=True)
class Visit:
    """The page after its scripts have run, its console lines and the addresses it asked for."""

    dom: str
    console: list[str]
    requests: list[str]

    def holder(self, figure: str) -> str:
        """Returns the drawn content of one figure's place."""
        start = self.dom.index(f'data-figure="{figure}"')
        end = self.dom.find(f'id="{figure}"', start)
        return self.dom[start:end]


@pytest.fixture
def visit(tmp_path: Path) -> Callable[..., Visit]:
    if BROWSER is None:
        pytest.skip("no Chromium on this machine")

    def visit(page: Path, *, width: int = 1400) -> Visit:
        log = tmp_path / "network.json"
        command = [
            BROWSER,
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={width},3000",
            f"--log-net-log={log}",
            "--dump-dom",
            page.as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
        return Visit(done.stdout, console, _requests(log))

    return visit


def _requests(log: Path) -> list[str]:
    """Returns the addresses that the page itself asked for, according to the network log.

    The browser's own requests have no initiator; those of a page have one.
    """
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    params = [event.get("params", {}) for event in events]
    return [
        p["url"]
        for p in params
        if p.get("initiator", "not an origin") != "not an origin"
        and not p.get("url", "").startswith(("file:", "data:", "blob:"))
    ]


def test_every_chart_is_drawn_and_nothing_leaves_the_page(
    make_result: Callable[..., TuningResult], tmp_path: Path, visit: Callable[..., Visit]
) -> None:
    seen = visit(write_report(make_result(), tmp_path / "report.html"))
    assert seen.console == []
    assert seen.requests == []
    assert 'data-drawn="7"' in seen.dom
    scatter = seen.holder("figure-trade-off-0")
    assert scatter.count('<path class="point') == 60
    assert 'class="xerror"' in scatter and 'class="yerror"' in scatter
    assert seen.holder("figure-flow").count("sankey-link") > 10
    assert seen.holder("figure-growth").count("js-line") >= 2
    assert seen.holder("figure-importance").count('<g class="point"') == 6
    assert 'data-title="Download plot as a PNG"' in scatter
    assert "cloud" not in scatter.lower()


def test_a_narrow_window_shows_the_same_charts(
    make_result: Callable[..., TuningResult], tmp_path: Path, visit: Callable[..., Visit]
) -> None:
    seen = visit(write_report(make_result(), tmp_path / "report.html"), width=500)
    assert 'data-drawn="7"' in seen.dom
    width = re.search(r'class="main-svg"[^>]* width="(\d+)', seen.holder("figure-trade-off-0"))
    assert width is not None and int(width[1]) < 500


def test_hostile_text_does_not_run(
    make_result: Callable[..., TuningResult], tmp_path: Path, visit: Callable[..., Visit]
) -> None:
    attack = "<img src=http://127.0.0.1:9/x onerror=\"document.title='owned'\"><b>"
    attack += "</script><script>document.title='owned'</script>"
    result = make_result()
    hostile = replace(
        result,
        verdict=attack,
        importance={attack: 1.0},
        candidates=tuple(replace(c, config={attack: attack}) for c in result.candidates),
        workflow=replace(result.workflow, name=attack),
    )
    seen = visit(write_report(hostile, tmp_path / "report.html"))
    assert seen.console == []
    assert seen.requests == []
    assert 'data-drawn="7"' in seen.dom
    assert "<title>owned" not in seen.dom


def test_the_browser_check_notices_a_request(tmp_path: Path, visit: Callable[..., Visit]) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<script>fetch('http://127.0.0.1:9/x').catch(() => console.log('no'))</script>")
    seen = visit(page)
    assert seen.requests and "127.0.0.1:9" in seen.requests[0]
    assert seen.console
