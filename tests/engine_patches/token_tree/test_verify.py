"""Each rule's emitted law equals the target's: exactly on small vocabularies, by test on larger."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import product
from typing import TypeVar

import numpy as np
import pytest
from adaseek_vllm.token_tree import (
    ROOT,
    Chance,
    Law,
    RandomChance,
    TokenTree,
    TreeTokens,
    Trial,
    Verified,
    draw_with_replacement,
    draw_without_replacement,
    greedy_walk,
    multi_step,
    sampled_walk,
    traversal,
)

Result = TypeVar("Result")
Sequences = dict[tuple[int, ...], float]
"""Probability of each token sequence."""


class _Replay:
    """Follows a script of decisions, then takes the first possible one and notes the others."""

    def __init__(self, script: list[int]) -> None:
        self.script = script
        self.position = 0
        self.probability = 1.0
        self.untried: list[list[int]] = []

    def accept(self, probability: float) -> bool:
        return self._decide([1.0 - probability, probability]) == 1

    def draw(self, law: Law) -> int:
        return self._decide(law.tolist())

    def _decide(self, probabilities: list[float]) -> int:
        if self.position == len(self.script):
            possible = [option for option, p in enumerate(probabilities) if p > 0]
            self.untried += [[*self.script, option] for option in possible[1:]]
            self.script = [*self.script, possible[0]]
        option = self.script[self.position]
        self.position += 1
        self.probability *= probabilities[option]
        return option


def outcomes(program: Callable[[Chance], Result]) -> dict[Result, float]:
    """Returns each result of `program` with its exact probability."""
    law: dict[Result, float] = defaultdict(float)
    scripts: list[list[int]] = [[]]
    while scripts:
        replay = _Replay(scripts.pop())
        law[program(replay)] += replay.probability
        scripts += replay.untried
    return dict(law)


class Model:
    """A random law after every path; zero probabilities occur when `sparsity` says so."""

    def __init__(self, vocabulary: int, seed: int, *, sparsity: float = 0.0) -> None:
        self.vocabulary = vocabulary
        self._seed = seed
        self._sparsity = sparsity
        self._laws: dict[tuple[int, ...], Law] = {}

    def law(self, path: tuple[int, ...]) -> Law:
        if path not in self._laws:
            self._laws[path] = self._new_law(path)
        return self._laws[path]

    def _new_law(self, path: tuple[int, ...]) -> Law:
        rng = np.random.default_rng([self._seed, len(path), *path])
        law = rng.dirichlet(np.full(self.vocabulary, 0.7))
        law[rng.random(self.vocabulary) < self._sparsity] = 0.0
        law[rng.integers(self.vocabulary)] += 0.05
        return law / law.sum()

    def sequences(self, length: int) -> Sequences:
        """The law of the first `length` tokens."""
        paths = product(range(self.vocabulary), repeat=length)
        return {path: self._probability((), path) for path in paths}

    def completed(self, emitted: Sequences, length: int) -> Sequences:
        """The law of the first `length` tokens when this model goes on after what was emitted."""
        law: Sequences = defaultdict(float)
        for tokens, probability in emitted.items():
            missing = max(0, length - len(tokens))
            for rest in product(range(self.vocabulary), repeat=missing):
                law[(*tokens, *rest)[:length]] += probability * self._probability(tokens, rest)
        return dict(law)

    def _probability(self, before: tuple[int, ...], tokens: tuple[int, ...]) -> float:
        probability = 1.0
        for index, token in enumerate(tokens):
            probability *= float(self.law((*before, *tokens[:index]))[token])
        return probability


def total_variation(one: Sequences, other: Sequences) -> float:
    """Half the absolute difference of two laws."""
    return sum(abs(one.get(key, 0.0) - other.get(key, 0.0)) for key in one | other) / 2


Verify = Callable[[TokenTree, Callable[[int], Law], Chance], Verified]
Draw = Callable[..., list[Trial]]

EXACT = 1e-12
VISIBLE = 1e-3
"""A rule that loses the law must lose this much of it here, or the tests prove nothing."""


def naive(tree: TokenTree, target: Callable[[int], Law], chance: Chance) -> Verified:
    return sampled_walk(tree.to_tokens(), lambda row: chance.draw(target(row)))


def rows_of(tree: TokenTree, model: Model) -> Callable[[int], Law]:
    """The target's law after each row of `tree`."""
    return lambda row: model.law(tree.path(row - 1))


def drawn_tree(draft: Model, widths: tuple[int, ...], draw: Draw, chance: Chance) -> TokenTree:
    """A tree of a draft model's own draws."""
    tree, level = TokenTree(), [ROOT]
    for width in widths:
        grown: list[int] = []
        for node in level:
            trials = draw(draft.law(tree.path(node)), width, chance, source="draft")
            grown += [tree.propose(node, trial) for trial in trials]
        level = list(dict.fromkeys(grown))
    return tree


