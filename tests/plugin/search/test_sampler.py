from __future__ import annotations

import numpy as np
import optuna
import pytest
from adaseek.search.base import Dimension, Space
from adaseek.search.coder import Coder
from adaseek.search.sampler import (
    NUM_EXAMPLES,
    VIOLATION,
    CategoricalTPESampler,
    _most_balanced,
)
from adaseek.testing.landscapes import landscape, two_step_space
from hypothesis import given
from hypothesis import strategies as st


def ask(study: optuna.Study, space: Space) -> tuple[optuna.Trial, dict[str, str]]:
    trial = study.ask()
    config: dict[str, str] = {}
    for dimension in space.dimensions:
        if space.is_active(dimension, config):
            choices = space.choices(dimension.name)
            config[dimension.name] = trial.suggest_categorical(dimension.name, choices)
    return trial, config


def test_no_config_is_proposed_twice_until_all_were():
    space = Space((Dimension("x", "step", ("a", "b", "c")), Dimension("y", "step", ("p", "q"))))
    study = optuna.create_study(sampler=CategoricalTPESampler(lambda: space, seed=1))
    seen = []
    for i in range(6):
        trial, config = ask(study, space)
        seen.append(tuple(config.values()))
        study.tell(trial, float(i))
    assert len(set(seen)) == 6


def test_pending_trials_are_not_proposed_again():
    space = two_step_space()
    study = optuna.create_study(sampler=CategoricalTPESampler(lambda: space, seed=1))
    configs = [frozenset(ask(study, space)[1].items()) for _ in range(30)]
    assert len(set(configs)) == 30


def test_startup_shows_every_option_early():
    space = Space(tuple(Dimension(f"d{i}", "step", ("a", "b", "c", "d")) for i in range(6)))
    sampler = CategoricalTPESampler(lambda: space, seed=0, num_startup=4)
    study = optuna.create_study(sampler=sampler)
    configs = []
    for _ in range(4):
        trial, config = ask(study, space)
        configs.append(config)
        study.tell(trial, 0.0)
    for dimension in space.dimensions:
        # Four draws of four options would show 2.7 of them on average.
        assert len({config[dimension.name] for config in configs}) >= 3


def test_startup_does_not_prefer_configs_with_fewer_dimensions():
    votes = Dimension("v", "structure", ("off", "three"))
    inner = [
        Dimension(f"d{i}", "weight", ("0", "2", "4"), 0, "v", frozenset({"off"})) for i in range(4)
    ]
    space = Space((votes, *inner))
    long = {"v": "off", **{d.name: "2" for d in inner}}
    seen = Coder(space).encode([{"v": "three"}, long, {"v": "three"}])
    candidates = Coder(space).encode([{"v": "three"}, long])
    pick = _most_balanced(candidates, seen, np.random.default_rng(0))
    assert Coder(space).decode(pick)["v"] == "off"


def test_enqueued_values_are_kept_and_the_rest_is_proposed():
    space = two_step_space()
    study = optuna.create_study(sampler=CategoricalTPESampler(lambda: space, seed=1))
    for i in range(12):
        study.enqueue_trial({"a:ensemble": "majority-3", "b:model": "small"})
        trial, config = ask(study, space)
        assert config["a:ensemble"] == "majority-3"
        assert config["b:model"] == "small"
        assert "a#all:reasoning" in config
        assert "a:reasoning" not in config
        study.tell(trial, float(i))


def test_empty_slots_are_never_proposed_and_filled_ones_are():
    holder = [two_step_space(num_slots=2)]
    study = optuna.create_study(sampler=CategoricalTPESampler(lambda: holder[0], seed=2))
    options = set()
    for i in range(40):
        if i == 20:
            holder[0] = holder[0].grown("b:few_shot", 1)
        trial, config = ask(study, holder[0])
        options.add(config["b:few_shot"])
        study.tell(trial, float(i % 7))
        if i == 19:
            assert options == {"0", "2", "4"}
    assert options == {"0", "2", "4", "added-0"}


def test_infeasible_trials_are_avoided():
    space = Space(tuple(Dimension(f"d{i}", "step", ("good", "bad")) for i in range(8)))
    study = optuna.create_study(
        direction="maximize", sampler=CategoricalTPESampler(lambda: space, seed=3)
    )
    late = []
    for i in range(40):
        trial, config = ask(study, space)
        violation = float(config["d0"] == "bad")
        trial.set_user_attr(VIOLATION, violation)
        trial.set_user_attr(NUM_EXAMPLES, 10)
        study.tell(trial, 1.0 if violation else 0.5)  # infeasible ones look better
        if i >= 20:
            late.append(config["d0"])
    assert late.count("good") > late.count("bad")


def test_finds_better_configs_than_random_draws():
    ours, random = [], []
    for seed in range(6):
        truth = landscape("additive", seed=seed, noisy=False)
        study = optuna.create_study(
            direction="maximize", sampler=CategoricalTPESampler(lambda t=truth: t.space, seed=seed)
        )
        best = 0.0
        for _ in range(40):
            trial, config = ask(study, truth.space)
            value = truth.truth(config)
            best = max(best, value)
            study.tell(trial, value)
        ours.append(best)
        configs = truth.configs()
        drawn = np.random.default_rng(seed).choice(len(configs), 40)
        random.append(max(truth.truth(configs[i]) for i in drawn))
    assert np.mean(ours) > np.mean(random)


@given(st.integers(0, 1000))
def test_drawn_configs_are_valid(seed):
    space = two_step_space()
    coder = Coder(space)
    for row in coder.draw({}, 20, np.random.default_rng(seed)):
        config = coder.decode(row)
        assert set(config) == {d.name for d in space.dimensions if space.is_active(d, config)}


def test_space_size_counts_configs():
    truth = landscape("flat", seed=0)
    assert truth.space.size() == len(truth.configs())
    within = {"a:ensemble": "off", "b:model": "small"}
    expected = [c for c in truth.configs() if within.items() <= c.items()]
    assert truth.space.size(within) == len(expected)


def test_a_numeric_parameter_outside_the_space_is_refused():
    space = two_step_space()
    study = optuna.create_study(sampler=CategoricalTPESampler(lambda: space, seed=1))
    with pytest.raises(TypeError, match="temperature is not categorical"):
        study.ask().suggest_float("temperature", 0, 1)
