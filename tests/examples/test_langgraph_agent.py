"""The LangGraph example: its tools refuse what they must, its data is right, its agent is tuned."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from adaseek.cogs import FewShotCog, ModelCog
from adaseek.testing.loopback import LoopbackServer, Reply

pytest.importorskip("langchain_openai")
pytest.importorskip("langgraph")

FOLDER = Path(__file__).parents[2] / "examples" / "langgraph_agent"
sys.path.insert(0, str(FOLDER))
import agent  # noqa: E402
import tools  # noqa: E402

sys.path.remove(str(FOLDER))
SPLITS = ("train", "val", "test")
ROWS = {
    split: [json.loads(line) for line in (FOLDER / "data" / f"{split}.jsonl").open()]
    for split in SPLITS
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tools.build_database(tmp_path_factory.mktemp("data") / "gapminder.db")
    return path


def test_a_query_returns_its_rows_at_most_ten(database: Path) -> None:
    sql = "SELECT population FROM gapminder WHERE country = 'Rwanda' AND year = 1997"
    assert tools.run_query(database, sql) == "7212583"
    assert tools.run_query(database, "SELECT year FROM gapminder").count("\n") == 10
    assert tools.run_query(database, "SELECT 1 WHERE 0") == "No rows."


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM gapminder",
        "DROP TABLE gapminder",
        "INSERT INTO gapminder (country) VALUES ('X')",
        "ATTACH 'other.db' AS other",
        "PRAGMA writable_schema = 1",
        "SELECT 1; SELECT 2",
        "SELECT count(*) FROM gapminder a, gapminder b, gapminder c",  # would take hours
        "nonsense",
    ],
)
def test_anything_but_one_bounded_select_is_an_error_for_the_model(
    database: Path, sql: str
) -> None:
    before = database.read_bytes()
    assert tools.run_query(database, sql).startswith("Error: ")
    assert database.read_bytes() == before


@pytest.mark.parametrize(
    ("expression", "value"),
    [("(2 + 3) * -4", "-20"), ("2 ** 0.5", "1.41421356237"), ("12345678901 * 10", "123456789010")],
)
def test_arithmetic_is_calculated(expression: str, value: str) -> None:
    assert tools.calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        *("__import__('os')", "a + 1", "1 / 0", "9 ** 9 ** 9", "1 +", "(-1) ** 0.5", "True + 1"),
        *("'a' * 3", "1e308 * 10", "-" * 200 + "1", "1 < 2"),
    ],
)
def test_anything_but_bounded_arithmetic_is_an_error_for_the_model(expression: str) -> None:
    assert tools.calculate(expression).startswith("Error: ")


def test_every_answer_is_what_its_sql_gives(database: Path) -> None:
    with closing(sqlite3.connect(database)) as connection:
        for row in (row for split in SPLITS for row in ROWS[split]):
            assert connection.execute(row["sql"]).fetchone()[0] == row["answer"]


def test_no_question_is_in_two_splits() -> None:
    questions = [row["question"] for split in SPLITS for row in ROWS[split]]
    assert len(questions) == len(set(questions)) == 110


@pytest.mark.parametrize(
    ("answer", "output", "right"),
    [
        (7212583, "In 1997 it was 7,212,583.", True),
        (7212583, "7212583 people lived there in 1997", True),
        (7212583, "7.2e6", True),
        (7212583, "7000000", False),
        (7212583, "1997", False),
        (-3.5, "It changed by -3.5 years.", True),
        (-3.5, "3.5", False),
        ("Kuwait", "That was Kuwait.", True),
        ("Kuwait", "Japan", False),
        ("Kuwait", '{"name": "Kuwait", "arguments": {"sql": "SELECT 1"}}', False),
    ],
)
def test_an_answer_is_judged_with_tolerance(answer: Any, output: str, right: bool) -> None:
    example = {"inputs": {"question": "What about 1997?"}, "outputs": {"answer": answer}}
    assert agent.metric(example, output) is right


def skilled_with_examples(body: Mapping[str, Any]) -> Reply:
    """A model that always knows the query if it is shown examples, and else for every other one."""
    messages = body["messages"]
    if messages[-1]["role"] == "tool":
        return Reply(messages[-1]["content"])
    question = messages[-1]["content"]
    rows = [row for split in SPLITS for row in ROWS[split]]
    number = next(n for n, row in enumerate(rows) if row["question"] == question)
    knows = number % 2 == 0 or len(messages) > 2
    sql = rows[number]["sql"] if knows else "SELECT 0"
    return Reply(tool_calls=[("query_database", {"sql": sql})])


def test_the_agent_is_tuned_by_showing_it_tool_calls(database: Path, tmp_path: Path) -> None:
    from adaseek_langchain import AdaSeek

    with LoopbackServer(skilled_with_examples, models=("m", "other")) as server:
        program = agent.build(agent.chat_model("m", server.url), database)
        optimizer = AdaSeek(
            agent.metric,
            budget=140,
            models=[agent.chat_model("other", server.url)],
            objectives=("quality",),
            cogs=[ModelCog(), FewShotCog()],
            run_dir=tmp_path,
            verbose=False,
        )
        tuned = optimizer.compile(
            program,
            trainset=agent.load_examples("train"),
            valset=agent.load_examples("val"),
        )
        (setting,) = tuned.detailed_results.recipe.settings.values()
        assert setting.demos
        examples = agent.load_examples("test")
        outputs = [tuned.invoke(example["inputs"]) for example in examples]
    assert all(map(agent.metric, examples, outputs))


def test_the_picture_in_the_readme_is_the_one_that_inspect_draws() -> None:
    from adaseek.report import mermaid
    from adaseek_langchain import translate

    picture = mermaid(translate(agent.program()))
    assert f"```mermaid\n{picture}```" in (FOLDER / "README.md").read_text(encoding="utf-8")


@pytest.mark.engine
def test_the_agent_looks_a_number_up_on_a_real_engine(database: Path) -> None:
    from adaseek.testing.local_engine import local_engine
    from adaseek_vllm.bare_json import CHATML_FLAGS, TOOL_FLAGS

    model = "Qwen2.5-Coder-1.5B-Instruct"
    with local_engine(model, flags=(*TOOL_FLAGS, *CHATML_FLAGS), max_model_len=2048) as engine:
        program = agent.build(agent.chat_model(model, engine.base_url), database)
        answer = program.invoke({"question": "What was the population of Rwanda in 1997?"})
    assert "7212583" in answer.replace(",", "")
