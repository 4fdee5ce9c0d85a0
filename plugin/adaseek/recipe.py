"""The recipe: the tuned settings of a workflow's steps, and the only artifact that tuning leaves.

A recipe is JSON that a person can read and review. It holds no secret and no framework object,
and it knows the steps it was made for, so that it is never applied to another program by mistake.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any  # Any: scores and files hold JSON values

from adaseek._canonical import canonical_json, text_fingerprint
from adaseek.errors import ConfigurationError, RecipeMismatchError, choices, require
from adaseek.setting import (
    Aggregate,
    Demo,
    Ensemble,
    Reasoning,
    Setting,
    Subtask,
    check_shape,
    member_id,
    owner_id,
    shortened,
)
from adaseek.workflow import Step, Workflow

__all__ = [
    "SCHEMA_VERSION",
    "Aggregate",
    "Demo",
    "Ensemble",
    "Reasoning",
    "Recipe",
    "Setting",
    "Subtask",
    "check_recipe",
    "member_id",
    "owner_id",
]

SCHEMA_VERSION = 1
"""Version of the JSON layout; raised when an older reader would misread a newer file."""


@dataclass(frozen=True)
class Recipe:
    """Tuned settings by step id, with what is needed to apply them to the right program.

    Attributes:
        settings: step id -> setting. Steps that keep their original behaviour are absent.
        workflow: fingerprint of the workflow that the recipe was made for; empty: not bound.
        steps: step id -> fingerprint, for every step of that workflow that `settings` touches.
        originals: step id -> what that step had then: `instructions`, `num_demos`. For people who
            review the change, and for adapters that see only finished prompts.
        scores: objective -> value with its confidence interval, as measured.
        made_with: versions and options of the run that made it, for people to read.
    """

    settings: Mapping[str, Setting] = field(default_factory=dict)
    workflow: str = ""
    steps: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Any] = field(default_factory=dict)
    made_with: Mapping[str, Any] = field(default_factory=dict)
    originals: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A plain dict, not a mappingproxy: recipes are pickled (to other machines) and deep-copied
        # (with the program that carries them), and a mappingproxy refuses both.
        settings = {k: v for k, v in sorted(self.settings.items()) if not v.is_empty}
        object.__setattr__(self, "settings", settings)

    @property
    def is_empty(self) -> bool:
        """Whether applying this recipe changes nothing."""
        return not self.settings

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the settings alone: equal recipes behave equally on the same workflow."""
        settings = (f"{canonical_json(step)}:{s.text}" for step, s in self.settings.items())
        return text_fingerprint(f"{{{','.join(settings)}}}", length=32)

    def setting(self, step: str) -> Setting:
        """Returns the setting of `step`, an empty one if the recipe leaves it alone."""
        return self.settings.get(step, _EMPTY)

    def for_example(self, example_id: str) -> Recipe:
        """Returns this recipe without the demos that were harvested from `example_id`.

        A demo that shows the very example being scored would leak its answer.
        """
        settings = {step: _without(s, example_id) for step, s in self.settings.items()}
        if all(settings[step] is s for step, s in self.settings.items()):
            return self
        return replace(self, settings=settings)

    def bind(self, workflow: Workflow) -> Recipe:
        """Returns a copy that may only be applied to `workflow`."""
        touched = [workflow.steps[step] for step in sorted(set(map(owner_id, self.settings)))]
        return replace(
            self,
            workflow=workflow.fingerprint,
            steps={step.id: step.fingerprint for step in touched},
            originals={step.id: _original(step) for step in touched},
        )

    def check(self, workflow: Workflow) -> None:
        """Raises unless this recipe may be applied to `workflow`.

        A recipe fits when every step that it touches exists unchanged: a change elsewhere in the
        program does not invalidate it.

        Raises:
            RecipeMismatchError: with one line per difference.
        """
        lines = list(_differences(self, workflow.steps))
        if lines:
            raise RecipeMismatchError(
                "The recipe was made for another version of this program:\n  "
                + "\n  ".join(lines)
                + "\nTune again, or apply it to the program it was made for."
            )

    def check_rewards(self, rewards: Iterable[str]) -> None:
        """Raises unless every reward function that an ensemble asks for is among `rewards`.

        Raises:
            ConfigurationError: naming the first step whose reward is missing.
        """
        known = sorted(rewards)
        for step, reward in _wanted_rewards(self.settings):
            if reward not in known:
                raise ConfigurationError(
                    f"The ensemble at step `{step}` takes the answer that the reward function "
                    f"'{reward}' rates highest, but `rewards` has {choices(known) or 'none'}. "
                    f"Pass it in `rewards` as {{'{reward}': function}}, or on the command line as "
                    f"--reward {reward}=MODULE:FN."
                )

    def diff(self, other: Recipe) -> tuple[str, ...]:
        """Returns one readable line per setting that differs from `other`, by step."""
        lines: list[str] = []
        for step in sorted(set(self.settings) | set(other.settings)):
            mine, theirs = self.setting(step).to_json(), other.setting(step).to_json()
            lines.extend(
                f"{step}.{name}: {shortened(mine.get(name))} -> {shortened(theirs.get(name))}"
                for name in sorted(mine.keys() | theirs.keys())
                if mine.get(name) != theirs.get(name)
            )
        return tuple(lines)

    def to_json(self) -> dict[str, Any]:
        """Returns this recipe as JSON values."""
        return {
            "schema": SCHEMA_VERSION,
            "workflow": self.workflow,
            "steps": dict(self.steps),
            "settings": {step: setting.to_json() for step, setting in self.settings.items()},
            "scores": dict(self.scores),
            "made_with": dict(self.made_with),
            "originals": {step: dict(body) for step, body in self.originals.items()},
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Recipe:
        """Returns the recipe that `to_json` wrote.

        Raises:
            RecipeMismatchError: if it was written in a layout that this version cannot read.
            ConfigurationError: if it is not a recipe, or has an unknown setting.
        """
        schema = body.get("schema") if isinstance(body, Mapping) else None
        if schema is None or "settings" not in body:
            raise ConfigurationError("This is not a recipe: `schema` or `settings` is missing.")
        if schema != SCHEMA_VERSION:
            raise RecipeMismatchError(
                f"The recipe's `schema` is {schema!r}, but this adaseek reads {SCHEMA_VERSION}. "
                "Use the adaseek version that wrote it (see `made_with`), or tune again."
            )
        for name in ("settings", "steps", "scores", "made_with"):
            check_shape(f"`{name}`", body.get(name, {}), Mapping)
        return cls(
            settings={step: Setting.from_json(s) for step, s in body["settings"].items()},
            workflow=body.get("workflow", ""),
            steps=dict(body.get("steps", {})),
            scores=dict(body.get("scores", {})),
            made_with=dict(body.get("made_with", {})),
            originals={k: dict(v) for k, v in body.get("originals", {}).items()},
        )

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes this recipe to `path` in one step (never a half-written file) and returns it."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        # Not `tempfile`: its files are readable by their owner only, and a recipe is for sharing.
        partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
        try:
            partial.write_text(text, encoding="utf-8")
            return partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Returns the recipe in the file `path`, or in the run directory `path`.

        Raises:
            ConfigurationError: if there is no such file, it cannot be read, or it is no recipe.
        """
        file = Path(path)
        if file.is_dir():
            file = file / "recipe.json"
        try:
            body = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigurationError(f"`path` is {str(file)!r}, but no such file exists.") from None
        except OSError as error:
            raise ConfigurationError(f"The recipe {file} cannot be read: {error}.") from None
        except ValueError as error:  # not JSON, or not even text
            raise ConfigurationError(f"{file} is not JSON: {error}.") from None
        return cls.from_json(body)


_EMPTY = Setting()


def check_recipe(recipe: object) -> None:
    """Raises `ConfigurationError` unless `recipe` is one, and not, say, the path of one."""
    cure = "Read one from a file or the folder of a run with Recipe.load(path)."
    require(isinstance(recipe, Recipe), "recipe", recipe, "must be a Recipe", cure=cure)


def _original(step: Step) -> dict[str, Any]:
    instructions = step.signature.instructions if step.signature is not None else ""
    return {"instructions": instructions, "num_demos": step.num_demos}


def _without(setting: Setting, example_id: str) -> Setting:
    """Returns `setting` itself if nothing in it comes from `example_id`."""
    if any(demo.source == example_id for demo in setting.demos or ()):
        demos = tuple(d for d in setting.demos or () if d.source != example_id)
        return replace(setting, demos=demos)
    return setting


def _wanted_rewards(settings: Mapping[str, Setting]) -> Iterable[tuple[str, str]]:
    """Yields step and name of every reward function that is needed."""
    for step, setting in settings.items():
        if setting.ensemble is not None and setting.ensemble.aggregate == "best_of":
            yield step, setting.ensemble.reward


def _differences(recipe: Recipe, steps: Mapping[str, Step]) -> Iterable[str]:
    for step in sorted({owner_id(step) for step in recipe.settings} | set(recipe.steps)):
        if step not in steps:
            yield f"step `{step}` is gone (the program has {choices(steps) or 'no steps'})"
        elif step in recipe.steps and recipe.steps[step] != steps[step].fingerprint:
            signature = steps[step].signature
            now = signature.instructions if signature else ""
            yield f"step `{step}` has changed (instructions or fields); it is now: {shortened(now)}"
