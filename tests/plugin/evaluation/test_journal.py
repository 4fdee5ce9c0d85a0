from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from adaseek.cogs.base import Completion
from adaseek.errors import JournalError
from adaseek.evaluation.base import CallRecord, Evaluation, Task
from adaseek.evaluation.journal import Journal
from adaseek.recipe import Recipe
from adaseek.workflow import Call, Example, ModelRef, Score, Usage
from hypothesis import given, settings
from hypothesis import strategies as st

IDENTITY = {"workflow": "f00d", "seed": 0, "data": ["a", "b"]}
PAID = Usage(input_tokens=3, output_tokens=5, cached_tokens=1, requests=1, cost_usd=0.25)


def outcome(task: Task, **values: object) -> Evaluation:
    body = {"score": Score(0.5, "nearly"), "usage": PAID, "paid": PAID, "latency_s": 1.5, **values}
    return Evaluation(task_key=task.key, **body)  # type: ignore[arg-type]


def test_recorded_outcome_is_found_unchanged_after_reopening(
    tmp_path: Path, task: Callable[..., Task]
) -> None:
    call = Call(
        "c",
        "answer",
        parent="p",
        start_s=0.1,
        end_s=0.3,
        duration_s=0.2,
        inputs={"q": "why", "n": 3},
        outputs={"a": ["x", {"y": None}]},
        model=ModelRef("m", "http://127.0.0.1/v1"),
        usage=PAID,
        cached=True,
    )
    evaluation = outcome(task(1), calls=(call,))
    with Journal.open(tmp_path / "j.db", identity=IDENTITY) as journal:
        recorded = journal.record(evaluation, task(1))
    assert recorded == evaluation
    with Journal.open(tmp_path / "j.db", identity=IDENTITY) as journal:
        found = journal.find(task(1).key)
        assert found is not None
        assert found.replayed
        assert found.calls == (call,)
        assert found.score == Score(0.5, "nearly")
        assert (found.usage, found.paid, found.latency_s) == (PAID, PAID, 1.5)
        assert journal.find(task(2).key) is None
        assert journal.recipe(task(1).recipe.fingerprint) == task(1).recipe


def test_failed_outcome_keeps_its_error_and_has_no_score(
    journal: Journal, task: Callable[..., Task]
) -> None:
    failed = outcome(task(1), score=None, error="bad \x00 \ud800 text", error_kind="model")
    journal.record(failed, task(1))
    found = journal.find(task(1).key)
    assert found is not None
    assert found.score is None
    assert found.error_kind == "model"
    assert found.error == "bad \N{REPLACEMENT CHARACTER} ? text"


def test_values_that_are_not_json_become_bounded_text(
    journal: Journal, task: Callable[..., Task]
) -> None:
    class Odd:
        def __repr__(self) -> str:
            raise ValueError("no")

    values = {
        "object": Exception("x"),
        "odd": Odd(),
        "nan": float("nan"),
        "tuple": (1, 2),
        "long": "x" * 50_000,
        "huge": ["word"] * 100_000,
        "deep": json.loads("[" * 50 + "]" * 50),
    }
    evaluation = outcome(task(1), calls=(Call("c", "answer", outputs=values),))
    recorded = journal.record(evaluation, task(1))
    outputs = recorded.calls[0].outputs
    assert outputs["object"] == "Exception('x')"
    assert outputs["odd"] == "<Odd: repr raised ValueError>"
    assert outputs["nan"] == "nan"
    assert outputs["tuple"] == [1, 2]
    assert outputs["long"].endswith("(30000 more characters)")
    assert len(outputs["huge"]) < 2_100
    found = journal.find(task(1).key)
    assert found is not None
    assert found.calls == recorded.calls


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=json_values, text=st.text(), score=st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=60, deadline=None)
def test_what_record_returns_is_what_find_returns(value: object, text: str, score: float) -> None:
    task = Task(Recipe(), Example("e", {}))
    call = Call("c", "s", inputs={"v": value}, error=text)
    evaluation = outcome(task, calls=(call,), score=Score(score, text))
    with Journal.open("sqlite://", identity={}) as journal:
        recorded = journal.record(evaluation, task)
        found = journal.find(task.key)
    assert found is not None
    assert (found.calls, found.score) == (recorded.calls, recorded.score)


def test_a_task_cannot_be_recorded_twice(journal: Journal, task: Callable[..., Task]) -> None:
    journal.record(outcome(task(1)), task(1))
    with pytest.raises(JournalError, match="UNIQUE"):
        journal.record(outcome(task(1)), task(1))
    assert journal.count() == 1


