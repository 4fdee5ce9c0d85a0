"""The copy: a program under a recipe without patching, its original untouched."""

from __future__ import annotations

import asyncio
import copy
import gc
import types
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict

import pytest

pytest.importorskip("langchain.agents")
pytest.importorskip("langchain_openai")

from adaseek.errors import ConfigurationError, RecipeMismatchError
from adaseek.recipe import Demo, Ensemble, Recipe, Setting
from adaseek.testing.loopback import LoopbackServer, Reply
from adaseek.workflow import ModelRef, Workflow
from adaseek_langchain import AdaSeekHook, AdaSeekMiddleware, apply, disable, enable
from adaseek_langchain._copying import copy_with_models
from adaseek_langchain._interpose import is_installed, uninstall
from adaseek_langchain._tuned import is_tuned, tuned
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

GIVEN = {"q": "what is it"}


class State(TypedDict, total=False):
    """The state of the graphs below."""

    q: str
    a: str


def chat(server: LoopbackServer, **settings: Any) -> ChatOpenAI:
    return ChatOpenAI(model="m", base_url=server.url, api_key="secret-key", **settings)


def part(server: LoopbackServer, system: str = "Be brief.") -> Any:
    asked = ChatPromptTemplate.from_messages([("system", system), ("human", "{q}")])
    return asked | chat(server) | StrOutputParser()


def fan_out(server: LoopbackServer) -> Any:
    both = RunnableParallel(a=part(server), b=part(server, "Be long."))
    joined = ChatPromptTemplate.from_messages([("system", "Join."), ("human", "{a} and {b}")])
    return both | joined | chat(server)


def closure(server: LoopbackServer) -> Any:
    inner = part(server)
    return RunnableLambda(lambda given: inner.invoke(given))


def bound_method(server: LoopbackServer) -> Any:
    class Holder:
        def __init__(self) -> None:
            self.inner = part(server)

        def run(self, given: Any) -> Any:
            return self.inner.invoke(given)

    return RunnableLambda(Holder().run)


