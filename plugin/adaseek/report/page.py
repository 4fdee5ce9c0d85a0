"""The report: one page that needs nothing but itself."""

from __future__ import annotations

import base64
import hashlib
import os
from importlib import resources
from pathlib import Path

from adaseek.errors import ConfigurationError
from adaseek.report._html import Html, join, tag
from adaseek.result import TuningResult

__all__ = ["render", "write_report"]


def write_report(result: TuningResult, path: str | os.PathLike[str]) -> Path:
    """Writes the report of `result` to `path` in one step and returns the path.

    The page holds its script, style and data, and its own policy forbids it to load or send
    anything, so it opens offline and may be mailed.

    Raises:
        ConfigurationError: if plotly is not installed.
    """
    target = Path(path)
    text = render(result)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    partial.write_text(text, encoding="utf-8", newline="\n")
    return partial.replace(target)


def render(result: TuningResult) -> str:
    """Returns the report of `result` as HTML text.

    Raises:
        ConfigurationError: if plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ConfigurationError(
            "The report needs plotly, which is not installed. "
            "Install it with: pip install 'adaseek[report]'"
        ) from None
    from adaseek.report.sections import body, title

    scripts = (get_plotlyjs(), _asset("page.js"))
    head = join(
        tag("meta", charset="utf-8"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">'),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title(result)),
        tag("style", Html(_asset("page.css"))),
    )
    blocks = (Html(f"<script>{script}</script>") for script in scripts)
    page = tag("html", tag("head", head), tag("body", body(result), *blocks), lang="en")
    return f"<!doctype html>\n{page}\n"


def _asset(name: str) -> str:
    return (resources.files("adaseek.report") / "assets" / name).read_text(encoding="utf-8")


def _policy(scripts: tuple[str, ...]) -> str:
    """Returns a content security policy: only these scripts run, and nothing is fetched.

    Plotly sets inline styles, and makes an image of a chart through a blob when asked to.
    """
    digests = (base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
