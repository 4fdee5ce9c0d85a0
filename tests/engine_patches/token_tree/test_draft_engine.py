"""A real engine says the same with trained drafts; see draft_scenarios.py for what it runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    script = Path(__file__).with_name("draft_scenarios.py")
    directory = tmp_path_factory.mktemp("drafts")
    done = subprocess.run(
        [sys.executable, str(script), str(directory)], capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULTS ")]
    assert lines, done.stdout[-2000:] + done.stderr[-4000:]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULTS "))
    return found


@pytest.mark.parametrize("drafts", ["trained", "untrained", "successors", "merged"])
def test_drafts_change_nothing_of_what_is_said(results: dict[str, Any], drafts: str) -> None:
    for scenario in (drafts, f"{drafts} seeded"):
        assert results[scenario]["different"] == 0
        assert results[scenario]["logprob_error"] < 1e-3


def test_trained_draft_saves_as_many_steps_as_its_ranks_promise(results: dict[str, Any]) -> None:
    trained = results["trained"]
    assert trained["paper"] > 3
    # The first answer's steps are worse: what guesses are worth is still being learned.
    assert trained["rate"] > 0.8 * trained["paper"]


def test_table_of_successors_saves_steps_without_a_model(results: dict[str, Any]) -> None:
    # Each letter of the target's language follows from the two before it.
    assert results["successors"]["rate"] > 2


def test_ended_requests_are_forgotten(results: dict[str, Any]) -> None:
    assert results["trained"]["kept"] <= 1


def test_answers_are_resumed_and_each_is_given_once(results: dict[str, Any]) -> None:
    answers = results["answers"]
    assert answers["numbers"] == list(range(24))
    assert 0 < answers["seconds"][0] < answers["seconds"][1]


def test_hidden_states_are_those_that_chose_the_tokens(results: dict[str, Any]) -> None:
    # Stored in bfloat16, so a near tie may fall the other way.
    assert results["answers"]["agreed"] > 0.97


def test_draft_with_another_vocabulary_is_refused_at_start(results: dict[str, Any]) -> None:
    assert "was trained for a target with tokenizer another" in results["foreign"]
