"""The search's invariants, on landscapes whose truth is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import optuna
import pytest
from adaseek import events
from adaseek.errors import BudgetExhaustedError, ConfigurationError
from adaseek.search.adaseek import AdaSeek, SearchSettings
from adaseek.search.base import Constraint, Dimension, LeafRun, Outcome, Space
from adaseek.search.sampler import CategoricalTPESampler
from adaseek.testing.landscapes import KINDS, Landscape, landscape, two_step_space
from hypothesis import given, settings
from hypothesis import strategies as st

OBJECTIVES = (("quality",), ("quality", "cost"), ("quality", "cost", "latency"), ("cost",))
KEEP = (Constraint("quality", 1.0, relative=True),)

searches = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(KINDS),
        "budget": st.integers(48, 800),
        "objectives": st.sampled_from(OBJECTIVES),
        "constraints": st.sampled_from([(), KEEP]),
        "seed": st.integers(0, 10_000),
        "num_slots": st.integers(0, 3),
    }
)


class Recorded:
    """Evaluates a landscape and keeps what was asked."""

    def __init__(self, truth: Landscape, *, fail_after: int | None = None) -> None:
        self.truth = truth
        self.runs: list[LeafRun] = []
        self.batches: list[int] = []
        self.fail_after = fail_after

    def __call__(self, runs: Sequence[LeafRun]) -> list[Outcome]:
        if self.fail_after is not None and len(self.runs) >= self.fail_after:
            raise BudgetExhaustedError("no more")
        self.runs += runs
        self.batches.append(len(runs))
        return self.truth.evaluate(runs)


def search(
    kind: str,
    budget: int,
    seed: int,
    *,
    objectives: Sequence[str] = ("quality", "cost"),
    constraints: Sequence[Constraint] = (),
    num_slots: int = 0,
    num_layers: int | None = None,
    sampler: optuna.samplers.BaseSampler | None = None,
) -> tuple[AdaSeek, Recorded, list[events.Event]]:
    space = two_step_space(num_slots=num_slots)
    evaluate = Recorded(landscape(kind, seed=seed, num_examples=12, space=space))
    heard: list[events.Event] = []
    grown: Counter[str] = Counter()

    def refresh() -> dict[str, int]:
        if not num_slots or len(evaluate.runs) < 60 or grown["b:few_shot"] >= num_slots:
            return {}
        grown["b:few_shot"] += 1
        return {"b:few_shot": 1}

    found = AdaSeek(
        space,
        SearchSettings(budget, 12, objectives, constraints, num_layers=num_layers),
        evaluate,
        refresh=refresh,
        sampler=sampler,
        seed=seed,
        listen=heard.append,
    )
    found.run()
    return found, evaluate, heard


@given(searches)
def test_budget_is_never_exceeded_and_nothing_is_evaluated_twice(case):
    found, evaluate, _ = search(**case)
    assert len(evaluate.runs) == found.num_runs <= case["budget"]
    asked = Counter(
        (frozenset(run.config.items()), run.example, run.replicate) for run in evaluate.runs
    )
    assert max(asked.values()) == 1


@given(searches)
def test_budget_left_over_is_used_unless_every_arm_has_converged(case):
    found, _, heard = search(**case)
    spare = found.left >= found.settings.first_rung
    ended = [e for e in heard if isinstance(e, events.TrialEnded)]
    if spare:
        # Then something must have converged: at least the patience's worth of trials were made.
        assert len(ended) >= 10


@given(searches)
def test_front_equals_brute_force_over_the_records(case):
    found, _, _ = search(**case)
    archive = found.archive
    complete = [r for r in archive.records if r.state == "complete" and archive.is_feasible(r)]
    signs = {"quality": -1, "cost": 1, "latency": 1}

    def values(record):
        return [signs[o] * archive.mean(record, o) for o in archive.objectives]

    expected = [
        record
        for record in complete
        if not any(
            all(x <= y for x, y in zip(values(other), values(record), strict=True))
            and any(x < y for x, y in zip(values(other), values(record), strict=True))
            for other in complete
        )
    ]
    assert [r.number for r in archive.front()] == [r.number for r in expected]


@given(searches)
@settings(max_examples=15)
def test_same_seed_gives_the_same_trajectory(case):
    first, second = search(**case), search(**case)
    assert first[1].runs == second[1].runs
    assert first[2] == second[2]


@given(searches)
def test_survivors_of_a_rung_are_the_best_half_of_it(case):
    _, _, heard = search(**case)
    rungs = [e for e in heard if isinstance(e, events.ArmHalved)]
    for rung in rungs:
        assert set(rung.kept) <= set(rung.arms)
        assert len(rung.kept) in (len(rung.arms), max(1, len(rung.arms) // 2))


@pytest.mark.parametrize("seed", range(4))
def test_a_bracket_of_outer_arms_is_never_smaller_than_a_chunk(seed):
    # Two layers with planned budgets below a chunk: without the minimum, three of six structures
    # would stay unseen however long the search goes on.
    found, _, heard = search("additive", 600, seed)
    assert found.plan.num_layers == 2
    assert found.plan.budgets[0] < found.settings.chunk
    first = next(e for e in heard if isinstance(e, events.ArmHalved))
    assert len(first.arms) == found.settings.chunk


def test_a_bracket_holds_no_more_arms_than_there_are_outer_configs():
    votes = Dimension("a:ensemble", "structure", ("off", "majority-3"))
    other = Dimension("b:ensemble", "structure", ("off",))
    inner = tuple(
        d for d in two_step_space().dimensions if d.family != "structure" and d.parent is None
    )
    more = tuple(Dimension(f"b:{n}", "step", ("0", "1", "2")) for n in ("top_p", "format"))
    space = Space((votes, other, *more, *inner))
    heard: list[events.Event] = []
    settings = SearchSettings(2400, 12, ("quality",), chunk=16, patience=2400)
    truth = landscape("additive", seed=1, num_examples=12, space=space)
    found = AdaSeek(space, settings, truth.evaluate, seed=1, listen=heard.append)
    found.run()
    if found.plan.num_layers > 1:
        rungs = [e for e in heard if isinstance(e, events.ArmHalved) and e.layer == 0]
        assert rungs and max(len(e.arms) for e in rungs) <= 18


@given(searches)
def test_outer_layers_are_told_a_realised_result(case):
    found, _, heard = search(**case)
    innermost = found.plan.num_layers - 1
    leaves = {
        (e.quality, e.cost_usd, e.latency_s)
        for e in heard
        if isinstance(e, events.TrialEnded) and e.layer == innermost
    }
    open_leaves = {
        tuple(
            None if np.isnan(found.archive.mean(r, o)) else found.archive.mean(r, o)
            for o in ("quality", "cost", "latency")
        )
        for r in found.archive.judged()
    }
    prefixes = {
        tuple(
            float(np.mean([getattr(x, o) for x in r.outcomes[:n]]))
            for o in ("quality", "cost", "latency")
        )
        for r in found.archive.judged()
        for n in range(1, len(r.outcomes) + 1)
    }
    for event in heard:
        if isinstance(event, events.TrialEnded) and event.layer < innermost:
            seen = (event.quality, event.cost_usd, event.latency_s)
            assert seen in leaves | open_leaves | prefixes


@given(searches)
def test_every_config_is_valid_and_its_options_existed(case):
    found, evaluate, _ = search(**case)
    for run in evaluate.runs:
        expected = {d.name for d in found.space.dimensions if found.space.is_active(d, run.config)}
        assert set(run.config) == expected
        assert all(option in found.space.options(name) for name, option in run.config.items())


@pytest.mark.parametrize("seed", range(5))
def test_small_budget_is_flat_tpe(seed):
    # Below the expected size of the flat layering the search is a plain ask-and-tell loop.
    space = two_step_space()
    settings = SearchSettings(84, 12, ("quality",), chunk=1)
    truth = landscape("additive", seed=seed, num_examples=12, space=space)
    evaluate = Recorded(truth)
    storage = optuna.storages.InMemoryStorage()
    found = AdaSeek(space, settings, evaluate, seed=seed, storage=storage)
    assert found.plan.num_layers == 1
    found.run()
    told = optuna.load_study(study_name="layer-0", storage=storage).get_trials()

    study = optuna.create_study(
        direction="maximize",
        sampler=CategoricalTPESampler(
            lambda: space, seed=int(np.random.SeedSequence([seed, 0]).generate_state(1)[0])
        ),
    )
    study.enqueue_trial(space.original())
    finished = [t for t in told if t.state == optuna.trial.TrialState.COMPLETE]
    assert len(finished) > 5  # the startup is over after four
    for known in finished:
        trial = study.ask()
        config: dict[str, str] = {}
        for dimension in space.dimensions:
            if space.is_active(dimension, config):
                choices = space.choices(dimension.name)
                config[dimension.name] = trial.suggest_categorical(dimension.name, choices)
        assert config == known.params
        for name, value in known.user_attrs.items():
            trial.set_user_attr(name, value)
        study.tell(trial, known.value)


def test_the_last_of_the_budget_completes_what_a_race_had_dropped():
    found, evaluate, heard = search("interacting", 480, 4, objectives=("quality",))
    again = [e for e in heard if isinstance(e, events.TrialEnded) and e.again]
    assert again
    for event in again:
        earlier = [e for e in heard if isinstance(e, events.TrialEnded) and e.trial == event.trial]
        assert earlier[0].state == "eliminated"
        assert earlier[0].num_examples < event.num_examples == 12
    assert found.num_runs == len(evaluate.runs) <= 480


def test_without_reserve_and_halving_only_the_test_drops_configs():
    space = two_step_space()
    truth = landscape("flat", seed=2, num_examples=12, space=space, noisy=False)
    settings = SearchSettings(480, 12, ("quality",), halving=False, reserve=0.0, num_layers=1)
    found = AdaSeek(space, settings, truth.evaluate, seed=2)
    found.run()
    # All configs are equal: a test that is right drops none of them.
    assert {r.state for r in found.archive.records} <= {"complete", "running"}


@pytest.mark.parametrize("num_layers", [None, 1])
def test_a_space_whose_options_all_come_from_dynamic_cogs_is_searched(num_layers):
    space = Space((Dimension("a:instructions", "weight", ("off",), num_slots=2),))
    left = [2, 1, 0]  # options found by the first refresh, by the second, ever after

    def refresh() -> dict[str, int]:
        found, left[:] = left[0] - left[1], [*left[1:], 0]
        return {"a:instructions": found} if found else {}

    def evaluate(runs: Sequence[LeafRun]) -> list[Outcome]:
        return [Outcome(float(run.config["a:instructions"] != "off")) for run in runs]

    settings = SearchSettings(400, 12, ("quality",), num_layers=num_layers)
    found = AdaSeek(space, settings, evaluate, refresh=refresh, seed=0)
    found.run()
    tried = {record.config["a:instructions"] for record in found.archive.records}
    assert tried == {"off", "added-0", "added-1"}
    assert found.num_runs <= 400


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_layers", [None, 1])
def test_an_interrupted_search_keeps_what_it_found(kind, num_layers):
    space = two_step_space()
    evaluate = Recorded(landscape(kind, seed=1, num_examples=12, space=space), fail_after=100)
    found = AdaSeek(space, SearchSettings(600, 12, num_layers=num_layers), evaluate, seed=1)
    with pytest.raises(BudgetExhaustedError):
        found.run()
    assert sum(len(r.outcomes) for r in found.archive.records) == len(evaluate.runs)
    assert found.archive.front() or kind == "infeasible"


@pytest.mark.parametrize(
    "sampler",
    [
        optuna.samplers.RandomSampler(seed=3),
        optuna.samplers.TPESampler(seed=3, multivariate=True),
        optuna.samplers.NSGAIISampler(seed=3),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_any_optuna_sampler_can_propose(sampler):
    found, evaluate, _ = search("interacting", 600, 2, num_slots=2, sampler=sampler)
    assert found.num_runs <= 600
    configs = {frozenset(run.config.items()) for run in evaluate.runs}
    assert len(configs) == len(found.archive.judged())


def test_infeasible_landscape_leaves_only_configs_that_keep_the_constraint():
    found, _, _ = search("infeasible", 500, 3, objectives=("quality", "cost"), constraints=KEEP)
    baseline = found.archive.mean(found.archive.original, "quality")
    assert all(found.archive.mean(r, "quality") >= baseline for r in found.archive.front())


def test_search_beats_random_configs_on_an_additive_landscape():
    gains = []
    for seed in range(8):
        found, evaluate, _ = search("additive", 480, seed, objectives=("quality",))
        best = max(found.archive.front(), key=lambda r: found.archive.mean(r, "quality"))
        rng = np.random.default_rng(seed)
        configs = evaluate.truth.configs()
        drawn = [configs[i] for i in rng.choice(len(configs), 40)]  # as many full trials as 480
        observed = [
            np.mean([evaluate.truth.outcome(LeafRun(c, e)).quality for e in range(12)])
            for c in drawn
        ]
        gains.append(
            evaluate.truth.truth(best.config)
            - evaluate.truth.truth(drawn[int(np.argmax(observed))])
        )
    assert np.mean(gains) > 0


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"budget": 10}, "`budget` is 10"),
        ({"num_examples": 0}, "`num_examples` is 0"),
        ({"objectives": ()}, "`objectives` is"),
        ({"objectives": ("speed",)}, "'quality', 'cost', 'latency'"),
        ({"eta": 1}, "`eta` is 1"),
        ({"delta": 0.0}, "`delta` is 0.0"),
        ({"chunk": 0}, "`chunk` is 0"),
        ({"num_layers": 7}, "`num_layers` is 7"),
    ],
)
def test_impossible_settings_are_refused(changes, match):
    with pytest.raises(ConfigurationError, match=match):
        SearchSettings(**{"budget": 100, "num_examples": 10, **changes})
