"""Same tokens with trees as without: counts completions that differ from vLLM's own.

    python exactness.py MODEL --out FOLDER --prompts 200 --tokens 128
    python exactness.py MODEL --out FOLDER --report

Greedy prompts (or, with `--mode seeded`, seeded ones with penalties, top-p, top-k and log
probabilities) in batches of 1 to 8, in float32. Each arm is an engine in a process of its own:
`stock` first, vLLM without speculation; `sources`, trees from the real sources, as many nodes as
may be; `plain`, the same without log probabilities, which greedily is another way to walk (all rows
at once); `scripted` and `adversarial`, trees that hide the known continuation (known_drafts.py);
`chain`, `sources` without branches; `ngram:K`, vLLM's linear drafts. MODEL is a directory or a
name on the hub. With `--minutes` no batch is begun after that time; the same command goes on.

In bfloat16 (`--dtype bfloat16`) rounding depends on the number of rows, in vLLM's own linear
speculation as well. For each completion that differs the report has the place, and how much
likelier, as a log probability, each run found its own token than the other's there.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

SUBJECTS = (
    *("a lighthouse", "prime numbers", "sourdough bread", "the French Revolution", "a cat"),
    *("photosynthesis", "bicycle gears", "a lost letter", "the moon", "binary search"),
)
TASKS = ("Write a short story about {}.", "Explain {} to a child.", "List five facts about {}.",
         "Write a Python function about {} with comments.", "Write a poem about {}.",
         "Repeat twice and then continue: everything about {} is",
         "Write a JSON object that describes {}.", "Write an email that asks about {}.",
         "Compare {} with something similar.", "Give step by step instructions about {}.",
         "Write a dialogue about {}.", "Summarise what is known of {}.",
         "Ask ten questions about {}.", "Write a table about {}.", "Criticise {}.",
         "Translate to French: I like {}.", "Write a headline about {}.",
         "Write a C program about {}.", "Define {}.", "Write an advertisement for {}.")  # fmt: skip


STOCK, PLAIN = "stock", "plain"
BATCHES = (1, 8, 8, 2, 8, 8, 4, 8, 8, 6, 8, 8)


def parameters(index: int, arm: str, given: argparse.Namespace) -> Any:
    from vllm import SamplingParams

    common: dict[str, Any] = {"max_tokens": given.tokens, "detokenize": False}
    if given.mode == "greedy":
        num = None if arm == PLAIN else 4
        return SamplingParams(temperature=0, ignore_eos=True, logprobs=num, **common)
    features: list[dict[str, Any]] = [
        {"top_p": 0.95},
        {"top_k": 20, "logprobs": 3},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "logprobs": 1},
        {"presence_penalty": 0.5, "top_p": 0.8, "min_tokens": 20},
    ]
    chosen = features[index % len(features)]
    return SamplingParams(temperature=0.8, seed=1000 + index, **common, **chosen)


def engine_arguments(arm: str, given: argparse.Namespace) -> dict[str, Any]:
    """What an arm's name stands for."""
    from adaseek_vllm.flags import with_features

    kind, _, number = arm.partition(":")
    common: dict[str, Any] = {
        "model": given.model,
        "dtype": given.dtype,
        "enforce_eager": True,
        "max_model_len": 1024,
        "max_num_seqs": max(given.batches),
    }
    if kind == STOCK:
        return common
    if kind == "ngram":
        ngram = {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 4}
        return common | {"speculative_config": ngram | {"num_speculative_tokens": int(number)}}
    tree = {"num_nodes": given.nodes, "budget": "full"}
    return with_features(
        token_tree=tree | ({"shape": "chain"} if kind == "chain" else {}), **common
    )


def batches(num_prompts: int, sizes: Sequence[int]) -> Iterator[range]:
    """The prompts of each batch."""
    first = 0
    for size in cycle(sizes):
        if first >= num_prompts:
            return
        yield range(first, min(first + size, num_prompts))
        first += size


def records(path: Path) -> list[dict[str, Any]]:
    """What an arm said so far, one record for each prompt."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [record for line in lines for record in json.loads(line)["answers"]]


def answer(arm: str, path: Path, texts: list[list[int]], given: argparse.Namespace) -> None:
    """Writes an arm's answers to all prompts that have none yet, a line for each batch."""
    deadline_s = time.monotonic() + 60 * given.minutes
    done = {record["index"] for record in records(path)}
    todo = [batch for batch in batches(given.prompts, given.batches) if batch[-1] not in done]
    if not todo:
        return
    import vllm

    llm = vllm.LLM(**engine_arguments(arm, given))
    core: Any = llm.llm_engine.engine_core
    runner = core.engine_core.model_executor.driver_worker.worker.model_runner
    num_steps, execute = [0], runner.execute_model

    def counted(*args: Any, **kwargs: Any) -> Any:
        num_steps[0] += 1
        return execute(*args, **kwargs)

    runner.execute_model = counted
    if arm in ("scripted", "adversarial"):
        from known_drafts import Adversarial, Scripted

        runner.drafter.sources = [(Scripted if arm == "scripted" else Adversarial)(texts)]
        # Guesses that are wrong on purpose would soon be given up.
        runner.drafter._hit_rates.worth = lambda _kind: 1.0
    prompts = [task.format(subject) for task in TASKS for subject in SUBJECTS]
    for batch in todo:
        if time.monotonic() > deadline_s:
            return
        settings = [parameters(at, arm, given) for at in batch]
        chats = [[{"role": "user", "content": prompts[at]}] for at in batch]
        num_steps[0], began_s = 0, time.monotonic()
        outputs = llm.chat(chats, settings, use_tqdm=False)
        line = {
            "steps": num_steps[0],
            "seconds": round(time.monotonic() - began_s, 2),
            "answers": [as_record(at, output) for at, output in zip(batch, outputs, strict=True)],
        }
        with path.open("a") as out:
            out.write(json.dumps(line) + "\n")


