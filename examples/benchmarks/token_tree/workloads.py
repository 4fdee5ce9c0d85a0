"""What the speed benchmark asks: six workloads, from texts that every machine with Python has.

Code and prose come from the standard library of this interpreter (PSF licence: its modules, and
the language reference in `pydoc_data.topics`), word problems from `data/problems.jsonl` (GSM8K,
MIT licence), the other prompts are this file's own. None was chosen by how well it drafts.
"""

from __future__ import annotations

import json
import random
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics

__all__ = ["CODE_WORKLOADS", "MEASURED_TASKS", "PROBLEMS", "WORKLOADS", "Task", "tasks"]

PROBLEMS = Path(__file__).parent / "data" / "problems.jsonl"
CODE_WORKLOADS = ("completion", "edit", "agent")
"""Those whose tasks are named by a file of the standard library."""
MEASURED_TASKS = 64
"""Of each of these: no trained draft learns from their files, from others' perhaps."""
_EDITS = (
    "Add type annotations to this code. Answer with the code only.",
    "Rename the variables of this code so that they are clearer, and show the whole code.",
    "Write a docstring for each function of this code and show the whole code.",
    "Fix what may raise an exception in this code, and show the whole code.",
)
_CHATS = (
    "Why is the sky blue, and red in the evening?",
    "Plan three days in Lisbon for a family with a small child.",
    "What should I look at when I buy a used bicycle?",
    "Write a polite email that asks my landlord to repair the heating.",
    "Explain the difference between a process and a thread to a beginner.",
    "Tell a short story about a lighthouse keeper who finds a letter.",
    "How do vaccines work, and why do some need a second dose?",
    "Suggest a vegetarian dinner for six guests, with a shopping list.",
    "My laptop has become slow. What can I check before I buy a new one?",
    "Write a short speech for the retirement of a colleague from the warehouse.",
    "What is the difference between weather and climate?",
    "Describe a normal day of a baker in a small town.",
    "How do I prepare for my first job interview after university?",
    "Compare renting a flat with buying one.",
    "Explain how a bill becomes a law in the United States.",
    "What do I need to grow tomatoes on a balcony?",
    "Write a review of a restaurant where the food was good and the service slow.",
    "Give me arguments for and against a four-day working week.",
    "How does a refrigerator keep things cold?",
    "Draft an announcement of a street party to all neighbours.",
    "What happened at the Congress of Vienna, and why does it matter?",
    "Help me choose between a dog and two cats.",
    "Explain compound interest with an example.",
    "Which exercises help against back pain from sitting all day?",
    "Write a dialogue between a customer and a clerk about a lost parcel.",
    "Why do leaves change their colour in autumn?",
    "Make a plan to learn basic Spanish in ten weeks.",
    "What is a hash table, and when should I not use one?",
    "Tell a fable about a fox and a snail.",
    "How should I store coffee, cheese and bread?",
    "Summarise the rules of chess for someone who knows draughts.",
    "Write a letter of complaint about a cancelled train.",
)
"""No prompt returns among the measured tasks, every second of which is one of these."""
_EXTRACTS = (
    "Quote the three most important sentences of this text, word for word, as a list.",
    "Summarise this text in five sentences and keep its wording where you can.",
    "List every term that this text defines, each with its definition quoted from the text.",
)
_TOOLS = json.dumps(
    [
        {
            "name": name,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": kind} for key, kind in parameters.items()},
                "required": list(parameters),
            },
        }
        for name, description, parameters in (
            ("calculate", "Evaluates an expression.", {"expression": "string", "unit": "string"}),
            ("remember", "Stores a number.", {"name": "string", "value": "number"}),
            ("answer", "Tells the user the result.", {"value": "number", "sentence": "string"}),
        )
    ]
)
_TOOL_RULES = (
    "You solve problems with tools. Answer with a JSON list of tool calls, each "
    '{"name": ..., "arguments": {...}}, and nothing else. The tools:\n' + _TOOLS
)
_AGENT_RULES = (
    "You are a coding agent. You are shown a file and what tools said; answer with the whole "
    "changed file in one code block."
)
_AGENT_TURNS = (
    "The tool `read_file` says:\n```python\n{code}\n```\nAdd a docstring to each function.",
    "The tool `run_tests` says: 1 failed, the first function must log its arguments. Add a "
    "`print` at its start and show the whole file again.",
    "The tool `lint` says: the first line must be the comment `# checked`. Add it and show the "
    "whole file again.",
)


