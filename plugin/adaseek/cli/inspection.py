"""`adaseek inspect`: a run, a recipe, or a program that is not tuned yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from adaseek.cli import load
from adaseek.cli.show import (
    print_json,
    print_view,
    program_json,
    program_view,
    recipe_view,
    result_json,
    result_view,
)
from adaseek.cogs import CogContext, build_space, known_cogs
from adaseek.cogs.base import Cog
from adaseek.cogs.space import Refusal
from adaseek.errors import ConfigurationError
from adaseek.plugins import load_plugins
from adaseek.program import Program
from adaseek.recipe import Recipe
from adaseek.report import mermaid
from adaseek.result import RESULT_FILE, TuningResult
from adaseek.workflow import Workflow

__all__ = ["inspect_path", "inspect_program"]


def inspect_path(path: Path, *, as_json: bool, as_mermaid: bool) -> None:
    folder = path.parent if path.name == RESULT_FILE else path
    if folder.is_dir() and (folder / RESULT_FILE).exists():
        result = TuningResult.load(folder)
        if as_mermaid:
            click.echo(mermaid(result.workflow), nl=False)
        elif as_json:
            print_json(result_json(result))
        else:
            print_view(result_view(result))
        return
    if as_mermaid:
        raise ConfigurationError(f"`--mermaid` needs a run or a program, but {path} is a recipe.")
    recipe = Recipe.load(path)
    if as_json:
        print_json(recipe.to_json())
    else:
        print_view(recipe_view(recipe))


def inspect_program(spec: str, *, as_json: bool, as_mermaid: bool, probe: bool) -> None:
    target = load.program(spec)
    hooks = load_plugins()
    workflow = Program(target, hooks).workflow
    if probe:
        edges = hooks.hook.adaseek_probe(obj=target, workflow=workflow) or frozenset()
        workflow = replace(workflow, edges=workflow.edges | edges)
    if as_mermaid:
        click.echo(mermaid(workflow), nl=False)
        return
    cogs = known_cogs(hooks)
    space, table = build_space(workflow, cogs, CogContext(workflow))
    refused = [_explained(refusal, workflow, cogs) for refusal in table.describe()]
    if as_json:
        print_json(program_json(workflow, space, refused))
    else:
        print_view(program_view(workflow, space, refused))


def _explained(refusal: Refusal, workflow: Workflow, cogs: Sequence[Cog]) -> Refusal:
    """Returns `refusal`, or says that the cog is allowed and lacks only what `tune` brings."""
    step = workflow.steps[refusal.step]
    cog = next(cog for cog in cogs if cog.name == refusal.cog)
    if cog.name in step.blocked or cog.name not in step.allowed or cog.refuses(step):
        return refusal
    return refusal._replace(
        reason="allowed, but has options only in a run: those come from its models and examples"
    )
