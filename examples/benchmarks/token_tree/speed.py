"""Tokens per second of several ways to decode, step by step in turns, in one process.

    python speed.py MODEL --draft-model SMALL --out runs.jsonl [--batch 1] [--temperature 0]
    python tables.py runs.jsonl

Every arm is an engine of its own with its own KV cache. They hold the same weights once, so all
fit in memory, and while one makes a step the others stand still: the arm that has said least so far
goes on, so all are at about the same place of their answers at any time, and a slow moment of the
machine is one of all of them. Which one is first rotates from prompt to prompt. A prompt is asked
once of each arm, so that no past answer is the one that is wanted; what answers have in common
helps, as it would in a server. Prefix caching is on, as in vLLM. Sessions go on with what the first
arm answered, in all arms.

With `--batch B` at most B requests run at once, and each of the B places answers `--per-place`
of them, one after another: a server has work for a place that is free, and one long answer does not
decide what all the others cost. What was said until a place stayed empty is written down as well:
that is what a server does that always has requests waiting.

A run can be cut anywhere: units that the file has already are not run again.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import torch
import vllm
from adaseek_vllm.flags import with_features
from adaseek_vllm.token_tree.stats import TreeStats
from vllm.platforms import current_platform
from workloads import MEASURED_TASKS, WORKLOADS, Task, tasks

# vLLM replaces the function when its first engine starts.
set_num_threads, NUM_THREADS = torch.set_num_threads, torch.get_num_threads()
BLOCKS_PER_REQUEST = 24
MAX_MODEL_LEN = 2048
NUM_TASKS = 500
"""Of a workload; the last ones warm the arms up. What an arm learns of a request it has seen, or
of several that are the same, would not be what it learns in a server."""
STOCK = "none"


def engine_arguments(arm: str, given: argparse.Namespace) -> dict[str, Any]:
    """What an arm's name stands for, e.g. `none`, `ngram:5`, `draft:3`, `chain:16`."""
    kind, _, number = arm.partition(":")
    count = int(number or 0)
    common: dict[str, Any] = {
        "model": given.model,
        "dtype": given.dtype,
        "enforce_eager": True,
        "max_model_len": MAX_MODEL_LEN,
        "max_num_seqs": given.batch,
        "num_gpu_blocks_override": BLOCKS_PER_REQUEST * given.batch,
    }
    stock: dict[str, Any] = {
        "ngram": {"method": "ngram", "prompt_lookup_min": 2, "prompt_lookup_max": 4},
        "suffix": {"method": "suffix"},
        "draft": {"method": "draft_model", "model": given.draft_model},
    }
    trees: dict[str, Any] = {
        "chain": {"shape": "chain"},
        "fixed": {"budget": "full"},
        "fixed-chain": {"budget": "full", "shape": "chain"},
        "static": {"budget": "full", "shape": [1, 1, 3, 1, 1, 1, 1, 1]},
        "dynamic": {},
        "suffix-only": {"sources": ["suffix"]},
        "no-past": {"sources": ["suffix", "recycling"]},
        "recycling-only": {"sources": ["recycling"]},
        "table": {"drafts": given.table},
        "trained": {"drafts": given.drafts},
    }
    if kind == STOCK:
        return common
    if kind in stock:
        return common | {"speculative_config": stock[kind] | {"num_speculative_tokens": count}}
    return with_features(token_tree=trees[kind] | {"num_nodes": count}, **common)


@dataclass
class Answered:
    """One batch of requests, answered by one arm."""

    tokens: list[list[int]]
    texts: list[str]
    seconds: float
    first_s: float
    """Until as many requests as run at once had their first tokens."""
    busy_s: float
    """Until a place stayed empty."""
    busy_tokens: int
    """Said until then."""
    num_steps: int
    stats: TreeStats
    """Empty unless the arm has trees."""


