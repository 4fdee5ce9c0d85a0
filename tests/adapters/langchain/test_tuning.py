"""Tuning a LangChain program from end to end, on a scripted server."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from adaseek.cogs.instructions import InstructionsCog
from adaseek.cogs.model import ModelCog
from adaseek.errors import ConfigurationError
from adaseek.recipe import Recipe, Setting
from adaseek.testing.loopback import LoopbackServer, Reply

pytest.importorskip("langchain")
pytest.importorskip("langchain_openai")

from adaseek_langchain import AdaSeek, AdaSeekHook, apply, compile, translate  # noqa: A004
from langchain.agents import create_agent
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

DATA = [{"inputs": {"q": f"what is {i}"}, "outputs": {"a": str(2 * i)}} for i in range(1, 25)]
PRICES = {"m": {"input": 1.0, "output": 1.0}, "m2": {"input": 2.0, "output": 2.0}}


def doubles(body: Mapping[str, Any]) -> Reply:
    """The better model doubles the number that is asked for; the other one repeats it."""
    number = int(re.findall(r"what is (\d+)", str(body["messages"]))[-1])
    return Reply(str(2 * number if body["model"] == "m2" else number))


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(doubles, models=("m", "m2"), keep_alive=False) as running:
        yield running


def model(server: LoopbackServer, name: str = "m") -> ChatOpenAI:
    return ChatOpenAI(model=name, base_url=server.url, api_key="secret-key")


def chain(server: LoopbackServer) -> Any:
    asked = ChatPromptTemplate.from_messages([("system", "Double it."), ("human", "{q}")])
    return asked | model(server) | StrOutputParser()


def is_right(example: Any, output: str) -> bool:
    return bool(output == example["outputs"]["a"])


def settings(server: LoopbackServer, path: Path, **more: Any) -> dict[str, Any]:
    """Few options and no timing: these tests are about the way from a program to a recipe."""
    return {
        "models": [model(server, "m2")],
        "budget": 60,
        "cogs": [ModelCog()],
        "objectives": ("quality", "cost"),
        "prices": PRICES,
        "prompt_model": False,
        "run_dir": path,
        "verbose": False,
        **more,
    }


def test_compile_returns_a_tuned_copy_and_leaves_the_program_alone(
    server: LoopbackServer, tmp_path: Path
) -> None:
    program = chain(server)
    tuned = compile(program, metric=is_right, trainset=DATA, **settings(server, tmp_path))
    assert tuned.invoke({"q": "what is 21"}) == "42"
    assert program.invoke({"q": "what is 21"}) == "21"
    result = tuned.detailed_results
    assert result.recipe.settings["2.lm"].model.id == "m2"
    assert "gains" in result.verdict
    assert (tmp_path / "recipe.json").is_file()
    assert "secret-key" not in (tmp_path / "recipe.json").read_text()


def test_the_recipe_works_through_apply_and_through_the_hook(
    server: LoopbackServer, tmp_path: Path
) -> None:
    compile(chain(server), metric=is_right, trainset=DATA, **settings(server, tmp_path))
    recipe = Recipe.load(tmp_path)
    server.clear()
    copied = apply(chain(server), recipe)
    assert copied.invoke({"q": "what is 4"}) == "8"
    hook = AdaSeekHook(recipe)
    assert chain(server).invoke({"q": "what is 4"}, {"callbacks": [hook]}) == "8"
    first, second = server.bodies
    assert first == second
    assert hook.missed == 0


def test_run_resumes_from_its_journal_without_paying_again(
    server: LoopbackServer, tmp_path: Path
) -> None:
    optimizer = AdaSeek(is_right, **settings(server, tmp_path))
    first = optimizer.tune(chain(server), trainset=DATA)
    paid = len(server.requests)
    second = optimizer.tune(chain(server), trainset=DATA)
    assert len(server.requests) == paid
    assert second.recipe.fingerprint == first.recipe.fingerprint


def test_budget_counts_workflow_runs(server: LoopbackServer, tmp_path: Path) -> None:
    more = settings(server, tmp_path, budget=40, cogs=None, objectives=None)
    result = AdaSeek(is_right, **more).tune(chain(server), trainset=DATA)
    # Reasoning and ensembles ask several times in one run, but none more than eight times.
    assert len(server.requests) <= 8 * 40
    assert result.recipe.made_with["budget"] == 40


def test_program_in_which_the_users_code_calls_the_model_is_tuned(
    server: LoopbackServer, tmp_path: Path
) -> None:
    inner = chain(server)
    program = RunnableLambda(lambda x: inner.invoke(x))
    tuned = compile(program, metric=is_right, trainset=DATA, **settings(server, tmp_path))
    assert tuned.invoke({"q": "what is 21"}) == "42"
    (step,) = tuned.detailed_results.recipe.settings
    assert step.startswith("RunnableSequence@test_tuning:")


GLOBAL: dict[str, Any] = {}


def of_a_module(x: Mapping[str, str]) -> str:
    """Calls a model that no copy of the function can exchange."""
    text: str = GLOBAL["llm"].invoke(x["q"]).text
    return text


def test_function_with_a_model_of_its_module_gets_the_recipe_by_a_hook(
    server: LoopbackServer, tmp_path: Path
) -> None:
    GLOBAL["llm"] = model(server)
    with pytest.warns(RuntimeWarning, match="carries its recipe by a hook"):
        tuned = compile(of_a_module, metric=is_right, trainset=DATA, **settings(server, tmp_path))
    assert tuned.invoke({"q": "what is 21"}) == "42"
    assert of_a_module({"q": "what is 21"}) == "21"


def test_agent_is_tuned_with_its_tools(server: LoopbackServer, tmp_path: Path) -> None:
    @tool
    def double(number: int) -> int:
        """Doubles a number."""
        return 2 * number

    def answer(body: Mapping[str, Any]) -> Reply:
        last = body["messages"][-1]
        if last["role"] == "tool":
            return Reply(str(last["content"]))
        number = int(re.findall(r"what is (\d+)", str(body["messages"]))[-1])
        if body["model"] == "m2" and body.get("tools"):
            return Reply(tool_calls=[("double", {"number": number})])
        return Reply(str(number))

    server.answer = answer
    agent = create_agent(model(server), [double], system_prompt="Use the tool.")
    data = [
        {"inputs": {"messages": [("user", e["inputs"]["q"])]}, "outputs": e["outputs"]}
        for e in DATA
    ]

    def metric(example: Any, output: Any) -> bool:
        return bool(output["messages"][-1].text == example["outputs"]["a"])

    tuned = compile(agent, metric=metric, trainset=data, **settings(server, tmp_path))
    found = tuned.invoke({"messages": [("user", "what is 21")]})
    assert found["messages"][-1].text == "42"
    assert tuned.detailed_results.recipe.settings["model/1.lm"].model.id == "m2"


def test_instructions_are_proposed_by_the_programs_own_model(
    server: LoopbackServer, tmp_path: Path
) -> None:
    def answer(body: Mapping[str, Any]) -> Reply:
        numbers = re.findall(r"^what is (\d+)$", str(body["messages"][-1]["content"]))
        if not numbers:
            return Reply("Multiply the number by two and write only the result.")
        told = "by two" in str(body["messages"][0]["content"])
        return Reply(str(int(numbers[0]) * (2 if told else 1)))

    server.answer = answer
    cogs = [InstructionsCog(), ModelCog()]
    more = settings(server, tmp_path, prompt_model=None, cogs=cogs, budget=120)
    tuned = compile(chain(server), metric=is_right, trainset=DATA, **more)
    assert tuned.invoke({"q": "what is 21"}) == "42"
    assert "by two" in (tuned.detailed_results.recipe.settings["2.lm"].instructions or "")


def test_tuning_is_refused_before_anything_is_spent(server: LoopbackServer, tmp_path: Path) -> None:
    more = settings(server, tmp_path)
    with pytest.raises(ConfigurationError, match="trainset"):
        compile(chain(server), metric=is_right, trainset=[], **more)
    with pytest.raises(ConfigurationError, match="cannot run"):
        compile(42, metric=is_right, trainset=DATA, **more)
    assert server.requests == ()


def test_workflow_is_json(server: LoopbackServer) -> None:
    workflow = translate(chain(server))
    assert json.loads(json.dumps(workflow.to_json()))["framework"] == "langchain"


def test_a_bare_chat_model_is_refused_with_what_to_do(server: LoopbackServer) -> None:
    model = ChatOpenAI(model="m", base_url=server.url, api_key="k")
    with pytest.raises(
        ConfigurationError, match=r"bare ChatOpenAI.*RunnablePassthrough\(\) \| model"
    ):
        compile(model, metric=is_right, trainset=DATA, budget=20)
    assert server.requests == ()


def test_a_copy_that_carries_a_recipe_is_not_tuned_again(server: LoopbackServer) -> None:
    tuned = apply(chain(server), Recipe({"2.lm": Setting(instructions="Sing.")}))
    with pytest.raises(ConfigurationError, match="carries a recipe already"):
        compile(tuned, metric=is_right, trainset=DATA, verbose=False)
    assert server.requests == ()


def test_a_menu_that_is_one_text_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"`models` is 'm2', but must be a list"):
        AdaSeek(is_right, models="m2")
