"""One recipe, made from what a hook saw, means the same through every door."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from adaseek.recipe import Demo, Recipe, Setting, Subtask
from adaseek.testing.loopback import LoopbackServer, Reply
from adaseek.workflow import Workflow

pytest.importorskip("langchain")
pytest.importorskip("langchain_openai")

from adaseek_langchain import AdaSeekHook, AdaSeekMiddleware, apply, disable, enable, translate
from langchain.agents import create_agent
from langchain_core.output_parsers import PydanticOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

ANSWER = '{"name": "red"}'


class Colour(BaseModel):
    """The colour of a thing."""

    name: str


@tool
def look_up(q: str) -> str:
    """Looks it up."""
    return "found"


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(lambda body: Reply(ANSWER), keep_alive=False) as running:
        yield running


def chat(server: LoopbackServer) -> ChatOpenAI:
    return ChatOpenAI(model="m", base_url=server.url, api_key="k")


def parsed(server: LoopbackServer) -> Any:
    """Shape L13: the format that a parser relies on is a partial variable of the prompt."""
    parser = PydanticOutputParser(pydantic_object=Colour)
    asked = ChatPromptTemplate.from_messages(
        [("system", "Answer about {topic}.\n{format}"), ("human", "{q}")]
    )
    return asked.partial(format=parser.get_format_instructions()) | chat(server) | parser


def without_system(server: LoopbackServer) -> Any:
    return PromptTemplate.from_template("Name the colour of {q}. {{no name}}") | chat(server)


def agent(server: LoopbackServer, middleware: Any = ()) -> Any:
    return create_agent(
        chat(server), [look_up], system_prompt="Answer {it}.", middleware=list(middleware)
    )


PROGRAMS: dict[str, tuple[Callable[[LoopbackServer], Any], Any]] = {
    "parsed": (parsed, {"topic": "birds", "q": "robin"}),
    "without system": (without_system, {"q": "robin"}),
    "agent": (agent, {"messages": [("user", "robin")]}),
}


def observed(program: Any, given: Any) -> Workflow:
    hook = AdaSeekHook()
    program.invoke(given, {"callbacks": [hook]})
    return hook.workflow


def a_recipe(workflow: Workflow) -> Recipe:
    """Returns a recipe for the program's one model step, by way of its JSON form."""
    (step,) = workflow.lm_steps()
    setting = Setting(
        instructions="Say a colour.",
        demos=(Demo({"input": "crow", "output": '{"name": "k"}'}),),
        decompose=(Subtask("facts", "List the colours that are named."),),
    )
    recipe = Recipe({step.id: setting}).bind(workflow)
    return Recipe.from_json(json.loads(json.dumps(recipe.to_json())))


@contextlib.contextmanager
def enabled(recipe: Recipe) -> Iterator[None]:
    enable(recipe)
    try:
        yield
    finally:
        disable()


def through_each_door(server: LoopbackServer, name: str, recipe: Recipe) -> dict[str, Any]:
    """Returns the bodies that each door sends."""
    build, given = PROGRAMS[name]
    sent: dict[str, Any] = {}

    def note(door: str) -> None:
        sent[door] = [_without_ids(body) for body in server.bodies]
        server.clear()

    server.clear()
    apply(build(server), recipe).invoke(given)
    note("copy")
    hook = AdaSeekHook(recipe)
    build(server).invoke(given, {"callbacks": [hook]})
    assert hook.misses == {}
    note("hook")
    with enabled(recipe):
        build(server).invoke(given)
    note("enabled")
    if name == "agent":
        agent(server, [AdaSeekMiddleware(recipe)]).invoke(given)
        note("middleware")
    return sent


def _without_ids(body: Any) -> Any:
    return json.loads(re.sub(r'"id": "[^"]*"', '"id": ""', json.dumps(body)))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_recipe_from_a_hooks_workflow_sends_the_same_through_every_door(
    server: LoopbackServer, name: str
) -> None:
    build, given = PROGRAMS[name]
    recipe = a_recipe(observed(build(server), given))
    sent = through_each_door(server, name, recipe)
    assert "Say a colour." in json.dumps(sent["copy"])
    assert all(bodies == sent["copy"] for bodies in sent.values())


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_hook_sees_the_steps_that_a_translation_finds(server: LoopbackServer, name: str) -> None:
    build, given = PROGRAMS[name]
    seen, translated = observed(build(server), given), translate(build(server))
    assert {s.id: s.fingerprint for s in seen.lm_steps()} == {
        s.id: s.fingerprint for s in translated.lm_steps()
    }


def test_new_instructions_keep_the_format_that_the_parser_relies_on(server: LoopbackServer) -> None:
    build, given = PROGRAMS["parsed"]
    workflow = observed(build(server), given)
    (step,) = workflow.lm_steps()
    assert step.signature is not None
    assert step.signature.instructions == "Answer about {topic}.\n{format}"
    sent = through_each_door(server, "parsed", a_recipe(workflow))
    for bodies in sent.values():
        *_, body = bodies  # a subtask is asked first
        system = body["messages"][0]["content"]
        assert "JSON schema" in system
        assert "birds" in system
        assert "Answer about" not in system


def test_a_prompt_that_says_something_else_has_no_template(server: LoopbackServer) -> None:
    asked = ChatPromptTemplate.from_messages([("system", "About {topic}."), ("human", "{q}")])
    shouted = asked | (
        lambda value: [m.model_copy(update={"content": "A"}) for m in value.messages]
    )
    (step,) = observed(shouted | chat(server), {"topic": "birds", "q": "x"}).lm_steps()
    assert step.signature is not None
    assert step.signature.instructions == "A"
