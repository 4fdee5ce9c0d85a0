"""Trains drafts for a tiny target and runs it with them; prints what differs as JSON.

A program of its own, because an engine in its process leaves much behind.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# First: it sets what vLLM reads when it is imported.
from engine_scenarios import GREEDY, Engine, compared, seeded

import torch  # isort: skip
from adaseek_vllm.token_tree.drafts.acceptance import ranks, tokens_per_step
from adaseek_vllm.token_tree.drafts.config import SUCCESSORS_FILE, TargetFacts
from adaseek_vllm.token_tree.drafts.continuations import Job, generate, load, seconds_done
from adaseek_vllm.token_tree.drafts.corpus import Corpus, Document, trimmed
from adaseek_vllm.token_tree.drafts.files import load_draft
from adaseek_vllm.token_tree.drafts.source import DraftModelSource
from adaseek_vllm.token_tree.drafts.target import facts_of, load_tokenizer, output_rows
from adaseek_vllm.token_tree.drafts.train import TrainSettings, draft_directories, train_on
from learnable_target import prompts, save_model
from scripted_drafts import VOCABULARY

SHAPE = {"hidden_size": 64, "num_heads": 4, "intermediate_size": 96, "num_tokens": 150}
NUM_HELD_OUT = 6


def answers(model: str, directory: Path) -> tuple[list[Document], dict[str, Any]]:
    """Generates in two runs; returns the answers and what is to be checked of them."""
    job = Job(model, str(directory), prompts(24, 9, seed=7), max_tokens=40, seconds=600.0)
    generate(Job(model, str(directory), job.prompts[:6], job.max_tokens, job.seconds))
    first = seconds_done(directory)
    generate(job)
    found = list(load(directory))
    rows = output_rows(Path(model), range(VOCABULARY))
    agreed = num = 0
    for one in found:
        if one.temperature == 0:
            said = one.tokens[one.num_prompt_tokens :]
            states = one.hidden[one.num_prompt_tokens - 1 :][: len(said)].float()
            agreed += int(((states @ rows.T).argmax(-1).numpy() == said).sum())
            num += len(said)
    checks = {
        "numbers": [one.number for one in found],
        "agreed": agreed / num,
        "seconds": [first, seconds_done(directory)],
    }
    documents = [
        Document(one.tokens, one.num_prompt_tokens, one.hidden, one.temperature) for one in found
    ]
    return documents, checks


def rate_on_paper(draft: Path, documents: list[Document]) -> float:
    """Tokens per step of a chain of eight guesses about texts that are known already."""
    model = load_draft(draft)
    corpus = Corpus(
        documents,
        ids=trimmed(model.tokens, model.config.target.vocab_size),
        output_rows=model.output_rows,
        window=model.config.window,
        depth=8,
    )
    return tokens_per_step(ranks(model, corpus, range(len(documents))), (1,) * 8)


def rate_in_engine(engine: Engine, documents: list[Document]) -> float:
    """Tokens per step of the same texts, said again one by one."""
    before, num_tokens = engine.num_steps, 0
    for one in documents:
        (output,) = engine.generate([one.tokens[: one.first_answer].tolist()], GREEDY)
        num_tokens += len(output.outputs[0].token_ids)
    return num_tokens / (engine.num_steps - before)


def scenarios(model: Path, work: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    documents, checks = answers(str(model), work / "continuations")
    facts = facts_of(str(model), load_tokenizer(str(model)))
    trained, untrained, foreign = work / "trained", work / "untrained", work / "foreign"
    for directory, known, steps in (
        (trained, facts, 150),
        (untrained, facts, 1),
        (foreign, TargetFacts(facts.vocab_size, facts.hidden_size, "another"), 1),
    ):
        settings = TrainSettings(steps=steps, num_drafts=2, shape=SHAPE, learning_rate=5e-3)
        train_on(
            (documents[NUM_HELD_OUT:], documents[:NUM_HELD_OUT]),
            [],
            model,
            known,
            directory,
            settings,
        )
    table = work / "table"
    table.mkdir()
    (trained / SUCCESSORS_FILE).rename(table / SUCCESSORS_FILE)
    (untrained / SUCCESSORS_FILE).unlink()
    held_out = [one for one in documents[:NUM_HELD_OUT] if one.temperature == 0]
    greedy, chosen = prompts(12, 9, seed=7), [seeded(index) for index in range(14)]
    stock = Engine(str(model))
    expected = stock.generate(greedy, GREEDY), stock.generate(prompts(14, 7, seed=2), chosen)
    stock.close()
    results: dict[str, Any] = {"answers": checks}
    for name, drafts, sources in (
        ("trained", draft_directories(trained, 1), []),
        ("untrained", draft_directories(untrained, 1), []),
        ("successors", [table], []),
        ("merged", [table, *draft_directories(trained, 2)], ["suffix", "recycling"]),
    ):
        engine = Engine(
            str(model),
            token_tree={
                "num_nodes": 14,
                "budget": "full",
                "sources": sources,
                "drafts": list(map(str, drafts)),
            },
        )
        said = engine.generate(greedy, GREEDY)
        results[name] = compared(expected[0], said) | {"steps": engine.num_steps}
        results[name]["rate"] = rate_in_engine(engine, held_out)
        said = engine.generate(prompts(14, 7, seed=2), chosen)
        results[f"{name} seeded"] = compared(expected[1], said)
        engine.generate(prompts(1, 5, seed=0), GREEDY)
        if isinstance(source := engine.runner.drafter.sources[-1], DraftModelSource):
            results[name]["kept"] = source.num_requests
        engine.close()
    results["trained"]["paper"] = rate_on_paper(trained, held_out)
    results["foreign"] = refusal(str(model), foreign)
    return results


def refusal(model: str, draft: Path) -> str:
    try:
        Engine(model, token_tree={"drafts": [str(draft)]})
    except Exception as error:  # vLLM may wrap what a worker raises
        return f"{type(error).__name__}: {error}"
    return ""


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    save_model(directory / "model")
    print("RESULTS " + json.dumps(scenarios(directory / "model", directory)))
