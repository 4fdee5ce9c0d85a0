"""Canaries: each deep name of LangChain that we use is where it was, and we can do without it."""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from adaseek.testing.loopback import LoopbackServer

pytest.importorskip("langchain")
pytest.importorskip("langchain_openai")

from adaseek_langchain import AdaSeekHook, _compat
from adaseek_langchain._prompts import template_of
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.config import ensure_config
from langchain_core.tools import BaseTool, tool
from langchain_openai import ChatOpenAI


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(keep_alive=False) as running:
        yield running


def test_context_of_child_runs_holds_the_callbacks_of_the_run() -> None:
    assert _compat.CHILD_CONFIG is not None
    held: list[Any] = []
    context = _compat.CHILD_CONFIG
    hook = AdaSeekHook()
    RunnableLambda(lambda x: held.append(context.get())).invoke(1, {"callbacks": [hook]})
    assert held[0]["callbacks"].parent_run_id is not None


@pytest.mark.parametrize("own", [None, {}, {"tags": ["own"]}, {"callbacks": None, "tags": None}])
def test_a_call_has_the_callbacks_and_tags_that_langchain_finds(own: Any) -> None:
    found: list[Any] = []

    def inside(_: Any) -> None:
        found.append((_compat.effective_config(own), ensure_config(own)))

    hook = AdaSeekHook()
    RunnableLambda(inside).invoke(1, {"callbacks": [hook], "tags": ["outer"]})
    ((ours, theirs),) = found
    for name in ("handlers", "parent_run_id", "tags"):  # the manager itself is copied
        assert getattr(ours["callbacks"], name) == getattr(theirs["callbacks"], name)
    assert ours.get("tags") == theirs["tags"]
    given: Any = {"callbacks": [hook], "tags": ["t"]}
    assert _compat.effective_config(given) == given
    assert _compat.effective_config(None) == {}


def test_a_prompt_tells_its_template_when_it_runs() -> None:
    told: list[Any] = []

    class Listening(BaseCallbackHandler):
        def on_chain_start(self, serialized: Any, inputs: Any, **kwargs: Any) -> None:
            told.append((serialized, kwargs.get("run_type")))

    asked = ChatPromptTemplate.from_messages([("system", "A {x}"), ("human", "{q}")])
    asked.invoke({"x": 1, "q": 2}, {"callbacks": [Listening()]})
    ((serialized, run_type),) = told
    assert run_type == "prompt"
    assert template_of(serialized, {"x": 1}, [SystemMessage("A 1"), HumanMessage("2")]) == "A {x}"
    assert template_of(None, {"x": 1}, [SystemMessage("A 1")]) is None


def test_langgraph_says_a_pause_by_its_own_class_of_error() -> None:
    from langgraph.errors import GraphInterrupt

    assert _compat.is_pause(GraphInterrupt())
    assert not _compat.is_pause(ValueError())
    assert not _compat.is_pause(None)


@pytest.mark.parametrize("name", ["_generate", "_agenerate", "_stream", "_astream"])
def test_models_implement_the_methods_that_a_run_overrides(name: str) -> None:
    parameters = inspect.signature(getattr(BaseChatModel, name)).parameters
    assert list(parameters)[:4] == ["self", "messages", "stop", "run_manager"]


@pytest.mark.parametrize(
    ("cls", "name"),
    [
        (BaseTool, "run"),
        (BaseTool, "arun"),
        (BaseTool, "_run"),
        (BaseTool, "_arun"),
        (BaseRetriever, "invoke"),
        (BaseRetriever, "ainvoke"),
        (BaseRetriever, "_get_relevant_documents"),
        (BaseRetriever, "_aget_relevant_documents"),
    ],
)
def test_tools_and_retrievers_have_the_methods_that_a_probe_stands_in_for(
    cls: type, name: str
) -> None:
    assert callable(getattr(cls, name))


def test_stand_ins_answer_while_they_are_entered_and_are_gone_afterwards() -> None:
    @tool
    def shout(text: str) -> str:
        """Shouts."""
        return text.upper()

    before = (BaseTool.run, BaseTool.arun, BaseRetriever.invoke, BaseRetriever.ainvoke)
    with _compat.stand_ins(lambda part, name, kind: f"{kind} {name}"):
        assert shout.invoke({"text": "x"}) == "tool shout"
        with _compat.stand_ins(lambda part, name, kind: None):
            assert shout.invoke({"text": "x"}) == "tool shout"
    assert shout.invoke({"text": "x"}) == "X"
    assert (BaseTool.run, BaseTool.arun, BaseRetriever.invoke, BaseRetriever.ainvoke) == before


def test_openai_models_say_whether_they_ask_streams_for_usage(server: LoopbackServer) -> None:
    llm = ChatOpenAI(model="m", base_url=server.url, api_key="k")
    assert llm.stream_usage is None  # unset: that is what tells it from the user's own choice
    refused = ChatOpenAI(model="m", base_url=server.url, api_key="k", stream_usage=False)
    list(refused.stream("hello", {"callbacks": [AdaSeekHook()]}))
    assert "stream_options" not in server.bodies[0]


def test_without_the_deep_names_a_hook_still_observes(
    server: LoopbackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import langchain_core.runnables.config as home

    monkeypatch.delattr(home, "var_child_runnable_config")
    monkeypatch.setitem(sys.modules, "langgraph.errors", None)
    bare = importlib.util.module_from_spec(importlib.util.find_spec("adaseek_langchain._compat"))
    bare.__spec__.loader.exec_module(bare)
    assert bare.CHILD_CONFIG is None and bare.GRAPH_PAUSES == ()
    assert not bare.is_pause(ValueError())
    monkeypatch.undo()
    monkeypatch.setattr("adaseek_langchain._recorder.CHILD_CONFIG", None)
    hook = AdaSeekHook()
    program = RunnableLambda(lambda x: x) | ChatOpenAI(model="m", base_url=server.url, api_key="k")
    program.invoke("hello", {"callbacks": [hook]})
    assert [call.step for call in hook.traces[0].calls if call.kind == "lm"] == ["2.lm"]


def test_without_interposition_a_hook_still_observes(server: LoopbackServer) -> None:
    from adaseek_langchain._interpose import install, is_installed, uninstall

    hook = AdaSeekHook()
    uninstall()
    try:
        assert not is_installed()
        program = RunnableLambda(lambda x: x) | ChatOpenAI(
            model="m", base_url=server.url, api_key="k"
        )
        program.invoke("hello", {"callbacks": [hook]})
    finally:
        install(hook)
    (call,) = (call for call in hook.traces[0].calls if call.kind == "lm")
    assert call.step == "2.lm"
    assert call.model is not None and call.model.key == f"m@{server.url}"
    assert call.usage.input_tokens == server.usage()["input_tokens"]
