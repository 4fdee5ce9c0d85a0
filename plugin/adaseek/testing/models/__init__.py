"""Small real models for tests and examples, made available without any setup.

Experimental. `ensure_model` returns a model directory in the Hugging Face layout (config.json,
safetensors, tokenizer), prepared once and kept in a cache. `python -m adaseek.testing.models
NAME` does the same from a shell and prints the path.
"""

from __future__ import annotations

__all__ = [
    "CATALOGUE",
    "CatalogueModel",
    "HubSource",
    "ModelProgress",
    "ModelSource",
    "ModelUnavailableError",
    "SourceUnavailableError",
    "WheelFiles",
    "WheelSource",
    "ensure_model",
]

from adaseek.testing.models._catalogue import CATALOGUE, CatalogueModel, WheelFiles
from adaseek.testing.models._progress import ModelProgress
from adaseek.testing.models._sources import (
    HubSource,
    ModelSource,
    ModelUnavailableError,
    SourceUnavailableError,
    WheelSource,
)
from adaseek.testing.models._store import ensure_model
