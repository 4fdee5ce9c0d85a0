"""The target's own continuations of prompts, with its hidden states, made by the real engine.

`python -m adaseek_vllm.token_tree.drafts.continuations JOB.json` fills a folder. Every finished
group of continuations is a file of its own, so a killed run loses little and goes on where it was.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from adaseek_vllm.serve import cpu_defaults
from adaseek_vllm.token_tree.guesses import Guesses
from adaseek_vllm.token_tree.sources import DraftRequest, VerifiedRows

__all__ = ["Continuation", "Job", "generate", "load", "seconds_done"]

_BATCH = 48
"""Answers at once. Reading the weights is most of a step's cost: with AMX and 1.5B parameters, two
cores take 160 ms for 16 rows and 220 ms for 48."""
_PER_FILE = 16
_MIN_BATCHED_TOKENS = 2048
_SECONDS = "seconds"


@dataclass(frozen=True)
class Continuation:
    """One prompt and what the target said after it."""

    number: int
    """Index of the prompt among those of the job."""
    tokens: NDArray[np.int32]
    num_prompt_tokens: int
    temperature: float
    hidden: torch.Tensor
    """The target's last hidden state at every token but the last ones, [<= tokens, hidden]."""


@dataclass(frozen=True)
class Job:
    """What is to be generated. Every other prompt is answered at temperature 1.

    The paper's drafts are aligned with the target at both settings too, and acceptance differs
    much between them.
    """

    target: str
    directory: str
    prompts: list[list[int]]
    max_tokens: int
    seconds: float
    """After this time no new prompt is begun; what earlier runs took counts."""
    stop_tokens: tuple[int, ...] = ()
    """Tokens that end an answer beside those of the target's generation config."""

    def temperature(self, number: int) -> float:
        return float(number % 2)


class _Recorder:
    """A draft source that drafts nothing and keeps the hidden states it is shown."""

    num_successors = 0

    def __init__(self) -> None:
        self.hidden: dict[str, list[torch.Tensor]] = {}

    def draft(self, request: DraftRequest, max_nodes: int) -> Guesses:
        assert request.hidden is not None
        parts = self.hidden.setdefault(request.request_id, [])
        known = sum(map(len, parts))
        assert request.first_hidden <= known, (request.first_hidden, known)
        # A request that was preempted is computed again from its start.
        rows = request.hidden[max(0, known - request.first_hidden) :]
        parts.append(rows.to(torch.bfloat16, copy=True))
        return Guesses()

    def learn(self, rows: VerifiedRows) -> None:
        """Learns nothing."""

    def forget(self, request_id: str) -> None:
        """Keeps the rows: they are taken after the request's end."""

    def take(self, request_id: str) -> torch.Tensor:
        return torch.cat(self.hidden.pop(request_id))


def generate(job: Job) -> None:
    """Answers prompts that have no answer yet, until all have one or the time is over."""
    directory = Path(job.directory)
    directory.mkdir(parents=True, exist_ok=True)
    done = {number for path in _files(directory) for number in _numbers(path)}
    todo = [number for number in range(len(job.prompts)) if number not in done]
    seconds = seconds_done(directory)
    if not todo or seconds >= job.seconds:
        return
    buffered: list[Continuation] = []
    began_s = time.monotonic() - seconds
    for continuation in _answers(job, todo, deadline_s=began_s + job.seconds):
        buffered.append(continuation)
        if len(buffered) == _PER_FILE:
            _save(directory, buffered, time.monotonic() - began_s)
            buffered = []
    if buffered:
        _save(directory, buffered, time.monotonic() - began_s)


