"""Structure cog: do parts of a step's task first, in model calls of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from adaseek._canonical import fingerprint
from adaseek.cogs._splits import read_split, split_objection, split_prompt
from adaseek.cogs.base import CogContext, Family, Option, Proposer, Run
from adaseek.errors import require
from adaseek.recipe import Setting, Subtask, member_id
from adaseek.workflow import Step

__all__ = ["DecomposeCog"]

Split = tuple[Subtask, ...]

_FACTS = Subtask(
    "facts",
    "List the facts in the input that decide the outcome, one to a line, and nothing else.",
)
_DRAFT = Subtask(
    "draft",
    "Write a first draft of what will be answered. Then check it against the input and name each "
    "mistake with its correction.",
)


@dataclass(frozen=True)
class DecomposeCog:
    """Offers to do parts of a step's task first, so that the step answers from their results.

    Two ways to split a task fit nearly every step and need no proposal model: to list the `facts`
    that decide it, and to write and check a `draft`. With a proposal model, that model is shown
    the step and may propose others, made for it; it may also say that one call is enough. The
    subtasks known at the start are steps that the inner layers give a model of their own;
    proposed ones follow the model of their step.

    The step itself keeps its instructions, its form of answer, its tools and everything else that
    is tuned at it, an ensemble included: subtasks are done once, before all members.

    Source: Cognify (arXiv 2502.08056) for decomposition as a structure cog, with sub-steps that a
    model writes for steps that it finds complex. There each of them may feed any other; here they
    form a chain in front of the step, so that nothing behind it can tell the difference. Subtasks
    in prompts of their own: decomposed prompting (arXiv 2210.02406).

    Args:
        splits: option key -> subtasks, offered from the start.
        num_proposals: splits to ask the proposal model for, the first with one subtask and each
            next one with up to one more.
        num_words: longest instructions of a proposed subtask.
        attempts: answers to ask for until one can be used.
    """

    splits: Mapping[str, Split] = field(
        default_factory=lambda: {"facts": (_FACTS,), "draft": (_DRAFT,)}
    )
    num_proposals: int = 2
    num_words: int = 60
    attempts: int = 2
    name: str = "decompose"
    family: Family = "structure"

    def __post_init__(self) -> None:
        valid = "off" not in self.splits and all(self.splits.values())
        require(valid, "splits", dict(self.splits), "must map keys other than 'off' to subtasks")
        require(self.num_proposals >= 0, "num_proposals", self.num_proposals, "must be >= 0")
        for name in ("num_words", "attempts"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be >= 1")

    @property
    def num_slots(self) -> int:
        return self.num_proposals

    def refuses(self, step: Step) -> str | None:
        if step.kind != "lm":
            return "only a language-model step has a task that can be split"
        return None if step.signature else "its prompt is not known"

    def options(self, step: Step, context: CogContext) -> Sequence[Option]:
        if not self.splits and context.proposer is None:
            return []
        known = [_option(key, split, step) for key, split in self.splits.items()]
        return [Option(key="off"), *known]

    def evolve(
        self, step: Step, runs: Sequence[Run], added: Sequence[Option], context: CogContext
    ) -> Sequence[Option]:
        if context.proposer is None or added:
            return []
        key = (self.name, step.id)
        if key not in context.derived:
            context.derived[key] = self._proposed(step, context.proposer, context)
        proposed: list[Option] = context.derived[key]
        return proposed

    def _proposed(self, step: Step, proposer: Proposer, context: CogContext) -> list[Option]:
        found: list[Split] = list(self.splits.values())
        options = []
        for index in range(self.num_proposals):
            split = self._ask(step, index + 1, found, proposer, context)
            if split:
                found.append(split)
                setting = Setting(decompose=split)
                label = " + ".join(subtask.name for subtask in split)
                cost = _cost(split)
                options.append(
                    Option(f"proposed-{index}", setting, expected_cost=cost, label=label)
                )
        return options

    def _ask(
        self,
        step: Step,
        num_subtasks: int,
        known: Sequence[Split],
        proposer: Proposer,
        context: CogContext,
    ) -> Split:
        """Returns the first usable answer; empty: there is none, or one call is enough."""
        prompt = split_prompt(
            context.workflow,
            step,
            context.train,
            num_subtasks=num_subtasks,
            num_words=self.num_words,
        )
        for attempt in range(self.attempts):
            parts = [context.seed, step.id, self.name, num_subtasks, attempt]
            seed = int(fingerprint(parts, length=8), 16) % 2**31
            tokens = self.num_words * 3 * num_subtasks
            answer = proposer(prompt, seed=seed, max_tokens=tokens).text
            split = read_split(answer, num_subtasks=num_subtasks, num_words=self.num_words)
            if split is None:
                return ()
            if not split_objection(split, step=step, known=known, train=context.train):
                return split
        return ()


def _option(key: str, split: Split, step: Step) -> Option:
    extras = tuple(_subtask_step(step, subtask) for subtask in split)
    return Option(key, Setting(decompose=split), extras=extras, expected_cost=_cost(split))


def _cost(split: Split) -> float:
    return 1.0 + len(split)


def _subtask_step(step: Step, subtask: Subtask) -> Step:
    # Its prompt is the adapter's own, so there is no signature; only its model can be chosen.
    return Step(
        id=member_id(step.id, subtask.name),
        name=f"{step.name or step.id} {subtask.name}",
        parent=step.id,
        model=step.model,
        allowed=frozenset({"model"}),
    )
