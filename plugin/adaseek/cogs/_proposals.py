"""Prompts that ask a language model for better instructions, and the reading of its answers.

Pure text in, text out. The prompts are plain enough for models of one or two billion parameters,
and the reader expects what such models write around their answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from adaseek._canonical import canonical_json
from adaseek.recipe import owner_id
from adaseek.voting import normalised
from adaseek.workflow import Example, Field, Signature, Step, Workflow

__all__ = [
    "ANGLES",
    "Failure",
    "cleaned",
    "improvement_prompt",
    "objection",
    "opening_prompt",
    "step_text",
]

ANGLES = (
    "Make them precise: say what a good answer holds and what it leaves out.",
    "Name the mistakes that are easy to make here, and say how to avoid them.",
    "Turn them into a short procedure of two to five steps.",
    "Make them as short and plain as possible without losing a requirement.",
)
"""What one proposal stresses; they take turns, so that proposals differ."""

_STEP = """\
You write instructions for a language model. It does one step of a program.

Steps of the program:
{program}

The step to work on: {step}
It is given:
{inputs}
It must answer with:
{outputs}
{data}
Its instructions are now:
<instructions>
{instructions}
</instructions>
"""

_TASK = """
Write new instructions for this step. {angle}
Rules:
- Keep the task and every requirement of the instructions above.
- Speak to the model that does the step. Do not do the step yourself.
- Write general rules. Do not copy words or answers from the examples.
- Write at most {num_words} words.

Answer with the new instructions only, like this:
<instructions>
...
</instructions>
"""

_RESULTS = """
With these instructions the program reached a mean score of {score:.2f} over {num_runs} runs.
Some of the runs that went wrong:
{failures}

