"""Runs very many random traces, a chunk at a time, beside others that do the same.

    nice -n 19 python tests/engine_patches/retention/many_traces.py --traces 100000 --dir traces/

A chunk belongs to whoever makes its file in --dir first; the file then says how it went. So any
number of processes share the work, and after an interruption the next call does what is left
(remove files that say `running` first, if nobody runs them any more). The last line sums up.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from test_invariants import run_trace


def claim(file: Path) -> bool:
    """Makes a chunk's file; returns whether nobody had."""
    try:
        with file.open("x") as made:
            made.write("running\n")
    except FileExistsError:
        return False
    return True


def run_chunk(seeds: range, configs: dict[int, Any]) -> str:
    """Runs the traces of a chunk; returns how it went."""
    started_s = time.process_time()
    for seed in seeds:
        try:
            run_trace(seed, configs)
        except AssertionError as error:
            return f"failed: {error}\n"
    return f"passed {len(seeds)} traces in {time.process_time() - started_s:.0f} CPU seconds\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traces", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=500)
    parser.add_argument("--dir", type=Path, required=True)
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    configs: dict[int, Any] = {}
    last = options.first + options.traces
    for start in range(options.first, last, options.chunk):
        file = options.dir / f"{start:08d}.txt"
        if claim(file):
            file.write_text(run_chunk(range(start, min(last, start + options.chunk)), configs))
    said = [file.read_text().split() for file in sorted(options.dir.glob("*.txt"))]
    num_passed = sum(int(words[1]) for words in said if words[0] == "passed")
    num_failed = sum(words[0] == "failed" for words in said)
    print(f"{num_passed} traces passed, {num_failed} chunks failed")


if __name__ == "__main__":
    main()
