"""The LangChain adapter passes the suite that every adapter inherits: a chain, and a graph."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

import pytest
from adaseek.testing.conformance import AdapterConformance
from adaseek.testing.loopback import Reply
from adaseek.workflow import Example

pytest.importorskip("langchain_openai")
pytest.importorskip("langgraph")

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph


def model(url: str, name: str = "m") -> ChatOpenAI:
    return ChatOpenAI(model=name, base_url=url, api_key="secret-key", max_retries=0)


def prompt(told: str, asked: str = "{q}") -> Any:
    return ChatPromptTemplate.from_messages([("system", told), ("human", asked)])


class Suite(AdapterConformance):
    framework = "langchain_core"

    def example(self) -> Any:
        return {"q": "what", "a": "that"}

    def call(self, program: Any, example: Example) -> Any:
        return program.invoke(dict(example.inputs))

    def answer(self, body: Mapping[str, Any]) -> Reply:
        return Reply(f"{body['messages'][-1]['content']} is answered in several words")

    def changed(self, url: str) -> Any:
        return self.build(url, "Write a first draft.")

    def failing(self, url: str, error: BaseException) -> Any:
        return self.build(url, error=error)

    def program(self, url: str) -> Any:
        return self.build(url)

    def build(self, url: str, told: str = "Draft.", error: BaseException | None = None) -> Any:
        raise NotImplementedError


class TestChain(Suite):
    def build(self, url: str, told: str = "Draft.", error: BaseException | None = None) -> Any:
        def checked(draft: str) -> str:
            if error is not None:
                raise error
            return draft

        draft = prompt(told) | model(url) | StrOutputParser() | RunnableLambda(checked)
        final = prompt("Answer.", "{q}: {draft}") | model(url, "m3") | StrOutputParser()
        return RunnablePassthrough.assign(draft=draft) | final

    def stream(self, program: Any, example: Example) -> Iterable[Any]:
        chunks: Iterable[Any] = program.stream(dict(example.inputs))
        return chunks


class State(TypedDict, total=False):
    """The state of the graph below."""

    q: str
    draft: str
    final: str


class TestGraph(Suite):
    def build(self, url: str, told: str = "Draft.", error: BaseException | None = None) -> Any:
        drafting, final = prompt(told) | model(url), model(url, "m3")

        def draft(state: State) -> State:
            return {"draft": drafting.invoke({"q": state["q"]}).text}

        def answer(state: State) -> State:
            if error is not None:
                raise error
            return {"final": final.invoke(f"Answer {state['q']}: {state['draft']}").text}

        graph = StateGraph(State)
        graph.add_node("draft", draft)
        graph.add_node("answer", answer)
        for source, target in ((START, "draft"), ("draft", "answer"), ("answer", END)):
            graph.add_edge(source, target)
        return graph.compile()

    def stream(self, program: Any, example: Example) -> Iterable[Any]:
        chunks: Iterable[Any] = program.stream(dict(example.inputs), stream_mode="messages")
        return chunks

    def snapshot(self, program: Any) -> Any:
        nodes = program.builder.nodes
        return {name: id(node.runnable) for name, node in nodes.items()}
