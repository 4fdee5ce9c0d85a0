"""A made-up run that looks like a real one: 60 candidates, three objectives, two layers."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import pytest
from adaseek.events import Event, PhaseStarted, RunEnded, RunStarted, TrialEnded
from adaseek.recipe import Demo, Ensemble, Recipe, Setting, member_id
from adaseek.result import Candidate, Estimate, Spending, TuningResult
from adaseek.workflow import Edge, Field, ModelRef, Note, Signature, Step, Workflow

LARGE = ModelRef("openai/qwen-72b", "http://127.0.0.1:8000/v1")
SMALL = ModelRef("openai/qwen-7b", "http://127.0.0.1:8001/v1")
LAYERS = (
    ("answer:ensemble",),
    ("rewrite:model", "answer:model", "answer:reasoning", "answer:few_shot", "check:model"),
)


def _lm(name: str, instructions: str, inputs: str, output: str, **values: Any) -> Step:
    fields = [Field(i, "input") for i in inputs.split()] + [Field(output, "output")]
    return Step(name, "lm", name, signature=Signature(instructions, tuple(fields)), **values)


@pytest.fixture
def workflow() -> Workflow:
    blocked = {"few_shot": "The step calls tools; its turns cannot be shown as worked examples."}
    steps = [
        _lm("rewrite", "Rewrite the question as a search query.", "question", "query", model=LARGE),
        Step("search", "retriever", "search"),
        _lm(
            "answer",
            "Given the fields `question` and `context`, produce the field `answer`.",
            "question context",
            "answer",
            model=LARGE,
            num_demos=1,
        ),
        _lm(
            "check",
            "Check the answer against the context.",
            "answer context",
            "verdict",
            model=LARGE,
            tools=("calculator",),
            blocked=blocked,
        ),
    ]
    edges = [
        Edge("INPUT", "rewrite", "question", "question", "trace"),
        Edge("INPUT", "answer", "question", "question", "trace"),
        Edge("rewrite", "search", "query", "query", "trace"),
        Edge("search", "answer", "passages", "context", "probe"),
        Edge("search", "check", "passages", "context", "static"),
        Edge("answer", "check", "answer", "answer", "probe"),
        Edge("check", "OUTPUT", "verdict", "verdict", "order"),
    ]
    note = Note("warning", "The search call is not a module; it is seen but not tuned.", "search")
    return Workflow(
        "dspy",
        {step.id: step for step in steps},
        edges=frozenset(edges),
        inputs=("question",),
        outputs=("verdict",),
        name="MultiHopQA",
        notes=(note,),
    )


@pytest.fixture
def make_result(workflow: Workflow) -> Callable[..., TuningResult]:
    def make(**changes: Any) -> TuningResult:
        return replace(scripted_result(workflow), **changes)

    return make


def scripted_result(workflow: Workflow, *, num: int = 60, seed: int = 7) -> TuningResult:
    """Returns a run whose quality rises with demos, reasoning, votes and larger models."""
    rng = random.Random(seed)
    trials = [_trial(rng, number) for number in range(1, num)]
    original = _candidate(workflow, "original", dict.fromkeys(_dimensions(), "original"), rng)
    candidates = [
        original,
        *(_candidate(workflow, f"trial {t['n']}", t["config"], rng) for t in trials),
    ]
    front = _front(candidates)
    candidates = [_validated(c, rng) if c.name in front else c for c in candidates]
    candidates = [replace(c, pareto=c.name in front) for c in candidates]
    candidates[0] = _validated(candidates[0], rng)
    recommended = max(
        (c for c in candidates if c.pareto), key=lambda c: c.validation["quality"].mean
    )
    improvement = {o: _paired(candidates[0], recommended, o) for o in recommended.validation}
    return TuningResult(
        workflow=workflow,
        objectives=("quality", "cost", "latency"),
        original=candidates[0],
        candidates=tuple(candidates),
        recommended=recommended,
        verdict=f"Quality rises by {improvement['quality']}, confirmed on 60 validation examples.",
        spending=Spending(
            budget=1600,
            num_runs=1532,
            num_replayed=212,
            cost_usd=4.1834,
            phases={"search": 1210, "validation": 300, "latency": 22},
            num_calls=4596,
            num_memo_calls=1710,
            seconds=2243.0,
        ),
        improvement=improvement,
        importance={
            "answer:few_shot": 0.41,
            "answer:reasoning": 0.22,
            "answer:ensemble": 0.14,
            "answer:model": 0.12,
            "rewrite:model": 0.07,
            "check:model": 0.04,
        },
        events=tuple(_events(candidates, trials, rng)),
        seed=seed,
        run_dir="runs/qa",
    )


def _dimensions() -> list[str]:
    return [name for layer in LAYERS for name in layer]


def _trial(rng: random.Random, number: int) -> dict[str, Any]:
    arm = rng.choice([1, 2, 2, 3, 3, 3, 4])
    members = {1: "original", 2: "3 votes", 3: "original", 4: "5 votes"}[arm]
    config = {
        "answer:ensemble": members,
        "rewrite:model": rng.choice(["original", "small"]),
        "answer:model": rng.choice(["original", "small"]),
        "answer:reasoning": rng.choice(["original", "chain_of_thought"]),
        "answer:few_shot": rng.choice(["original", "demos-1", "demos-2", "added-0"]),
        "check:model": rng.choice(["original", "small"]),
    }
    return {"n": number, "arm": arm, "config": config}


def _candidate(
    workflow: Workflow, name: str, config: Mapping[str, str], rng: random.Random
) -> Candidate:
    num = 24 if name == "original" else rng.choice([4, 8, 12, 24, 24])
    truth = _truth(config)
    train = {o: _noisy(rng, value, spread, num) for o, (value, spread) in truth.items()}
    recipe = _recipe(config).bind(workflow)
    arm = () if name == "original" else (rng.randint(1, 4),)
    return Candidate(
        name, config, recipe, train, layer_path=arm, num_failed=int(rng.random() < 0.1)
    )


def _truth(config: Mapping[str, str]) -> dict[str, tuple[float, float]]:
    votes = {"original": 1, "3 votes": 3, "5 votes": 5}[config["answer:ensemble"]]
    num_small = sum(config[f"{s}:model"] == "small" for s in ("rewrite", "check"))
    large = config["answer:model"] == "original"
    thinks = config["answer:reasoning"] != "original"
    quality = 0.48 + 0.04 * large + 0.07 * thinks + 0.02 * votes - 0.01 * num_small
    quality += {"original": 0.0, "demos-1": 0.06, "demos-2": 0.08, "added-0": 0.1}[
        config["answer:few_shot"]
    ]
    cost = (0.0009 if large else 0.0001) * votes * (1.4 if thinks else 1) + 0.0008 * (2 - num_small)
    latency = 1.1 + (0.9 if large else 0.3) * (1.5 if thinks else 1) + 0.1 * votes
    return {"quality": (quality, 0.4), "cost": (cost, cost * 0.2), "latency": (latency, 0.4)}


def _noisy(rng: random.Random, value: float, spread: float, num: int) -> Estimate:
    half = 1.96 * spread / num**0.5
    mean = value + rng.gauss(0, half / 3)
    return Estimate(mean, mean - half, mean + half, num)


def _validated(candidate: Candidate, rng: random.Random) -> Candidate:
    truth = _truth(candidate.config).items()
    return replace(
        candidate, validation={o: _noisy(rng, v, spread, 60) for o, (v, spread) in truth}
    )


def _paired(original: Candidate, recommended: Candidate, objective: str) -> Estimate:
    old, new = original.validation[objective], recommended.validation[objective]
    mean, half = new.mean - old.mean, 0.7 * (old.high - old.mean)
    return Estimate(mean, mean - half, mean + half, old.num)


def _front(candidates: list[Candidate]) -> set[str]:
    def point(candidate: Candidate) -> tuple[float, ...]:
        train = candidate.train
        return (-train["quality"].mean, train["cost"].mean, train["latency"].mean)

    def beaten(a: tuple[float, ...]) -> bool:
        return any(b != a and all(x <= y for x, y in zip(b, a, strict=True)) for b in points)

    points = [point(c) for c in candidates if c.train["quality"].num == 24]
    names = {c.name for c in candidates if c.train["quality"].num == 24 and not beaten(point(c))}
    return names - {"original"}


def _recipe(config: Mapping[str, str]) -> Recipe:
    demo = Demo(
        {"question": "Who wrote the opera <Fidelio>?", "context": "…", "answer": "Beethoven"}, "e1"
    )
    settings: dict[str, Setting] = {}
    for step in ("rewrite", "answer", "check"):
        small = config[f"{step}:model"] == "small"
        settings[step] = Setting(model=SMALL if small else None)
    answer = settings["answer"]
    if config["answer:reasoning"] != "original":
        answer = replace(answer, reasoning="chain_of_thought")
    if config["answer:few_shot"] != "original":
        answer = replace(
            answer,
            demos=(demo, replace(demo, source="e2")),
            instructions="Given the fields `question` and `context`, answer in as few words as "
            "possible and produce the field `answer`.",
        )
    if config["answer:ensemble"] != "original":
        answer = replace(answer, ensemble=Ensemble(int(config["answer:ensemble"][0])))
        settings[member_id("answer", 0)] = Setting(params={"temperature": 0.9})
    return Recipe({**settings, "answer": answer})


def _events(
    candidates: list[Candidate], trials: list[dict[str, Any]], rng: random.Random
) -> list[dict[str, Any]]:
    used = 24
    told = [
        _json(RunStarted(1600, LAYERS, (4, 15), ("quality", "cost", "latency"), 24, 60), 0),
        _json(PhaseStarted("search", 1200), 0),
        _json(_ended(0, (), candidates[0], "complete"), used),
    ]
    for trial, candidate in zip(trials, candidates[1:], strict=True):
        num = candidate.train["quality"].num
        used += num
        state = "complete" if num == 24 else rng.choice(["eliminated"] * 6 + ["infeasible"])
        told.append(_json(_ended(trial["n"], (trial["arm"],), candidate, state), used))
    return [
        *told,
        _json(RunEnded("budget", 1532, 4.18, ("The latency was measured alone.",)), 1532),
    ]


def _ended(trial: int, arm: tuple[int, ...], candidate: Candidate, state: Any) -> TrialEnded:
    means = (candidate.train[o].mean for o in ("quality", "cost", "latency"))
    num = candidate.train["quality"].num
    return TrialEnded(trial, 1, arm, dict(candidate.config), *means, num, state)


def _json(event: Event, num_runs: int) -> dict[str, Any]:
    """Returns `event` as a run stores it."""
    body = {"type": type(event).__name__, **asdict(event), "num_runs_so_far": num_runs}
    return json.loads(json.dumps(body))