def test_outcomes_come_back_in_sequence_over_pages(
    journal: Journal, task: Callable[..., Task]
) -> None:
    order = [(i * 7) % 1201 for i in range(1201)]
    for place in order:
        journal.record(outcome(task(place)), task(place), sequence=place)
    assert [e.task_key for e in journal.evaluations()] == [task(i).key for i in range(1201)]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({**IDENTITY, "seed": 1}, "seed: 0 in the journal, 1 now"),
        ({**IDENTITY, "extra": 1}, "extra: absent in the journal, 1 now"),
        ({"seed": 0, "data": ["a", "b"]}, 'workflow: "f00d" in the journal, absent now'),
    ],
)
def test_journal_of_another_identity_is_refused_naming_each_difference(
    tmp_path: Path, changed: dict[str, object], named: str
) -> None:
    path = tmp_path / "j.db"
    Journal.open(path, identity=IDENTITY).close()
    with pytest.raises(JournalError) as caught:
        Journal.open(path, identity=changed)
    assert named in str(caught.value)
    assert "run_dir" in str(caught.value)
    assert "data" not in str(caught.value)
    Journal.open(path, identity=IDENTITY).close()


def test_any_identity_opens_what_exists_and_makes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    with pytest.raises(JournalError, match="holds no run"):
        Journal.open(path, identity=None)
    Journal.open(path, identity=IDENTITY).close()
    with Journal.open(path, identity=None) as journal:
        assert journal.identity == IDENTITY


def test_runs_in_one_database_do_not_see_each_other(
    tmp_path: Path, task: Callable[..., Task]
) -> None:
    path = tmp_path / "j.db"
    with Journal.open(path, identity={"seed": 1}, run_id="a") as journal:
        journal.record(outcome(task(1)), task(1))
    with Journal.open(path, identity={"seed": 2}, run_id="b") as journal:
        assert journal.find(task(1).key) is None
        assert journal.count() == 0
        assert journal.paid() == Usage()
        journal.record(outcome(task(1)), task(1))


def test_journal_of_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    Journal.open(path, identity=IDENTITY).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE adaseek_runs SET schema_version = 99")
    connection.close()
    with pytest.raises(JournalError, match="schema 99"):
        Journal.open(path, identity=IDENTITY)


def test_damaged_file_is_refused_with_a_cure(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(JournalError, match="delete it to start anew"):
        Journal.open(path, identity=IDENTITY)


def test_file_damaged_later_gives_a_journal_error(
    tmp_path: Path, task: Callable[..., Task]
) -> None:
    path = tmp_path / "j.db"
    with Journal.open(path, identity=IDENTITY) as journal:
        for i in range(200):
            journal.record(outcome(task(i)), task(i))
    body = bytearray(path.read_bytes())
    body[8192:] = b"\xff" * (len(body) - 8192)
    path.write_bytes(bytes(body))
    with pytest.raises(JournalError), Journal.open(path, identity=IDENTITY) as journal:
        for i in range(200):
            journal.find(task(i).key)


def test_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE studies (id INTEGER)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(JournalError, match=r"another program.*studies"):
        Journal.open(path, identity=IDENTITY)
    assert path.read_bytes() == before


def test_other_databases_and_bad_urls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"'sqlite' or 'postgresql'|driver"):
        Journal.open("mysql://user@host/name", identity=IDENTITY)
    with pytest.raises(JournalError, match="cannot be read"):
        Journal.open("://", identity=IDENTITY)
    with pytest.raises(JournalError, match="cannot be read or written"):
        Journal.open(tmp_path, identity=IDENTITY)
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="cannot be made"):
        Journal.open(tmp_path / "file" / "journal.db", identity=IDENTITY)


