"""Which drafted tokens the target model keeps, and the token it adds: rules without a law's loss.

Every function here returns tokens distributed exactly as the target alone would emit them, under
the conditions of its docstring. `Chance` is the only source of randomness, so a test can walk
through all outcomes of a rule and add up their exact probabilities.

| rule | drafted tokens must be | source |
|---|---|---|
| `greedy_walk` | anything | SpecInfer (arXiv 2305.09781), algorithm 2 |
| `sampled_walk` | anything not drawn, or drawn and not asked about | SpecInfer, naive sampling |
| `multi_step` | drawn from the stated laws, or not drawn at all | SpecInfer, multi-step sampling |
| `traversal` | the same, each token at most once below a node | arXiv 2505.12398 |

For children that were not drawn (a top-k, a retrieval), naive sampling is the best possible rule
for the given set: its acceptance is the target's mass on the set. What no rule survives, and no
rule can notice: a top-k passed off as drawn; a drawn child dropped because of its value; trials in
another order than drawn; two equal draws counted once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from adaseek_vllm.token_tree.tree import ROOT, Law, TokenTree, TreeTokens, Trial


@dataclass(frozen=True)
class Verified:
    """What one verification emits."""

    tokens: tuple[int, ...]
    """The accepted tokens and the bonus token."""
    rows: tuple[int, ...]
    """Rows of the accepted nodes, the root not included; strictly increasing."""


class Chance(Protocol):
    """Where a verifier's random decisions come from."""

    def accept(self, probability: float) -> bool:
        """Returns True with this probability."""
        ...

    def draw(self, law: Law) -> int:
        """Returns a token drawn from `law`, whose sum is 1."""
        ...


class RandomChance:
    """Decisions by a numpy generator: one uniform number each."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def accept(self, probability: float) -> bool:
        return bool(self._rng.random() < probability)

    def draw(self, law: Law) -> int:
        cumulative = np.cumsum(law)
        token = np.searchsorted(cumulative, self._rng.random() * cumulative[-1], side="right")
        return int(min(token, len(law) - 1))


TargetLaw = Callable[[int], Law]
"""The target's law of the token after a row; the caller applies temperature, top-p and masks."""


Choose = Callable[[Sequence[int], Sequence[int], Sequence[Sequence[int]]], Sequence[int]]
"""(requests, their rows, the tokens emitted for them so far) -> the target's next token of each."""


def greedy_walk(tree: TreeTokens, choices: Sequence[int]) -> Verified:
    """Returns the longest path of the target's own choices, and the choice after it.

    Args:
        tree: the drafted tokens.
        choices: the target's choice after each row, [rows].
    """
    return sampled_walk(tree, lambda row: choices[row])


def sampled_walk(tree: TreeTokens, choose: Callable[[int], int]) -> Verified:
    """Returns the path along `choose(row)`, the target's own token after a row.

    `choose` is called once per emitted token, in order, so a random choice consumes exactly the
    random numbers that decoding without drafts would.
    """
    (verified,) = batch_walk([tree], lambda _requests, rows, _paths: [choose(rows[0])])
    return verified


def batch_walk(trees: Sequence[TreeTokens], choose: Choose) -> list[Verified]:
    """Returns `sampled_walk` of each tree, asking for the next token of all that go on at once.

    The first call of `choose` asks for every request; later ones for those whose last token was
    drafted, in the order of the requests.
    """
    children = [_children(tree) for tree in trees]
    tokens: list[list[int]] = [[] for _ in trees]
    rows: list[list[int]] = [[] for _ in trees]
    active = list(range(len(trees)))
    while active:
        at = [rows[request][-1] if rows[request] else 0 for request in active]
        chosen = choose(active, at, [tokens[request] for request in active])
        going_on = []
        for request, row, token in zip(active, at, chosen, strict=True):
            tokens[request].append(token)
            if (child := children[request].get((row - 1, token))) is not None:
                rows[request].append(child + 1)
                going_on.append(request)
        active = going_on
    return [Verified(tuple(t), tuple(r)) for t, r in zip(tokens, rows, strict=True)]


def _children(tree: TreeTokens) -> dict[tuple[int, int], int]:
    """(parent, token) -> node; the first of equal ones, though a `TokenTree` has none."""
    pairs = zip(tree.parents, tree, strict=True)
    found: dict[tuple[int, int], int] = {}
    for node, key in enumerate(pairs):
        found.setdefault(key, node)
    return found


