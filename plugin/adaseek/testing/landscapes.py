"""Search landscapes with a known truth, for tests and comparisons of search methods.

A landscape is a table in disguise: the outcome of a (config, example) pair depends on nothing
else, so a search over it is repeatable and its regret is exact.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adaseek.search.base import Config, Dimension, LeafRun, Outcome, Space

__all__ = ["KINDS", "Landscape", "landscape", "two_step_space"]

KINDS = ("additive", "interacting", "deceptive", "flat", "infeasible")


@dataclass(frozen=True)
class Landscape:
    """A space with its truth.

    Attributes:
        probability: (config, example) -> chance of a correct answer, the quality's expectation.
        cost: config -> USD per run; latency equals cost times 1000, in seconds.
        noisy: outcomes are 0 or 1; otherwise the probability itself.
    """

    space: Space
    num_examples: int
    probability: Callable[[Config, int], float]
    cost: Callable[[Config], float]
    seed: int
    noisy: bool = True

    def evaluate(self, runs: Sequence[LeafRun]) -> list[Outcome]:
        """Returns the outcomes of `runs`: the `Evaluate` of a search."""
        return [self.outcome(run) for run in runs]

    def outcome(self, run: LeafRun) -> Outcome:
        probability = self.probability(run.config, run.example)
        quality = probability
        if self.noisy:
            draw = _uniform(self.seed, run.example, run.replicate, sorted(run.config.items()))
            quality = float(draw < probability)
        cost = self.cost(run.config)
        return Outcome(quality, cost, 1000 * cost)

    def truth(self, config: Config) -> float:
        """Returns the expected quality of `config` over all examples."""
        return math.fsum(self.probability(config, e) for e in range(self.num_examples)) / (
            self.num_examples
        )

    def configs(self) -> list[dict[str, str]]:
        """Returns every valid config."""
        return list(_configs(self.space, {}, 0))


def two_step_space(*, num_slots: int = 0) -> Space:
    """Returns a space of two steps with cogs of all families; `a:ensemble` opens a copy."""
    dimensions = [
        Dimension("a:ensemble", "structure", ("off", "majority-3")),
        Dimension("b:ensemble", "structure", ("off", "majority-3", "judge-3")),
        Dimension("a:model", "step", ("large", "small")),
        Dimension("b:model", "step", ("large", "small")),
        Dimension(
            "a:reasoning", "weight", ("off", "cot", "plan"), 0, "a:ensemble", frozenset({"off"})
        ),
        Dimension(
            "a#all:reasoning",
            "weight",
            ("off", "cot", "plan"),
            0,
            "a:ensemble",
            frozenset({"majority-3"}),
        ),
        Dimension("a:few_shot", "weight", ("0", "2", "4"), num_slots),
        Dimension("b:reasoning", "weight", ("off", "cot", "plan")),
        Dimension("b:few_shot", "weight", ("0", "2", "4"), num_slots),
    ]
    return Space(tuple(dimensions))


def landscape(
    kind: str, *, seed: int, num_examples: int = 24, space: Space | None = None, noisy: bool = True
) -> Landscape:
    """Returns a random landscape.

    `additive`: each option adds to the log odds. `interacting`: pairs of options do too.
    `deceptive`: the best structure is the worst one under the original inner options. `flat`: no
    option changes quality. `infeasible`: every change lowers quality.
    """
    space = space or two_step_space()
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    effects = {
        (d.name, option): 0.0 if i == 0 or kind == "flat" else float(rng.normal(0.0, 0.7))
        for d in space.dimensions
        for i, option in enumerate(space.choices(d.name))
    }
    if kind == "infeasible":
        effects = {key: -abs(value) - 1.0 if value else 0.0 for key, value in effects.items()}
    pairs = _interactions(space, rng) if kind == "interacting" else {}
    if kind == "deceptive":
        effects["b:ensemble", "judge-3"] = -2.0
        pairs["b:ensemble", "judge-3", "b:reasoning", "cot"] = 3.0
        pairs["b:ensemble", "judge-3", "b:few_shot", "4"] = 2.0
    difficulty = rng.normal(-0.3, 1.0, num_examples)

    def probability(config: Config, example: int) -> float:
        logit = float(difficulty[example]) + sum(effects[item] for item in config.items())
        logit += sum(
            value
            for (a, x, b, y), value in pairs.items()
            if config.get(a) == x and config.get(b) == y
        )
        return 1 / (1 + math.exp(-logit))

    return Landscape(space, num_examples, probability, _cost, seed, noisy)


def _cost(config: Config) -> float:
    total = 0.0
    for step in "ab":
        price = {"large": 3.0, "small": 1.0}[config.get(f"{step}:model", "large")]
        copies = {"majority-3": 3.0, "judge-3": 4.0}.get(config.get(f"{step}:ensemble", ""), 1.0)
        thought = [v for k, v in config.items() if k.startswith(step) and k.endswith("reasoning")]
        longer = {"cot": 2.0, "plan": 2.5}.get(thought[0] if thought else "", 1.0)
        shots = {"2": 1.1, "4": 1.2}.get(config.get(f"{step}:few_shot", ""), 1.0)
        total += price * copies * longer * shots
    return total * 1e-4


def _interactions(space: Space, rng: np.random.Generator) -> dict[tuple[str, str, str, str], float]:
    names = [d.name for d in space.dimensions]
    pairs = {}
    for _ in range(12):
        first, second = sorted(rng.choice(len(names), 2, replace=False))
        for x in space.choices(names[first]):
            for y in space.choices(names[second]):
                pairs[names[first], x, names[second], y] = float(rng.normal(0.0, 0.8))
    return pairs


def _configs(space: Space, config: Mapping[str, str], index: int) -> list[dict[str, str]]:
    if index == len(space.dimensions):
        return [dict(config)]
    dimension = space.dimensions[index]
    if not space.is_active(dimension, config):
        return _configs(space, config, index + 1)
    return [
        found
        for option in space.options(dimension.name)
        for found in _configs(space, {**config, dimension.name: option}, index + 1)
    ]


def _uniform(*key: object) -> float:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64