class Arm:
    """An engine and how it was asked for."""

    def __init__(self, name: str, given: argparse.Namespace, donor: Arm | None) -> None:
        self.name = name
        self.llm = vllm.LLM(**engine_arguments(name, given))
        core: Any = self.llm.llm_engine.engine_core
        self.runner = core.engine_core.model_executor.driver_worker.worker.model_runner
        if donor is not None:
            share_weights(self.runner.model, donor.runner.model)
        self.num_steps, self._execute, self._number = 0, self.runner.execute_model, 0
        self.runner.execute_model = self._counted
        self._num_places = given.batch
        self.stats = TreeStats()
        if (metrics := getattr(self.runner, "_metrics", None)) is not None:
            metrics.add = self._keep
        gc.collect()

    def _counted(self, *args: Any, **kwargs: Any) -> Any:
        self.num_steps += 1
        return self._execute(*args, **kwargs)

    def _keep(self, stats: TreeStats) -> None:
        self.stats.merge(stats)

    def begin(self, prompts: list[list[int]], params: list[Any]) -> None:
        """Asks all prompts, of which as many are answered at once as the engine may."""
        self._ids = [str(self._number + at) for at in range(len(prompts))]
        self._number += len(prompts)
        self._outputs = dict[str, Any]()
        self.num_steps, self.stats = 0, TreeStats()
        self._seconds = self._first_s = self._busy_s = 0.0
        self._busy_tokens = 0
        for name, prompt, one in zip(self._ids, prompts, params, strict=True):
            self.llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, one)

    @property
    def is_answering(self) -> bool:
        return bool(self.llm.llm_engine.has_unfinished_requests())

    @property
    def num_said(self) -> int:
        return sum(len(one.outputs[0].token_ids) for one in self._outputs.values())

    def step(self) -> None:
        """Goes on by one step of the engine."""
        began_s = time.perf_counter()
        # vLLM's n-gram drafts leave OpenMP with one thread (numba 0.65), for all arms here.
        set_num_threads(NUM_THREADS)
        outputs = self.llm.llm_engine.step()
        self._seconds += time.perf_counter() - began_s
        for output in outputs:
            if output.request_id not in self._outputs and len(self._outputs) < self._num_places:
                self._first_s = self._seconds
            self._outputs[output.request_id] = output
        num_left = self.llm.llm_engine.get_num_unfinished_requests()
        if not self._busy_s and num_left < self._num_places:
            self._busy_s, self._busy_tokens = self._seconds, self.num_said

    def answered(self) -> Answered:
        found = [self._outputs[name].outputs[0] for name in self._ids]
        return Answered(
            [list(one.token_ids) for one in found],
            [one.text for one in found],
            self._seconds,
            self._first_s,
            self._busy_s,
            self._busy_tokens,
            self.num_steps,
            self.stats,
        )


def answer_all(arms: Sequence[Arm], prompts: list[list[int]], params: list[Any]) -> list[Answered]:
    """Lets all arms answer, step by step in turns: the one that has said least so far goes on.

    So a moment in which the machine is slow is a moment of the same text for all of them.
    """
    for arm in arms:
        arm.begin(prompts, params)
    while answering := [arm for arm in arms if arm.is_answering]:
        min(answering, key=lambda arm: arm.num_said).step()
    return [arm.answered() for arm in arms]


def share_weights(model: torch.nn.Module, donor: torch.nn.Module) -> None:
    """Lets `model` compute with the tensors of `donor`, packed ones included, and frees its own."""
    for own, other in zip(model.modules(), donor.modules(), strict=True):
        own._parameters.update(other._parameters)
        if hasattr(other, "cpu_linear"):
            own.cpu_linear = other.cpu_linear


def sampling(given: argparse.Namespace, seed: int) -> Any:
    random = {"temperature": given.temperature, "top_p": 0.95, "seed": seed}
    return vllm.SamplingParams(
        max_tokens=given.tokens, **(random if given.temperature else {"temperature": 0})
    )


def prompt_tokens(tokenizer: Any, task: Task, turn: int, answers: list[str]) -> list[int]:
    """The prompt of a session's turn, after the answers so far."""
    if task.is_raw:
        return list(tokenizer.encode(task.turns[0]))
    messages = [{"role": "system", "content": task.system}] if task.system else []
    for number in range(turn + 1):
        messages.append({"role": "user", "content": task.turns[number]})
        if number < turn:
            messages.append({"role": "assistant", "content": answers[number]})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return list(tokenizer.encode(text))


def unit_key(record: dict[str, Any]) -> tuple[Any, ...]:
    names = ("model", "dtype", "workload", "batch", "temperature", "unit")
    return (*(record[name] for name in names), record.get("per_place", 1))


