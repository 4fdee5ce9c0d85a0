"""What a run is set up from: bound program, examples, folder; checked before anything is spent."""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any  # Any: programs and examples are the framework's own

import numpy as np
import optuna
import pluggy
from optuna.storages import BaseStorage
from platformdirs import user_state_path

from adaseek.cogs.space import OptionTable
from adaseek.errors import ConfigurationError, require
from adaseek.evaluation.pricing import PriceTable
from adaseek.program import ModelMenu, Program
from adaseek.search.base import Space
from adaseek.search.study_log import StudyLog
from adaseek.tuning import Split
from adaseek.workflow import Example, ModelRef, Usage

__all__ = [
    "Setup",
    "check_space",
    "fresh_storage",
    "open_folder",
    "quiet_optuna",
    "split_examples",
]


@dataclass(frozen=True)
class Setup:
    """What every use of a tuner needs: the program bound to its adapter, models and prices."""

    hooks: pluggy.PluginManager
    program: Program
    menu: ModelMenu
    prices: PriceTable
    stop: threading.Event

    @property
    def all_models(self) -> tuple[ModelRef, ...]:
        return tuple(dict.fromkeys((*self.program.step_models, *self.menu.references)))

    def price(self, model: ModelRef, usage: Usage, duration_s: float) -> float | None:
        """Returns the price of one call: the user's table first, then the plugins'."""
        known = self.prices.price(model, usage, duration_s)
        if known is not None:
            return known
        found: float | None = self.hooks.hook.adaseek_price(
            model=model, usage=usage, duration_s=duration_s
        )
        return found

    def knows_price(self, model: ModelRef) -> bool:
        return (
            self.price(model, Usage(input_tokens=1, output_tokens=1, requests=1), 1.0) is not None
        )


def split_examples(
    program: Program, trainset: Sequence[Any], valset: Sequence[Any] | None, *, seed: int
) -> Split:
    """Returns the distinct examples by use: validation examples are never training examples.

    Raises:
        ConfigurationError: if there are too few of either.
        ExampleError: if one cannot be used.
    """
    train = program.examples("trainset", trainset)
    if valset is None:
        _check_count("trainset", train, 4, "when there is no valset")
        order = np.random.default_rng([seed, 11]).permutation(len(train))
        half = len(train) // 2
        return Split([train[i] for i in order[half:]], [train[i] for i in order[:half]])
    _check_count("trainset", train, 2)
    val = program.examples("valset", valset)
    _check_count("valset", val, 2)
    seen = {example.id for example in train}
    fresh = [example for example in val if example.id not in seen]
    require(
        len(fresh) >= 2,
        "valset",
        f"{len(val)} examples, {len(fresh)} of them not in trainset",
        "must hold at least 2 examples that the search does not see",
    )
    return Split(train, fresh)


def open_folder(run_dir: str | os.PathLike[str] | None) -> Path:
    """Returns the folder of a run, made if need be; None: a new one in the user's state directory.

    Raises:
        ConfigurationError: if it cannot be made.
    """
    if run_dir is not None:
        folder = Path(run_dir)
    else:
        runs = user_state_path("adaseek") / "runs"
        folder = runs / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"`run_dir` is {str(folder)!r}: {error}.") from None
    return folder


def check_space(space: Space, table: OptionTable) -> None:
    if space.dimensions:
        return
    reasons = "; ".join(f"{r.step}: {r.cog}: {r.reason}" for r in table.describe())
    raise ConfigurationError(
        f"`cogs` leave nothing to tune: {reasons or 'no cog offers two options'}. "
        "Give more models or cogs."
    )


def fresh_storage(folder: Path) -> BaseStorage:
    """Returns a new Optuna storage in `folder`, which optuna-dashboard can watch.

    A resumed run replays its trials from the journal, so an old file is of no use.
    """
    return StudyLog(folder / "optuna.log")


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Keeps Optuna's own progress lines out of the run's display."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def _check_count(name: str, examples: Sequence[Example], fewest: int, when: str = "") -> None:
    require(
        len(examples) >= fewest,
        name,
        f"{len(examples)} distinct example(s)",
        f"must hold at least {fewest} {when}".rstrip(),
        cure="Add examples; 20 to 100 make a search worth while.",
    )
