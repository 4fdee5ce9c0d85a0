"""The benchmark of token trees: its prompts, its turns and its tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="module")
def load(load_example: Callable[[str], ModuleType]) -> Callable[[str], ModuleType]:
    """Returns a function that imports a module of the benchmark."""
    return lambda name: load_example(f"benchmarks/token_tree/{name}")


@pytest.mark.parametrize(
    ("workload", "num"),
    [("completion", 64), ("edit", 64), ("chat", 64), ("agent", 64), ("extract", 40), ("tools", 60)],
)
def test_no_prompt_returns(load: Any, workload: str, num: int) -> None:
    # A returning prompt would let past answers be the ones that are wanted.
    workloads = load("workloads")
    asked = [task.turns for task in workloads.tasks(workload, num)]
    assert len(set(asked)) == len(asked) == num
    assert [task.turns for task in workloads.tasks(workload, num)] == asked


def test_too_many_tasks_are_refused(load: Any) -> None:
    with pytest.raises(ValueError, match=r"`tools` has 60 tasks, but 61 are asked for"):
        load("workloads").tasks("tools", 61)


class TurnTaker:
    """An arm that says `per_step` tokens in a step, of `num_tokens`."""

    def __init__(self, name: str, per_step: int, num_tokens: int, steps: list[str]) -> None:
        self.name, self._per_step, self._num_tokens, self._steps = name, per_step, num_tokens, steps
        self.num_said = 0

    def begin(self, prompts: list[list[int]], params: list[Any]) -> None:
        self.num_said = 0

    @property
    def is_answering(self) -> bool:
        return self.num_said < self._num_tokens

    def step(self) -> None:
        self.num_said += self._per_step
        self._steps.append(self.name)

    def answered(self) -> str:
        return self.name


def test_the_arm_that_said_least_goes_on(load: Any) -> None:
    steps = list[str]()
    arms = [TurnTaker("slow", 1, 6, steps), TurnTaker("fast", 3, 6, steps)]
    assert load("speed").answer_all(arms, [[1]], [None]) == ["slow", "fast"]
    assert "".join(name[0] for name in steps) == "sfsssfss"


def record(arm: str, unit: int, tokens: list[list[int]], seconds: float) -> dict[str, Any]:
    return {
        "model": "M", "dtype": "bfloat16", "workload": "chat", "batch": 2, "per_place": 1,
        "temperature": 0.0, "unit": unit, "turn": 0, "arm": arm, "seconds": seconds,
        "first_s": 0.0, "busy_s": seconds / 2, "busy_tokens": 2, "steps": 2, "tokens": tokens,
    }  # fmt: skip


def test_tables_compare_unit_by_unit(
    load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = [[1, 2], [3, 4]]
    seconds = {"none": (4.0, 8.0), "suffix:8": (2.0, 8.0), "dynamic:8": (1.0, 8.0)}
    lines = [
        record(arm, unit, answers if arm == "none" or unit else [[1, 2], [3, 5]], spent)
        for arm, both in seconds.items()
        for unit, spent in enumerate(both)
    ]
    path = tmp_path / "runs.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr("sys.argv", ["tables.py", str(path)])
    load("tables").main()
    told = capsys.readouterr().out
    # The medians of 4/1 and 8/8, and of 2/1 and 8/8.
    assert "| chat (2) | 1.00 (1.00-1.00) | 1.50 (1.00-2.00) | 2.50 (1.00-4.00) |" in told
    assert "| chat (2) | 0.75 (0.50-1.00) | 1.00 (1.00-1.00) | 1.50 (1.00-2.00) |" in told
    assert "Speed over the best stock arm (chat: suffix:8)" in told
    assert "| dynamic:8 | 0.9 | 0.4 | 2.00 | 3 of 4 |" in told