@dataclass(frozen=True)
class Task:
    """One request, or a session of several."""

    name: str
    turns: tuple[str, ...]
    """What the user says; the model's answers come between."""
    system: str = ""
    is_raw: bool = False
    """Whether the only turn is a text to go on with, without a chat template."""


def tasks(workload: str, num: int) -> list[Task]:
    """Returns the first `num` tasks of a workload, the same ones every time.

    Raises:
        ValueError: it does not have so many.
    """
    make, rng = WORKLOADS[workload], random.Random(f"speed {workload}")
    found = list(islice(make(rng), num))
    if len(found) < num:
        raise ValueError(f"`{workload}` has {len(found)} tasks, but {num} are asked for")
    return found


def _code(rng: random.Random, min_lines: int, max_lines: int) -> Iterator[tuple[str, str]]:
    """(file, lines) of random modules, each from the start of a function on."""
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data"}
    files = [path for path in sorted(root.rglob("*.py")) if not skipped & set(path.parts)]
    while True:
        path = rng.choice(files)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        starts = [at for at, line in enumerate(lines) if line.lstrip().startswith("def ")]
        starts = [at for at in starts if at + max_lines < len(lines)]
        if starts:
            at = rng.choice(starts)
            text = "\n".join(lines[at : at + rng.randint(min_lines, max_lines)])
            if len(text) < 80 * max_lines // 2:
                yield path.relative_to(root).as_posix(), text


def _completions(rng: random.Random) -> Iterator[Task]:
    for name, code in _code(rng, 30, 40):
        yield Task(name, (code + "\n",), is_raw=True)


def _edits(rng: random.Random) -> Iterator[Task]:
    for number, (name, code) in enumerate(_code(rng, 12, 20)):
        yield Task(name, (f"{_EDITS[number % len(_EDITS)]}\n```python\n{code}\n```",))


def _chats(rng: random.Random) -> Iterator[Task]:
    problems = _problems(rng)
    while True:
        for number, chat in enumerate(_CHATS):
            yield Task(f"own {number}", (chat,))
            yield Task("gsm8k", (next(problems),))


def _extracts(rng: random.Random) -> Iterator[Task]:
    names = sorted(name for name, text in topics.items() if len(text) > 1500)
    rng.shuffle(names)
    for number, name in enumerate(names):
        text = topics[name][:2400].rsplit(".", 1)[0] + "."
        yield Task(name, (f"{_EXTRACTS[number % len(_EXTRACTS)]}\n\n{text}",))


def _tool_calls(rng: random.Random) -> Iterator[Task]:
    for problem in _problems(rng):
        yield Task("gsm8k", (problem,), system=_TOOL_RULES)


def _agents(rng: random.Random) -> Iterator[Task]:
    for name, code in _code(rng, 8, 12):
        turns = tuple(turn.replace("{code}", code) for turn in _AGENT_TURNS)
        yield Task(name, turns, system=_AGENT_RULES)


def _problems(rng: random.Random) -> Iterator[str]:
    problems = [json.loads(line)["question"] for line in PROBLEMS.read_text().splitlines()]
    rng.shuffle(problems)
    yield from problems


WORKLOADS: dict[str, Callable[[random.Random], Iterator[Task]]] = {
    "completion": _completions,
    "edit": _edits,
    "chat": _chats,
    "extract": _extracts,
    "tools": _tool_calls,
    "agent": _agents,
}
"""Workload -> its tasks. An agent's task is a session whose context repeats from turn to turn."""
