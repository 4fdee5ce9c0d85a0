"""Measures a trained draft in the engine: tokens per step, and what its passes cost.

    python draft_steps.py TARGET prompts.jsonl drafts/ [drafts/2 ...]

Held-out prompts are answered without and with the drafts, in turns, in one process per arm that
both stay alive; greedy, one request at a time. Processor time is shown beside the clock, because
a busy machine stretches the clock only.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click

SETTINGS = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def serve(pipe: Connection, target: str, token_tree: dict[str, Any] | None) -> None:
    """Answers prompts that come through the pipe."""
    os.environ |= SETTINGS
    import vllm
    from adaseek_vllm.flags import with_features

    llm = vllm.LLM(
        **with_features(
            model=target, enforce_eager=True, max_num_seqs=1, max_model_len=1024,
            token_tree=token_tree,
        )
    )  # fmt: skip
    runner = llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner
    num_steps, execute = [0], runner.execute_model

    def counted(*args: Any, **kwargs: Any) -> Any:
        num_steps[0] += 1
        return execute(*args, **kwargs)

    runner.execute_model = counted
    params = vllm.SamplingParams(temperature=0, max_tokens=128)
    while (prompt := pipe.recv()) is not None:
        num_steps[0], began, began_cpu = 0, time.perf_counter(), time.process_time()
        (output,) = llm.generate([{"prompt_token_ids": prompt}], params, use_tqdm=False)
        tokens = list(output.outputs[0].token_ids)
        times = time.perf_counter() - began, time.process_time() - began_cpu
        pipe.send((tokens, num_steps[0], *times))
    costs = None
    if token_tree is not None:
        source = runner.drafter.sources[-1]
        costs = {rows: source.pass_seconds(rows) for rows in (1, 4)}
        costs |= {"step": runner.drafter.step_cost(1)}
    pipe.send(costs)


@click.command()
@click.argument("target")
@click.argument("prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("drafts", nargs=-1, required=True)
@click.option("--num", default=12, show_default=True, help="Prompts.")
@click.option("--sources", default="", help="Other sources, e.g. suffix,recycling.")
def main(target: str, prompts: Path, drafts: tuple[str, ...], num: int, sources: str) -> None:
    """Answers held-out prompts without and with the drafts."""
    from adaseek_vllm.token_tree.drafts.prompts import read_prompts
    from adaseek_vllm.token_tree.drafts.target import load_tokenizer, tokenised

    held_out = [prompt for prompt in read_prompts(prompts) if prompt.is_held_out][:num]
    asked = tokenised(held_out, load_tokenizer(target), 384)
    settings = {"drafts": list(drafts), "sources": sources.split(",") if sources else []}
    context, arms = multiprocessing.get_context("spawn"), dict[str, Connection]()
    for name, token_tree in (("stock", None), ("drafts", settings)):
        arms[name], theirs = context.Pipe()
        context.Process(target=serve, args=(theirs, target, token_tree), daemon=True).start()
    totals = {name: [0, 0, 0.0, 0.0] for name in arms}
    num_equal = 0
    for prompt in asked:
        said = []
        for name, pipe in arms.items():
            pipe.send(prompt)
            tokens, *counts = pipe.recv()
            said.append(tokens)
            for column, value in enumerate([len(tokens), *counts]):
                totals[name][column] += value
        num_equal += said[0] == said[1]
    for name, (tokens, steps, seconds, cpu_seconds) in totals.items():
        click.echo(
            f"{name}: {tokens} tokens, {tokens / steps:.2f} a step, {tokens / seconds:.1f} a "
            f"second, {tokens / cpu_seconds:.1f} a second of processor time"
        )
    click.echo(f"equal answers: {num_equal} of {len(asked)} (bfloat16: near ties may differ)")
    for pipe in arms.values():
        pipe.send(None)
        if (costs := pipe.recv()) is not None:
            click.echo(f"seconds of a draft's pass by rows, and of a step: {json.dumps(costs)}")


if __name__ == "__main__":
    main()
