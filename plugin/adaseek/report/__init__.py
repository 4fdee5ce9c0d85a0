"""One self-contained HTML page about a tuning run (needs the extra `adaseek[report]`)."""

from __future__ import annotations

from adaseek.report.graph import mermaid
from adaseek.report.page import write_report

__all__ = ["mermaid", "write_report"]
