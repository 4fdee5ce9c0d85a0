"""AdaSeek: the adaptive hierarchical search over a workflow's configs.

Source: Cognify (arXiv 2502.08056) for what it does: layers chosen by the total budget, the budget
split by layer complexity, each outer config opening an inner search, budget moved to promising
configs. The procedure is our reconstruction; racing over examples, one surrogate for all arms and
exact budgets in workflow runs are ours.

The search is a deterministic function of its arguments and of the outcomes it is given; nothing
depends on the order in which runs finish. So a run is resumed by running it again with an
evaluator that answers from the journal.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

import numpy as np
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, InMemoryStorage

from adaseek import events
from adaseek.search.arms import Arm
from adaseek.search.base import Config, Evaluate, Refresh, Space, check_objectives
from adaseek.search.beliefs import Beliefs
from adaseek.search.halving import Rung, halve, num_rungs
from adaseek.search.layers import plan_layers
from adaseek.search.leaves import Leaves, ended, tell
from adaseek.search.proposals import Proposal, Proposals
from adaseek.search.race import stratified_order
from adaseek.search.records import Archive
from adaseek.search.sampler import CategoricalTPESampler
from adaseek.search.settings import SearchSettings
from adaseek.search.stopping import Patience

__all__ = ["AdaSeek", "SearchSettings"]


class AdaSeek:
    """One search. Call `run` once; `archive` holds what was found, also after an exception.

    Args:
        space: the dimensions and options known at the start.
        settings: budget, objectives and knobs.
        evaluate: runs leaf runs and returns their outcomes in order.
        labels: one hashable per example, for a balanced example order; more than
            `num_examples` may be given, the search then uses a balanced part.
        refresh: asks dynamic cogs for options after each chunk.
        identity: names what a config does; configs of equal identity are evaluated once.
        sampler: any Optuna sampler; each layer gets a copy. Default: `CategoricalTPESampler`.
        storage: any Optuna storage, for example one that a dashboard watches.
        seed: makes the search repeatable.
        listen: is told the search's events.
    """

    def __init__(
        self,
        space: Space,
        settings: SearchSettings,
        evaluate: Evaluate,
        *,
        labels: Sequence[Hashable] = (),
        refresh: Refresh | None = None,
        identity: Callable[[Config], Hashable] | None = None,
        sampler: BaseSampler | None = None,
        storage: BaseStorage | None = None,
        seed: int = 0,
        listen: Callable[[events.Event], None] | None = None,
    ) -> None:
        self.settings = settings
        objectives = check_objectives(settings.objectives)
        self.archive = Archive(
            objectives, settings.constraints, failure_score=settings.failure_score
        )
        num_trials = 1 if settings.num_layers == 1 else settings.budget // settings.num_examples
        self.plan = plan_layers(space, num_trials, alpha=settings.alpha)
        self.order = stratified_order(list(labels) or [0] * settings.num_examples, seed=seed)[
            : settings.num_examples
        ]
        self._identity = identity or (lambda config: frozenset(config.items()))
        self._listen = listen or (lambda event: None)
        self._numbers = itertools.count()
        self._leaves = Leaves(
            space,
            settings,
            self.archive,
            layer=self.plan.num_layers - 1,
            order=self.order,
            evaluate=evaluate,
            refresh=refresh,
            identity=self._identity,
            numbers=self._numbers,
            listen=self._listen,
        )
        shared = storage or InMemoryStorage()
        self._proposals = [
            self._layer_proposals(layer, sampler, shared, seed)
            for layer in range(self.plan.num_layers)
        ]

    @property
    def space(self) -> Space:
        """The space as it is now, with the options that dynamic cogs have added."""
        return self._leaves.space

    @property
    def beliefs(self) -> Beliefs:
        """What is believed about the configs tried so far."""
        return self._leaves.beliefs

    @property
    def num_runs(self) -> int:
        """Workflow runs asked for so far."""
        return self._leaves.num_runs

    @property
    def left(self) -> int:
        """Workflow runs that may still be asked for."""
        return self.settings.budget - self.num_runs

    def run(self) -> Archive:
        """Spends the budget, or less if every arm converges, and returns the archive.

        Raises:
            AdaseekError: whatever `evaluate` raises; the archive keeps what was found before.
        """
        root = self._new_arm({}, (), 0)
        self._leaves.evaluate_original(root, self._proposals[-1])
        reserve = int(self.settings.reserve * self.settings.budget)
        self._spend(root, self.settings.budget - reserve)
        self._leaves.take_up_again(min(self.num_runs + reserve, self.settings.budget))
        self._spend(root, self.settings.budget)
        return self.archive

    # The tree of arms ---------------------------------------------------------------------

    def _spend(self, root: Arm, stop_at: int) -> None:
        while stop_at - self.num_runs >= self.settings.fewest and not root.is_done:
            if self._search(root, stop_at - self.num_runs) == 0:
                break

    def _search(self, arm: Arm, budget: int) -> int:
        """Searches under `arm` with at most `budget` workflow runs and returns the runs used."""
        before = self.num_runs
        if arm.layer == self.plan.num_layers - 1:
            self._leaves.search(arm, self._proposals[-1], before + budget)
        else:
            self._search_arms(arm, before + budget)
        return self.num_runs - before

    def _search_arms(self, arm: Arm, stop_at: int) -> None:
        """Opens outer configs under `arm`, a bracket at a time, until `num_runs` is `stop_at`."""
        distinct = self._layer_space(arm.layer).size(arm.config)
        # Fewer arms than one bracket takes would leave outer configs unseen to no purpose.
        planned = min(max(self.plan.budgets[arm.layer], self.settings.chunk), distinct)
        # But an arm whose share does not pay for one config would be judged by nothing.
        per_arm = num_rungs(self.settings.chunk, self.settings.eta) * self.settings.fewest
        planned = min(planned, max(1, (stop_at - self.num_runs) // per_arm))
        while planned > 0 and stop_at - self.num_runs >= self.settings.fewest:
            asked = self._ask_arms(arm, min(planned, self.settings.chunk))
            alive = [(child, proposal) for child, proposal in asked if not child.is_done]
            if not alive:
                arm.is_exhausted = all(child.is_done for child in arm.children.values())
                for _, proposal in asked:
                    self._proposals[arm.layer].drop(proposal)
                return
            budget = (stop_at - self.num_runs) * len(asked) // max(planned, len(asked))
            self._race_arms(arm, [child for child, _ in alive], budget)
            for child, proposal in asked:
                self._tell_arm(arm, child, proposal)
            planned -= len(asked)

    def _race_arms(self, arm: Arm, children: Sequence[Arm], budget: int) -> None:
        """Halves `children` over `budget` workflow runs; what they leave goes to the best."""

        def heard(rung: Rung) -> None:
            numbers = [children[i].path[-1] for i in rung.arms]
            kept = [children[i].path[-1] for i in rung.kept]
            event = events.ArmHalved(
                arm.layer, rung.index, tuple(numbers), tuple(kept), rung.budget
            )
            self._listen(event)

        halve(
            range(len(children)),
            budget,
            run=lambda i, share: 0 if children[i].is_done else self._search(children[i], share),
            score=lambda i: self.archive.promise(children[i].config),
            eta=self.settings.eta,
            listen=heard,
        )

    def _ask_arms(self, arm: Arm, count: int) -> list[tuple[Arm, Proposal]]:
        """Returns up to `count` distinct outer configs; the original's is always the first."""
        proposals = self._proposals[arm.layer]
        asked: list[Proposal] = []
        if not arm.children:
            asked.append(proposals.put(arm.completed(self._layer_space(arm.layer))))
        asked += proposals.ask(
            arm.config,
            count - len(asked),
            taken=[self._identity(p.config) for p in asked],
        )
        return [(self._child(arm, proposal.config), proposal) for proposal in asked]

    def _child(self, arm: Arm, config: Config) -> Arm:
        key = frozenset(config.items())
        if key not in arm.children:
            path = (*arm.path, next(self._numbers))
            arm.children[key] = self._new_arm(config, path, arm.layer + 1)
            self._listen(events.TrialStarted(path[-1], arm.layer, arm.path, config))
        return arm.children[key]

    def _tell_arm(self, arm: Arm, child: Arm, proposal: Proposal) -> None:
        """Tells the outer study a realised result: its best config's, never a mix of several."""
        champion = self.archive.champion(child.config)
        if champion is None:
            self._proposals[arm.layer].drop(proposal)
            return
        tell(self.archive, self._proposals[arm.layer], proposal, champion)
        arm.wait(self.archive, champion)
        trial = (child.path[-1], arm.path, child.config)
        self._listen(ended(self.archive, champion, arm.layer, trial=trial))

    def _new_arm(self, config: Config, path: tuple[int, ...], layer: int) -> Arm:
        patience = self.settings.patience
        if patience is None:
            patience = max(16, 3 * self.plan.complexities[-1])
        return Arm(config, path, layer, Patience(patience))

    # Layers -------------------------------------------------------------------------------

    def _layer_space(self, layer: int) -> Space:
        """Returns the space of the dimensions of `layer` and of the layers around it."""
        if layer == self.plan.num_layers - 1:
            return self.space
        families = {family for group in self.plan.families[: layer + 1] for family in group}
        dimensions = tuple(d for d in self.space.dimensions if d.family in families)
        return replace(self.space, dimensions=dimensions)

    def _layer_proposals(
        self, layer: int, sampler: BaseSampler | None, storage: BaseStorage, seed: int
    ) -> Proposals:
        def space() -> Space:
            return self._layer_space(layer)

        state = np.random.SeedSequence([seed, layer]).generate_state(1)
        own = CategoricalTPESampler(space, seed=int(state[0]))
        return Proposals(
            f"layer-{layer}",
            space,
            sampler=own if sampler is None else copy.deepcopy(sampler),
            storage=storage,
            objectives=self.archive.objectives,
            identity=self._identity,
            seed=[seed, layer, 1],
        )
