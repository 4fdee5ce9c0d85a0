"""Tunes the RAG chain on two real models, served by vLLM on this machine.

Both of its steps start on the cheaper model with plain prompts. AdaSeek looks for examples to show
at either and tries the larger model. Leaves a table, a recipe and a report in `--run-dir`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from adaseek.cogs import FewShotCog, InstructionsCog, ModelCog
from adaseek.table import comparison_table, heldout_table
from adaseek.testing.local_engine import local_engines
from adaseek_langchain import AdaSeek
from langchain_openai import ChatOpenAI
from rag import build, chat_model, load_examples, metric
from rich.console import Console

LARGE, SMALL = "Qwen2.5-Coder-1.5B-Instruct", "Qwen2.5-Coder-0.5B-Instruct"
# Fixed, so that a run that was interrupted finds its journal's models again.
PORTS = {LARGE: 8441, SMALL: 8440}
# USD per million tokens, in proportion to the models' sizes; what counts is the ratio.
PRICES = {LARGE: {"input": 0.06, "output": 0.18}, SMALL: {"input": 0.02, "output": 0.06}}

# Votes and reasoning are left out to end within minutes.
COGS = (ModelCog(), FewShotCog(), InstructionsCog())


def main() -> None:
    arguments = _arguments()
    console = Console()
    run_dir = Path(arguments.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    with _models() as (large, small):
        program = build(small)
        optimizer = AdaSeek(
            metric,
            budget=arguments.budget,
            models=[large],
            prompt_model=large,
            # Not latency: timing every finalist alone would take as long as the search.
            objectives=("quality", "cost"),
            prices=PRICES,
            cogs=COGS,
            seed=arguments.seed,
            num_threads=16,
            run_dir=run_dir,
        )
        train, val, test = (load_examples(split) for split in ("train", "val", "test"))
        tuned = optimizer.compile(program, trainset=train, valset=val)
        result = tuned.detailed_results
        console.print(comparison_table(result))
        for line in result.original.recipe.diff(result.recipe):
            console.print(f"  {line}", markup=False)
        console.print(f"[bold]{result.verdict}[/bold]")
        report = result.report(run_dir / "report.html")
        if result.recipe.settings:  # else both would be the original
            held = optimizer.tuner.evaluate(program, result.recipe, test[: arguments.num_test])
            console.print(heldout_table(held))
    console.print(f"Recipe: {run_dir / 'recipe.json'}\nReport: {report}")


@contextmanager
def _models() -> Iterator[tuple[ChatOpenAI, ChatOpenAI]]:
    """Yields the large and the small model; both may use all cores."""
    cores = sorted(os.sched_getaffinity(0))
    shared = {LARGE: cores, SMALL: cores}
    with local_engines(shared, ports=PORTS, max_model_len=4096) as engines:
        large, small = (chat_model(engine.model, engine.base_url) for engine in engines)
        yield large, small


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=int, default=670, help="workflow runs (default: 670)")
    parser.add_argument("--num-test", type=int, default=80, help="held-out examples (default: 80)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run-dir", default="runs/rag")
    return parser.parse_args()


if __name__ == "__main__":
    main()
