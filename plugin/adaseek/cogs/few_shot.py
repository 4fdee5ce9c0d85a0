"""Weight cog: worked examples from the data and from the best runs so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from adaseek._canonical import canonical_json, fingerprint
from adaseek.cogs._evidence import train_runs, usable_calls
from adaseek.cogs.base import CogContext, Family, Option, Run
from adaseek.errors import require
from adaseek.recipe import Demo, Setting
from adaseek.voting import UNVOTED_FIELDS, normalised
from adaseek.workflow import Call, Example, Step

__all__ = ["FewShotCog"]

_COST_OF_A_DEMO = 0.1
"""Rough cost of reading one demo relative to the bare step; only orders the proposals."""

_REASONING_FIELDS = frozenset({*UNVOTED_FIELDS, "plan"})
"""Output fields that a reasoning option adds to a step; kept in demos beside the step's own."""

_GOOD_SHARE = 0.75
"""Quantile that a graded score must reach for its run to be shown as an example."""


@dataclass(frozen=True)
class FewShotCog:
    """Offers worked examples, from labelled data at the start and from good runs later on.

    From the start: no demos (`none`, if the program brings its own), and demos whose outputs are
    the labels (`labelled-N`, if every output of the step is a label of the data; the answers are
    right even where the model never gets one right).

    As runs come in: demos harvested from the calls of the best runs (`bootstrapped-N`), one per
    example, short ones first and with outputs as different as possible. A set is offered again
    only when half of it is new, because slots are few and near copies teach the search nothing.

    A demo names the example it comes from, and a run on that example does not see it
    (`Recipe.for_example`), so a size of N shows N - 1 demos to N of the examples.

    A demo holds the fields of the step and, where the run wrote one, its reasoning: so that the
    same demo serves with and without reasoning. Adapters leave out fields that the step does not
    have.

    Source: bootstrapped demonstrations as in DSPy (arXiv 2310.03714).

    Args:
        sizes: numbers of demos to offer.
        num_slots: how many sets it may add at one step over the whole run.
        max_characters: longest demo, in characters of JSON; longer ones are never shown.
    """

    sizes: tuple[int, ...] = (2, 4)
    num_slots: int = 6
    max_characters: int = 2000
    name: str = "few_shot"
    family: Family = "weight"

    def __post_init__(self) -> None:
        valid = bool(self.sizes) and all(size >= 1 for size in self.sizes)
        require(valid, "sizes", self.sizes, "must hold numbers of demos >= 1")
        require(self.num_slots >= 0, "num_slots", self.num_slots, "must be >= 0")
        require(self.max_characters >= 1, "max_characters", self.max_characters, "must be >= 1")

    def refuses(self, step: Step) -> str | None:
        if step.kind != "lm":
            return "only a language-model step learns from examples"
        if step.signature is None or not step.signature.outputs:
            return "its outputs have no names, so an example cannot be written down"
        if step.signature.output == "tool_calls":
            return "it answers with tool calls, which an example cannot hold"
        return None

    def options(self, step: Step, context: CogContext) -> Sequence[Option]:
        if not context.train:
            return []
        found = [Option(key="original")]
        if step.num_demos:
            found.append(Option(key="none", setting=Setting(demos=()), expected_cost=1.0))
        pool = _labelled(step, context)
        found.extend(
            _option(f"labelled-{size}", demos)
            for size, demos in self._sets([c for c in pool if c.size <= self.max_characters])
        )
        return found

    def evolve(
        self, step: Step, runs: Sequence[Run], added: Sequence[Option], context: CogContext
    ) -> Sequence[Option]:
        harvested = _best(_harvested(step, _good(train_runs(runs, context))))
        sets = self._sets([c for c in harvested if c.size <= self.max_characters])
        key = (self.name, "options", step.id, self)
        if key not in context.derived:
            context.derived[key] = self.options(step, context)
        known = [option.setting.demos or () for option in (*context.derived[key], *added)]
        fresh = [
            _option(f"bootstrapped-{size}", demos)
            for size, demos in sets
            if _is_new(demos, [old for old in known if len(old) == size])
        ]
        return fresh[: max(0, self.num_slots - len(added))]

    def _sets(self, pool: Sequence[_Candidate]) -> list[tuple[int, tuple[Demo, ...]]]:
        sizes = sorted({size for size in self.sizes if size <= len(pool)})
        return [(size, tuple(c.demo for c in _diverse(pool, size))) for size in sizes]


@dataclass(frozen=True)
class _Candidate:
    """A possible demo; `rank` orders candidates, the best first."""

    demo: Demo
    answer: str
    size: int
    rank: tuple[float, bool, int, str]


def _labelled(step: Step, context: CogContext) -> list[_Candidate]:
    """Returns a demo for each example whose inputs and labels cover the step, shuffled by seed."""
    shuffled = sorted(context.train, key=lambda e: fingerprint([context.seed, e.id]))
    found = [_candidate(step, {**e.inputs, **e.labels}, e, score=0.0) for e in shuffled]
    signature = step.signature
    names = {f.name for f in signature.fields} if signature else set()
    return [c for c in found if c is not None and names <= c.demo.values.keys()]


