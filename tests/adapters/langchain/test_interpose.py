"""The interposition: inert without a carrier, gone without a hook, one rewrite per call."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("langchain_openai")

from adaseek.recipe import Demo, Ensemble, Recipe
from adaseek.testing.loopback import LoopbackServer, echo
from adaseek.workflow import ModelRef
from adaseek_langchain import AdaSeekHook, disable, enable
from adaseek_langchain._entry_points import ENTRY_POINTS
from adaseek_langchain._interpose import install, is_installed, release, uninstall
from langchain_core.caches import InMemoryCache
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.tracers import context as tracer_context
from langchain_openai import ChatOpenAI
from langchain_programs import chain, chat, messages, recipe

pytestmark = [
    pytest.mark.usefixtures("left_as_found"),
    pytest.mark.filterwarnings("ignore::langchain_core._api.LangChainBetaWarning"),
    pytest.mark.filterwarnings("ignore:Unexpected type for token usage"),
]


def step_of(call: Callable[[AdaSeekHook], Any], server: LoopbackServer) -> str:
    """Returns the id of the one step that `call` asks: it names the line that makes the call."""
    hook = AdaSeekHook()
    call(hook)
    server.clear()
    (step,) = {c.step for trace in hook.traces for c in trace.calls if c.kind == "lm"}
    return step


def attributes() -> dict[str, Any]:
    return {
        **{f"base.{name}": value for name, value in vars(BaseChatModel).items()},
        **{f"openai.{name}": value for name, value in vars(ChatOpenAI).items()},
        "hooks": list(tracer_context._configure_hooks),
    }


# Off means off


def test_without_a_hook_nothing_of_langchain_differs(server: LoopbackServer) -> None:
    before = attributes()
    hook = AdaSeekHook(recipe())
    chain(server).invoke({"q": "a"}, {"callbacks": [hook]})
    assert is_installed()
    assert attributes() != before
    del hook
    gc.collect()
    assert attributes() == before


def test_after_disabling_nothing_of_langchain_differs(server: LoopbackServer) -> None:
    before = attributes()
    enable(recipe())
    chain(server).invoke({"q": "a"})
    assert attributes() != before
    disable()
    disable()
    gc.collect()
    assert attributes() == before
    chain(server).invoke({"q": "a"})
    assert [messages(body)[0] for body in server.bodies] == ["Sing.", "Answer briefly."]


def test_the_entry_points_are_wrapped_once() -> None:
    originals = {name: vars(BaseChatModel)[name] for name in ENTRY_POINTS}
    hooks = [AdaSeekHook() for _ in range(3)]
    wrappers = {name: vars(BaseChatModel)[name] for name in ENTRY_POINTS}
    install()
    assert {name: vars(BaseChatModel)[name] for name in ENTRY_POINTS} == wrappers
    assert all(wrappers[name].__wrapped__ is originals[name] for name in ENTRY_POINTS)
    release(hooks[0])
    assert is_installed()
    uninstall()
    assert {name: vars(BaseChatModel)[name] for name in ENTRY_POINTS} == originals


def test_the_last_hook_takes_the_wrappers_away() -> None:
    first, second = AdaSeekHook(), AdaSeekHook()
    release(first)
    assert is_installed()
    release(second)
    release(second)
    assert not is_installed()


def test_another_instrumentor_around_ours_survives(server: LoopbackServer) -> None:
    seen: list[str] = []
    original = BaseChatModel.invoke
    install()
    ours = BaseChatModel.invoke

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append("theirs")
        return ours(self, *args, **kwargs)

    def call(hook: AdaSeekHook | None) -> None:
        chain(server).invoke({"q": "a"}, {"callbacks": [hook] if hook else []})

    theirs.__wrapped__ = ours  # type: ignore[attr-defined]
    BaseChatModel.invoke = theirs  # type: ignore[method-assign,assignment]
    try:
        install()
        assert vars(BaseChatModel)["invoke"] is theirs
        call(AdaSeekHook(recipe(step_of(call, server))))
        uninstall()
        call(None)
    finally:
        BaseChatModel.invoke = original  # type: ignore[method-assign]
    assert seen == ["theirs"] * 3
    assert [messages(body)[0] for body in server.bodies] == ["Sing.", "Answer briefly."]


# Every way of calling a model

Way = Callable[[ChatOpenAI, Any], Any]


def _stream(model: ChatOpenAI, config: Any) -> Any:
    return "".join(chunk.text for chunk in model.stream("a", config))


async def _astream(model: ChatOpenAI, config: Any) -> Any:
    return "".join([chunk.text async for chunk in model.astream("a", config)])


async def _abatch(model: ChatOpenAI, config: Any) -> Any:
    (reply,) = await model.abatch(["a"], config)
    return reply.text


async def _aevents(model: ChatOpenAI, config: Any) -> Any:
    stream = await model.astream_events("a", config, version="v3")
    return (await stream.output).text


async def _events_v2(model: ChatOpenAI, config: Any) -> Any:
    events = [event async for event in model.astream_events("a", config, version="v2")]
    return events[-1]["data"]["output"].text


def _callbacks(config: Any) -> Any:
    return (config or {}).get("callbacks")


WAYS: dict[str, Way] = {
    "invoke": lambda model, config: model.invoke("a", config).text,
    "invoke by name": lambda model, config: model.invoke(input="a", config=config).text,
    "ainvoke": lambda model, config: asyncio.run(model.ainvoke("a", config)).text,
    "stream": _stream,
    "astream": lambda model, config: asyncio.run(_astream(model, config)),
    "batch": lambda model, config: model.batch(["a"], config)[0].text,
    "abatch": lambda model, config: asyncio.run(_abatch(model, config)),
    "generate": lambda model, config: (
        model.generate([[HumanMessage("a")]], callbacks=_callbacks(config)).generations[0][0].text
    ),
    "agenerate": lambda model, config: (
        asyncio.run(model.agenerate([[HumanMessage("a")]], callbacks=_callbacks(config)))
        .generations[0][0]
        .text
    ),
    "events v3": lambda model, config: model.stream_events("a", config, version="v3").output.text,
    "async events v3": lambda model, config: asyncio.run(_aevents(model, config)),
    "async events v2": lambda model, config: asyncio.run(_events_v2(model, config)),
}


@pytest.mark.parametrize("way", WAYS)
def test_an_empty_recipe_sends_the_same_bytes(server: LoopbackServer, way: str) -> None:
    model = chat(server, temperature=0.5, stop=["x"])
    plain = WAYS[way](model, None)
    hook = AdaSeekHook(Recipe(), stream_usage=False)
    assert WAYS[way](model, {"callbacks": [hook]}) == plain
    first, second = server.requests
    assert first.raw == second.raw
    assert hook.missed == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_recipe_reaches_the_call_once(server: LoopbackServer, way: str) -> None:
    model = chat(server)
    setting = {
        "instructions": "Sing.",
        "demos": (Demo({"input": "x", "output": "y"}),),
        "model": ModelRef("m2", server.url),
        "params": {"temperature": 0.25, "top_k": 3},
    }
    step = step_of(lambda hook: WAYS[way](model, {"callbacks": [hook]}), server)
    hook = AdaSeekHook(recipe(step, **setting))
    assert "m2" in WAYS[way](model, {"callbacks": [hook]})
    (body,) = server.bodies
    assert messages(body) == ["Sing.", "x", "y", "a"]
    assert (body["model"], body["temperature"], body["top_k"]) == ("m2", 0.25, 3)
    if way != "async events v3":  # started by its consumer, so what is observed has its line
        assert hook.missed == 0


def test_several_prompts_of_one_generate_are_each_rewritten(server: LoopbackServer) -> None:
    def call(hook: AdaSeekHook) -> Any:
        prompts = [[HumanMessage("a")], [HumanMessage("b")]]
        return chat(server).generate(prompts, callbacks=[hook])

    result = call(AdaSeekHook(recipe(step_of(call, server))))
    assert [row[0].text for row in result.generations] == ["echo[m]: a", "echo[m]: b"]
    assert [messages(body) for body in server.bodies] == [["Sing.", "a"], ["Sing.", "b"]]
    assert result.run is not None
    assert len(result.run) == 2


def test_a_model_of_another_endpoint_gets_no_key(server: LoopbackServer) -> None:
    with LoopbackServer(echo) as other:
        setting = {"model": ModelRef("m2", other.url)}
        hook = AdaSeekHook(recipe(**setting))
        headers = {"X-Secret": "also"}
        reply = chain(server, default_headers=headers).invoke({"q": "a"}, {"callbacks": [hook]})
        (request,) = other.requests
    assert reply == "echo[m2]: a"
    assert server.requests == ()
    sent = {name.lower(): value for name, value in request.headers.items()}
    assert "secret" not in str(sent)
    assert "x-secret" not in sent


def test_a_given_model_object_is_used(server: LoopbackServer) -> None:
    other = chat(server, max_tokens=7).model_copy(update={"model_name": "given"})
    reference = ModelRef("given", server.url)
    hook = AdaSeekHook(recipe(model=reference), models={reference.key: other})
    chain(server).invoke({"q": "a"}, {"callbacks": [hook]})
    (body,) = server.bodies
    assert (body["model"], body["max_completion_tokens"]) == ("given", 7)


def test_the_constructors_extra_body_is_kept(server: LoopbackServer) -> None:
    hook = AdaSeekHook(recipe(params={"top_k": 3}))
    chain(server, extra_body={"min_p": 0.1}).invoke({"q": "a"}, {"callbacks": [hook]})
    (body,) = server.bodies
    assert (body["min_p"], body["top_k"]) == (0.1, 3)


def test_a_response_cache_is_asked_with_the_rewritten_request(server: LoopbackServer) -> None:
    tuned = chain(server, cache=InMemoryCache())
    for _ in range(2):
        tuned.invoke({"q": "a"}, {"callbacks": [AdaSeekHook(recipe())]})
        tuned.invoke({"q": "a"})
    assert [messages(body)[0] for body in server.bodies] == ["Sing.", "Answer briefly."]


def test_a_hook_given_to_the_model_itself_counts(server: LoopbackServer) -> None:
    def call(hook: AdaSeekHook) -> None:
        chat(server, callbacks=[hook]).generate([[HumanMessage("a")]])

    call(AdaSeekHook(recipe(step_of(call, server))))
    assert messages(server.bodies[0]) == ["Sing.", "a"]


# Many at once


def test_hooks_of_other_threads_do_not_mix(server: LoopbackServer) -> None:
    shared = chain(server)

    def ask(number: int) -> str:
        hook = AdaSeekHook(recipe(params={"max_tokens": number + 1}))
        for _ in range(3):
            shared.invoke({"q": str(number)}, {"callbacks": [hook]})
        return "ok" if hook.missed == 0 else str(hook.misses)

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(ask, range(8))) == {"ok"}
    found = sorted(
        (body["messages"][-1]["content"], body["max_completion_tokens"]) for body in server.bodies
    )
    assert found == sorted([(str(n), n + 1) for n in range(8)] * 3)


def test_hooks_of_other_tasks_do_not_mix(server: LoopbackServer) -> None:
    shared = chain(server)

    async def ask(number: int) -> None:
        hook = AdaSeekHook(recipe(params={"max_tokens": number + 1}))
        await shared.ainvoke({"q": str(number)}, {"callbacks": [hook]})

    async def all_of_them() -> None:
        await asyncio.gather(*(ask(number) for number in range(8)))

    asyncio.run(all_of_them())
    found = sorted(
        (body["messages"][-1]["content"], body["max_completion_tokens"]) for body in server.bodies
    )
    assert found == [(str(n), n + 1) for n in range(8)]


# Failing open


def test_a_setting_that_cannot_be_applied_leaves_the_request_alone(
    server: LoopbackServer,
) -> None:
    hook = AdaSeekHook(recipe(ensemble=Ensemble(2, "best_of", reward="short")))
    with pytest.warns(RuntimeWarning, match="ensemble at step `2.lm`.*`rewards` has none"):
        reply = chain(server).invoke({"q": "a"}, {"callbacks": [hook]})
    assert reply == "echo[m]: a"
    assert messages(server.bodies[0])[0] == "Answer briefly."
    chain(server).invoke({"q": "a"}, {"callbacks": [hook]})
    assert hook.missed == 2


def test_a_broken_hook_does_not_break_the_program(server: LoopbackServer) -> None:
    class Broken(AdaSeekHook):
        def request(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("broken")

    hook = Broken(recipe())
    with pytest.warns(RuntimeWarning, match="broken"):
        assert chain(server).invoke({"q": "a"}, {"callbacks": [hook]}) == "echo[m]: a"
    assert any("broken" in reason for reason in hook.misses)


def test_a_wrong_input_is_refused_by_langchain_itself(server: LoopbackServer) -> None:
    hook = AdaSeekHook(recipe("lm"))
    with pytest.raises(ValueError, match="Invalid input type"):
        chat(server).invoke(7, {"callbacks": [hook]})  # type: ignore[arg-type]
    assert hook.missed == 0


def test_the_nearest_hook_with_a_recipe_decides(server: LoopbackServer) -> None:
    outer, inner, blind = AdaSeekHook(recipe()), AdaSeekHook(recipe(instructions="Hum.")), None
    blind = AdaSeekHook()
    chain(server).invoke({"q": "a"}, {"callbacks": [outer, inner, blind]})
    assert messages(server.bodies[0]) == ["Hum.", "a"]


FROM_A_TEMPLATE = ChatPromptTemplate.from_messages([("system", "On {topic}."), ("human", "{q}")])
FROM_CODE = RunnableLambda(lambda x: [("system", f"On {x['topic']}."), ("human", x["q"])])


@pytest.mark.parametrize(
    ("name", "asked"), [("{topic}", FROM_A_TEMPLATE), ("{varying}", FROM_CODE)]
)
def test_a_bound_recipe_tells_what_the_program_fills_in(
    server: LoopbackServer, name: str, asked: Any
) -> None:
    varying = asked | chat(server)
    observing = AdaSeekHook()
    for topic in ("dogs", "cats"):
        varying.invoke({"topic": topic, "q": "a"}, {"callbacks": [observing]})
    (step,) = observing.workflow.lm_steps()
    assert step.signature is not None
    assert name in step.signature.instructions
    bound = recipe(instructions=f"All about {name}!").bind(observing.workflow)
    hook = AdaSeekHook(Recipe.from_json(bound.to_json()))
    server.clear()
    varying.invoke({"topic": "birds", "q": "a"}, {"callbacks": [hook]})
    assert hook.misses == {}
    assert "bird" in messages(server.bodies[0])[0]
    assert messages(server.bodies[0])[0].startswith("All about ")
