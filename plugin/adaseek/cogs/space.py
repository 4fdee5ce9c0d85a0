"""The search space of a workflow, and the way back from a config to a recipe.

`build_space` asks every cog what it offers at every step. The `Space` it returns knows names and
numbers only, which is all that the search needs; the `OptionTable` remembers what the names mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, NamedTuple

from adaseek.cogs.base import Cog, CogContext, DynamicCog, Option, Run
from adaseek.errors import PluginError, choices, require
from adaseek.recipe import Recipe, Setting, member_id
from adaseek.search.base import FAMILIES, Config, Dimension, Space
from adaseek.workflow import Step, Workflow

__all__ = ["Knob", "Members", "OptionTable", "Refusal", "build_space"]

Members = Literal["shared", "separate"]

_NEEDS = {
    "instructions": "instructions",
    "demos": "few_shot",
    "reasoning": "reasoning",
    "model": "model",
    "params": "params",
    "ensemble": "ensemble",
    "decompose": "decompose",
}
"""Field of a setting -> the built-in cog that a step must allow for the field to be changed.

An adapter lists the built-in cogs in `Step.allowed`; it cannot know the names of other cogs. They
may touch a step if it allows everything that their options change. `engine` is not here: serving
options are applied by the server, not by the adapter.
"""


class Refusal(NamedTuple):
    """A cog that does not tune a step, and why, as a sentence for the user."""

    step: str
    cog: str
    reason: str


@dataclass(frozen=True)
class Knob:
    """What a dimension stands for.

    Attributes:
        step: the step as the cog sees it. For copies that share a dimension it is one of them,
            with an id of its own (`step#all`).
        options: option key -> option, the added ones included, in the order of the space.
        targets: option of the parent dimension -> ids of the steps that get the setting; the
            only key is "" if there is no parent.
    """

    dimension: Dimension
    cog: Cog
    step: Step
    options: Mapping[str, Option]
    targets: Mapping[str, tuple[str, ...]]

    @property
    def added(self) -> tuple[Option, ...]:
        """The options that were added during the run, in order."""
        return tuple(self.options.values())[len(self.dimension.options) :]


@dataclass(frozen=True)
class OptionTable:
    """Meaning of the options of a space: turns configs into recipes. Growing gives a new table."""

    knobs: Mapping[str, Knob] = field(default_factory=dict)
    refused: tuple[Refusal, ...] = ()
    _recipes: dict[tuple[object, ...], Recipe] = field(
        default_factory=dict, repr=False, compare=False
    )
    """Recipes made so far, by the number of dimensions set and the option of each. Shared with
    the tables grown from this one: growing changes none."""
    _settings: dict[tuple[tuple[str, str], ...], Setting] = field(
        default_factory=dict, repr=False, compare=False
    )
    """Settings of a step made so far, by dimension and option. Thousands of recipes share them."""

    def option(self, dimension: str, key: str) -> Option:
        """Returns the option `key` of `dimension`.

        Raises:
            ConfigurationError: if there is no such dimension or option.
        """
        rule = f"must be one of {choices(self.knobs) or 'no dimensions'}"
        require(dimension in self.knobs, "dimension", dimension, rule)
        options = self.knobs[dimension].options
        require(key in options, f"config[{dimension!r}]", key, f"must be one of {choices(options)}")
        return options[key]

    def label(self, dimension: str, key: str) -> str:
        """Returns what reports call the option `key` of `dimension`."""
        return self.option(dimension, key).label or key

    def recipe(self, config: Config) -> Recipe:
        """Returns the settings that `config` stands for; the original config gives an empty recipe.

        A dimension that `config` leaves out keeps its original option, and one that is not active
        has no effect. Where two cogs set the same field of a step, the later one in the order of
        the space wins (parameters are merged by name).

        Raises:
            ConfigurationError: if `config` names an unknown dimension or option.
        """
        key = (len(config), *map(config.get, self.knobs))
        if key not in self._recipes:
            self._recipes[key] = self._made(config)
        return self._recipes[key]

    def _made(self, config: Config) -> Recipe:
        for name, key in config.items():
            self.option(name, key)
        chosen: dict[str, tuple[tuple[str, str], ...]] = {}
        for name, knob in self.knobs.items():
            if name in config:
                for step in knob.targets.get(config.get(knob.dimension.parent or "", ""), ()):
                    chosen[step] = (*chosen.get(step, ()), (name, config[name]))
        return Recipe({step: self._merged(options) for step, options in chosen.items()})

    def _merged(self, options: tuple[tuple[str, str], ...]) -> Setting:
        if options not in self._settings:
            merged = Setting()
            for name, key in options:
                merged = merged.merge(self.option(name, key).setting)
            self._settings[options] = merged
        return self._settings[options]

    def add(self, dimension: str, options: Sequence[Option]) -> OptionTable:
        """Returns a table in which `options` fill the next free slots of `dimension`.

        Their keys become the keys of the slots; their own keys stay as labels.

        Raises:
            PluginError: if they do not fit into the slots, or set what the step does not allow.
        """
        knob = self.knobs[dimension]
        used = len(knob.added)
        if used + len(options) > knob.dimension.num_slots:
            raise PluginError(
                f"The cog `{knob.cog.name}` added {used + len(options)} options to `{dimension}`, "
                f"but its `num_slots` is {knob.dimension.num_slots}."
            )
        reason = _unsupported(knob.cog, knob.step, options)
        if reason or any(option.members or option.extras for option in options):
            raise PluginError(
                f"The cog `{knob.cog.name}` added an option to `{dimension}` that cannot be used: "
                f"{reason or 'only options known at the start may have members or extras'}."
            )
        filled = {
            knob.dimension.slot(used + i): replace(
                option, key=knob.dimension.slot(used + i), label=option.label or option.key
            )
            for i, option in enumerate(options)
        }
        grown = replace(knob, options={**knob.options, **filled})
        return replace(self, knobs={**self.knobs, dimension: grown})

    def evolved(
        self, runs: Sequence[Run], context: CogContext
    ) -> tuple[OptionTable, dict[str, int]]:
        """Returns a table with what the dynamic cogs add after `runs`, and how many by dimension.

        A cog is asked only while it has free slots; of more options than that, the first stay.
        """
        table, counts = self, dict[str, int]()
        for name, knob in self.knobs.items():
            free = knob.dimension.num_slots - len(knob.added)
            if free > 0 and isinstance(knob.cog, DynamicCog):
                options = list(knob.cog.evolve(knob.step, runs, knob.added, context))[:free]
                if options:
                    table, counts[name] = table.add(name, options), len(options)
        return table, counts

    def describe(self) -> list[Refusal]:
        """Returns why cogs do not tune steps of the user's program, in program order."""
        return list(self.refused)


