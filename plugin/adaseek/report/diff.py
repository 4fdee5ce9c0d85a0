"""What a recipe changes at each step, shown against the original program."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any  # Any: demos and parameters hold JSON values

from adaseek.recipe import Demo, Ensemble, Recipe, Setting, owner_id
from adaseek.report._html import Html, details, join, table, tag
from adaseek.workflow import Step, Workflow

__all__ = ["changed_steps", "recipe_diff", "recipe_words"]


def changed_steps(recipe: Recipe) -> frozenset[str]:
    """Returns the ids of the steps in the user's program that `recipe` touches."""
    return frozenset(owner_id(step) for step in recipe.settings)


def recipe_diff(workflow: Workflow, recipe: Recipe, *, is_open: bool = True) -> Html:
    """Returns one block per changed step: model, reasoning, demos and prompt, old and new."""
    if recipe.is_empty:
        return tag("p", "Nothing changes: this is the original program.", class_="quiet")
    blocks = (
        _step_block(workflow, step, recipe.setting(step), is_open) for step in recipe.settings
    )
    same = [step.id for step in workflow.lm_steps() if step.id not in changed_steps(recipe)]
    rest = tag("p", "Unchanged: " + ", ".join(same) + ".", class_="quiet") if same else Html("")
    return join(*blocks, rest)


def recipe_words(recipe: Recipe) -> str:
    """Returns the changes of `recipe` in a few words per step, e.g. `answer: 2 demos`."""
    steps = (f"{step}: {', '.join(_summary(s))}" for step, s in recipe.settings.items())
    return "; ".join(steps) or "nothing"


def _step_block(workflow: Workflow, step: str, setting: Setting, is_open: bool) -> Html:
    original = workflow.steps.get(step) or workflow.steps.get(owner_id(step))
    summary = f"{step}: {', '.join(_summary(setting))}"
    return details(summary, _setting_body(original, setting), is_open=is_open, class_="step")


def _summary(setting: Setting) -> Iterable[str]:
    """Yields a few words per changed field, e.g. `2 demos`."""
    if setting.model is not None:
        yield f"model {setting.model.id}"
    if setting.reasoning is not None:
        yield f"reasoning {_words(setting.reasoning)}"
    if setting.ensemble is not None:
        yield f"ensemble of {setting.ensemble.num_members}"
    if setting.decompose is not None:
        yield f"{_count(len(setting.decompose), 'subtask')} first"
    if setting.instructions is not None:
        yield "instructions"
    if setting.demos is not None:
        yield _count(len(setting.demos), "demo")
    if setting.params is not None:
        yield "sampling parameters"
    if setting.engine is not None:
        yield "serving options"


def _setting_body(original: Step | None, setting: Setting) -> Html:
    rows = list(_rows(original, setting))
    parts: list[str] = []
    if rows:
        parts.append(table("Settings, original and new", ["Setting", "Original", "New"], rows))
    if setting.instructions is not None:
        before = original.signature.instructions if original and original.signature else ""
        parts.append(_prompt(before, setting.instructions))
    if setting.demos:
        parts.append(_demos(setting.demos))
    if setting.decompose:
        subtasks = [[subtask.name, subtask.instructions] for subtask in setting.decompose]
        parts.append(table("Subtasks done first", ["Subtask", "Instructions"], subtasks))
    return join(*parts)


def _rows(original: Step | None, setting: Setting) -> Iterable[list[str]]:
    """Yields setting, original value, new value for every changed field that fits on a line."""
    if setting.model is not None:
        before = original.model.key if original and original.model else "the program's default"
        yield ["Model", before, setting.model.key]
    if setting.reasoning is not None:
        yield ["Reasoning", "as written", _words(setting.reasoning)]
    if setting.ensemble is not None:
        yield ["Ensemble", "one call", _ensemble(setting.ensemble)]
    if setting.demos is not None:
        number = original.num_demos if original else 0
        yield ["Demos", _count(number, "demo"), _count(len(setting.demos), "demo")]
    yield from _mapping_rows("Parameter", setting.params)
    yield from _mapping_rows("Serving", setting.engine)


def _mapping_rows(kind: str, values: Mapping[str, Any] | None) -> Iterable[list[str]]:
    for name, value in (values or {}).items():
        yield [f"{kind} {name}", "as written", _json(value)]


def _ensemble(ensemble: Ensemble) -> str:
    combined = {"majority": "majority vote", "judge": "a judge", "best_of": "highest reward"}
    how = combined[ensemble.aggregate]
    return f"{ensemble.num_members} calls at temperature {ensemble.temperature:g}, {how}"


def _prompt(before: str, after: str) -> Html:
    """Returns the instructions with removed words struck out and added words marked."""
    # Words and the space between them, so that the text keeps its line breaks.
    old, new = (re.findall(r"\s+|\w+|[^\w\s]", text) for text in (before, after))
    matcher = difflib.SequenceMatcher(a=old, b=new, autojunk=False)
    if matcher.ratio() < 0.35:  # rewritten: a word diff of unlike texts is confetti
        parts = (
            [tag("del", before), Html("<br><br>"), tag("ins", after)]
            if before
            else [tag("ins", after)]
        )
    else:
        parts = [p for code in matcher.get_opcodes() for p in _marked(code, old, new)]
    return tag(
        "figure",
        tag("figcaption", "Instructions"),
        tag("div", *parts, class_="prompt"),
        class_="text",
    )


def _marked(code: tuple[str, int, int, int, int], old: list[str], new: list[str]) -> Iterable[Html]:
    kind, start, end, new_start, new_end = code
    removed, added = "".join(old[start:end]), "".join(new[new_start:new_end])
    if kind == "equal":
        yield join(removed)
        return
    if removed:
        yield tag("del", removed)
    if added:
        yield tag("ins", added)


def _demos(demos: tuple[Demo, ...]) -> Html:
    names = list(dict.fromkeys(name for demo in demos for name in demo.values))
    rows = [
        [str(number), *(_json(demo.values.get(name, "")) for name in names)]
        for number, demo in enumerate(demos, 1)
    ]
    return table("Demos shown to the step", ["No.", *names], rows)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