Find what these runs have in common and write instructions that avoid it.
"""

_MIN_CHARACTERS = 16
_NUM_QUOTED_WORDS = 6
_MIN_LABEL_CHARACTERS = 4


@dataclass(frozen=True)
class Failure:
    """One run that scored low: what the step got and gave, what was wanted, and a comment."""

    inputs: Mapping[str, object]
    outputs: Mapping[str, object]
    expected: Mapping[str, object]
    feedback: str = ""


def opening_prompt(
    workflow: Workflow, step: Step, train: Sequence[Example], *, angle: str, num_words: int
) -> str:
    """Returns the prompt for a first proposal, made from the program and the data alone."""
    return step_text(workflow, step, train, _signature(step).instructions) + _TASK.format(
        angle=angle, num_words=num_words
    )


def improvement_prompt(
    workflow: Workflow,
    step: Step,
    train: Sequence[Example],
    *,
    instructions: str,
    score: float,
    num_runs: int,
    failures: Sequence[Failure],
    angle: str,
    num_words: int,
) -> str:
    """Returns the prompt for a successor of `instructions`, made from runs that went wrong."""
    shown = "\n".join(_failure_text(i + 1, failure) for i, failure in enumerate(failures))
    return (
        step_text(workflow, step, train, instructions)
        + _RESULTS.format(score=score, num_runs=num_runs, failures=shown)
        + _TASK.format(angle=angle, num_words=num_words)
    )


def cleaned(answer: str, *, max_characters: int) -> str:
    """Returns the instructions in a model's `answer`, without what models write around them.

    Tags, code fences, an opening line such as "Here are the new instructions:", emphasis,
    headings and quotes around the whole go. A text that is too long ends with its last whole
    sentence that fits.
    """
    text = _inside_tags(answer)
    text = re.sub(r"^\s*```.*$", "", text, flags=re.MULTILINE)
    text = text.replace("**", "").strip()
    text = re.sub(r"^#+[ \t]*", "", text, flags=re.MULTILINE)
    text = _without_opening(text)
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'`":
        text = text[1:-1].strip()
    return _cut(text, max_characters)


def objection(
    text: str, *, signature: Signature, known: Iterable[str], train: Sequence[Example]
) -> str | None:
    """Returns why `text` must not become instructions, or None.

    It must be long enough to mean something, differ from the `known` ones, keep the template
    variables of the original, not go round in circles, and hold nothing of a single example: such
    instructions would be scored on the very example that they give away.
    """
    if len(text) < _MIN_CHARACTERS:
        return "it is too short"
    if "[[ ##" in text or re.search(r"</?instructions", text):
        return "it holds marks of a prompt"
    if normalised(text) in {normalised(other) for other in known}:
        return "it is not new"
    if _variables(text) != _variables(signature.instructions):
        return "its template variables differ from the original's"
    words = _words(text)
    if len(words) >= 40 and len(set(words)) < 0.3 * len(words):
        return "it repeats itself"
    leak = _leak(text, signature, train)
    return f"it gives away an example: {leak!r}" if leak else None


def step_text(workflow: Workflow, step: Step, train: Sequence[Example], instructions: str) -> str:
    """Returns what every proposal is told: the program, the step, its fields and the data."""
    signature = _signature(step)
    return _STEP.format(
        program=_program_text(workflow, step),
        step=owner_id(step.id),
        inputs=_fields_text(signature.inputs),
        outputs=_fields_text(signature.outputs),
        data=_data_text(train),
        instructions=instructions or "(none)",
    )


def _signature(step: Step) -> Signature:
    assert step.signature is not None, step.id  # `refuses` has seen to it
    return step.signature


def _program_text(workflow: Workflow, step: Step) -> str:
    lines = []
    for number, other in enumerate(workflow.steps.values(), start=1):
        signature = other.signature
        what = _short(signature.instructions, 120) if signature else f"a {other.kind}"
        lines.append(f"{number}. {other.id}: {what}")
    return "\n".join(lines[:12]) or f"1. {step.id}"


def _fields_text(fields: Sequence[Field]) -> str:
    lines = [
        f"- {f.name} ({f.type})" + (f": {_short(f.description, 160)}" if f.description else "")
        for f in fields
    ]
    return "\n".join(lines) or "- text"


def _data_text(train: Sequence[Example]) -> str:
    """Returns a summary of the examples: what the inputs look like, which labels there are.

    In words: of exact lengths a model of half a billion parameters made a rule to classify by.
    """
    lines = []
    for name in sorted({name for example in train for name in example.inputs}):
        values = [_plain(e.inputs[name]) for e in train if name in e.inputs]
        lines.append(f"- input {name}: {_length(values)}")
    for name in sorted({name for example in train for name in example.labels}):
        values = [_plain(e.labels[name]) for e in train if name in e.labels]
        classes = sorted(set(values))
        is_class = len(classes) <= 10 and len(classes) * 2 <= len(values)
        named = f"one of {', '.join(_short(c, 40) for c in classes)}"
        lines.append(f"- wanted {name}: {named if is_class else _length(values)}")
    return "The data of the program:\n" + "\n".join(lines) if lines else ""


def _length(values: Sequence[str]) -> str:
    """Returns how long `values` typically are, in words."""
    words = sorted(len(value.split()) for value in values)[len(values) // 2]
    bounds = {
        1: "one word or number",
        5: "a few words",
        30: "a sentence or two",
        150: "a paragraph",
    }
    return next((text for limit, text in bounds.items() if words <= limit), "a long text")


def _failure_text(number: int, failure: Failure) -> str:
    parts = [f"Run {number}"]
    for title, values in (
        ("got", failure.inputs),
        ("answered", failure.outputs),
        ("wanted", failure.expected),
    ):
        parts.extend(f"  {title} {name}: {_short(_plain(v), 300)}" for name, v in values.items())
    if failure.feedback:
        parts.append(f"  comment: {_short(failure.feedback, 300)}")
    return "\n".join(parts)


def _inside_tags(answer: str) -> str:
    found = re.search(
        r"<instructions>(.*?)(?:</instructions>|\Z)", answer, re.DOTALL | re.IGNORECASE
    )
    text = found.group(1) if found else answer
    return re.sub(r"</?instructions>", "", text, flags=re.IGNORECASE)


def _without_opening(text: str) -> str:
    """Returns `text` without a first line, or first words, that only announce the rest."""
    first, newline, rest = text.partition("\n")
    if newline and first.rstrip().endswith(":") and "nstruction" in first and len(first) < 120:
        text = rest.lstrip()
    return re.sub(
        r"^(the |my )?(new |improved |better |revised |updated )?instructions?\s*:\s*",
        "",
        text,
        flags=re.IGNORECASE,
    )


def _cut(text: str, max_characters: int) -> str:
    if len(text) <= max_characters:
        return text
    ends = [m.end() for m in re.finditer(r"[.!?](?=\s)|(?=\n)", text[: max_characters + 1])]
    return text[: ends[-1]].rstrip() if ends else ""


def _leak(text: str, signature: Signature, train: Sequence[Example]) -> str | None:
    """Returns words of `text` that belong to one example alone, or None.

    What the original already says, and a label that several examples share (a class), is no
    secret.
    """
    public = " ".join(
        [signature.instructions, *(f"{f.name} {f.type} {f.description}" for f in signature.fields)]
    )
    own = _shingles(text) - _shingles(public)
    labels = [_texts(example.labels) for example in train]
    for example, wanted in zip(train, labels, strict=True):
        for value in _texts(example.inputs):
            shared = own & _shingles(value)
            if shared:
                return " ".join(min(shared))
        for value in wanted:
            is_class = sum(value in other for other in labels) > 1
            if not is_class and _mentions(text, value) and not _mentions(public, value):
                return value
    return None


def _mentions(text: str, value: str) -> bool:
    words = " ".join(_words(value))
    return len(words) >= _MIN_LABEL_CHARACTERS and f" {words} " in f" {' '.join(_words(text))} "


def _shingles(text: str) -> set[tuple[str, ...]]:
    words, n = _words(text), _NUM_QUOTED_WORDS
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _variables(text: str) -> set[str]:
    return set(re.findall(r"\{(\w+)\}", text))


def _texts(value: object) -> list[str]:
    """Returns every text and number in a JSON value, as text."""
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _texts(item)]
    if isinstance(value, list | tuple):
        return [text for item in value for text in _texts(item)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def _plain(value: object) -> str:
    return value if isinstance(value, str) else canonical_json(value)


def _short(text: str, limit: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 3] + "..."
