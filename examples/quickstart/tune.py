"""Tunes the quickstart's program on two real models, served by vLLM on this machine.

The program starts on the larger model with plain prompts. AdaSeek looks for examples to show,
votes, and the steps where the small model is enough. Ends in about ten minutes on two idle CPU
cores with a table, a recipe and a report in `--run-dir`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dspy
from adaseek.cogs import EnsembleCog, FewShotCog, ModelCog
from adaseek.table import comparison_table, heldout_table
from adaseek.testing.local_engine import LocalEngine, local_engines
from adaseek_dspy import AdaSeek
from program import load_examples, metric, program
from rich.console import Console

LARGE, SMALL = "Qwen2.5-Coder-1.5B-Instruct", "Qwen2.5-Coder-0.5B-Instruct"
# Fixed, so that a run that was interrupted finds its journal's models again.
PORTS = {LARGE: 8421, SMALL: 8420}
# USD per million tokens, in proportion to the models' sizes; what counts is the ratio.
PRICES = {LARGE: {"input": 0.06, "output": 0.18}, SMALL: {"input": 0.02, "output": 0.06}}

# Reasoning, new instructions and judged votes are left out to end within minutes.
COGS = (EnsembleCog(aggregates=("majority",)), ModelCog(), FewShotCog())


def main() -> None:
    arguments = _arguments()
    console = Console()
    with _models() as (large, small):
        dspy.configure(lm=large)
        optimizer = AdaSeek(
            metric=metric,
            budget=arguments.budget,
            models=[small],
            prices={large.model: PRICES[LARGE], small.model: PRICES[SMALL]},
            cogs=COGS,
            seed=arguments.seed,
            num_threads=16,
            run_dir=arguments.run_dir,
        )
        train, val, test = (load_examples(split) for split in ("train", "val", "test"))
        tuned = optimizer.compile(program, trainset=train, valset=val)
        result = tuned.detailed_results
        console.print(comparison_table(result))
        for line in result.original.recipe.diff(result.recipe):
            console.print(f"  {line}", markup=False)
        console.print(f"[bold]{result.verdict}[/bold]")
        if result.recipe.settings:  # else both would be the original
            held = optimizer.tuner.evaluate(program, result.recipe, test[: arguments.num_test])
            console.print(heldout_table(held))
    report = result.report(Path(arguments.run_dir) / "report.html")
    console.print(f"Recipe: {Path(arguments.run_dir) / 'recipe.json'}\nReport: {report}")


@contextmanager
def _models() -> Iterator[tuple[dspy.LM, dspy.LM]]:
    """Yields the large and the small model; both may use all cores."""
    cores = sorted(os.sched_getaffinity(0))
    shared = {LARGE: cores, SMALL: cores}
    with local_engines(shared, ports=PORTS, max_model_len=2048) as (large, small):
        yield _lm(large), _lm(small)


def _lm(engine: LocalEngine) -> dspy.LM:
    return dspy.LM(
        f"openai/{engine.model}",
        api_base=engine.base_url,
        api_key="none",
        cache=False,
        temperature=0.0,
        max_tokens=128,
        # The end of an answer in DSPy's format: small models like to go on.
        stop=["[[ ## completed ## ]]"],
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=int, default=240, help="workflow runs (default: 240)")
    parser.add_argument("--num-test", type=int, default=40, help="held-out examples (default: 40)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", default="runs/quickstart")
    return parser.parse_args()


if __name__ == "__main__":
    main()
