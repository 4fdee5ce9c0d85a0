"""Cogs: the tuning methods, one file each, and the search space that they span."""

from pluggy import PluginManager

from adaseek.cogs.base import Cog, CogContext, Completion, DynamicCog, Option, Proposer, Run
from adaseek.cogs.decompose import DecomposeCog
from adaseek.cogs.ensemble import EnsembleCog
from adaseek.cogs.few_shot import FewShotCog
from adaseek.cogs.instructions import InstructionsCog
from adaseek.cogs.model import ModelCog
from adaseek.cogs.params import ParamsCog
from adaseek.cogs.reasoning import ReasoningCog
from adaseek.cogs.space import OptionTable, Refusal, build_space

__all__ = [
    "Cog",
    "CogContext",
    "Completion",
    "DecomposeCog",
    "DynamicCog",
    "EnsembleCog",
    "FewShotCog",
    "InstructionsCog",
    "ModelCog",
    "Option",
    "OptionTable",
    "ParamsCog",
    "Proposer",
    "ReasoningCog",
    "Refusal",
    "Run",
    "build_space",
    "default_cogs",
    "known_cogs",
]


def default_cogs() -> tuple[Cog, ...]:
    """Returns the cogs of a run that names none: everything that needs no choice of the user.

    `ModelCog` has nothing to choose from without a model menu, nor `InstructionsCog` without a
    proposal model; `ParamsCog` needs values and is therefore not among them, nor is
    `DecomposeCog`: more calls for every run pay at few steps only.
    """
    return (EnsembleCog(), ModelCog(), ReasoningCog(), FewShotCog(), InstructionsCog())


def known_cogs(hooks: PluginManager) -> tuple[Cog, ...]:
    """Returns the default cogs and those that plugins add."""
    added: list[Cog] = []
    hooks.hook.adaseek_cogs(add=added.append)
    return (*default_cogs(), *added)
