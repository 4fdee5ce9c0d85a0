"""The recipe: the tuned settings of a workflow's steps, and the only artifact that tuning leaves.

A recipe is JSON that a person can read and review. It holds no secret and no framework object,
and it knows the steps it was made for, so that it is never applied to another program by mistake.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args  # Any: demos and parameters hold JSON values

from adaseek._canonical import canonical_json, text_fingerprint
from adaseek.errors import ConfigurationError, RecipeMismatchError, choices, require
from adaseek.workflow import ModelRef, Step, Workflow

__all__ = ["SCHEMA_VERSION", "Demo", "Ensemble", "Recipe", "Setting", "member_id", "owner_id"]

Value = TypeVar("Value")

SCHEMA_VERSION = 1
"""Version of the JSON layout; raised when an older reader would misread a newer file."""

Reasoning = Literal["off", "chain_of_thought", "plan"]
Aggregate = Literal["majority", "judge", "best_of"]

_REASONINGS = get_args(Reasoning)
# Written once: a search makes settings by the hundred thousand.
_REASONING_RULE = f"must be one of {choices(_REASONINGS)}"


@dataclass(frozen=True)
class Demo:
    """One worked example shown to a step: its input and output fields by name, as JSON values.

    `source` is the id of the training example that it was harvested from; a run on that example
    never sees it (`Recipe.for_example`).
    """

    values: Mapping[str, Any]
    source: str = ""


@dataclass(frozen=True)
class Ensemble:
    """A step run `num_members` times, its answers combined.

    Each member is a step of its own, `member_id(step, i)`, which may have its own setting. The
    judge of `judge` is the step `member_id(step, "judge")`. `best_of` takes the answer that the
    user's reward function named `reward` scores highest.
    """

    num_members: int
    aggregate: Aggregate = "majority"
    temperature: float = 0.7
    reward: str = ""

    def __post_init__(self) -> None:
        require(self.num_members >= 1, "num_members", self.num_members, "must be >= 1")
        rule = f"must be one of {choices(get_args(Aggregate))}"
        require(self.aggregate in get_args(Aggregate), "aggregate", self.aggregate, rule)


@dataclass(frozen=True)
class Setting:
    """What changes at one step. A field that is None leaves the program as it is.

    Attributes:
        instructions: the new task description.
        demos: the worked examples to show, in this order; an empty tuple removes the user's own.
        reasoning: `chain_of_thought` and `plan` make the step write reasoning before it answers.
        model: the model to call.
        params: sampling parameters (temperature, max_tokens ...).
        ensemble: run several members and combine their answers.
        steps: replaces this step by several, in this order (step id suffix -> setting). No
            built-in cog makes them, and an adapter that cannot run them refuses the recipe.
        engine: serving options that the step asks for (used by `adaseek serve --recipe`).
    """

    instructions: str | None = None
    demos: tuple[Demo, ...] | None = None
    reasoning: Reasoning | None = None
    model: ModelRef | None = None
    params: Mapping[str, Any] | None = None
    ensemble: Ensemble | None = None
    steps: Mapping[str, Setting] | None = None
    engine: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        valid = self.reasoning is None or self.reasoning in _REASONINGS
        require(valid, "reasoning", self.reasoning, _REASONING_RULE)
        require(self.steps is None or bool(self.steps), "steps", self.steps, "must name a step")

    @property
    def is_empty(self) -> bool:
        return all(getattr(self, f.name) is None for f in fields(self))

    @cached_property
    def text(self) -> str:
        """The canonical JSON of the fields that are set."""
        return canonical_json(self.to_json())

    def merge(self, other: Setting) -> Setting:
        """Returns this setting with every field that `other` sets taken from `other`.

        `params` and `engine` are merged by name: two cogs may each set a parameter of their own.
        """
        changed = {f.name: getattr(other, f.name) for f in fields(other)}
        for name in ("params", "engine"):
            mine, theirs = getattr(self, name), changed[name]
            if mine is not None and theirs is not None:
                changed[name] = {**mine, **theirs}
        return replace(self, **{name: v for name, v in changed.items() if v is not None})

    def to_json(self) -> dict[str, Any]:
        """Returns the fields that are set, as JSON values."""
        body: dict[str, Any] = {}
        for name in (f.name for f in fields(self)):
            value = getattr(self, name)
            if value is None:
                continue
            if name == "demos":
                body[name] = [{"values": dict(d.values), "source": d.source} for d in value]
            elif name in ("model", "ensemble"):
                body[name] = asdict(value)
            elif name == "steps":
                body[name] = {key: setting.to_json() for key, setting in value.items()}
            else:
                body[name] = dict(value) if isinstance(value, Mapping) else value
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Setting:
        """Returns the setting that `to_json` wrote.

        Raises:
            ConfigurationError: for a field or a value that this version does not know.
        """
        _check_shape("the setting", body, Mapping)
        known = {f.name for f in fields(cls)}
        for name, value in body.items():
            if name in _SHAPES:
                _check_shape(f"the setting `{name}`", value, _SHAPES[name])
            if name not in known:
                raise ConfigurationError(
                    f"The setting `{name}` is unknown; known are {choices(sorted(known))}. "
                    "The recipe may come from a newer adaseek: upgrade, or remove the field."
                )
        values = dict(body)
        if "demos" in values:
            values["demos"] = tuple(_read(Demo, "demos", demo) for demo in body["demos"])
        if "model" in values:
            values["model"] = _read(ModelRef, "model", body["model"])
        if "ensemble" in values:
            values["ensemble"] = _read(Ensemble, "ensemble", body["ensemble"])
        if "steps" in values:
            values["steps"] = {k: cls.from_json(v) for k, v in body["steps"].items()}
        return cls(**values)


def member_id(step: str, member: int | str) -> str:
    """Returns the step id of one member (or of the `judge`) of the ensemble at `step`."""
    return f"{step}#{member}"


def owner_id(step: str) -> str:
    """Returns the id of the step in the user's program that `step` belongs to."""
    return step.partition("#")[0]


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
                f"{step}.{name}: {_short(mine.get(name))} -> {_short(theirs.get(name))}"
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
            _check_shape(f"`{name}`", body.get(name, {}), Mapping)
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
            ConfigurationError: if there is no such file, or it is not a recipe.
        """
        file = Path(path)
        if file.is_dir():
            file = file / "recipe.json"
        try:
            body = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigurationError(f"`path` is {str(file)!r}, but no such file exists.") from None
        except json.JSONDecodeError as error:
            raise ConfigurationError(f"{file} is not JSON: {error}.") from None
        return cls.from_json(body)


_EMPTY = Setting()
_SHAPES: Mapping[str, type] = {
    "instructions": str,
    "demos": list,
    **dict.fromkeys(("model", "params", "ensemble", "steps", "engine"), Mapping),
}
"""Setting -> the JSON type that it has in a file."""


def _check_shape(what: str, value: object, shape: type) -> None:
    if not isinstance(value, shape):
        wanted = "a text" if shape is str else "a list" if shape is list else "an object"
        raise ConfigurationError(
            f"In the recipe, {what} is {_short(value)}, but must be {wanted}. Correct the file."
        )


def _original(step: Step) -> dict[str, Any]:
    instructions = step.signature.instructions if step.signature is not None else ""
    return {"instructions": instructions, "num_demos": step.num_demos}


def _read(kind: type[Value], name: str, body: Mapping[str, Any]) -> Value:
    try:
        return kind(**body)
    except TypeError as error:
        raise ConfigurationError(
            f"The setting `{name}` is {_short(body)}, which cannot be read: {error}. "
            "The recipe may come from a newer adaseek: upgrade, or correct the value."
        ) from None


def _without(setting: Setting, example_id: str) -> Setting:
    """Returns `setting` itself if nothing in it, or in its own steps, comes from `example_id`."""
    if any(demo.source == example_id for demo in setting.demos or ()):
        demos = tuple(d for d in setting.demos or () if d.source != example_id)
        setting = replace(setting, demos=demos)
    steps = {name: _without(step, example_id) for name, step in (setting.steps or {}).items()}
    if any(steps[name] is not step for name, step in (setting.steps or {}).items()):
        setting = replace(setting, steps=steps)
    return setting


def _wanted_rewards(settings: Mapping[str, Setting]) -> Iterable[tuple[str, str]]:
    """Yields step and name of every reward function that is needed, inside replaced steps too."""
    for step, setting in settings.items():
        if setting.ensemble is not None and setting.ensemble.aggregate == "best_of":
            yield step, setting.ensemble.reward
        yield from _wanted_rewards(setting.steps or {})


def _differences(recipe: Recipe, steps: Mapping[str, Step]) -> Iterable[str]:
    for step in sorted({owner_id(step) for step in recipe.settings} | set(recipe.steps)):
        if step not in steps:
            yield f"step `{step}` is gone (the program has {choices(steps) or 'no steps'})"
        elif step in recipe.steps and recipe.steps[step] != steps[step].fingerprint:
            signature = steps[step].signature
            now = signature.instructions if signature else ""
            yield f"step `{step}` has changed (instructions or fields); it is now: {_short(now)}"


def _short(value: Any, limit: int = 80) -> str:
    text = "unchanged" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 3] + "..."