def emitted(
    grow: Callable[[Chance], TokenTree], target: Model, verify: Verify
) -> dict[tuple[int, ...], float]:
    """The exact law of what one step emits, over all drafts and all decisions."""

    def step(chance: Chance) -> tuple[int, ...]:
        tree = grow(chance)
        return verify(tree, rows_of(tree, target), chance).tokens

    return outcomes(step)


def distance(
    grow: Callable[[Chance], TokenTree], target: Model, verify: Verify, *, length: int = 3
) -> float:
    """Total variation between the target's law and the step's, target continuing after it."""
    law = emitted(grow, target, verify)
    assert sum(law.values()) == pytest.approx(1.0)
    return total_variation(target.completed(law, length), target.sequences(length))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("verify", [naive, multi_step, traversal])
@pytest.mark.parametrize("widths", [(1,), (2,), (3,), (1, 1), (2, 2), (2, 1, 1)])
def test_draws_without_replacement_lose_nothing(
    widths: tuple[int, ...], verify: Verify, seed: int
) -> None:
    vocabulary = 3 if len(widths) > 1 else 4
    target, draft = Model(vocabulary, seed), Model(vocabulary, seed + 100)
    grow = lambda chance: drawn_tree(draft, widths, draw_without_replacement, chance)  # noqa: E731
    assert distance(grow, target, verify) < EXACT


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("verify", [naive, multi_step])
@pytest.mark.parametrize("widths", [(2,), (3,), (2, 2)])
def test_draws_with_replacement_lose_nothing(
    widths: tuple[int, ...], verify: Verify, seed: int
) -> None:
    target, draft = Model(3, seed), Model(3, seed + 100)
    grow = lambda chance: drawn_tree(draft, widths, draw_with_replacement, chance)  # noqa: E731
    assert distance(grow, target, verify) < EXACT


@pytest.mark.parametrize("verify", [multi_step, traversal])
def test_laws_with_zeros_lose_nothing(verify: Verify) -> None:
    for seed in range(20):
        target, draft = Model(4, seed, sparsity=0.5), Model(4, seed + 100, sparsity=0.5)
        grow = lambda c, d=draft: drawn_tree(d, (2, 1), draw_without_replacement, c)  # noqa: E731
        assert distance(grow, target, verify, length=2) < EXACT


@pytest.mark.parametrize("verify", [naive, multi_step, traversal])
def test_children_that_were_not_drawn_lose_nothing(verify: Verify) -> None:
    for seed in range(10):
        tree = TokenTree()
        for path in [(0, 1, 2), (0, 2), (1,), (2, 2, 2)]:
            tree.add_path(path)
        assert distance(lambda _, t=tree: t, Model(3, seed), verify, length=4) < EXACT


@pytest.mark.parametrize("seed", range(6))
def test_merged_sources_lose_nothing(seed: int) -> None:
    target, one, other = Model(3, seed), Model(3, seed + 100), Model(3, seed + 200)

    def grow(chance: Chance) -> TokenTree:
        tree = drawn_tree(one, (2, 1), draw_without_replacement, chance)
        retrieved = TokenTree()
        retrieved.add_path((1, 1))
        tree.merge(retrieved)
        tree.merge(drawn_tree(other, (1, 1), draw_with_replacement, chance))
        return tree

    assert distance(grow, target, multi_step) < EXACT


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_truncation_loses_nothing(limit: int) -> None:
    target, one, other = Model(3, 7), Model(3, 107), Model(3, 207)

    def grow(chance: Chance) -> TokenTree:
        tree = drawn_tree(one, (2, 1), draw_without_replacement, chance)
        tree.merge(drawn_tree(other, (2,), draw_with_replacement, chance))
        return tree.truncated(limit)

    assert distance(grow, target, multi_step) < EXACT


def test_verifiers_differ_where_theory_says_so() -> None:
    # SpecInfer, theorem 4.3: multi-step rejects no more than naive. Traversal accepts no less.
    for seed in range(5):
        target, draft = Model(3, seed), Model(3, seed + 100)
        grow = lambda c, d=draft: drawn_tree(d, (2, 2), draw_without_replacement, c)  # noqa: E731
        accepted = [
            sum(len(tokens) * p for tokens, p in emitted(grow, target, verify).items())
            for verify in (naive, multi_step, traversal)
        ]
        assert accepted == sorted(accepted)
        assert accepted[1] > accepted[0] + VISIBLE


# Negative controls: each breaks one condition, and the same measure must notice.


def test_control_top_k_passed_off_as_drawn_is_noticed() -> None:
    target, draft = Model(4, 3), Model(4, 103)

    def grow(_: Chance) -> TokenTree:
        law, tree = draft.law(()), TokenTree()
        for token in np.argsort(-law)[:2]:
            tree.propose(ROOT, Trial(int(token), law))
        return tree

    assert distance(grow, target, multi_step, length=1) > VISIBLE


def test_control_drawn_child_dropped_for_its_value_is_noticed() -> None:
    target, draft = Model(4, 3), Model(4, 103)

    def grow(chance: Chance) -> TokenTree:
        law, tree = draft.law(()), TokenTree()
        for trial in draw_without_replacement(law, 3, chance, source=""):
            if law[trial.token] > 0.2:
                tree.propose(ROOT, trial)
        return tree

    assert distance(grow, target, multi_step, length=1) > VISIBLE


