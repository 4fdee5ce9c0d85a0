"""Writes the prompts that the example's draft models learn from.

    python make_prompts.py FOLDER_WITH_QUESTIONS prompts.jsonl

Four kinds, in turns: code completion and code edits (the Python standard library of this
interpreter, PSF licence), questions of a chat, and JSON answers as a tool call wants them (from
the questions of gsm8k and BIG-Bench Hard, MIT licence, in FOLDER_WITH_QUESTIONS/*.jsonl). What was
taken from one file or question is one group, so that none is both trained on and held out. Files
and questions that `speed.py` measures with are left out altogether.
"""

from __future__ import annotations

import json
import random
import sysconfig
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import click
from workloads import CODE_WORKLOADS, MEASURED_TASKS, PROBLEMS, tasks

EDITS = (
    "Add type annotations to this code. Answer with the code only.",
    "Write a docstring for each function of this code and show the whole code.",
    "Explain briefly what this code does.",
    "Rename the variables of this code so that they are clearer, and show the whole code.",
    "Write unit tests for this code with pytest.",
)
TOOLS = (
    'Answer with a JSON object {"name": "calculate", "arguments": {"expression": "...", '
    '"unit": "..."}} and nothing else. Problem: ',
    "Extract every number of the text with what it counts, as a JSON list of objects with the "
    'keys "number", "what" and "sentence". Text: ',
)


def code_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data"}
    measured = {
        task.name for workload in CODE_WORKLOADS for task in tasks(workload, MEASURED_TASKS)
    }
    return [
        path
        for path in sorted(root.rglob("*.py"))
        if not skipped & set(path.parts) and path.relative_to(root).as_posix() not in measured
    ]


def pieces(rng: random.Random) -> Iterator[tuple[str, str]]:
    """(group, some 10 to 30 lines) of random files, for ever."""
    root = Path(sysconfig.get_path("stdlib"))
    files = code_files()
    while True:
        path = rng.choice(files)
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        if len(lines) >= 40:
            start = rng.randrange(len(lines) - 30)
            text = "\n".join(lines[start : start + rng.randint(10, 30)])
            if len(text) < 2000:
                yield path.relative_to(root).as_posix(), text


def questions(folder: Path, rng: random.Random) -> Iterator[tuple[str, str]]:
    measured = {json.loads(line)["question"] for line in PROBLEMS.read_text().splitlines()}
    found = []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            if (question := str(json.loads(line)["question"])) not in measured:
                found.append((f"{path.stem}:{number}", question))
    rng.shuffle(found)
    return cycle(found)


def chat(group: str, content: str) -> dict[str, Any]:
    return {"group": group, "messages": [{"role": "user", "content": content}]}


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("output", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--num", default=1200, show_default=True, help="Prompts to write.")
@click.option("--seed", default=0, show_default=True)
def main(folder: Path, output: Path, num: int, seed: int) -> None:
    """Writes prompts of four kinds in turns."""
    rng = random.Random(seed)
    code, asked = pieces(rng), questions(folder, rng)
    with output.open("w", encoding="utf-8") as file:
        for number in range(num):
            if number // 2 % 2 == 0:
                group, text = next(code)
            else:
                group, text = next(asked)
            prompt = (
                {"group": group, "text": text}
                if number // 2 % 4 == 0
                else chat(group, f"{rng.choice(EDITS)}\n```python\n{text}\n```")
                if number // 2 % 4 == 2
                else chat(group, text)
                if number // 2 % 4 == 1
                else chat(group, rng.choice(TOOLS) + text)
            )
            file.write(json.dumps(prompt) + "\n")


if __name__ == "__main__":
    main()