def build_space(
    workflow: Workflow,
    cogs: Sequence[Cog],
    context: CogContext,
    *,
    members: Members = "shared",
) -> tuple[Space, OptionTable]:
    """Returns the dimensions of every cog at every step that allows it, and their meaning.

    The order is structure, step, weight, and within a family the order of the program, so that
    parents come before children. A step's own step and weight dimensions are active only while no
    structure option replaces it; then those of the copies are active instead.

    Args:
        members: `shared` gives all equal copies of a step one set of dimensions (`step#all`),
            `separate` gives each copy its own (`step#0`, `step#1` ...). Separate copies may
            differ in model, demos and instructions, but three copies then have three times the
            dimensions, for which a budget of a few hundred runs is too small: hence `shared`.
            Cognify's description (arXiv 2502.08056) makes each copy a step of its own, which is
            `separate`.

    Raises:
        ConfigurationError: if two cogs have the same name.
        PluginError: if a cog breaks its contract.
    """
    require(members in ("shared", "separate"), "members", members, "must be 'shared' or 'separate'")
    _check_cogs(cogs)
    knobs: list[Knob] = []
    refused: list[Refusal] = []
    for step in workflow.steps.values():
        structure = _structure_knobs(step, cogs, context, refused)
        knobs.extend(structure)
        for place in _places(step, structure, members):
            for cog in cogs:
                if cog.family != "structure":
                    _keep(_knob(cog, place, context), cog, place.step, knobs, refused)
    ordered = sorted(knobs, key=lambda knob: FAMILIES.index(knob.dimension.family))
    table = OptionTable(
        {knob.dimension.name: knob for knob in ordered},
        tuple(refusal for refusal in refused if _is_of_interest(refusal, workflow)),
    )
    return Space(tuple(knob.dimension for knob in ordered)), table


@dataclass(frozen=True)
class _Place:
    """Where inner cogs act: on the step itself, or on copies that stand in for it."""

    step: Step
    targets: Mapping[str, tuple[str, ...]]
    parent: str | None = None


def _structure_knobs(
    step: Step, cogs: Sequence[Cog], context: CogContext, refused: list[Refusal]
) -> list[Knob]:
    knobs: list[Knob] = []
    place = _Place(step, {"": (step.id,)})
    for cog in cogs:
        if cog.family != "structure":
            continue
        knob = _knob(cog, place, context)
        replacing = [k.cog.name for k in knobs if _has_members(k)]
        if isinstance(knob, Knob) and replacing and _has_members(knob):
            knob = f"`{replacing[0]}` already replaces this step; keep one of the two cogs"
        _keep(knob, cog, step, knobs, refused)
    return knobs


def _keep(
    knob: Knob | str, cog: Cog, step: Step, knobs: list[Knob], refused: list[Refusal]
) -> None:
    if isinstance(knob, Knob):
        knobs.append(knob)
    else:
        refused.append(Refusal(step.id, cog.name, knob))