def multi_step(tree: TokenTree, target: TargetLaw, chance: Chance) -> Verified:
    """Returns a path by multi-step speculative sampling: reject, take the residual, go on.

    Whether a node gets another trial may depend on earlier trials only. Equal trials are allowed,
    and both count: what lies below a node is looked at after its acceptance only.
    """
    tokens, rows, node = list[int](), list[int](), ROOT
    while True:
        token, is_drafted = _multi_step_at(target(node + 1), tree.trials(node), chance)
        tokens.append(token)
        child = tree.child(node, token) if is_drafted else None
        if child is None:
            return Verified(tuple(tokens), tuple(rows))
        rows.append(child + 1)
        node = child


def _multi_step_at(law: Law, trials: Sequence[Trial], chance: Chance) -> tuple[int, bool]:
    """Returns (token, whether a trial gave it) for one node."""
    for token, drawn_from, _ in trials:
        if chance.accept(_ratio(1.0, law, token, drawn_from)):
            return token, True
        law = _normalised(_residual(1.0, law, token, drawn_from), otherwise=law)
    return chance.draw(law), False


@dataclass
class _Open:
    """A node that traversal may still accept."""

    weight: float
    """Probability with which the path down to here is accepted as it is."""
    law: Law
    trials: list[Trial] = field(default_factory=list)


def traversal(tree: TokenTree, target: TargetLaw, chance: Chance) -> Verified:
    """Returns a path by traversal verification: whole paths are judged, from the leaves up.

    Accepts at least as many tokens as `multi_step` on average, since a token that is bad by itself
    may be kept for a good continuation.

    Raises:
        ValueError: a token was tried twice below one node. Its subtree would be judged twice,
            which is not lossless.
    """
    _reject_repeated_trials(tree)
    path = [(ROOT, _Open(1.0, target(0), list(tree.trials(ROOT))))]
    while True:
        node, here = path[-1]
        if here.trials:
            token, drawn_from, _ = here.trials[0]
            weight = _ratio(here.weight, here.law, token, drawn_from)
            child = tree.child(node, token)
            assert child is not None, (node, token)
            path.append((child, _Open(weight, target(child + 1), list(tree.trials(child)))))
        # The root is the last resort: its weight is 1 but for rounding.
        elif node == ROOT or chance.accept(here.weight):
            nodes = [accepted for accepted, _ in path[1:]]
            tokens = (*(tree.tokens[accepted] for accepted in nodes), chance.draw(here.law))
            return Verified(tokens, tuple(accepted + 1 for accepted in nodes))
        else:
            path.pop()
            _reject_first_trial(path[-1][1])


def _reject_first_trial(here: _Open) -> None:
    """Changes `here` to what is left of it once its first child is known to be rejected."""
    token, drawn_from, _ = here.trials.pop(0)
    residual = _residual(here.weight, here.law, token, drawn_from)
    mass = float(residual.sum())
    here.law = _normalised(residual, otherwise=here.law)
    here.weight = mass / (mass + 1.0 - here.weight) if mass > 0 else float(here.weight >= 1.0)


def draw_with_replacement(law: Law, num_draws: int, chance: Chance, *, source: str) -> list[Trial]:
    """Returns independent draws from a draft model's law."""
    return [Trial(chance.draw(law), law, source) for _ in range(num_draws)]


def draw_without_replacement(
    law: Law, num_draws: int, chance: Chance, *, source: str
) -> list[Trial]:
    """Returns draws of different tokens, each with the law it was really drawn from."""
    trials: list[Trial] = []
    for _ in range(min(num_draws, int(np.count_nonzero(law)))):
        token = chance.draw(law)
        trials.append(Trial(token, law, source))
        rest = law.copy()
        rest[token] = 0.0
        law = _normalised(rest, otherwise=rest)
    return trials


def _ratio(weight: float, law: Law, token: int, drawn_from: Law | None) -> float:
    """min(1, weight * target / draft) at `token`; a token that was not drawn has draft 1."""
    draft = 1.0 if drawn_from is None else float(drawn_from[token])
    wanted = weight * float(law[token])
    if wanted < draft:
        return wanted / draft
    return 1.0 if wanted > 0 else 0.0


def _residual(weight: float, law: Law, token: int, drawn_from: Law | None) -> Law:
    """max(0, weight * target - draft), not normalised."""
    if drawn_from is not None:
        return np.maximum(weight * law - drawn_from, 0.0)
    residual = weight * law
    residual[token] = 0.0
    return residual


def _normalised(law: Law, *, otherwise: Law) -> Law:
    """`law` divided by its sum; `otherwise` where rounding has left nothing of it."""
    total = law.sum()
    return law / total if total > 0 else otherwise


def _reject_repeated_trials(tree: TokenTree) -> None:
    for parent in (ROOT, *range(len(tree))):
        tokens = [trial.token for trial in tree.trials(parent)]
        if len(set(tokens)) != len(tokens):
            raise ValueError(
                f"traversal: a token was tried twice below node {parent}: {tokens}. "
                "Draw without replacement, or use `multi_step`."
            )
