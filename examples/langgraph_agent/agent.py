"""A LangGraph agent that answers questions about countries with SQL and a calculator."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any  # Any: messages and graphs are LangChain's

from langchain.agents import create_agent
from langchain.agents.middleware import ModelCallLimitMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_openai import ChatOpenAI
from pydantic import SecretStr
from tools import build_database, calculator, database_tool

__all__ = ["build", "chat_model", "load_examples", "metric", "program"]

_DATA = Path(__file__).with_name("data")
_PROMPT = """\
You answer questions about countries with the help of tools.
The database has one table, gapminder(country, continent, year, life_expectancy, population, \
gdp_per_capita), with a row for every country and year.
Look everything up, and do arithmetic with the tools. End with the answer alone: a number or a \
name."""
_MAX_MODEL_CALLS = 4
_TOLERANCE = 0.005
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?")


def build(model: BaseChatModel, database: Path) -> Runnable[Any, str]:
    """Returns the agent as a chain from `{"question": ...}` to the text of its last message."""
    agent = create_agent(
        model,
        [calculator, database_tool(database)],
        system_prompt=_PROMPT,
        middleware=[ModelCallLimitMiddleware(run_limit=_MAX_MODEL_CALLS)],
        name="agent",
    )
    return RunnableLambda(_ask) | agent | RunnableLambda(_last_text)


def chat_model(name: str, base_url: str) -> ChatOpenAI:
    """Returns a chat model of a server that finds tool calls."""
    return ChatOpenAI(
        model=name,
        base_url=base_url,
        api_key=SecretStr("none"),
        temperature=0.0,
        max_completion_tokens=96,
        max_retries=1,
    )


def metric(example: Mapping[str, Any], output: str) -> bool:
    """Returns whether the answer names the right country, or the right number to half a percent.

    Of several numbers the last one counts; those of the question do not. A call of a tool that
    there is not stays text; it is no answer, whatever it names.
    """
    answer = example["outputs"]["answer"]
    if output.lstrip().startswith("{"):
        return False
    if isinstance(answer, str):
        return answer.casefold() in output.casefold()
    known = set(_NUMBER.findall(example["inputs"]["question"]))
    numbers = [text for text in _NUMBER.findall(output) if text not in known]
    if not numbers:
        return False
    given = float(numbers[-1].replace(",", ""))
    return abs(given - answer) <= _TOLERANCE * abs(answer)


def load_examples(split: str) -> list[dict[str, Any]]:
    """Returns the questions of `split`: "train", "val" or "test"."""
    lines = (_DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        {"inputs": {"question": row["question"]}, "outputs": {"answer": row["answer"]}}
        for row in rows
    ]


def _ask(inputs: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": [HumanMessage(inputs["question"])]}


def _last_text(state: Mapping[str, Any]) -> str:
    return str(state["messages"][-1].content)


def program() -> Runnable[Any, str]:
    """Returns the agent on a local server; for `adaseek inspect agent.py:program`."""
    database = build_database(Path(tempfile.gettempdir()) / "adaseek-gapminder.db")
    return build(chat_model("Qwen2.5-Coder-1.5B-Instruct", "http://127.0.0.1:8421/v1"), database)