def _places(step: Step, structure: Sequence[Knob], members: Members) -> list[_Place]:
    extras = [place for knob in structure for place in _extra_places(knob)]
    replacing = next((knob for knob in structure if _has_members(knob)), None)
    if replacing is None:
        return [_Place(step, {"": (step.id,)}), *extras]
    parent = replacing.dimension.name
    own = {key: (step.id,) for key, option in replacing.options.items() if not option.members}
    groups: list[tuple[Step, dict[str, tuple[str, ...]]]] = []
    for key, option in replacing.options.items():
        for member in option.members:
            face = member if members == "separate" else replace(member, id="")
            targets = next((t for f, t in groups if f == face), None)
            if targets is None:
                targets = {}
                groups.append((face, targets))
            targets[key] = (*targets.get(key, ()), member.id)
    places = [_Place(step, own, parent)]
    for face, targets in groups:
        named = replace(face, id=_group_id(step.id, targets, len(places)))
        places.append(_Place(named, targets, parent))
    return [*places, *extras]


def _extra_places(knob: Knob) -> list[_Place]:
    """Returns the steps that options of `knob` put beside the step, each under its options."""
    steps: dict[str, Step] = {}
    targets: dict[str, dict[str, tuple[str, ...]]] = {}
    for key, option in knob.options.items():
        for step in option.extras:
            steps.setdefault(step.id, step)
            targets.setdefault(step.id, {})[key] = (step.id,)
    return [_Place(step, targets[name], knob.dimension.name) for name, step in steps.items()]


def _group_id(step: str, targets: Mapping[str, tuple[str, ...]], index: int) -> str:
    ids = list(dict.fromkeys(member for group in targets.values() for member in group))
    if len(ids) == 1:
        return ids[0]
    return member_id(step, "all" if index == 1 else f"all-{index}")


def _knob(cog: Cog, place: _Place, context: CogContext) -> Knob | str:
    """Returns the dimension of `cog` at `place`, or why there is none."""
    step = place.step
    reason = step.blocked.get(cog.name) or cog.refuses(step)
    if reason:
        return reason
    if cog.name in _NEEDS.values() and cog.name not in step.allowed:
        return f"this step does not support `{cog.name}`"
    options = tuple(cog.options(step, context))
    _check_options(cog, step, options)
    num_slots = cog.num_slots if options and isinstance(cog, DynamicCog) else 0
    if len(options) + num_slots < 2:
        return "there is nothing to choose from"
    reason = _unsupported(cog, step, options)
    if reason:
        return reason
    dimension = Dimension(
        name=f"{step.id}:{cog.name}",
        family=cog.family,
        options=tuple(option.key for option in options),
        num_slots=num_slots,
        parent=place.parent,
        parent_options=frozenset(place.targets) if place.parent else frozenset(),
        costs={option.key: option.expected_cost for option in options},
    )
    return Knob(dimension, cog, step, {o.key: o for o in options}, place.targets)


def _unsupported(cog: Cog, step: Step, options: Sequence[Option]) -> str | None:
    """Returns why `step` cannot take what the options of a cog of a third party set."""
    changed = {name for option in options for name in _set_fields(option)}
    for needed in sorted(_NEEDS[name] for name in changed & _NEEDS.keys()):
        if needed not in step.allowed:
            why = step.blocked.get(needed, "this step does not support it")
            return f"it would change `{needed}`: {why}"
    return None


def _set_fields(option: Option) -> list[str]:
    setting = option.setting
    return [f.name for f in fields(setting) if getattr(setting, f.name) is not None]


def _has_members(knob: Knob) -> bool:
    return any(option.members for option in knob.options.values())


def _is_of_interest(refusal: Refusal, workflow: Workflow) -> bool:
    """Whether to tell it: a tool never could reason, and copies repeat what their owner says."""
    step = workflow.steps.get(refusal.step)
    return step is not None and (step.kind == "lm" or refusal.cog in step.blocked)


def _check_cogs(cogs: Sequence[Cog]) -> None:
    names = [cog.name for cog in cogs]
    require(len(set(names)) == len(names), "cogs", names, "must hold each name once")
    for cog in cogs:
        if cog.family not in FAMILIES:
            raise PluginError(
                f"The family of the cog `{cog.name}` is {cog.family!r}, but must be one of "
                f"{choices(FAMILIES)}."
            )


def _check_options(cog: Cog, step: Step, options: Sequence[Option]) -> None:
    """Raises unless the options of `cog` keep the contract of `Cog.options`."""
    keys = [option.key for option in options]
    broken = ""
    if len(set(keys)) != len(keys):
        broken = "must have distinct keys"
    elif any(key.startswith("added-") for key in keys):
        broken = "must not have keys that begin with 'added-': those name slots"
    elif options and (options[0].members or options[0].extras or not options[0].setting.is_empty):
        broken = "must begin with one that leaves the step as it is"
    elif cog.family != "structure" and any(o.members or o.extras for o in options):
        broken = "must not have members or extras, unless the cog's family is 'structure'"
    if broken:
        raise PluginError(f"The options of the cog `{cog.name}` at `{step.id}` ({keys}) {broken}.")
