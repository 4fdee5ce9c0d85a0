"""Steps, templates and data flow are found without asking a model or running a tool."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Annotated, Any, Literal, TypedDict

import pytest
from adaseek.errors import TranslationError
from adaseek.recipe import Recipe, Setting
from adaseek.testing.loopback import LoopbackServer
from adaseek.workflow import Edge, Workflow

pytest.importorskip("langchain")
pytest.importorskip("langchain_openai")

from adaseek_langchain import AdaSeekHook, apply, disable, enable, translate
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, FewShotChatMessagePromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableBranch, RunnableLambda
from langchain_core.tools import BaseTool, tool
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.types import interrupt
from pydantic import BaseModel


@pytest.fixture
def server() -> Iterator[LoopbackServer]:
    with LoopbackServer(models=("m", "m2"), keep_alive=False) as running:
        yield running
        assert running.requests == ()  # no translation asks a model


def model(server: LoopbackServer, name: str = "m") -> ChatOpenAI:
    return ChatOpenAI(model=name, base_url=server.url, api_key="secret-key")


def prompt(system: str = "Answer briefly.", human: str = "{q}") -> ChatPromptTemplate:
    return ChatPromptTemplate.from_messages([("system", system), ("human", human)])


def flows(workflow: Workflow) -> set[tuple[str, str, str]]:
    return {(edge.source, edge.source_field, edge.target) for edge in workflow.edges}


def test_chain_is_a_step_between_input_and_output(server: LoopbackServer) -> None:
    workflow = translate(prompt() | model(server) | StrOutputParser())
    (step,) = workflow.lm_steps()
    assert step.id == "2.lm"
    assert step.signature is not None and step.signature.instructions == "Answer briefly."
    assert step.model is not None and step.model.key == f"m@{server.url}"
    assert flows(workflow) == {("INPUT", "q", "2.lm"), ("2.lm", "output", "OUTPUT")}
    assert {edge.evidence for edge in workflow.edges} == {"probe"}
    assert workflow.inputs == ("q",)


def test_a_recipe_that_is_in_force_makes_no_difference(server: LoopbackServer) -> None:
    program = prompt() | model(server)
    expected, recipe = translate(program), Recipe({"2.lm": Setting(instructions="Sing.")})
    hooked = program.with_config(callbacks=[AdaSeekHook(recipe)])
    assert translate(apply(program, recipe)).steps == expected.steps
    assert translate(hooked).steps == expected.steps
    enable(recipe)
    try:
        assert translate(program) == expected
    finally:
        disable()


def test_what_the_program_fills_in_is_named_in_the_instructions(server: LoopbackServer) -> None:
    workflow = translate(prompt("Answer in {language}; use {{}}.", "{q}") | model(server))
    (step,) = workflow.lm_steps()
    assert step.signature is not None
    assert step.signature.instructions == "Answer in {language}; use {{}}."


def test_task_in_the_user_message_is_the_instructions(server: LoopbackServer) -> None:
    workflow = translate(ChatPromptTemplate.from_template("Summarise: {text}") | model(server))
    (step,) = workflow.lm_steps()
    assert step.signature is not None and step.signature.instructions == "Summarise: {text}"


def test_author_examples_are_counted(server: LoopbackServer) -> None:
    shown = FewShotChatMessagePromptTemplate(
        examples=[{"i": "one", "o": "1"}, {"i": "two", "o": "2"}],
        example_prompt=ChatPromptTemplate.from_messages([("human", "{i}"), ("ai", "{o}")]),
    )
    asked = ChatPromptTemplate.from_messages([("system", "Count."), shown, ("human", "{q}")])
    (step,) = translate(asked | model(server)).lm_steps()
    assert step.num_demos == 2


def test_branch_that_no_marked_value_takes_is_found_by_structure(server: LoopbackServer) -> None:
    program = RunnableBranch(
        (lambda x: x["q"] == "why", prompt("Explain.") | model(server)),
        prompt("Answer.") | model(server, "m2"),
    )
    workflow = translate(program)
    told = {s.id: s.signature.instructions for s in workflow.lm_steps() if s.signature}
    assert told == {"branch default/2.lm": "Answer.", "branch 1/2.lm": "Explain."}
    hook = AdaSeekHook()
    with LoopbackServer(keep_alive=False) as other:
        again = RunnableBranch(
            (lambda x: x["q"] == "why", prompt("Explain.") | model(other)),
            prompt("Answer.") | model(other),
        )
        again.invoke({"q": "why"}, {"callbacks": [hook]})
    assert hook.traces[0].calls[-1].step in told  # the id that structure foretold


EFFECTS: list[str] = []


@tool
def drop_table(name: str) -> str:
    """Drops a table for good."""
    EFFECTS.append(name)
    return "dropped"


class OwnTool(BaseTool):
    """A tool with a class of its own."""

    name: str = "own"
    description: str = "Does something."

    def _run(self, q: str) -> str:
        EFFECTS.append(q)
        return q


def test_tools_do_not_run_and_what_flows_through_them_is_seen(server: LoopbackServer) -> None:
    EFFECTS.clear()
    agent = create_agent(model(server), [drop_table, OwnTool()], system_prompt="Use tools.")
    workflow = translate(agent)
    assert EFFECTS == []
    (step,) = workflow.lm_steps()
    assert step.id == "model/1.lm" and step.tools == ("drop_table", "own")
    assert {"tool:drop_table", "tool:own"} <= workflow.steps.keys()
    assert ("model/1.lm", "name", "tool:drop_table") in flows(workflow)
    assert ("tool:drop_table", "result", "model/1.lm") in flows(workflow)
    assert BaseTool.run.__name__ == "run" and not hasattr(BaseTool.run, "__wrapped__")


def test_tools_run_where_the_user_allows_it(server: LoopbackServer) -> None:
    EFFECTS.clear()
    agent = create_agent(model(server), [drop_table, OwnTool()], system_prompt="Use tools.")
    translate(agent, live_tools=("own",))
    assert EFFECTS and all(effect.startswith("mark") for effect in EFFECTS)


class Facts(BaseRetriever):
    """Must not be asked by a translation."""

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        EFFECTS.append(query)
        return [Document("a fact")]


def test_retrievers_do_not_run_either(server: LoopbackServer) -> None:
    EFFECTS.clear()
    found = RunnableLambda(lambda x: x["q"]) | Facts() | RunnableLambda(lambda d: str(d))
    chain = {"context": found, "q": lambda x: x["q"]} | prompt("Use {context}.") | model(server)
    workflow = translate(chain)
    assert EFFECTS == []
    (retriever,) = (s.id for s in workflow.steps.values() if s.kind == "retriever")
    (step,) = workflow.lm_steps()
    assert (retriever, "result", step.id) in flows(workflow)
    assert ("INPUT", "q", retriever) in flows(workflow)


class State(TypedDict, total=False):
    q: str
    n: int
    parts: Annotated[list[str], operator.add]


def test_graph_with_memory_and_a_pause_leaves_the_memory_alone(server: LoopbackServer) -> None:
    memory = InMemorySaver()
    llm = model(server)

    def ask(state: State) -> State:
        interrupt("ok?")
        return {"parts": [llm.invoke(f"Say {state['q']}").text]}

    built = StateGraph(State)
    built.add_node("ask", ask)
    built.add_edge(START, "ask")
    built.add_edge("ask", END)
    workflow = translate(built.compile(checkpointer=memory))
    assert [step.id.partition("@")[0] for step in workflow.lm_steps()] == ["ask/1.lm"]
    assert list(memory.storage) == []


class Route(BaseModel):
    """Where to go."""

    where: Literal["north", "south"]


def test_both_values_of_a_choice_are_tried(server: LoopbackServer) -> None:
    chosen = prompt("Choose.") | model(server).with_structured_output(Route)

    def go(x: Any) -> Any:
        which = chosen.invoke(x)
        if which.where == "north":
            return (prompt("Go north.") | model(server)).invoke(x)
        return (prompt("Go south.") | model(server)).invoke(x)

    workflow = translate(RunnableLambda(go))
    told = {s.signature.instructions for s in workflow.lm_steps() if s.signature}
    assert told == {"Choose.", "Go north.", "Go south."}


def test_steps_say_what_they_refuse_and_why(server: LoopbackServer) -> None:
    (bound,) = translate(prompt() | model(server).with_structured_output(Route)).lm_steps()
    assert "schema" in bound.blocked["reasoning"]
    forced = model(server).bind_tools([drop_table], tool_choice="drop_table")
    (step,) = translate(prompt() | forced).lm_steps()
    assert step.signature is not None and step.signature.output == "tool_calls"
    assert {"reasoning", "few_shot", "ensemble"} <= step.blocked.keys()
    assert not step.blocked.keys() & step.allowed


def test_translating_twice_gives_equal_ids_and_fingerprints(server: LoopbackServer) -> None:
    def build() -> Any:
        inner = prompt("Draft.") | model(server) | StrOutputParser()
        return RunnableLambda(lambda x: inner.invoke({"q": inner.invoke(x)}))

    first, second = translate(build()), translate(build())
    assert list(first.steps) == list(second.steps)
    assert first.fingerprint == second.fingerprint
    assert Workflow.from_json(first.to_json()) == first


def test_examples_give_the_shape_of_the_input(server: LoopbackServer) -> None:
    def deep(x: Any) -> Any:
        return model(server).invoke(x["user"]["texts"][0])

    workflow = translate(RunnableLambda(deep), [{"user": {"texts": ["hello"], "age": 7}}])
    assert ("INPUT", "user", workflow.lm_steps()[0].id) in flows(workflow)


def test_code_that_fails_on_marked_values_is_said(server: LoopbackServer) -> None:
    def strict(x: Any) -> Any:
        if x["q"] != "the only right question":
            raise ValueError("not this question")
        return model(server).invoke(x["q"])

    llm = model(server)
    workflow = translate(RunnableLambda(strict) | llm)
    assert [step.id for step in workflow.lm_steps()] == ["2.lm"]  # by structure

    def hidden(x: Any) -> Any:
        strict({"q": x["q"]})
        return llm.invoke(x["q"])

    told = translate(RunnableLambda(hidden))
    assert told.lm_steps() == ()
    assert any("was not asked on marked values" in note.text for note in told.notes)


def test_a_hook_adds_what_real_runs_have_shown(server: LoopbackServer) -> None:
    with LoopbackServer(keep_alive=False) as other:
        llm = model(other)

        def picky(x: Any) -> Any:
            return llm.invoke(f"Well: {x['q']}") if x["q"] == "yes" else "no"

        hook = AdaSeekHook()
        program = RunnableLambda(picky)
        program.invoke({"q": "yes"}, {"callbacks": [hook]})
        assert translate(program).lm_steps() == ()
        (step,) = translate(program, hook=hook).lm_steps()
        assert step.id.startswith("lm@test_translate:")


def test_own_code_does_not_run_if_the_user_says_so(server: LoopbackServer) -> None:
    EFFECTS.clear()

    def effect(x: Any) -> Any:
        EFFECTS.append("ran")
        return x

    workflow = translate(RunnableLambda(effect) | prompt() | model(server), probe_steps=False)
    assert EFFECTS == []
    assert [step.id for step in workflow.lm_steps()] == ["3.lm"]
    assert workflow.edges == frozenset[Edge]()


def test_something_that_langchain_cannot_run_is_refused(server: LoopbackServer) -> None:
    with pytest.raises(TranslationError, match="`program` is a int"):
        translate(42)