def test_control_trials_in_another_order_than_drawn_are_noticed() -> None:
    target, draft = Model(4, 3), Model(4, 103)

    def grow(chance: Chance) -> TokenTree:
        law, tree = draft.law(()), TokenTree()
        trials = draw_without_replacement(law, 3, chance, source="")
        for trial in sorted(trials, key=lambda trial: -law[trial.token])[:2]:
            tree.propose(ROOT, trial)
        return tree

    assert distance(grow, target, multi_step, length=1) > VISIBLE


def test_control_equal_draws_counted_once_are_noticed() -> None:
    target, draft = Model(5, 3), Model(5, 103)

    def grow(chance: Chance) -> TokenTree:
        tree = TokenTree()
        for trial in draw_with_replacement(draft.law(()), 3, chance, source=""):
            if tree.child(ROOT, trial.token) is None:
                tree.propose(ROOT, trial)
        return tree

    assert distance(grow, target, multi_step, length=1) > VISIBLE


def test_control_truncation_that_keeps_repeated_tokens_is_noticed() -> None:
    target, draft = Model(5, 3), Model(5, 103)

    def grow(chance: Chance) -> TokenTree:
        tree = TokenTree()
        for trial in draw_with_replacement(draft.law(()), 3, chance, source=""):
            if tree.child(ROOT, trial.token) is None and len(tree) == 1:
                break
            tree.propose(ROOT, trial)
        return tree

    assert distance(grow, target, multi_step, length=1) > VISIBLE


def test_traversal_refuses_a_token_tried_twice() -> None:
    tree = TokenTree()
    for _ in range(2):
        tree.propose(ROOT, Trial(1, np.array([0.5, 0.5])))
    with pytest.raises(ValueError, match="tried twice"):
        traversal(tree, lambda _: np.array([0.5, 0.5]), RandomChance(np.random.default_rng(0)))


def chi_square_is_high(counts: Counter[tuple[int, ...]], law: Sequences) -> bool:
    """Whether counts are unlikely under `law`: chance below 1e-4, by the normal approximation."""
    total = sum(counts.values())
    large = {key for key, p in law.items() if p * total >= 10}
    rest = 1.0 - sum(law[key] for key in large)
    cells = [(counts[key], law[key] * total) for key in large]
    cells.append((total - sum(counts[key] for key in large), rest * total))
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells if mean > 0)
    freedom = len(cells) - 1
    # Wilson and Hilferty: the cube root of chi-square / freedom is nearly normal.
    spread = 2 / (9 * freedom)
    return bool(((statistic / freedom) ** (1 / 3) - (1 - spread)) / spread**0.5 > 3.72)


@pytest.mark.parametrize("verify", [naive, multi_step, traversal])
def test_larger_vocabulary_passes_a_chi_square_test(verify: Verify) -> None:
    vocabulary, num_draws = 40, 20_000
    target, draft = Model(vocabulary, 1), Model(vocabulary, 101)
    chance = RandomChance(np.random.default_rng(5))
    counts = Counter[tuple[int, ...]]()
    for _ in range(num_draws):
        tree = drawn_tree(draft, (3,), draw_without_replacement, chance)
        tokens = verify(tree, rows_of(tree, target), chance).tokens
        counts[(*tokens, chance.draw(target.law(tokens)))[:2]] += 1
    assert not chi_square_is_high(counts, target.sequences(2))


def test_control_chi_square_notices_a_wrong_law() -> None:
    law = {(token,): 1 / 40 for token in range(40)}
    rng = np.random.default_rng(3)
    wrong = np.full(40, 1 / 40)
    wrong[0], wrong[1] = 1.3 / 40, 0.7 / 40
    counts = Counter((int(token),) for token in rng.choice(40, 20_000, p=wrong))
    assert chi_square_is_high(counts, law)


def test_greedy_walk_follows_the_target_through_a_side_branch() -> None:
    # rows: 0 root; 1: 5; 2: 6; 3: 7 below 6; 4: 7 below 5; 5: 8 below row 3
    tree = TreeTokens([5, 6, 7, 7, 8], [-1, -1, 1, 0, 2])
    assert greedy_walk(tree, [6, 0, 7, 9, 0, 0]) == Verified((6, 7, 9), (2, 3))
    assert greedy_walk(tree, [5, 7, 0, 0, 1, 0]) == Verified((5, 7, 1), (1, 4))
    assert greedy_walk(tree, [1, 0, 0, 0, 0, 0]) == Verified((1,), ())


def test_walk_asks_once_per_emitted_token_in_order() -> None:
    asked: list[int] = []

    def choose(row: int) -> int:
        asked.append(row)
        return {0: 6, 2: 7, 3: 1}[row]

    sampled_walk(TreeTokens([5, 6, 7], [-1, -1, 1]), choose)
    assert asked == [0, 2, 3]


def test_empty_tree_is_plain_decoding() -> None:
    assert greedy_walk(TreeTokens(), [4]) == Verified((4,), ())
