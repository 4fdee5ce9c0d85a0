"""Measures what the search itself costs: processor time per workflow run, and memory.

The outcomes come from a landscape of `adaseek.testing`, so nothing else takes time; the budget is
so large that the search meets a good part of the 52,488 configs.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence

import optuna
from adaseek.search.adaseek import AdaSeek, SearchSettings
from adaseek.search.base import Constraint, Dimension, LeafRun, Outcome, Space
from adaseek.testing.landscapes import landscape, two_step_space


def main() -> None:
    arguments = _arguments()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # More dimensions than usual: else no config would be left before the budget is spent.
    more = [
        Dimension(f"b:{name}", "weight", ("0", "1", "2")) for name in ("format", "tone", "length")
    ]
    space = Space((*two_step_space().dimensions, *more))
    truth = landscape("interacting", seed=0, num_examples=52, space=space)
    settings = SearchSettings(
        arguments.runs,
        truth.num_examples,
        constraints=(Constraint("quality", 1.0, relative=True),),
        patience=arguments.runs,
    )
    spent_s = 0.0

    def evaluate(runs: Sequence[LeafRun]) -> list[Outcome]:
        nonlocal spent_s
        began = time.process_time()
        outcomes = truth.evaluate(runs)
        spent_s += time.process_time() - began
        return outcomes

    before = _peak_mb()
    search = AdaSeek(truth.space, settings, evaluate)
    began = time.process_time()
    archive = search.run()
    own_s = time.process_time() - began - spent_s
    print(
        f"{search.num_runs} workflow runs, {len(archive.records)} configs, "
        f"{search.plan.num_layers} layers: {1000 * own_s / search.num_runs:.2f} ms per run, "
        f"peak memory {_peak_mb():.0f} MB ({before:.0f} MB before the search)"
    )


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=100_000)
    return parser.parse_args()


if __name__ == "__main__":
    main()
