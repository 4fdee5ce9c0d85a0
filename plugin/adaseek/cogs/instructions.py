"""Weight cog: instructions that a language model proposes and improves from failures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from adaseek._canonical import fingerprint
from adaseek.cogs._evidence import in_effect, train_runs, usable_calls
from adaseek.cogs._proposals import (
    ANGLES,
    Failure,
    cleaned,
    improvement_prompt,
    objection,
    opening_prompt,
)
from adaseek.cogs.base import CogContext, Family, Option, Proposer, Run
from adaseek.errors import require
from adaseek.recipe import Setting, owner_id
from adaseek.workflow import Signature, Step

__all__ = ["InstructionsCog"]

_PRIOR_RUNS = 4
"""Weight of the overall mean in the mean of one text: a lucky single run must not lead."""

_CHARACTERS_PER_WORD = 8
"""Generous, so that an answer of the length asked for is not cut."""


@dataclass(frozen=True)
class InstructionsCog:
    """Adds instructions that the proposal model writes; without one there is nothing to offer.

    When first asked it adds `num_initial` texts, made from the program and a summary of the data.
    As runs come in it takes the best text so far as parent, shows the model runs under it that
    went wrong with the metric's feedback, and adds a successor; the next successor waits until
    the last one has been tried. Parents stay options: the search decides, not the proposal model.
    `Option.label` says which text is whose successor.

    Equal copies of a step (an ensemble) ask the same questions with the same seeds, so a
    journalled proposer answers them once. Answers that cannot be used (empty, not new, giving
    away an example ...) are asked again with another seed, `attempts` times in all.

    Source: our reconstruction of instruction search with feedback as in OPRO (arXiv 2309.03409)
    and GEPA (arXiv 2507.19457), reduced to one parent and one successor at a time.

    Args:
        num_initial: texts to add when first asked.
        num_successors: texts to add later, at one step.
        min_runs: workflow runs to have seen before the first successor.
        num_words: longest text that is asked for.
        num_failures: failed runs to show.
        attempts: answers to ask for until one can be used.
    """

    num_initial: int = 2
    num_successors: int = 4
    min_runs: int = 12
    num_words: int = 120
    num_failures: int = 3
    attempts: int = 3
    name: str = "instructions"
    family: Family = "weight"

    def __post_init__(self) -> None:
        for name in ("num_initial", "num_successors"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be >= 0")
        for name in ("min_runs", "num_words", "num_failures", "attempts"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be >= 1")

    @property
    def num_slots(self) -> int:
        return self.num_initial + self.num_successors

    def refuses(self, step: Step) -> str | None:
        if step.kind != "lm":
            return "only a language-model step has instructions"
        return None if step.signature else "its prompt is not known"

    def options(self, step: Step, context: CogContext) -> Sequence[Option]:
        return [] if context.proposer is None else [Option(key="original")]

    def evolve(
        self, step: Step, runs: Sequence[Run], added: Sequence[Option], context: CogContext
    ) -> Sequence[Option]:
        if context.proposer is None or len(added) >= self.num_slots:
            return []
        opening = [] if added else self._opening(step, context.proposer, context)
        return opening or self._successor(step, runs, added, context.proposer, context)

    def _opening(self, step: Step, proposer: Proposer, context: CogContext) -> list[Option]:
        found: list[Option] = []
        for index in range(self.num_initial):
            prompt = opening_prompt(
                context.workflow,
                step,
                context.train,
                angle=ANGLES[index % len(ANGLES)],
                num_words=self.num_words,
            )
            known = [_signature(step).instructions, *_texts(found)]
            text = self._ask(proposer, prompt, f"initial-{index}", step, known, context)
            if text:
                found.append(Option(key=f"initial-{index}", setting=Setting(instructions=text)))
        return found

    def _successor(
        self,
        step: Step,
        runs: Sequence[Run],
        added: Sequence[Option],
        proposer: Proposer,
        context: CogContext,
    ) -> list[Option]:
        evidence = [run for run in train_runs(runs, context) if _touches(run, step)]
        # Of few examples the tuner keeps few runs, so a fixed number might never be reached.
        if len(evidence) < min(self.min_runs, 2 * len(context.train)) or not evidence:
            return []
        scores = _scores(evidence, step)
        if added and added[-1].setting.instructions not in scores:
            return []
        index = len(added)
        parent, failures = _parent(scores, evidence, step, f"{context.seed}/{index}")
        if not failures:
            return []
        prompt = improvement_prompt(
            context.workflow,
            step,
            context.train,
            instructions=parent,
            score=scores[parent].mean,
            num_runs=scores[parent].num_runs,
            failures=failures[: self.num_failures],
            angle=ANGLES[index % len(ANGLES)],
            num_words=self.num_words,
        )
        known = [*scores, _signature(step).instructions, *_texts(added)]
        key = f"successor-{index}"
        text = self._ask(proposer, prompt, key, step, known, context)
        label = f"{key} of {_name(parent, step, added)}"
        return [Option(key=key, setting=Setting(instructions=text), label=label)] if text else []

    def _ask(
        self,
        proposer: Proposer,
        prompt: str,
        name: str,
        step: Step,
        known: Sequence[str],
        context: CogContext,
    ) -> str:
        """Returns the first usable answer to `prompt`, or an empty text."""
        for attempt in range(self.attempts):
            seed = _seed(context.seed, owner_id(step.id), name, attempt)
            answer = proposer(prompt, seed=seed, max_tokens=self.num_words * 3).text
            text = cleaned(answer, max_characters=self.num_words * _CHARACTERS_PER_WORD)
            if not objection(text, signature=_signature(step), known=known, train=context.train):
                return text
        return ""


@dataclass(frozen=True)
class _Record:
    """How the runs under one text scored; `shrunken` is pulled towards the mean of all runs."""

    num_runs: int
    mean: float
    shrunken: float


def _scores(runs: Sequence[Run], step: Step) -> dict[str, _Record]:
    overall = sum(run.score.value for run in runs) / len(runs)
    values: dict[str, list[float]] = {}
    for run in runs:
        for text in in_effect(run.recipe, step):
            values.setdefault(text, []).append(run.score.value)
    return {
        text: _Record(
            num_runs=len(v),
            mean=sum(v) / len(v),
            shrunken=(sum(v) + _PRIOR_RUNS * overall) / (len(v) + _PRIOR_RUNS),
        )
        for text, v in values.items()
    }


def _parent(
    scores: Mapping[str, _Record], runs: Sequence[Run], step: Step, salt: str
) -> tuple[str, list[Failure]]:
    """Returns the best text that has failed, and its failures; none if a tried text never fails.

    A text with a few perfect runs is not yet known to be perfect, and there is nothing to learn
    from them: the next best text is improved meanwhile.
    """
    ranked = sorted(scores, key=lambda text: (-scores[text].shrunken, text))
    for text in ranked:
        failures = _failures(runs, step, text, salt)
        if failures or scores[text].num_runs > _PRIOR_RUNS:
            return text, failures
    return ranked[0], []


def _failures(runs: Sequence[Run], step: Step, text: str, salt: str) -> list[Failure]:
    """Returns the runs under `text` that scored below the best of all runs, the lowest first.

    Equally low ones are shuffled by `salt`, so that successors of one parent see others.
    """
    best = max(run.score.value for run in runs)
    low = [r for r in runs if r.score.value < best and text in in_effect(r.recipe, step)]
    low.sort(key=lambda run: (run.score.value, fingerprint([salt, run.example.id])))
    first = {run.example.id: run for run in reversed(low)}
    return [_failure(run, step) for run in low if first[run.example.id] is run]


def _failure(run: Run, step: Step) -> Failure:
    calls = usable_calls(step, run.trace)
    inputs = calls[0].inputs if calls else run.example.inputs
    outputs = calls[0].outputs if calls else {}
    feedback = run.score.feedback or run.trace.error or ""
    return Failure(inputs, outputs, run.example.labels, feedback)


def _touches(run: Run, step: Step) -> bool:
    return any(owner_id(call.step) == owner_id(step.id) for call in run.trace.calls)


def _name(text: str, step: Step, added: Sequence[Option]) -> str:
    """Returns what reports call the option with `text`, without its own ancestors."""
    if text == _signature(step).instructions:
        return "original"
    found = next((o for o in added if o.setting.instructions == text), None)
    return (found.label or found.key).partition(" of ")[0] if found else "another text"


def _texts(options: Iterable[Option]) -> list[str]:
    return [o.setting.instructions for o in options if o.setting.instructions is not None]


def _signature(step: Step) -> Signature:
    assert step.signature is not None, step.id  # `refuses` has seen to it
    return step.signature


def _seed(*parts: object) -> int:
    return int(fingerprint(list(parts), length=8), 16) % 2**31