def _answers(job: Job, todo: Sequence[int], deadline_s: float) -> Iterator[Continuation]:
    # vLLM reads these when it is imported.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    cores = sorted(os.sched_getaffinity(0))
    for name, value in cpu_defaults([], cores=cores, free_bytes=8 << 30).items():
        os.environ.setdefault(name, value)
    import vllm

    from adaseek_vllm.flags import with_features

    longest = max(len(job.prompts[number]) for number in todo) + job.max_tokens + 1
    llm = vllm.LLM(
        **with_features(
            model=job.target,
            enforce_eager=True,
            max_num_seqs=_BATCH,
            max_model_len=longest,
            # A prompt is read in one step, so that the states of all of it are seen; vLLM 0.32
            # on a CPU also fails on a seeded prompt that is read in parts.
            max_num_batched_tokens=max(longest, _MIN_BATCHED_TOKENS),
            enable_chunked_prefill=False,
            enable_prefix_caching=False,
            skip_tokenizer_init=True,
            token_tree={"num_nodes": 1},
        )
    )
    recorder = _Recorder()

    def install(worker: Any) -> None:
        worker.model_runner.drafter.sources = [recorder]

    llm.collective_rpc(install)
    yield from _stepped(llm, recorder, job, todo, deadline_s)


# vllm.LLM, whose type this module does not import.
def _stepped(
    llm: Any, recorder: _Recorder, job: Job, todo: Sequence[int], deadline_s: float
) -> Iterator[Continuation]:
    from vllm import SamplingParams

    engine, waiting, running = llm.llm_engine, iter(todo), dict[str, tuple[int, str]]()
    while True:
        while len(running) < _BATCH and time.monotonic() < deadline_s:
            if (number := next(waiting, None)) is None:
                break
            params = SamplingParams(
                temperature=job.temperature(number),
                seed=number if job.temperature(number) else None,
                max_tokens=job.max_tokens,
                stop_token_ids=list(job.stop_tokens),
                detokenize=False,
            )
            prompt = {"prompt_token_ids": job.prompts[number]}
            running[str(number)] = number, engine.add_request(str(number), prompt, params)
        if not running:
            return
        for output in engine.step():
            if output.finished:
                number, request_id = running.pop(output.request_id)
                prompt_tokens = job.prompts[number]
                tokens = [*prompt_tokens, *output.outputs[0].token_ids]
                yield Continuation(
                    number,
                    np.array(tokens, dtype=np.int32),
                    len(prompt_tokens),
                    job.temperature(number),
                    recorder.take(request_id)[: len(tokens)],
                )


def _save(directory: Path, continuations: Sequence[Continuation], seconds: float) -> None:
    tensors = {}
    for one in continuations:
        tensors[f"{one.number}.tokens"] = torch.from_numpy(one.tokens)
        tensors[f"{one.number}.hidden"] = one.hidden.contiguous()
    facts = {
        str(one.number): json.dumps([one.num_prompt_tokens, one.temperature])
        for one in continuations
    }
    path = directory / f"{continuations[0].number:06d}.safetensors"
    unfinished = path.with_suffix(".part")
    save_file(tensors, unfinished, metadata=facts | {_SECONDS: str(seconds)})
    unfinished.replace(path)


def load(directory: Path) -> Iterator[Continuation]:
    """Yields what was generated, in the order of the prompts."""
    places = sorted((number, path) for path in _files(directory) for number in _numbers(path))
    for number, path in places:
        with safe_open(path, framework="pt") as file:
            num_prompt_tokens, temperature = json.loads(file.metadata()[str(number)])
            tokens = file.get_tensor(f"{number}.tokens").numpy()
            hidden = file.get_tensor(f"{number}.hidden")
        yield Continuation(number, tokens, num_prompt_tokens, temperature, hidden)


def seconds_done(directory: Path) -> float:
    """Returns how long it took to generate what is in the folder."""
    return max((float(_facts(path)[_SECONDS]) for path in _files(directory)), default=0.0)


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def _numbers(path: Path) -> list[int]:
    return [int(key) for key in _facts(path) if key != _SECONDS]


def _facts(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


if __name__ == "__main__":
    generate(Job(**json.loads(Path(sys.argv[1]).read_text())))