def test_second_opening_is_refused_until_the_first_closes(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    with Journal.open(path, identity=IDENTITY):
        with pytest.raises(JournalError, match=f"open already.*process {os.getpid()}"):
            Journal.open(path, identity=IDENTITY)
        code = (
            "import sys; from adaseek.evaluation.journal import Journal\n"
            f"Journal.open(sys.argv[1], identity={IDENTITY!r})"
        )
        child = subprocess.run(
            [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False
        )
        assert "two writers would pay" in child.stderr
    Journal.open(path, identity=IDENTITY).close()


def test_a_refused_opening_frees_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    Journal.open(path, identity=IDENTITY).close()
    for _ in range(3):
        with pytest.raises(JournalError, match="holds another run"):
            Journal.open(path, identity={"seed": 9})
    Journal.open(path, identity=IDENTITY).close()


def test_memo_answers_from_all_threads_and_keeps_the_first_answer(journal: Journal) -> None:
    def put(number: int) -> None:
        for key in range(20):
            journal.put(f"{key}", CallRecord({"by": number}, PAID, 1.0, ModelRef("m")))
            record = journal.get(f"{key}")
            assert record is not None
            seen.setdefault(key, set()).add(record.outputs["by"])

    seen: dict[int, set[int]] = {}
    threads = [threading.Thread(target=put, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key: len(by) for key, by in seen.items()} == dict.fromkeys(range(20), 1)
    assert journal.get("none") is None


def test_memo_refuses_what_json_cannot_hold(journal: Journal) -> None:
    record = CallRecord(object(), PAID, 1.0, ModelRef("m", "http://127.0.0.1"))
    with pytest.raises(JournalError, match=r"m@http://127\.0\.0\.1.*JSON"):
        journal.put("k", record)


def test_completion_is_made_once_and_survives_reopening(tmp_path: Path) -> None:
    made: list[str] = []

    def make() -> Completion:
        made.append("x")
        return Completion("proposal \x00 é", PAID)

    for _ in range(2):
        with Journal.open(tmp_path / "j.db", identity=IDENTITY) as journal:
            assert journal.complete("k", make) == Completion("proposal \x00 é", PAID)
    assert made == ["x"]


def test_paid_adds_outcomes_lost_runs_and_proposals(
    journal: Journal, task: Callable[..., Task]
) -> None:
    journal.record(outcome(task(1)), task(1))
    journal.expense("t", PAID)
    journal.expense("free", Usage())
    journal.complete("k", lambda: Completion("text", PAID))
    assert journal.paid() == PAID + PAID + PAID
    journal.expense("t", Usage(requests=1, cost_usd=None))
    assert journal.paid().cost_usd is None


def test_forgotten_failures_are_gone_but_their_cost_is_not(
    journal: Journal, task: Callable[..., Task]
) -> None:
    journal.record(outcome(task(1), score=None, error="x", error_kind="program"), task(1))
    journal.record(outcome(task(2), score=None, error="x", error_kind="model"), task(2))
    assert journal.forget("program") == 1
    assert journal.find(task(1).key) is None
    assert journal.find(task(2).key) is not None
    assert journal.paid() == PAID + PAID
    journal.record(outcome(task(1)), task(1))


def test_a_reader_sees_committed_outcomes_while_the_run_goes_on(
    tmp_path: Path, task: Callable[..., Task]
) -> None:
    path = tmp_path / "j.db"
    with Journal.open(path, identity=IDENTITY) as journal:
        journal.record(outcome(task(1)), task(1))
        reader = sqlite3.connect(path)
        assert reader.execute("SELECT score FROM adaseek_evaluations").fetchall() == [(0.5,)]
        reader.close()


@pytest.mark.skipif(
    "ADASEEK_TEST_POSTGRESQL_URL" not in os.environ, reason="needs a PostgreSQL server"
)
def test_postgresql_keeps_outcomes_and_locks_out_a_second_writer(
    task: Callable[..., Task],
) -> None:
    url = os.environ["ADASEEK_TEST_POSTGRESQL_URL"]
    run_id = f"test-{os.getpid()}-{threading.get_ident()}"
    with Journal.open(url, identity=IDENTITY, run_id=run_id) as journal:
        evaluation = outcome(task(1), score=Score(0.1 + 0.2, "\x00 \ud800"))
        recorded = journal.record(evaluation, task(1))
        journal.put("k", CallRecord({"text": "\x00"}, PAID, 1.0, ModelRef("m")))
        journal.complete("k", lambda: Completion("\x00", PAID))
        with pytest.raises(JournalError, match="open already"):
            Journal.open(url, identity=IDENTITY, run_id=run_id)
        with pytest.raises(JournalError, match="unique"):
            journal.record(evaluation, task(1))
    with pytest.raises(JournalError, match="seed: 0 in the journal, 5 now"):
        Journal.open(url, identity={**IDENTITY, "seed": 5}, run_id=run_id)
    with Journal.open(url, identity=IDENTITY, run_id=run_id) as journal:
        found = journal.find(task(1).key)
        assert found is not None
        assert found.score == recorded.score
        record = journal.get("k")
        assert record is not None
        assert record.outputs == {"text": "\x00"}
        assert journal.complete("k", lambda: Completion("new")).text == "\x00"
        assert [e.task_key for e in journal.evaluations()] == [task(1).key]
        assert journal.paid() == PAID + PAID
        threads = [
            threading.Thread(target=lambda i=i: journal.record(outcome(task(i)), task(i)))
            for i in range(2, 10)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert journal.count() == 9


def test_many_tasks_are_looked_up_at_once(tmp_path: Path, task: Callable[..., Task]) -> None:
    tasks = [task(i) for i in range(1200)]  # more than one statement may name
    with Journal.open(tmp_path / "j.db", identity=IDENTITY) as journal:
        for one in tasks[::100]:
            journal.record(outcome(one), one)
        found = journal.find_all([one.key for one in tasks])
        assert set(found) == {one.key for one in tasks[::100]}
        assert all(found[key] == journal.find(key) for key in found)
        assert journal.find_all([]) == {}


def test_threads_without_a_place_of_their_own_get_one_each(
    tmp_path: Path, task: Callable[..., Task]
) -> None:
    tasks = [task(i) for i in range(40)]
    with Journal.open(tmp_path / "j.db", identity=IDENTITY) as journal:
        threads = [
            threading.Thread(target=journal.record, args=(outcome(one), one)) for one in tasks
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {e.task_key for e in journal.evaluations()} == {one.key for one in tasks}
    with sqlite3.connect(tmp_path / "j.db") as connection:
        rows = connection.execute("SELECT sequence FROM adaseek_evaluations ORDER BY sequence")
        assert [sequence for (sequence,) in rows] == list(range(40))
