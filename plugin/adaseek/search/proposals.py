"""Proposals of one layer: an Optuna study, asked for configs under fixed outer values."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState

from adaseek.search.base import Config, Objective, Space
from adaseek.search.coder import Coder
from adaseek.search.history import NUM_EXAMPLES, VARIANCES, VIOLATION

__all__ = ["Proposal", "Proposals"]

_MAX_TRIES = 8
"""Asks before a sampler that repeats itself is replaced by a random draw for one proposal."""


@dataclass(frozen=True)
class Proposal:
    """A config that a study waits to hear about."""

    config: Config
    trial: optuna.Trial


class Proposals:
    """Asks one layer's study for configs and tells it the outcomes.

    The study's parameters are the dimensions of this layer and of the layers around it, whose
    values are fixed per question; so what is learnt in one arm informs the others.
    """

    def __init__(
        self,
        name: str,
        space: Callable[[], Space],
        *,
        sampler: BaseSampler,
        storage: BaseStorage,
        objectives: Sequence[Objective],
        identity: Callable[[Config], Hashable],
        seed: Sequence[int],
    ) -> None:
        directions = [
            StudyDirection.MAXIMIZE if o == "quality" else StudyDirection.MINIMIZE
            for o in objectives
        ]
        self._study = optuna.create_study(
            study_name=name, sampler=sampler, storage=storage, directions=directions
        )
        self._study.set_user_attr("objectives", list(objectives))
        self._space = space
        self._identity = identity
        self._rng = np.random.default_rng(list(seed))

    def ask(self, fixed: Config, count: int, *, taken: Iterable[Hashable] = ()) -> list[Proposal]:
        """Returns up to `count` proposals with the values `fixed` and distinct identities.

        Args:
            taken: identities that must not be proposed.

        Returns:
            Fewer than `count` only if no other config is left.
        """
        used = set(taken)
        proposals: list[Proposal] = []
        while len(proposals) < count:
            proposal = self._ask_new(fixed, used) or self._draw_new(fixed, used)
            if proposal is None:
                break
            used.add(self._identity(proposal.config))
            proposals.append(proposal)
        return proposals

    def put(self, config: Config) -> Proposal:
        """Returns `config` itself as a proposal."""
        self._study.enqueue_trial(dict(config))
        return self._take()

    def tell(
        self,
        proposal: Proposal,
        values: Sequence[float],
        *,
        violation: float,
        num_examples: int,
        variances: Sequence[float] = (),
    ) -> None:
        """Reports the outcome; quality as it is, unknown values as infinite.

        Args:
            variances: of the values about their truths; none: the values are taken as exact.
        """
        proposal.trial.set_user_attr(VIOLATION, violation)
        proposal.trial.set_user_attr(NUM_EXAMPLES, num_examples)
        proposal.trial.set_user_attr(VARIANCES, list(variances))
        self._study.tell(proposal.trial, list(values))

    def drop(self, proposal: Proposal) -> None:
        """Reports that the proposal will not be evaluated."""
        self._study.tell(proposal.trial, state=TrialState.FAIL)

    def _ask_new(self, fixed: Config, used: set[Hashable]) -> Proposal | None:
        for _ in range(_MAX_TRIES):
            if fixed:
                self._study.enqueue_trial(dict(fixed))
            proposal = self._take()
            if self._exists(proposal.config) and self._identity(proposal.config) not in used:
                return proposal
            self.drop(proposal)
        return None

    def _draw_new(self, fixed: Config, used: set[Hashable]) -> Proposal | None:
        """Returns a random proposal whose identity is not in `used`, or None if none is found."""
        coder = Coder(self._space())
        codes = coder.candidates(fixed, 512, self._rng)
        for row in self._rng.permutation(codes):
            config = coder.decode(row)
            if self._identity(config) not in used:
                return self.put(config)
        return None

    def _take(self) -> Proposal:
        trial = self._study.ask()
        space = self._space()
        config: dict[str, str] = {}
        for dimension in space.dimensions:
            if space.is_active(dimension, config):
                choices = space.choices(dimension.name)
                config[dimension.name] = trial.suggest_categorical(dimension.name, choices)
        return Proposal(config, trial)

    def _exists(self, config: Config) -> bool:
        space = self._space()
        return all(option in space.options(name) for name, option in config.items())
