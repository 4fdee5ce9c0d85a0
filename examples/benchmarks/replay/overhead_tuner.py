"""Measures what the whole tuner costs: processor time of all threads per workflow run, and memory.

A scripted program stands for workflow and models, so everything that takes time is the tuner's own:
search, threads, journal on disk, Optuna's storage, events, estimates, `result.json`.

    python examples/benchmarks/replay/overhead_tuner.py --runs 100000
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import pstats
import resource
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from adaseek.recipe import Setting
from adaseek.result import TuningResult
from adaseek.testing.scripted import ScriptedAdapter, ScriptedOutcome, ScriptedProgram
from adaseek.tuner import Tuner
from adaseek.workflow import Example

MODELS = ("large", "medium", "small")
PRICES = {m: {"input": p, "output": 4 * p} for m, p in zip(MODELS, (1.0, 0.4, 0.1), strict=True)}
NUM_TRAIN, NUM_VAL = 52, 52


class Landscape:
    """Outcomes of the scripted program: a chance per config, a draw per example. Thread-safe.

    Attributes:
        spent_s: processor time that making them took; it is not the tuner's.
    """

    def __init__(self) -> None:
        self.spent_s = 0.0
        self._lock = threading.Lock()

    def __call__(self, settings: Mapping[str, Setting], example: Example) -> ScriptedOutcome:
        began = time.thread_time()
        outcome = self._outcome(settings, example)
        with self._lock:
            self.spent_s += time.thread_time() - began
        return outcome

    def _outcome(self, settings: Mapping[str, Setting], example: Example) -> ScriptedOutcome:
        chance, tokens = 0.4, 20
        for step, setting in settings.items():
            shown = (step, setting.reasoning, setting.params, setting.model, setting.ensemble)
            chance += 0.3 * (_uniform(shown, len(setting.demos or ())) - 0.4)
            tokens += int(30 * _uniform(shown, "tokens"))
        luck = _uniform(example.id, tokens)
        return ScriptedOutcome(
            "yes" if luck < chance else "no",
            output_tokens=tokens + int(20 * luck),
            latency_s=0.02 * tokens + luck,
        )


def main() -> None:
    arguments = _arguments()
    examples = [{"question": f"{i} + {i}?", "answer": "yes"} for i in range(NUM_TRAIN + NUM_VAL)]
    landscape = Landscape()
    with tempfile.TemporaryDirectory(prefix="adaseek-") as folder:
        tuner = Tuner(
            lambda example, output: output == example["answer"],
            budget=arguments.runs,
            models=MODELS,
            prices=PRICES,
            run_dir=folder,
            num_threads=arguments.threads,
            plugins=[ScriptedAdapter()],
            verbose=False,
        )
        program = ScriptedProgram(landscape)
        before_mb, began = _peak_mb(), time.process_time()
        profile = cProfile.Profile() if arguments.profile else None
        if profile is not None:
            profile.enable()
        result = tuner.tune(program, trainset=examples[:NUM_TRAIN], valset=examples[NUM_TRAIN:])
        if profile is not None:
            profile.disable()
            pstats.Stats(profile).sort_stats("tottime").print_stats(45)
        own_s = time.process_time() - began - landscape.spent_s
        _print(result, own_s, _peak_mb() - before_mb, before_mb, Path(folder))


def _print(
    result: TuningResult, own_s: float, own_mb: float, before_mb: float, folder: Path
) -> None:
    runs = result.spending.num_runs
    sizes = ", ".join(f"{f.name} {f.stat().st_size >> 20} MB" for f in sorted(folder.iterdir()))
    print(
        f"{runs} workflow runs, {len(result.candidates)} candidates, ended: {result.ended}: "
        f"{1000 * own_s / runs:.2f} ms processor time per run, "
        f"{own_mb:.0f} MB above the {before_mb:.0f} MB before the run\n{sizes}"
    )


def _uniform(*key: object) -> float:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--profile", action="store_true", help="also print where the time goes")
    return parser.parse_args()


if __name__ == "__main__":
    main()
