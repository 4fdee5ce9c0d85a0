"""The command line: `adaseek tune | evaluate | inspect | report | serve`."""

from __future__ import annotations

from adaseek.cli.app import main

__all__ = ["main"]
