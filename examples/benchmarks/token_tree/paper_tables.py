"""The paper's tables 1 to 3 on a pair of real models: what a tree of the draft's guesses gains.

    python paper_tables.py TARGET DRAFT --out tables [--texts 24] [--roots 8]

The target answers prompts, half greedily and half at temperature 1. At random places of its answers
the draft makes trees <1, 1, 5, 1, 1, 1, 1, 1>: of its likeliest tokens, or of tokens drawn from its
law. The target's laws at all nodes decide what each rule keeps; a tree of width w is the one of
width 5 less its last siblings. The rules are the library's own (`adaseek_vllm.token_tree`), each
run several times on the same tree. Nothing is timed. A killed run goes on where it was.

Source: SpecInfer (arXiv 2305.09781), tables 1, 2 and 3. The paper walks through texts step by step;
here places are drawn, so that they need not be computed one after another.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import os
import random
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import numpy as np
import torch
from adaseek_vllm.token_tree import (
    ROOT,
    Law,
    RandomChance,
    TokenTree,
    Trial,
    Verified,
    draw_with_replacement,
    draw_without_replacement,
    greedy_walk,
    multi_step,
    sampled_walk,
    traversal,
)
from exactness import SUBJECTS, TASKS
from transformers import AutoModelForCausalLM, DynamicCache

DEPTH, WIDE_LEVEL, WIDTH = 8, 2, 5
WIDTHS = range(1, WIDTH + 1)
NUM_WALKS = 8
"""Of each rule on each tree."""

Pick = Callable[[Law, int], list[Trial]]
"""(the draft's law, how many) -> the children to try."""


class Reader:
    """A model that gives its laws after branches of a text."""

    def __init__(self, path: str) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        self._cache: Any = None

    @torch.inference_mode()
    def read(self, tokens: Sequence[int]) -> None:
        """Takes in a text; places are asked about from its end on."""
        self._cache = DynamicCache()
        self._model(torch.tensor([list(tokens)]), past_key_values=self._cache, logits_to_keep=1)

    def at(self, place: int, num_branches: int) -> Any:
        """Returns a copy of the cache before a place, for several branches."""
        # What is negative is a number of tokens to forget.
        self._cache.crop(place - self._cache.get_seq_length())
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(num_branches)
        return cache

    @torch.inference_mode()
    def laws(self, branches: list[list[int]], cache: Any) -> list[list[Law]]:
        """Returns the laws after each token of each branch; `cache` has them from then on."""
        logits = self._model(torch.tensor(branches), past_key_values=cache).logits
        laws: list[list[Law]] = [
            list(of_branch) for of_branch in logits.double().softmax(-1).numpy()
        ]
        return laws


def grown(draft: Reader, place: int, root: int, pick: Pick) -> tuple[TokenTree, Law]:
    """Returns the draft's tree below a root, and its law there."""
    tree, cache, leaves = TokenTree(), draft.at(place, 1), [ROOT]
    laws = [of_branch[-1] for of_branch in draft.laws([[root]], cache)]
    first = laws[0]
    for level in range(DEPTH):
        below = list[int]()
        for leaf, law in zip(leaves, laws, strict=True):
            trials = pick(law, WIDTH if level == WIDE_LEVEL else 1)
            below += [tree.propose(leaf, trial) for trial in trials]
        # Equal draws share a node.
        leaves = list(dict.fromkeys(below))
        if level == DEPTH - 1:
            break
        if level == WIDE_LEVEL:
            cache.batch_repeat_interleave(len(leaves))
        laws = [of[-1] for of in draft.laws([[tree.tokens[leaf]] for leaf in leaves], cache)]
    return tree, first


def target_laws(target: Reader, place: int, root: int, tree: TokenTree) -> list[Law]:
    """Returns the target's law after each row of a tree."""
    leaves = [node for node in range(len(tree)) if tree.depth(node) == DEPTH]
    paths = [tree.path(leaf) for leaf in leaves]
    found = target.laws([[root, *path] for path in paths], target.at(place, len(paths)))
    by_path: dict[tuple[int, ...], Law] = {}
    for path, laws in zip(paths, found, strict=True):
        for depth, law in enumerate(laws):
            by_path.setdefault(path[:depth], law)
    return [by_path[()], *(by_path[path] for path in tree.paths())]


def narrowed(tree: TokenTree, width: int) -> tuple[TokenTree, list[int]]:
    """Returns the tree with the first `width` trials of its wide level, and its rows in `tree`."""
    kept, new, rows = TokenTree(), {ROOT: ROOT}, [0]
    for parent in (ROOT, *range(len(tree))):
        if parent not in new:
            continue
        for trial in tree.trials(parent)[: width if tree.depth(parent) == WIDE_LEVEL else None]:
            child = tree.child(parent, trial.token)
            assert child is not None
            if child not in new:
                rows.append(child + 1)
            new[child] = kept.propose(new[parent], trial)
    return kept, rows


def tokens_kept(tree: TokenTree, laws: Sequence[Law], rule: str, rng: np.random.Generator) -> float:
    """Returns how many tokens a rule emits, the bonus token included; of several walks the mean."""
    chance, drafted = RandomChance(rng), tree.to_tokens()
    walk: Callable[[], Verified] = {
        "greedy": lambda: greedy_walk(drafted, [int(law.argmax()) for law in laws]),
        "naive": lambda: sampled_walk(drafted, lambda row: chance.draw(laws[row])),
        "multi-step": lambda: multi_step(tree, lambda row: laws[row], chance),
        "traversal": lambda: traversal(tree, lambda row: laws[row], chance),
    }[rule]
    num_walks = 1 if rule == "greedy" else NUM_WALKS
    return statistics.mean(len(walk().tokens) for _ in range(num_walks))


def likeliest(law: Law, num: int) -> list[Trial]:
    return [Trial(int(token)) for token in np.argsort(-law)[:num]]


def measured(
    target: Reader, draft: Reader, text: dict[str, Any], place: int, seed: int
) -> list[dict[str, Any]]:
    """Returns what all trees and rules do at a place of a text."""
    rng, root = np.random.default_rng(seed), text["tokens"][place]
    chance = RandomChance(rng)
    picks: dict[str, tuple[Pick, tuple[str, ...]]] = {
        "likeliest": (likeliest, ("naive",)),
        "drawn": (
            lambda law, num: draw_with_replacement(law, num, chance, source="draft"),
            ("naive", "multi-step"),
        ),
        "drawn without replacement": (
            lambda law, num: draw_without_replacement(law, num, chance, source="draft"),
            ("naive", "multi-step", "traversal"),
        ),
    }
    if text["is_greedy"]:
        picks = {"likeliest": (likeliest, ("greedy",))}
    found = []
    for kind, (pick, rules) in picks.items():
        tree, first = grown(draft, place, root, pick)
        laws = target_laws(target, place, root, tree)
        record: dict[str, Any] = {"text": text["index"], "place": place, "tree": kind}
        if kind == "likeliest":
            # Table 1: how often the target's choice is among the draft's likeliest ones.
            order = np.argsort(-first)[:WIDTH]
            hits = order == laws[0].argmax() if text["is_greedy"] else laws[0][order]
            record["hits"] = np.cumsum(hits, dtype=float).tolist()
        for rule in rules:
            for width in WIDTHS:
                tried, rows = narrowed(tree, width)
                kept = tokens_kept(tried, [laws[row] for row in rows], rule, rng)
                record.setdefault(rule, []).append(kept)
        found.append(record)
    return found


def answer(model: str, num_texts: int, path: Path) -> None:
    """Writes the target's answers to prompts, every second one greedy."""
    import vllm

    llm = vllm.LLM(model=model, enforce_eager=True, max_model_len=512, max_num_seqs=16)
    prompts = [task.format(subject) for task in TASKS for subject in SUBJECTS]
    random.Random(0).shuffle(prompts)
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts[:num_texts]]
    settings = [
        vllm.SamplingParams(temperature=index % 2, seed=index, max_tokens=160)
        for index in range(num_texts)
    ]
    lines = [
        {
            "index": index,
            "is_greedy": index % 2 == 0,
            "num_prompt": len(output.prompt_token_ids),
            "tokens": [*output.prompt_token_ids, *output.outputs[0].token_ids],
        }
        for index, output in enumerate(llm.chat(chats, settings, use_tqdm=False))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def with_error(by_text: dict[int, list[float]]) -> str:
    """The mean over texts, and its standard error."""
    means = [statistics.mean(values) for values in by_text.values()]
    error = statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else float("nan")
    return f"{statistics.mean(means):.2f} ± {error:.2f}"


def report(records: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Lines of one table: rows are the paper's, columns the widths."""
    rows: dict[str, list[dict[int, list[float]]]] = defaultdict(
        lambda: [defaultdict(list) for _ in WIDTHS]
    )
    for record in records:
        mode = "greedy" if "greedy" in record else "temperature 1"
        for name, values in record.items():
            if not isinstance(values, list):
                continue
            label = (
                f"{mode}: target's token among the likeliest w"
                if name == "hits"
                else f"{mode}: tokens a step, {record['tree']}, {name}"
            )
            for cell, value in zip(rows[label], values, strict=True):
                cell[record["text"]].append(value)
    yield "| | " + " | ".join(f"w = {width}" for width in WIDTHS) + " |"
    yield "|---" * (len(WIDTHS) + 1) + "|"
    for label, cells in rows.items():
        yield f"| {label} | " + " | ".join(map(with_error, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target")
    parser.add_argument("draft", help="A model with the target's tokens.")
    parser.add_argument("--out", type=Path, required=True, help="Folder of one pair's results.")
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--roots", type=int, default=8, help="Places in each text.")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    texts, results = given.out / "texts.jsonl", given.out / "results.jsonl"
    if not texts.exists():
        # An engine's end gives all its memory back only with its process.
        arguments = (given.target, given.texts, texts)
        process = multiprocessing.get_context("spawn").Process(target=answer, args=arguments)
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"the target's answers failed with {process.exitcode}")
    done = {record["text"] for record in lines_of(results)}
    target, draft = Reader(given.target), Reader(given.draft)
    for text in lines_of(texts):
        first, last = text["num_prompt"], len(text["tokens"]) - 1
        if text["index"] in done or last - first < given.roots:
            continue
        places = sorted(random.Random(text["index"]).sample(range(first, last), given.roots))
        for model in (target, draft):
            model.read(text["tokens"])
        records = [
            record
            for place in reversed(places)
            for record in measured(target, draft, text, place, 1000 * text["index"] + place)
        ]
        with results.open("a") as out:
            out.writelines(json.dumps(record) + "\n" for record in records)
    print("\n".join(report(lines_of(results))))


if __name__ == "__main__":
    main()
