"""A whole run on a scripted program: budget, journal, resumption, verdicts, bad input."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from adaseek.errors import (
    AdaseekError,
    BudgetExhaustedError,
    ConfigurationError,
    JournalError,
    MetricError,
    TooManyErrorsError,
    TranslationError,
)
from adaseek.hooks import hookimpl
from adaseek.plugins import load_plugins
from adaseek.program import Program
from adaseek.recipe import Ensemble, Recipe, Setting
from adaseek.result import TuningResult
from adaseek.search.base import Constraint
from adaseek.testing.scripted import ScriptedAdapter, ScriptedOutcome, ScriptedProgram
from adaseek.tuner import Tuner
from adaseek.workflow import Example

PRICES = {"large": {"input": 1.0, "output": 2.0}, "small": {"input": 0.2, "output": 0.4}}
TRAIN = [{"question": f"train {i}", "answer": "yes"} for i in range(24)]
VAL = [{"question": f"val {i}", "answer": "yes"} for i in range(40)]


def uniform(*key: object) -> float:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def helpful(settings, example) -> ScriptedOutcome:
    """Reasoning at `answer` helps much; the small model costs less and is as good."""
    answer = settings.get("answer")
    reasons = answer is not None and answer.reasoning == "chain_of_thought"
    chance = 0.3 + 0.6 * reasons
    texts = sorted((step, str(setting.to_json())) for step, setting in settings.items())
    is_right = uniform(example.id, texts) < chance
    return ScriptedOutcome("yes" if is_right else "no", output_tokens=60 if reasons else 20)


def flat(settings, example) -> ScriptedOutcome:
    """Nothing changes anything but luck: quality, tokens and seconds are noise."""
    texts = sorted((step, str(setting.to_json())) for step, setting in settings.items())
    draw = uniform(example.id, texts)
    luck = uniform(example.id, texts, "cost")
    return ScriptedOutcome(
        "yes" if draw < 0.5 else "no", output_tokens=int(20 + 40 * luck), latency_s=0.5 + luck
    )


class NoExamples(ScriptedAdapter):
    @hookimpl
    def adaseek_example(self, obj, raw):
        return None


def metric(example, output) -> bool:
    return output == "yes"


def tuner(**changes) -> Tuner:
    options = {
        "budget": 400,
        "models": ["large", "small"],
        "prices": PRICES,
        "plugins": [ScriptedAdapter()],
        "verbose": False,
        **changes,
    }
    return Tuner(options.pop("metric", metric), **options)


def run(path: Path, behave: Callable = helpful, **changes) -> tuple[TuningResult, ScriptedProgram]:
    program = ScriptedProgram(behave)
    split = {"trainset": changes.pop("trainset", TRAIN), "valset": changes.pop("valset", VAL)}
    return tuner(run_dir=path, **changes).tune(program, **split), program


def stable(result: TuningResult) -> dict:
    """What two runs of the same seed must agree on: all but where and what was paid this time."""
    body = result.to_json()
    for name in ("run_dir", "spending"):
        del body[name]
    for event in body["events"]:
        if event["type"] == "RunEnded":
            event["cost_usd"] = None
    return body


def test_finds_a_real_gain_and_says_how_large(tmp_path):
    result, program = run(tmp_path)
    assert result.recipe.settings["answer"].reasoning == "chain_of_thought"
    assert result.improvement["quality"].low > 0
    assert result.spending.num_runs == program.num_runs <= 400
    assert sum(result.spending.phases.values()) == result.spending.num_runs
    assert result.spending.cost_usd == pytest.approx(_paid(result), rel=1e-6)


def test_no_claim_of_latency_from_runs_that_were_not_timed_alone(tmp_path):
    def quick_if_small(settings, example):
        model = settings["answer"].model if "answer" in settings else None
        is_small = model is not None and model.id == "small"
        return ScriptedOutcome("yes", latency_s=0.1 if is_small else 1.0)

    untimed, _ = run(tmp_path / "untimed", quick_if_small, budget=40, prices=None)
    assert "latency" not in untimed.spending.phases
    assert "latency" not in untimed.improvement
    timed, _ = run(tmp_path / "timed", quick_if_small, prices=None)
    assert timed.improvement["latency"].high < 0


def _paid(result: TuningResult) -> float:
    # Every phase's runs are in the journal, each with what it cost.
    from adaseek.evaluation.journal import Journal

    with Journal.open(Path(result.run_dir) / "journal.db", identity=None) as journal:
        return sum(e.paid.cost_usd or 0.0 for e in journal.evaluations())


def test_says_that_there_is_no_significant_gain_on_flat_landscapes(tmp_path):
    # An A/A test: whatever is recommended here would be luck. 95 of 100 must be the original.
    verdicts = [
        run(tmp_path / str(seed), flat, seed=seed, budget=200, models=[])[0].recommended.name
        for seed in range(20)
    ]
    assert verdicts.count("original") >= 18


@pytest.mark.parametrize("num_threads", [2, 8])
def test_same_seed_gives_the_same_run_for_any_number_of_threads(tmp_path, num_threads):
    alone, _ = run(tmp_path / "1", num_threads=1, seed=5)
    together, _ = run(tmp_path / "n", num_threads=num_threads, seed=5)
    assert stable(alone) == stable(together)


def test_starting_again_pays_nothing_and_finds_the_same(tmp_path):
    first, _ = run(tmp_path)
    second, program = run(tmp_path)
    assert program.num_runs == 0
    assert second.spending.num_replayed == second.spending.num_runs
    assert stable(first) == stable(second)


def test_run_without_folder_keeps_its_journal(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    result = tuner(budget=120).tune(ScriptedProgram(helpful), trainset=TRAIN, valset=VAL)
    assert Path(result.run_dir).is_relative_to(tmp_path)
    assert TuningResult.load(result.run_dir).to_json() == result.to_json()
    written = (Path(result.run_dir) / "result.json").read_text(encoding="utf-8")
    assert written == json.dumps(result.to_json(), ensure_ascii=False)
    assert Recipe.load(result.run_dir).fingerprint == result.recipe.fingerprint


def test_an_end_in_the_middle_gives_the_best_so_far(tmp_path):
    result, _ = run(tmp_path, max_cost_usd=0.02)
    assert result.ended.startswith("BudgetExhausted")
    assert result.spending.num_runs < 400
    assert result.spending.cost_usd < 0.025
    again, _ = run(tmp_path, max_cost_usd=0.02)
    assert again.spending.cost_usd < 0.025


def test_endpoint_down_half_way_keeps_everything_paid_for(tmp_path):
    calls = 0

    def fragile(settings, example):
        nonlocal calls
        calls += 1
        if 150 <= calls < 400:
            return ScriptedOutcome(error="connection refused", error_kind="endpoint")
        return helpful(settings, example)

    from adaseek.evaluation import retry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retry.Retry, "pause_s", lambda *a, **k: 0.0)
        broken, _ = run(tmp_path, fragile, num_threads=1)
    assert broken.ended.startswith("Endpoint")
    calls = 1000
    resumed, program = run(tmp_path, fragile, num_threads=1)
    whole, _ = run(tmp_path / "whole")
    assert stable(resumed) == stable(whole)
    assert program.num_runs + broken.spending.num_runs <= whole.spending.num_runs + 8


def test_runs_that_share_a_memo_share_its_flights(tmp_path):
    contexts = []

    class Spied(ScriptedProgram):
        def run(self, recipe, example, context):
            contexts.append(context)
            return super().run(recipe, example, context)

    program = Spied(helpful)
    tuner(run_dir=tmp_path, budget=100).tune(program, trainset=TRAIN, valset=VAL)
    with_memo = [context for context in contexts if context.memo is not None]
    assert len(with_memo) > 50
    assert len({id(context.flights) for context in with_memo}) == 1
    assert all(context.flights is not None for context in contexts)


def test_validation_examples_are_never_used_in_the_search(tmp_path):
    seen: dict[str, list[str]] = {"search": [], "validation": []}
    phase = ["search"]

    def listen(event) -> None:
        if type(event).__name__ == "PhaseStarted":
            phase[0] = "search" if event.phase == "search" else "validation"

    def spying(settings, example):
        seen[phase[0]].append(example.inputs["question"])
        return helpful(settings, example)

    run(tmp_path, spying, listeners=[listen])
    assert all(question.startswith("train") for question in seen["search"])
    assert all(question.startswith("val") for question in seen["validation"])


def test_demos_never_contain_the_example_being_scored(tmp_path):
    leaks = []

    def watching(settings, example):
        for setting in settings.values():
            leaks.extend(d for d in setting.demos or () if d.source == example.id)
        return helpful(settings, example)

    result, _ = run(tmp_path, watching, budget=600)
    tried = [c for c in result.candidates if any(s.demos for s in c.recipe.settings.values())]
    assert tried
    assert not leaks


def test_constraints_hold_for_what_is_recommended(tmp_path):
    bound = (Constraint("quality", 1.0, relative=True), Constraint("cost", 1.0, relative=True))
    result, _ = run(tmp_path, constraints=bound, budget=600)
    cost = result.original.train["cost"].mean
    assert all(c.train["cost"].mean <= cost + 1e-12 for c in result.pareto())


def test_duplicate_examples_count_once(tmp_path):
    result, program = run(tmp_path, trainset=TRAIN + TRAIN, budget=200)
    assert result.spending.num_runs == program.num_runs
    assert next(e for e in result.events if e["type"] == "RunStarted")["num_train"] == len(TRAIN)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"trainset": []}, ConfigurationError, "`trainset` is '0 distinct example"),
        ({"trainset": TRAIN[:1]}, ConfigurationError, "`trainset` is '1 distinct example"),
        ({"trainset": TRAIN[:3], "valset": None}, ConfigurationError, "when there is no valset"),
        ({"valset": TRAIN}, ConfigurationError, "not in trainset"),
        ({"objectives": ["speed"]}, ConfigurationError, "'quality', 'cost', 'latency'"),
        ({"objectives": []}, ConfigurationError, "`objectives` is"),
        ({"budget": 5}, ConfigurationError, "`budget` is 5, but must be at least 36"),
        ({"budget": 0}, ConfigurationError, "`budget` is 0"),
        ({"auto": "light"}, ConfigurationError, "cannot be given together"),
        ({"budget": None, "auto": "huge"}, ConfigurationError, "'light', 'medium', 'heavy'"),
        ({"prices": None, "objectives": ["cost"]}, ConfigurationError, "no price is known for"),
        ({"prices": None, "max_cost_usd": 1.0}, ConfigurationError, "no price is known for"),
        ({"prices": {"large": {"input": -1}}}, ConfigurationError, "large"),
        ({"num_threads": 0}, ConfigurationError, "`num_threads` is 0"),
        ({"cogs": []}, ConfigurationError, "leave nothing to tune"),
        ({"metric": "accuracy"}, ConfigurationError, "`metric` is 'accuracy'"),
        ({"run_dir": "/proc/nowhere"}, ConfigurationError, "`run_dir` is '/proc/nowhere'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_spent(tmp_path, changes, error, match):
    program = ScriptedProgram(helpful)
    split = {"trainset": changes.pop("trainset", TRAIN), "valset": changes.pop("valset", VAL)}
    with pytest.raises(error, match=match):
        tuner(**{"run_dir": tmp_path, **changes}).tune(program, **split)
    assert program.num_runs == 0


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (lambda example, output: "good", "good"),
        (lambda example, output: float("nan"), "nan"),
        (lambda example, output: 1 / 0, "ZeroDivisionError"),
        (lambda example, output: None, "None"),
    ],
)
def test_a_broken_metric_costs_one_run(tmp_path, bad, match):
    program = ScriptedProgram(helpful)
    with pytest.raises(MetricError, match=match):
        tuner(metric=bad, run_dir=tmp_path).tune(program, trainset=TRAIN, valset=VAL)
    assert program.num_runs == 1


@pytest.mark.parametrize("num_train", [24, 5])  # 5 are fewer than the errors that are accepted
def test_a_program_that_always_raises_stops_the_run(tmp_path, num_train):
    def broken(settings, example):
        return ScriptedOutcome(error="KeyError: 'x'", error_kind="program")

    with pytest.raises(TooManyErrorsError, match="KeyError: 'x'"):
        run(tmp_path, broken, trainset=TRAIN[:num_train])


def test_unusable_answers_lower_the_score_and_do_not_stop_the_run(tmp_path):
    def sloppy(settings, example):
        if uniform(example.id) < 0.5 and "answer" not in settings:
            return ScriptedOutcome(error="cannot parse", error_kind="model")
        return helpful(settings, example)

    result, _ = run(tmp_path, sloppy)
    assert result.original.num_failed > 0
    assert result.original.train["quality"].mean < 0.5


def test_examples_that_were_read_from_a_file_become_the_frameworks_own(tmp_path):
    def rows(split):
        return [
            Example(e["question"], {"question": e["question"]}, {"answer": "yes"}) for e in split
        ]

    def strict(example, output):
        return example["answer"] == output

    result, _ = run(tmp_path / "a", metric=strict, trainset=rows(TRAIN), valset=rows(VAL))
    same, _ = run(tmp_path / "b", metric=strict)
    assert result.recipe == same.recipe


def test_examples_of_a_framework_without_any_are_taken_as_they_are():
    bound = Program(ScriptedProgram(helpful), load_plugins([NoExamples()]))
    example = Example("id", {"question": "?"})
    assert bound.examples("data", [example, example]) == [example]


def test_unknown_objects_and_programs_without_steps_are_refused(tmp_path):
    with pytest.raises(TranslationError, match=r"builtins\.object"):
        tuner(run_dir=tmp_path).tune(object(), trainset=TRAIN, valset=VAL)
    with pytest.raises(TranslationError, match="no language-model step"):
        tuner(run_dir=tmp_path).tune(ScriptedProgram(helpful, steps=()), trainset=TRAIN, valset=VAL)


def test_run_dir_of_another_program_is_refused(tmp_path):
    run(tmp_path, budget=100)
    other = ScriptedProgram(helpful, steps=("draft", "check", "answer"))
    with pytest.raises(JournalError, match="workflow"):
        tuner(run_dir=tmp_path).tune(other, trainset=TRAIN, valset=VAL)
    assert other.num_runs == 0


def test_run_dir_of_another_metric_is_refused(tmp_path):
    run(tmp_path, budget=100)
    with pytest.raises(JournalError, match="metric"):
        run(tmp_path, metric=lambda example, output: output == "no")


def test_run_dir_of_another_reward_is_refused(tmp_path):
    run(tmp_path, budget=100, rewards={"short": len})
    with pytest.raises(JournalError, match="rewards"):
        run(tmp_path, budget=100, rewards={"short": lambda inputs, output: -len(output)})


def test_two_tuners_in_one_process_do_not_see_each_other(tmp_path):
    first, _ = run(tmp_path / "a", seed=1)
    run(tmp_path / "b", flat, seed=2, budget=100)
    again, _ = run(tmp_path / "c", seed=1)
    assert stable(first) == stable(again)


def test_evaluate_compares_a_recipe_with_the_original_on_held_out_examples(tmp_path):
    result, _ = run(tmp_path)
    test = [{"question": f"test {i}", "answer": "yes"} for i in range(60)]
    held = tuner().evaluate(ScriptedProgram(helpful), result.recipe, test)
    assert held.difference["quality"].low > 0
    assert held.tuned["quality"].num == 60


def test_evaluate_refuses_a_recipe_whose_reward_is_missing_before_any_run():
    program = ScriptedProgram(helpful)
    recipe = Recipe({"answer": Setting(ensemble=Ensemble(3, "best_of", reward="short"))})
    with pytest.raises(ConfigurationError, match="'short' rates highest"):
        tuner().evaluate(program, recipe, VAL)
    assert program.num_runs == 0
    held = tuner(rewards={"short": len}).evaluate(program, recipe, VAL)
    assert held.tuned["quality"].num == len(VAL)


SCRIPT = """
    import sys
    sys.path.insert(0, {folder!r})
    import test_tuner as t
    from pathlib import Path
    import time

    folder = Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    done = (folder / "done").open("ab", buffering=0)

    def slow(settings, example):
        time.sleep(0.002)
        outcome = t.helpful(settings, example)
        done.write(b".")
        return outcome

    result, program = t.run(folder, slow, seed=3, budget=300)
    print(result.recipe.fingerprint, program.num_runs)
