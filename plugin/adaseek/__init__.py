"""AdaSeek: adaptive hierarchical tuning of gen-AI workflows."""

from adaseek._version import __version__
from adaseek.errors import AdaseekError
from adaseek.hooks import hookimpl
from adaseek.recipe import Recipe
from adaseek.workflow import Workflow

__all__ = ["AdaseekError", "Recipe", "Workflow", "__version__", "hookimpl"]
