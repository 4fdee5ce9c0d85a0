"""Retention in real engines on the CPU: equal outputs and hits that survive.

ADASEEK_NUM_TURNS sets how many turns each of six sessions takes under each policy (default 5, at
most 19), ADASEEK_NUM_ROUNDS how many groups of six there are (default 1). 18 and 10 make 1,020
resumes under each policy:

    ADASEEK_NUM_TURNS=18 ADASEEK_NUM_ROUNDS=10 pytest tests/engine_patches/retention/test_engine.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

NUM_TURNS = os.environ.get("ADASEEK_NUM_TURNS", "5")
# `soft` and `drop` hold nothing; `auto` and `infercept` choose them, too.
ARMS = "stock,auto,pin,infercept,host,prefetch_host,small_host,slow_host,auto_host,faulty_host"
NUM_ROUNDS = int(os.environ.get("ADASEEK_NUM_ROUNDS", "1"))
pytestmark = [pytest.mark.engine, pytest.mark.timeout(900 * NUM_ROUNDS)]


@pytest.fixture(scope="module")
def arms() -> dict[str, Any]:
    program = Path(__file__).with_name("engine_scenarios.py")
    command = [sys.executable, str(program), "6", NUM_TURNS, ARMS]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert lines, done.stdout[-2000:] + done.stderr[-2000:]
    return dict(json.loads(lines[0].removeprefix("RESULT ")))


def test_off_means_vllms_own_scheduler(arms: dict[str, Any]) -> None:
    assert arms["stock"]["scheduler"] == "Scheduler"
    assert arms["auto"]["scheduler"] == "AdaseekScheduler"


def test_greedy_outputs_are_the_same_under_every_policy(arms: dict[str, Any]) -> None:
    assert len({arm["outputs"] for arm in arms.values()}) == 1
    resumed = {arm["num_resumed"] for name, arm in arms.items() if name != "stock"}
    assert resumed == {6 * (int(NUM_TURNS) - 1) * NUM_ROUNDS}


def test_held_contexts_are_hit_where_stock_has_lost_them(arms: dict[str, Any]) -> None:
    cached = {name: arm["num_cached_tokens"] for name, arm in arms.items()}
    assert cached["pin"] > 1.5 * cached["stock"]
    assert cached["pin"] >= cached["auto"] >= cached["stock"]


def test_contexts_come_back_from_host_memory_bit_for_bit(arms: dict[str, Any]) -> None:
    num_resumed = 6 * (int(NUM_TURNS) - 1) * NUM_ROUNDS
    assert arms["host"]["num_loaded"] == num_resumed
    # What is held may be reclaimed; a copy may not.
    assert arms["host"]["num_cached_tokens"] >= arms["pin"]["num_cached_tokens"]
    # Each copy back was compared with what the block held when it was copied out.
    assert arms["host"]["num_checked"] >= 3 * num_resumed
    assert arms["slow_host"]["num_loaded"] > 0
    assert 0 < arms["small_host"]["num_host_tokens"] <= 20 * 32


def test_contexts_are_brought_back_ahead_of_their_turns(arms: dict[str, Any]) -> None:
    """Answers are compared with stock's, and each copy back with its source, as in every arm.

    Whether a turn comes in time to use one depends on the machine; see test_connector_prefetch.py.
    """
    assert sum(arms["prefetch_host"]["prefetches"].values()) > 0
    assert arms["prefetch_host"]["num_checked"] > 0
    assert not arms["host"]["prefetches"]


def test_copies_that_fail_cost_time_and_no_answer(arms: dict[str, Any]) -> None:
    loaded, faulty = arms["host"]["num_loaded"], arms["faulty_host"]["num_loaded"]
    assert 0 < faulty < loaded


def test_reset_leaves_no_copy(arms: dict[str, Any]) -> None:
    assert arms["host"]["num_host_tokens"] > 0
    assert all(arm["num_left"] == 0 for arm in arms.values())


def test_nothing_is_held_after_the_last_turn(arms: dict[str, Any]) -> None:
    assert all(arm["can_reset"] for arm in arms.values())