def own_threads(server: LoopbackServer) -> Any:
    inner = part(server)

    def asked(given: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(inner.invoke, given).result()

    return RunnableLambda(asked)


def graph(server: LoopbackServer) -> Any:
    inner, last = part(server), chat(server)
    built = StateGraph(State)
    built.add_node("draft", lambda state: {"a": inner.invoke({"q": state["q"]})})
    built.add_node("polish", lambda state: {"a": last.invoke(state["a"]).text})
    built.add_edge(START, "draft")
    built.add_edge("draft", "polish")
    built.add_edge("polish", END)
    return built.compile()


PROGRAMS: dict[str, Callable[[LoopbackServer], Any]] = {
    "sequence": part,
    "fan out and join": fan_out,
    "closure": closure,
    "bound method": bound_method,
    "own threads": own_threads,
    "graph": graph,
}
EACH = pytest.mark.parametrize("build", PROGRAMS.values(), ids=PROGRAMS)


def seen(server: LoopbackServer, program: Any, given: Any = GIVEN) -> Workflow:
    """Returns the workflow that a run of `program` shows."""
    hook = enable()
    try:
        program.invoke(given)
        return hook.workflow
    finally:
        disable()
        del hook
        gc.collect()
        server.clear()


def marking(workflow: Workflow, **settings: Any) -> Recipe:
    setting = Setting(**(settings or {"instructions": "Sing."}))
    return Recipe({step.id: setting for step in workflow.lm_steps()}).bind(workflow)


def systems(server: LoopbackServer) -> list[str]:
    return [body["messages"][0]["content"] for body in server.bodies]


def skeleton(obj: Any, known: dict[int, Any] | None = None) -> Any:
    """Returns everything that `obj` holds, as far as it can be walked, by identity and content."""
    known = {} if known is None else known
    if id(obj) in known:
        return id(obj)
    known[id(obj)] = obj
    if isinstance(obj, Mapping):
        return {str(key): skeleton(value, known) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [skeleton(item, known) for item in obj]
    if isinstance(obj, types.FunctionType):
        cells = [cell.cell_contents for cell in obj.__closure__ or ()]
        return [id(obj), [skeleton(cell, known) for cell in cells]]
    if isinstance(obj, types.MethodType):
        return skeleton(obj.__self__, known)
    if isinstance(obj, BaseChatModel):
        return [id(obj), type(obj), sorted(map(str, vars(obj).items()))]
    return [id(obj), skeleton(vars(obj), known)] if hasattr(obj, "__dict__") else repr(obj)


@EACH
def test_an_empty_recipe_sends_the_same_bytes(server: LoopbackServer, build: Any) -> None:
    program = build(server)
    workflow = seen(server, program)
    plain = program.invoke(GIVEN)
    before = sorted(request.raw for request in server.requests)
    server.clear()
    assert str(apply(program, Recipe(), workflow=workflow).invoke(GIVEN))[:40] == str(plain)[:40]
    assert sorted(request.raw for request in server.requests) == before


@EACH
def test_a_recipe_reaches_every_call_and_leaves_the_original(
    server: LoopbackServer, build: Any
) -> None:
    program = build(server)
    workflow = seen(server, program)
    settings: dict[str, Any] = {
        "instructions": "Sing.",
        "demos": (Demo({"input": "x", "output": "y"}),),
        "model": ModelRef("m2", server.url),
    }
    changed = apply(program, marking(workflow, **settings), workflow=workflow)
    changed.invoke(GIVEN)
    num_requests = len(server.requests)
    assert systems(server) == ["Sing."] * num_requests
    assert {body["model"] for body in server.bodies} == {"m2"}
    server.clear()
    program.invoke(GIVEN)
    assert len(server.requests) == num_requests
    assert "Sing." not in str(server.bodies)
    assert {body["model"] for body in server.bodies} == {"m"}


@EACH
def test_applying_changes_nothing_of_the_original(server: LoopbackServer, build: Any) -> None:
    program = build(server)
    workflow = seen(server, program)
    program.invoke(GIVEN)  # what is worked out at the first call is there now
    before = skeleton(program)
    changed = apply(program, marking(workflow), workflow=workflow)
    changed.invoke(GIVEN)
    assert skeleton(program) == before


@EACH
def test_nothing_is_patched(server: LoopbackServer, build: Any) -> None:
    program = build(server)
    workflow = seen(server, program)
    uninstall()  # a hook of an earlier test may still be waiting for the garbage collector
    before = dict(vars(BaseChatModel))
    apply(program, marking(workflow), workflow=workflow).invoke(GIVEN)
    assert dict(vars(BaseChatModel)) == before
    assert not is_installed()


def test_the_copy_of_a_graph_is_a_graph(server: LoopbackServer) -> None:
    program = graph(server)
    workflow = seen(server, program)
    changed = apply(program, marking(workflow), workflow=workflow)
    assert type(changed) is type(program)
    updates = list(changed.stream(GIVEN, stream_mode="updates"))
    assert [list(update) for update in updates] == [["draft"], ["polish"]]


def test_a_copy_streams_and_runs_async(server: LoopbackServer) -> None:
    program = part(server)
    changed = apply(program, marking(seen(server, program)))
    chunks = list(changed.stream(GIVEN))
    assert len([chunk for chunk in chunks if chunk]) > 2
    assert "".join(chunks) == asyncio.run(changed.ainvoke(GIVEN)) == changed.invoke(GIVEN)
    assert changed.batch([GIVEN, GIVEN]) == [changed.invoke(GIVEN)] * 2
    assert set(systems(server)) == {"Sing."}


def test_a_copy_votes(server: LoopbackServer) -> None:
    texts = ("blue", "red", "red")
    server.answer = lambda body: Reply(texts[body.get("seed", 0)])
    program = part(server)
    changed = apply(program, marking(seen(server, program), ensemble=Ensemble(3)))
    assert changed.invoke(GIVEN) == "red"


def test_an_agent_and_the_agent_in_its_tool_are_copied(server: LoopbackServer) -> None:
    def answer(body: Mapping[str, Any]) -> Reply:
        offered = "tools" in body and body["messages"][-1]["role"] != "tool"
        return Reply(tool_calls=[("ask", {"q": "deep"})]) if offered else Reply("done")

    server.answer = answer
    inner = part(server)

    @tool
    def ask(q: str) -> str:
        """Asks another model."""
        return str(inner.invoke({"q": q}))

    program = create_agent(chat(server), [ask], system_prompt="Be exact.")
    given = {"messages": [("user", "hi")]}
    workflow = seen(server, program, given)
    changed = apply(program, marking(workflow), workflow=workflow)
    assert changed.invoke(given)["messages"][-1].text == "done"
    assert systems(server) == ["Sing."] * 3
    server.clear()
    program.invoke(given)
    assert "Sing." not in systems(server)


def test_one_recipe_works_through_every_door(server: LoopbackServer) -> None:
    def answer(body: Mapping[str, Any]) -> Reply:
        has_result = body["messages"][-1]["role"] == "tool"
        return Reply("5 km") if has_result else Reply(tool_calls=[("measure", {"place": "home"})])

    @tool
    def measure(place: str) -> str:
        """Measures the way to a place."""
        return f"{place} is 5 km away"

    server.answer = answer
    given: Any = {"messages": [("user", "hi")]}

    def agent(*middleware: Any) -> Any:
        return create_agent(
            chat(server), [measure], system_prompt="Be exact.", middleware=middleware
        )

    def sent(run: Callable[[], Any]) -> list[bytes]:
        server.clear()
        run()
        return [request.raw for request in server.requests]

    workflow = seen(server, agent(), given)
    demos = (Demo({"input": "x", "output": "y"}),)
    made = marking(workflow, instructions="Sing.", demos=demos, params={"temperature": 0.25})
    recipe = Recipe.from_json(made.to_json())
    hook = AdaSeekHook(recipe)
    doors = {
        "hook": sent(lambda: agent().invoke(given, {"callbacks": [hook]})),
        "apply": sent(lambda: apply(agent(), recipe).invoke(given)),
        "middleware": sent(lambda: agent(AdaSeekMiddleware(recipe)).invoke(given)),
    }
    enable(recipe)
    doors["enable"] = sent(lambda: agent().invoke(given))
    disable()
    assert len(doors["hook"]) == 2
    assert b"Sing." in doors["hook"][0]
    assert {name: raw == doors["hook"] for name, raw in doors.items()} == dict.fromkeys(doors, True)


# What is refused


def test_a_recipe_for_another_program_is_refused_with_the_difference(
    server: LoopbackServer,
) -> None:
    program = part(server)
    made = marking(seen(server, program))
    with pytest.raises(RecipeMismatchError, match=r"`2\.lm` has changed.*Be rude"):
        apply(part(server, "Be rude."), made)
    with pytest.raises(RecipeMismatchError, match=r"step `9\.lm` is gone"):
        apply(program, Recipe({"9.lm": Setting(instructions="x")}))


def test_a_prompt_that_changes_later_is_noticed_when_it_runs(server: LoopbackServer) -> None:
    program = closure(server)
    workflow = seen(server, program)
    made = marking(workflow)
    program.func.__closure__[0].cell_contents.steps[0].messages[0].prompt.template = "Be rude."
    with pytest.raises(RecipeMismatchError, match="Be rude"):
        apply(program, made)
    changed = apply(program, made, workflow=workflow)
    with pytest.raises(ConfigurationError, match="no longer holds the instructions"):
        changed.invoke(GIVEN)
    lenient = apply(program, made, workflow=workflow, strict=False)
    with pytest.warns(RuntimeWarning, match="no longer holds the instructions"):
        lenient.invoke(GIVEN)
    assert systems(server) == ["Be rude."]


_EVERYONES = FakeListChatModel(responses=["x"])


def _uses_a_global(given: Any) -> Any:
    return _EVERYONES.invoke(str(given))


def test_a_model_out_of_reach_is_named(server: LoopbackServer) -> None:
    program = part(server) | RunnableLambda(_uses_a_global)
    made = Recipe({"2.lm": Setting(instructions="Sing.")})
    with pytest.raises(ConfigurationError, match="`_EVERYONES` \\(used by `_uses_a_global`\\)"):
        apply(program, made)
    with pytest.warns(RuntimeWarning, match="_EVERYONES"):
        changed = apply(program, made, strict=False)
    changed.invoke(GIVEN)
    assert systems(server) == ["Sing."]


def test_a_plain_function_cannot_carry_a_recipe() -> None:
    with pytest.raises(ConfigurationError, match="enable"):
        apply(lambda given: given, Recipe())


def test_the_path_of_a_recipe_is_no_recipe(server: LoopbackServer) -> None:
    with pytest.raises(ConfigurationError, match=r"must be a Recipe\. .*Recipe\.load"):
        apply(part(server), "runs/qa")  # type: ignore[arg-type]


# The copying itself


def test_a_model_held_twice_stays_one_object() -> None:
    model = FakeListChatModel(responses=["x"])
    made = copy_with_models({"a": [model], "b": (model,)}, lambda m: m.model_copy())
    assert made.obj["a"][0] is made.obj["b"][0]
    assert made.obj["a"][0] is not model
    assert made.num_models == 1


def test_what_leads_to_no_model_is_shared() -> None:
    shared = object()
    held = {"model": FakeListChatModel(responses=["x"]), "other": [shared]}
    made = copy_with_models(held, lambda m: m.model_copy())
    assert made.obj["other"] is held["other"]


def test_functions_that_share_a_cell_go_on_sharing_it() -> None:
    model, count = FakeListChatModel(responses=["x"]), 0

    def ask() -> int:
        nonlocal count
        count += 1
        return count if model else 0

    def ask_again() -> int:
        return ask() + (0 if model else 1)

    made = copy_with_models([ask, ask_again], lambda m: m.model_copy())
    first, again = made.obj
    assert first is not ask
    assert (first(), again(), first()) == (1, 2, 3)


def test_cycles_and_recursion_are_copied() -> None:
    model = FakeListChatModel(responses=["x"])

    def fall(depth: int) -> Any:
        return model if depth == 0 else fall(depth - 1)

    ring: dict[str, Any] = {"fall": fall}
    ring["self"] = ring
    made = copy_with_models(ring, lambda m: m.model_copy())
    assert made.obj["self"] is made.obj
    assert made.obj["fall"](3) is not model
    assert isinstance(made.obj["fall"](3), FakeListChatModel)


def test_a_tuned_model_is_what_its_original_is(server: LoopbackServer) -> None:
    model = chat(server, temperature=0.5)
    made = tuned(model, lambda *_: None)
    assert is_tuned(made)
    assert not is_tuned(model)
    assert isinstance(made, ChatOpenAI)
    assert (type(made).__name__, made.lc_id()) == ("ChatOpenAI", model.lc_id())
    assert made.client is model.client  # the same connections
    assert made.invoke("a").text == model.invoke("a").text
    first, second = server.requests
    assert first.raw == second.raw
    assert is_tuned(copy.copy(made))