def _harvested(step: Step, runs: Iterable[Run]) -> list[_Candidate]:
    found = []
    for run in runs:
        key = ("few_shot", step.id)
        if key not in run.derived:
            run.derived[key] = _harvest(step, run)
        found.append(run.derived[key])
    return [candidate for candidate in found if candidate is not None]


def _harvest(step: Step, run: Run) -> _Candidate | None:
    """Returns what `run` shows of `step` as a candidate, None if it shows nothing usable."""
    calls = usable_calls(step, run.trace)
    if not calls:
        return None
    call = _pick(calls, run.example)
    values = {**call.inputs, **call.outputs}
    return _candidate(step, values, run.example, score=run.score.value)


def _pick(calls: Sequence[Call], example: Example) -> Call:
    if all(_continues(later, earlier) for earlier, later in pairwise(calls)):
        return calls[-1]  # it shows all turns, with what the tools really gave
    # A step in a loop is called several times per run; taking another turn for each example
    # shows the model early and late turns alike.
    return calls[int(fingerprint(example.id), 16) % len(calls)]


def _continues(later: Call, earlier: Call) -> bool:
    """Whether `later` was given the messages that `earlier` was given, and more behind them."""
    return any(
        isinstance(messages, list) and _opens(earlier.inputs.get(name), messages)
        for name, messages in later.inputs.items()
    )


def _opens(given: object, messages: Sequence[object]) -> bool:
    """Whether `given`, a list of messages or the text of the only one, is how `messages` begin."""
    if isinstance(given, list):
        return len(given) < len(messages) and messages[: len(given)] == given
    first = messages[0] if len(messages) > 1 else None
    return isinstance(first, Mapping) and isinstance(given, str) and given in first.values()


def _candidate(
    step: Step, values: dict[str, object], example: Example, *, score: float
) -> _Candidate | None:
    """Returns `values` as a candidate; None if JSON cannot hold them."""
    signature = step.signature
    assert signature is not None, step.id  # `refuses` has seen to it
    names = {f.name for f in signature.fields} | _REASONING_FIELDS
    kept = {name: value for name, value in values.items() if name in names}
    try:
        text = canonical_json(kept)
    except (TypeError, ValueError):
        return None
    answers = [f.name for f in signature.outputs if f.name not in UNVOTED_FIELDS]
    answer = {name: normalised(kept.get(name)) for name in answers}
    without_reasoning = not (_REASONING_FIELDS & kept.keys())
    rank = (-score, without_reasoning, len(text), fingerprint([example.id, text]))
    return _Candidate(Demo(kept, example.id), canonical_json(answer), len(text), rank)


def _good(runs: Sequence[Run]) -> list[Run]:
    """Returns the runs good enough to be shown.

    Of a metric with two values, those with the higher one; of a graded metric, those in the top
    quarter and above the median, and the best in any case. If all runs score the same, they are
    good only if that is a full score.
    """
    finished = [run for run in runs if run.trace.error is None]
    values = sorted(run.score.value for run in finished)
    if not values:
        return []
    best, median = values[-1], values[len(values) // 2]
    if values[0] == best:
        return finished if best >= 1.0 else []
    threshold = values[min(int(_GOOD_SHARE * len(values)), len(values) - 1)]
    if len(set(values)) == 2:
        threshold = best
    return [
        run
        for run in finished
        if run.score.value == best or (run.score.value >= threshold and run.score.value > median)
    ]


def _best(candidates: Iterable[_Candidate]) -> list[_Candidate]:
    """Returns the best candidate of each example, the best first."""
    ranked = sorted(candidates, key=lambda c: c.rank)
    first: dict[str, _Candidate] = {}
    for candidate in ranked:
        first.setdefault(candidate.demo.source, candidate)
    return list(first.values())


def _diverse(pool: Sequence[_Candidate], size: int) -> list[_Candidate]:
    """Returns `size` of `pool` in its order of preference, each answer as rarely as possible."""
    times: dict[str, int] = {}
    keyed = []
    for index, candidate in enumerate(pool):
        repeat = times.get(candidate.answer, 0)
        times[candidate.answer] = repeat + 1
        keyed.append((repeat, index, candidate))
    return [candidate for _, _, candidate in sorted(keyed, key=lambda k: k[:2])[:size]]


def _is_new(demos: tuple[Demo, ...], offered: Sequence[tuple[Demo, ...]]) -> bool:
    """Whether at least half of `demos` differs from each set that was offered before."""
    return all(sum(demo not in old for demo in demos) * 2 >= len(demos) for old in offered)


def _option(key: str, demos: tuple[Demo, ...]) -> Option:
    return Option(
        key=key, setting=Setting(demos=demos), expected_cost=1.0 + _COST_OF_A_DEMO * len(demos)
    )