"""


def start(path: Path) -> subprocess.Popen:
    code = textwrap.dedent(SCRIPT.format(folder=str(Path(__file__).parent)))
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def num_done(path: Path) -> int:
    """Returns how many runs the processes in `path` have made so far, paid twice or not."""
    file = path / "done"
    return file.stat().st_size if file.exists() else 0


NUM_KILLS = int(os.environ.get("ADASEEK_TEST_KILLS", "6"))


def test_killed_at_random_points_and_resumed_gives_the_uninterrupted_result(tmp_path):
    whole = start(tmp_path / "whole")
    output, error = whole.communicate(timeout=120)
    assert whole.returncode == 0, error
    fingerprint, total = output.split()
    killed = tmp_path / "killed"
    rng = random.Random(0)
    for kill in range(NUM_KILLS):
        process = start(killed)
        target = int(total) * (kill + rng.random()) / (NUM_KILLS + 1)
        while process.poll() is None and num_done(killed) < target:
            time.sleep(0.002)
        process.kill()
        process.communicate()
    last = start(killed)
    output, error = last.communicate(timeout=120)
    assert last.returncode == 0, error
    assert output.split()[0] == fingerprint
    assert stable(TuningResult.load(killed)) == stable(TuningResult.load(tmp_path / "whole"))
    # At most the eight runs in flight at each kill were paid again.
    assert int(total) <= num_done(killed) <= int(total) + 8 * NUM_KILLS


def test_terminated_run_ends_cleanly_with_the_best_so_far(tmp_path):
    process = start(tmp_path)
    while num_done(tmp_path) < 150:
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    result = TuningResult.load(tmp_path)
    assert result.ended.startswith("RunInterrupted")
    assert result.spending.num_runs < 300


def test_cap_overshoot_is_at_most_what_was_in_flight(tmp_path):
    for seed in range(3):
        result, _ = run(tmp_path / str(seed), max_cost_usd=0.02, num_threads=4, seed=seed)
        most = 200 * 2e-6 * 3 + 100e-6
        assert result.spending.cost_usd <= 0.02 + 4 * most


def test_errors_are_all_of_one_family():
    for error in (ConfigurationError, JournalError, MetricError, BudgetExhaustedError):
        assert issubclass(error, AdaseekError)