def run_unit(
    arms: list[Arm], unit: int, batch: list[Task], workload: str, given: argparse.Namespace
) -> list[dict[str, Any]]:
    """Asks all arms; returns one record for each and turn."""
    tokenizer, records = arms[0].llm.get_tokenizer(), list[dict[str, Any]]()
    answers: list[list[str]] = [[] for _ in batch]
    for turn in range(len(batch[0].turns)):
        prompts = [
            prompt_tokens(tokenizer, task, turn, said)
            for task, said in zip(batch, answers, strict=True)
        ]
        shift = (unit + turn) % len(arms)
        params = [sampling(given, 1000 * unit + at) for at in range(len(batch))]
        turns = [*arms[shift:], *arms[:shift]]
        found = answer_all(turns, prompts, params)
        told = {arm.name: one for arm, one in zip(turns, found, strict=True)}
        for said, text in zip(answers, told[arms[0].name].texts, strict=True):
            said.append(text)
        for name, one in told.items():
            records.append(
                {
                    "model": Path(given.model).name,
                    "dtype": given.dtype,
                    "workload": workload,
                    "batch": given.batch,
                    "per_place": given.per_place,
                    "temperature": given.temperature,
                    "unit": unit,
                    "turn": turn,
                    "arm": name,
                    "seconds": round(one.seconds, 4),
                    "first_s": round(one.first_s, 4),
                    "busy_s": round(one.busy_s, 4),
                    "busy_tokens": one.busy_tokens,
                    "steps": one.num_steps,
                    "prompt_tokens": [len(prompt) for prompt in prompts],
                    "tokens": one.tokens,
                    "nodes": one.stats.num_nodes,
                    "predicted": one.stats.num_predicted,
                    "cost_error": round(one.stats.cost_error, 4),
                    "parts": {part: round(s, 4) for part, s in one.stats.seconds.items()},
                }
            )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--draft-model", help="A small model of the same vocabulary.")
    parser.add_argument("--drafts", nargs="*", default=[], help="Made by `adaseek drafts train`.")
    parser.add_argument("--table", nargs="*", default=[], help="The same with `--num-drafts 0`.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--arms", nargs="+", default=[
        STOCK, "ngram:4", "draft:3", "chain:16", "fixed:8", "dynamic:16"])  # fmt: skip
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--per-place", type=int, default=1, help="Requests of a place in a batch.")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--units", type=int, default=4, help="Per workload and arm.")
    parser.add_argument("--first-unit", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--minutes", type=float, default=11.0, help="No new unit after this.")
    given = parser.parse_args()
    num_requests = given.batch * given.per_place
    num_tasks = (given.first_unit + given.units) * num_requests
    try:
        found = {workload: tasks(workload, num_tasks) for workload in given.workloads}
    except ValueError as error:
        parser.error(f"{error}: lower --first-unit, --units, --batch or --per-place")
    if (given.drafts or given.table) and num_tasks > MEASURED_TASKS:
        parser.error(
            f"{num_tasks} tasks of a workload are asked for, but only the first {MEASURED_TASKS} "
            "are kept from the training of --drafts and --table"
        )
    began_s = time.monotonic()
    lines = given.out.read_text().splitlines() if given.out.exists() else []
    done = {unit_key(json.loads(line)) for line in lines}
    arms = list[Arm]()
    for name in given.arms:
        arms.append(Arm(name, given, arms[0] if arms else None))
        # Process-wide and done; vLLM 0.32 trips over numba's modules when it does it again.
        current_platform.register_triton_kernel_overrides = lambda: None
    warm_up = vllm.SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    others = tasks("completion", NUM_TASKS)[-given.batch :]
    prompts = [prompt_tokens(arms[0].llm.get_tokenizer(), task, 0, []) for task in others]
    answer_all(arms, prompts, [warm_up] * given.batch)
    gc.freeze()
    for unit in range(given.first_unit, given.first_unit + given.units):
        for workload in given.workloads:
            batch = found[workload][unit * num_requests :][:num_requests]
            key = (Path(given.model).name, given.dtype, workload, given.batch, given.temperature)
            if (*key, unit, given.per_place) in done:
                continue
            if time.monotonic() - began_s > 60 * given.minutes:
                print("stopped by --minutes; run it again to go on")
                return
            records = run_unit(arms, unit, batch, workload, given)
            with given.out.open("a") as out:
                out.writelines(json.dumps(record) + "\n" for record in records)
            rates = ", ".join(
                f"{one['arm']} {sum(map(len, one['tokens'])) / one['seconds']:.1f}"
                for one in records
            )
            print(f"{workload} {unit} ({batch[0].name}): tokens per second {rates}", flush=True)


if __name__ == "__main__":
    main()
