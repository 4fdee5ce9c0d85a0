"""The prompt that asks a language model to split a step's task, and the reading of its answers.

Pure text in, values out; plain enough for models of one or two billion parameters.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from adaseek.cogs._proposals import cleaned, objection, step_text
from adaseek.errors import ConfigurationError
from adaseek.recipe import Subtask
from adaseek.workflow import Example, Step, Workflow

__all__ = ["read_split", "split_objection", "split_prompt"]

_TASK = """
This step is done in one model call. Decide whether it would be done better if {count} done first,
each in a model call of its own. A subtask is given the inputs of the step and what the subtasks
before it found. Then the step is done as now, with their results beside its inputs.
Rules:
- A subtask prepares the answer: it finds, extracts, computes or checks something. It does not give
  the answer.
- Write general instructions. Do not copy words or answers from the examples.
- Write at most {num_words} words for a subtask.
- If the step is easy for one model call, answer with <one_call/> only.

Answer with the subtask only, like this, its name one or two words:
<subtask name="...">
...
</subtask>
"""

_SUBTASK = re.compile(
    r"<subtask\s+name\s*=\s*[\"']?([^\"'>]*)[\"']?\s*>(.*?)(?=</subtask>|<subtask\b|\Z)",
    re.DOTALL | re.IGNORECASE,
)
_ONE_CALL = re.compile(r"<one_call\s*/?>", re.IGNORECASE)
_CHARACTERS_PER_WORD = 8


def split_prompt(
    workflow: Workflow,
    step: Step,
    train: Sequence[Example],
    *,
    num_subtasks: int,
    num_words: int,
) -> str:
    """Returns the prompt that asks for at most `num_subtasks` subtasks of `step`."""
    count = "one subtask were" if num_subtasks == 1 else f"up to {num_subtasks} subtasks were"
    instructions = step.signature.instructions if step.signature else ""
    task = _TASK.format(count=count, num_words=num_words)
    if num_subtasks > 1:
        task = task.replace("the subtask only, like this", "the subtasks only, each like this")
    return step_text(workflow, step, train, instructions) + task


def read_split(answer: str, *, num_subtasks: int, num_words: int) -> tuple[Subtask, ...] | None:
    """Returns the subtasks in a model's `answer`; None: it says that one call is enough.

    What comes after the first `num_subtasks`, and what says nothing, is left out.
    """
    found: list[Subtask] = []
    for name, body in _SUBTASK.findall(answer):
        text = cleaned(body, max_characters=num_words * _CHARACTERS_PER_WORD)
        if text and len(found) < num_subtasks:
            found.append(_named(name, text, {subtask.name for subtask in found}))
    return None if not found and _ONE_CALL.search(answer) else tuple(found)


def split_objection(
    split: Sequence[Subtask],
    *,
    step: Step,
    known: Sequence[Sequence[Subtask]],
    train: Sequence[Example],
) -> str | None:
    """Returns why `split` must not be offered, or None; the rules are those of instructions."""
    if not split:
        return "it names no subtask"
    assert step.signature is not None, step.id  # the cog has refused such a step
    # The variables of a prompt's template are filled in for the step alone.
    told = re.sub(r"\{(\w+)\}", r"\1", step.signature.instructions)
    signature = replace(step.signature, instructions=told)
    others = [told]
    for subtask in split:
        reason = objection(subtask.instructions, signature=signature, known=others, train=train)
        if reason:
            return reason
        others.append(subtask.instructions)
    texts = [[subtask.instructions for subtask in old] for old in known]
    return "it is not new" if [s.instructions for s in split] in texts else None


def _named(name: str, instructions: str, taken: set[str]) -> Subtask:
    """Returns the subtask under a name that can stand in prompts and ids."""
    words = re.findall(r"[a-z0-9]+", name.lower())[:3]
    base = "_".join(words)
    try:
        base = Subtask(base, instructions).name
    except ConfigurationError:
        base = f"part_{base}".rstrip("_")
    numbers = iter(range(2, len(taken) + 3))
    unique = base
    while unique in taken:
        unique = f"{base}_{next(numbers)}"
    return Subtask(unique, instructions)