def as_record(index: int, output: Any) -> dict[str, Any]:
    (completion,) = output.outputs
    logprobs = completion.logprobs and [
        {str(token): round(one.logprob, 6) for token, one in at.items()}
        for at in completion.logprobs
    ]
    return {
        "index": index,
        "prompt": list(output.prompt_token_ids),
        "tokens": list(completion.token_ids),
        "logprobs": logprobs,
    }


def compared(stock: list[dict[str, Any]], other: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts completions with other tokens, and finds the worst error of a log probability."""
    expected, worst, differing = {one["index"]: one for one in stock}, 0.0, []
    pairs = [(expected[one["index"]], one) for one in other if one["index"] in expected]
    for one, two in pairs:
        if one["tokens"] != two["tokens"]:
            differing.append({"prompt": one["index"], **divergence(one, two)})
        for a, b in zip(one["logprobs"] or (), two["logprobs"] or (), strict=False):
            if a.keys() != b.keys():
                # Behind a divergence the texts have nothing in common.
                break
            worst = max(worst, *(abs(a[token] - b[token]) for token in a))
    return {
        "completions": len(pairs),
        "tokens": sum(len(one["tokens"]) for one, _ in pairs),
        "different": len(differing),
        "logprob_error": round(worst, 6),
        "divergences": differing,
    }


def divergence(stock: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Where two answers part, and by how much each run prefers its own token there."""
    pairs = enumerate(zip(stock["tokens"], other["tokens"], strict=False))
    place = next((at for at, (a, b) in pairs if a != b), None)
    if place is None:
        return {"at": min(len(stock["tokens"]), len(other["tokens"])), "gaps": None}
    tokens = stock["tokens"][place], other["tokens"][place]
    gaps = [gap(stock, place, *tokens), gap(other, place, *tokens[::-1])]
    return {"at": place, "gaps": gaps}


def gap(run: dict[str, Any], place: int, own: int, other: int) -> float | None:
    """How much likelier a run found its own token; None if it did not say."""
    likely = run["logprobs"][place] if run["logprobs"] else {}
    found = likely.get(str(own), math.nan) - likely.get(str(other), math.nan)
    return None if math.isnan(found) else round(found, 4)


def report(folder: Path, given: argparse.Namespace) -> None:
    """Prints what is in the folder."""
    stock = records(file_of(folder, STOCK, given))
    for arm in given.arms:
        path = file_of(folder, arm, given)
        if arm == STOCK or not path.exists():
            continue
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        emitted = sum(
            len(one["tokens"]) / len(line["answers"]) for line in lines for one in line["answers"]
        )
        result = {
            "model": Path(given.model).name,
            "mode": f"{given.mode} {given.dtype}",
            "arm": arm,
            "tokens_per_step_and_request": round(emitted / sum(one["steps"] for one in lines), 2),
            "seconds": round(sum(one["seconds"] for one in lines)),
            **compared(stock, records(path)),
        }
        print("RESULT " + json.dumps(result), flush=True)


def file_of(folder: Path, arm: str, given: argparse.Namespace) -> Path:
    name = f"{Path(given.model).name}.{given.dtype}.{given.mode}.{given.tokens}"
    return folder / f"{name}.{arm.replace(':', '_')}.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--out", type=Path, required=True, help="Folder of the answers.")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument(
        "--batches", type=int, nargs="+", default=BATCHES,
        help="Sizes, in turns. A folder has those of one setting.",
    )  # fmt: skip
    parser.add_argument("--nodes", type=int, default=12)
    parser.add_argument("--mode", default="greedy", choices=["greedy", "seeded"])
    parser.add_argument("--arms", nargs="+", default=[STOCK, "sources", "scripted", "adversarial"])
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--minutes", type=float, default=math.inf, help="Of each arm.")
    parser.add_argument("--report", action="store_true", help="Only print what is there.")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    for arm in () if given.report else given.arms:
        stock = records(file_of(given.out, STOCK, given))
        texts = [[*one["prompt"], *one["tokens"]] for one in stock]
        arguments = (arm, file_of(given.out, arm, given), texts, given)
        # An engine's end gives all its memory back only with its process.
        process = context.Process(target=answer, args=arguments)
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"the arm {arm} failed with {process.exitcode}")
    report(given.out, given)


if __name__ == "__main__":
    main()
