"""Shapes of LangChain and LangGraph programs: how people write them, as small real programs.

Every shape talks to a loopback server, is run in the way that its users run it, and says what is
required of an adapter. `INPUT` goes into every program whose shape has no input of its own.
"""

from __future__ import annotations

import asyncio
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

from adaseek.testing.loopback import Reply
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.output_parsers import PydanticOutputParser, StrOutputParser
from langchain_core.prompts import (
    ChatPromptTemplate,
    FewShotChatMessagePromptTemplate,
    MessagesPlaceholder,
    PromptTemplate,
)
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    ConfigurableField,
    Runnable,
    RunnableBranch,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
    chain,
)
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from pydantic import BaseModel

__all__ = [
    "INPUT",
    "MIXED",
    "SHAPES",
    "Shape",
    "State",
    "Watched",
    "answer",
    "chain_in_forward",
    "dspy_lm",
    "in_line",
    "inside",
    "model",
    "tool_in_react",
]

Config = dict[str, Any] | None

INPUT = {"q": "what is it"}
AGENT_INPUT = {"messages": [("user", "what is it")]}


def answer(body: Mapping[str, Any]) -> Reply:
    """Returns a tool call where tools are offered and none has answered yet, JSON where JSON is
    asked for, and several words otherwise."""
    messages = body["messages"]
    listed = str(messages[0]["content"]).partition("Your output fields are:")[2]
    if listed:
        return _dspy_answer(listed.partition("All interactions")[0], messages)
    tools = {t["function"]["name"]: t["function"] for t in body.get("tools") or ()}
    done = messages[-1]["role"] == "tool"
    final = next((name for name in tools if name == "Answer"), None)
    if tools and not (done and final is None):
        name = final if done and final else next(iter(tools))
        wanted = tools[name]["parameters"].get("properties", {})
        return Reply(tool_calls=[(name, dict.fromkeys(wanted, "x"))])
    if body.get("response_format") or "JSON" in str(messages):
        return Reply('{"answer": "yes"}')
    return Reply(f"the answer to {str(messages[-1]['content'])[-24:]} is yes")


def _dspy_answer(listed: str, messages: Sequence[Mapping[str, Any]]) -> Reply:
    """Returns a value for each field, as DSPy's own format asks; an agent acts once."""
    acted = "observation_0" in str(messages[-1]["content"])
    values = {
        "next_tool_name": "finish" if acted else "look_up",
        "next_tool_args": "{}" if acted else '{"q": "x"}',
    }
    names = re.findall(r"^\d+\. `(\w+)`", listed, re.MULTILINE)
    fields = [f"[[ ## {name} ## ]]\n{values.get(name, f'v-{name}')}\n" for name in names]
    return Reply("\n".join([*fields, "[[ ## completed ## ]]"]))


def model(url: str, name: str = "m", **settings: Any) -> ChatOpenAI:
    """Returns a chat model of the loopback server."""
    return ChatOpenAI(model=name, base_url=url, api_key="secret-key", **settings)


def prompt(system: str = "Answer briefly.", human: str = "{q}") -> ChatPromptTemplate:
    return ChatPromptTemplate.from_messages([("system", system), ("human", human)])


def text() -> StrOutputParser:
    return StrOutputParser()


class Answer(BaseModel):
    """An answer."""

    answer: str


@tool
def look_up(q: str) -> str:
    """Finds something."""
    return f"found {q}"


class Facts(BaseRetriever):
    """Always finds the same fact."""

    def _get_relevant_documents(self, query: str, **_: Any) -> list[Document]:
        return [Document(f"a fact about {query}")]


# LCEL


def fan_out(url: str) -> Any:
    both = RunnableParallel(
        a=prompt("Answer as a poet.") | model(url) | text(),
        b=prompt("Answer as a critic.") | model(url) | text(),
    )
    joined = RunnableLambda(lambda found: {"q": f"{found['a']} / {found['b']}"})
    return both | joined | prompt("Choose one.") | model(url)


def rag(url: str) -> Any:
    found = RunnableLambda(lambda x: x["q"]) | Facts() | RunnableLambda(lambda docs: str(docs))
    asked = prompt("Use the context.", "{context}\n{q}")
    gathered = {"context": found, "q": RunnablePassthrough() | RunnableLambda(lambda x: x["q"])}
    return gathered | asked | model(url) | text()


def in_closure(url: str) -> Any:
    inner = prompt() | model(url) | text()
    return RunnableLambda(lambda x: inner.invoke(x))


class Holder:
    """A service object with a method that calls a chain."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def run(self, x: Any) -> Any:
        return self.inner.invoke(x)


def assigned(url: str) -> Any:
    summary = prompt("Summarise.") | model(url) | text()
    return RunnablePassthrough.assign(s=summary) | prompt("Decide.", "{s}\n{q}") | model(url)


def branch(url: str) -> Any:
    return RunnableBranch(
        (lambda x: "what" in x["q"], prompt("Explain.") | model(url)),
        ChatPromptTemplate.from_messages([("human", "{q}")]) | model(url),
    )


def parsed(url: str) -> Any:
    parser = PydanticOutputParser(pydantic_object=Answer)
    asked = ChatPromptTemplate.from_messages([("system", "Answer.\n{format}"), ("human", "{q}")])
    return asked.partial(format=parser.get_format_instructions()) | model(url) | parser


def tool_loop(url: str) -> Any:
    with_tools = model(url).bind_tools([look_up])

    def loop(x: Mapping[str, str]) -> BaseMessage:
        messages: list[BaseMessage] = [HumanMessage(x["q"])]
        first = with_tools.invoke(messages)
        messages.append(first)
        messages.extend(look_up.invoke(call) for call in first.tool_calls)
        return with_tools.invoke(messages)

    return RunnableLambda(loop)


def configurable(url: str) -> Any:
    chosen = model(url).configurable_fields(temperature=ConfigurableField(id="temperature"))
    return prompt() | chosen


def alternatives(url: str) -> Any:
    which = ConfigurableField(id="which")
    chosen = model(url).configurable_alternatives(which, default_key="a", b=model(url, "m3"))
    return prompt() | chosen


def with_history(url: str) -> Any:
    asked = ChatPromptTemplate.from_messages(
        [("system", "Answer briefly."), MessagesPlaceholder("history"), ("human", "{q}")]
    )

    def history(_: str) -> InMemoryChatMessageHistory:
        turns: list[BaseMessage] = [HumanMessage("hello"), AIMessage("hi")]
        return InMemoryChatMessageHistory(messages=turns)

    return RunnableWithMessageHistory(
        asked | model(url), history, input_messages_key="q", history_messages_key="history"
    ).with_config(configurable={"session_id": "s1"})


def few_shot(url: str) -> Any:
    shown = FewShotChatMessagePromptTemplate(
        examples=[{"i": "one", "o": "1"}, {"i": "two", "o": "2"}],
        example_prompt=ChatPromptTemplate.from_messages([("human", "{i}"), ("ai", "{o}")]),
    )
    asked = ChatPromptTemplate.from_messages([("system", "Count."), shown, ("human", "{q}")])
    return asked | model(url)


# Agents and graphs


class Logged(AgentMiddleware):
    """The user's own middleware: notes that it ran, and adds a word to the system prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def before_model(self, state: Any, runtime: Any) -> None:
        self.log.append("before_model")

    def wrap_model_call(self, request: Any, handler: Any) -> Any:
        self.log.append("wrap_model_call")
        return handler(request)


def agent(url: str, **settings: Any) -> Any:
    return create_agent(model(url), [look_up], system_prompt="Use the tool.", **settings)


def agent_with_middleware(url: str) -> Any:
    user = Logged()
    built = agent(url, middleware=[user], response_format=Answer)
    return Watched(built, user.log)


class State(TypedDict, total=False):
    """The state of the graphs below."""

    q: str
    a: str
    n: int
    parts: Annotated[list[str], operator.add]


def closure_nodes(url: str) -> Any:
    llm = model(url)
    inner = prompt("Draft.") | llm | text()

    def draft(state: State) -> State:
        return {"a": inner.invoke({"q": state["q"]})}

    def polish(state: State) -> State:
        return {"a": llm.invoke(f"Polish: {state['a']}").text}

    built = StateGraph(State)
    built.add_node("draft", draft)
    built.add_node("polish", polish)
    return in_line(built, "draft", "polish")


def in_line(built: Any, *nodes: str) -> Any:
    for source, target in zip((START, *nodes), (*nodes, END), strict=True):
        built.add_edge(source, target)
    return built.compile()


def looped(url: str) -> Any:
    llm = model(url)

    def work(state: State) -> State:
        n = state.get("n", 0) + 1
        return {"n": n, "a": llm.invoke(f"Try {n}: {state['q']}").text}

    built = StateGraph(State)
    built.add_node("work", work)
    built.add_edge(START, "work")
    built.add_conditional_edges("work", lambda s: END if s["n"] >= 3 else "work", ["work", END])
    return built.compile()


def map_reduce(url: str) -> Any:
    inner = prompt("Map.") | model(url) | text()

    def split(state: State) -> list[Send]:
        return [Send("work", {"q": f"{state['q']} {i}"}) for i in range(3)]

    built = StateGraph(State)
    built.add_node("work", lambda state: {"parts": [inner.invoke({"q": state["q"]})]})
    built.add_conditional_edges(START, split, ["work"])
    built.add_edge("work", END)
    return built.compile()


def subgraph(url: str) -> Any:
    llm = model(url)
    inner = StateGraph(State)
    inner.add_node("think", lambda state: {"a": llm.invoke(f"Think: {state['q']}").text})
    outer = StateGraph(State)
    outer.add_node("sub", in_line(inner, "think"))
    outer.add_node("say", lambda state: {"a": llm.invoke(f"Say: {state['a']}").text})
    return in_line(outer, "sub", "say")


def functional(url: str) -> Any:
    inner = prompt("Draft.") | model(url) | text()

    @task
    def draft(q: str) -> str:
        return inner.invoke({"q": q})

    @entrypoint()
    def work(x: Mapping[str, str]) -> str:
        first = draft(x["q"]).result()
        return draft(first).result()

    return work


def async_nodes(url: str) -> Any:
    inner = prompt("Draft.") | model(url) | text()

    async def draft(state: State) -> State:
        return {"a": await inner.ainvoke({"q": state["q"]})}

    built = StateGraph(State)
    built.add_node("draft", draft)
    return in_line(built, "draft")


def agent_as_tool(url: str) -> Any:
    inner = agent(url, name="inner")

    @tool
    def ask(q: str) -> str:
        """Asks the expert."""
        return inner.invoke({"messages": [("user", q)]})["messages"][-1].text

    return create_agent(model(url), [ask], system_prompt="Ask the expert.", name="outer")


# Code around the framework


def own_threads(url: str) -> Any:
    llm = model(url)

    def both(x: Mapping[str, str]) -> list[str]:
        with ThreadPoolExecutor(2) as pool:
            found = pool.map(llm.invoke, [f"first {x['q']}", f"second {x['q']}"])
            return [message.text for message in found]

    return RunnableLambda(both)


def two_calls(url: str) -> Any:
    llm = model(url)

    def both(x: Mapping[str, str]) -> str:
        first = llm.invoke(f"first {x['q']}").text
        second = llm.invoke(f"second {first}").text
        return f"{first} {second}"

    return RunnableLambda(both)


class Custom(Runnable[Any, Any]):
    """A Runnable of the user's own, which may forget to pass the config on."""

    def __init__(self, llm: Any, *, passes_config: bool) -> None:
        self.llm = llm
        self.passes_config = passes_config

    def invoke(self, input: Any, config: Any = None, **_: Any) -> Any:  # noqa: A002
        return self.llm.invoke(input["q"], config if self.passes_config else None).text


MODULE: dict[str, Any] = {}
"""Stands for a module's global variables: the model of `plain`."""


def plain(x: Mapping[str, str]) -> str:
    """The function of the shape without any Runnable around it."""
    return MODULE["llm"].invoke(x["q"]).text


def plain_function(url: str) -> Any:
    MODULE["llm"] = model(url)
    return plain


def decorated(url: str) -> Any:
    inner = prompt() | model(url) | text()

    @chain
    def work(x: Any) -> Any:
        return inner.invoke(x)

    return work


# How a program is run


class Watched:
    """A program with what its own parts noted while it ran."""

    def __init__(self, program: Any, log: list[str]) -> None:
        self.program = program
        self.log = log


def inside(program: Any) -> Any:
    """Returns what an adapter is given."""
    return program.program if isinstance(program, Watched) else program


def invoked(program: Any, given: Any, config: Config) -> Any:
    if not isinstance(program, Runnable):
        return program(given)
    return program.invoke(given, config)


def ainvoked(program: Any, given: Any, config: Config) -> Any:
    return asyncio.run(program.ainvoke(given, config))


def batched(program: Any, given: Any, config: Config) -> Any:
    return program.batch([given, {"q": "another"}], config)


def abatched(program: Any, given: Any, config: Config) -> Any:
    return asyncio.run(program.abatch([given, {"q": "another"}], config))


def streamed(program: Any, given: Any, config: Config) -> Any:
    return [part(chunk) for chunk in program.stream(given, config) if part(chunk)]


def astreamed(program: Any, given: Any, config: Config) -> Any:
    async def collect() -> list[str]:
        found = [part(chunk) async for chunk in program.astream(given, config)]
        return [text for text in found if text]

    return asyncio.run(collect())


def events(program: Any, given: Any, config: Config) -> Any:
    async def collect() -> list[str]:
        found = program.astream_events(given, config, version="v2")
        chunks = [e["data"]["chunk"] async for e in found if e["event"] == "on_chat_model_stream"]
        return [part(chunk) for chunk in chunks if part(chunk)]

    return asyncio.run(collect())


def agent_streamed(program: Any, given: Any, config: Config) -> Any:
    """Returns the tokens of the agent's messages."""

    async def collect() -> list[str]:
        found = program.astream(given, config, stream_mode="messages")
        parts = [part(message) async for message, _ in found]
        return [text for text in parts if text]

    return asyncio.run(collect())


def part(chunk: Any) -> str:
    """Returns the text of one chunk of a stream; ids and usage differ from run to run."""
    if isinstance(chunk, BaseMessage):
        return chunk.text + "".join(c["args"] for c in getattr(chunk, "tool_call_chunks", ()))
    return chunk if isinstance(chunk, str) else repr(plain_value(chunk))


def plain_value(value: Any) -> Any:
    """Returns `value` without what differs from run to run: ids, usage, response metadata."""
    if isinstance(value, ToolMessage):
        return ("tool", value.name, value.content)
    if isinstance(value, BaseMessage):
        calls = [(c["name"], c["args"]) for c in getattr(value, "tool_calls", ())]
        return (value.type, value.content, calls)
    if isinstance(value, Mapping):
        return {key: plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    return value


@dataclass(frozen=True)
class Shape:
    """A program with what is required of an adapter.

    Attributes:
        build: base URL -> the program.
        requests: model requests of one run of the original.
        sites: distinct places of the program that ask a model in that run.
        static: language-model steps that are found without a request; 0: only at run time.
        run: how its users run it: (program, input, config) -> comparable output.
        unreached: why a handler in the config cannot reach its calls; empty: it can.
        foreign: how many of the requests another framework makes.
        stream: how its users stream it, None if they cannot.
    """

    id: str
    build: Callable[[str], Any]
    requests: int = 1
    sites: int = 1
    static: int = 1
    run: Callable[[Any, Any, Config], Any] = invoked
    given: Any = field(default_factory=lambda: INPUT)
    unreached: str = ""
    foreign: int = 0
    stream: Callable[[Any, Any, Config], Sequence[str]] | None = streamed

    def output(self, program: Any, config: Config) -> Any:
        """Runs the program; returns its output and what its own parts noted, both comparable."""
        log = program.log if isinstance(program, Watched) else []
        log.clear()
        found = plain_value(self.run(inside(program), self.given, config))
        return found, list(log)


def graph_tokens(program: Any, given: Any, config: Config) -> list[str]:
    """Returns the tokens that a graph's own stream gives."""
    found = program.stream(given, config, stream_mode="messages")
    parts = [part(message) for message, _ in found]
    return [text for text in parts if text]


def _graph(name: str, build: Callable[[str], Any], **settings: Any) -> Shape:
    return Shape(name, build, **{"stream": graph_tokens, **settings})


def _agent(name: str, build: Callable[[str], Any], **settings: Any) -> Shape:
    return _graph(name, build, **{"requests": 2, "given": AGENT_INPUT, **settings})


def _lcel(url: str) -> Any:
    return prompt() | model(url)


def _lcel_text(url: str) -> Any:
    return prompt() | model(url) | text()


SHAPES = [
    Shape("L01_prompt_model", _lcel),
    Shape("L02_prompt_model_parser", _lcel_text),
    Shape(
        "L03_text_prompt",
        lambda url: PromptTemplate.from_template("Answer briefly: {q}") | model(url),
    ),
    Shape(
        "L04_no_system_message",
        lambda url: ChatPromptTemplate.from_messages([("human", "{q}")]) | model(url),
    ),
    Shape("L05_variable_in_system", lambda url: prompt("Answer {q}.", "Well?") | model(url)),
    Shape("L06_fan_out_and_join", fan_out, requests=3, sites=3, static=3),
    Shape("L07_rag", rag),
    Shape("L08_closure", in_closure),
    Shape(
        "L09_bound_method",
        lambda url: RunnableLambda(Holder(prompt() | model(url) | text()).run),
    ),
    Shape("L10_assign", assigned, requests=2, sites=2, static=2),
    Shape("L11_branch", branch, static=2),
    Shape(
        "L12_structured_output",
        lambda url: prompt() | model(url).with_structured_output(Answer),
    ),
    Shape("L13_pydantic_parser", parsed),
    Shape("L14_tool_loop", tool_loop, requests=2, sites=2, static=2),
    Shape(
        "L15_fallbacks",
        lambda url: prompt() | model(url).with_fallbacks([model(url, "m3")]),
        static=2,
    ),
    Shape("L16_retry", lambda url: (prompt() | model(url)).with_retry(stop_after_attempt=2)),
    Shape("L17a_configurable_fields", configurable),
    Shape("L17b_configurable_alternatives", alternatives),
    Shape("L18_history", with_history),
    Shape("L19_authors_few_shot", few_shot),
    _agent("L20_agent", agent),
    _agent("L21_agent_with_middleware", agent_with_middleware),
    _graph("L22_graph_closure_nodes", closure_nodes, requests=2, sites=2, static=2),
    _graph("L23_graph_loop", looped, requests=3),
    _graph("L24_graph_send", map_reduce, requests=3),
    _graph("L25_subgraph", subgraph, requests=2, sites=2, static=2),
    _graph("L26_functional_api", functional, requests=2, sites=1, static=0),
    Shape("L27a_batch", _lcel, requests=2, run=batched),
    Shape("L27b_abatch", _lcel, requests=2, run=abatched),
    Shape("L28a_stream", _lcel_text, run=streamed),
    Shape("L28b_astream", _lcel_text, run=astreamed, stream=astreamed),
    Shape("L28c_astream_events", _lcel_text, run=events, stream=events),
    Shape(
        "L29_own_thread_pool",
        own_threads,
        requests=2,
        static=0,
        unreached="its own threads get no context, so no config reaches the calls",
    ),
    Shape("L30_two_calls_in_a_function", two_calls, requests=2, sites=2, static=2),
    Shape("L31a_custom_runnable", lambda url: Custom(model(url), passes_config=True)),
    Shape(
        "L31b_custom_runnable_drops_config",
        lambda url: Custom(model(url), passes_config=False),
        unreached="the user's Runnable drops the config",
    ),
    Shape(
        "L32_plain_function",
        plain_function,
        stream=None,
        unreached="a plain function has no config",
    ),
    _agent("L33_agent_as_tool", agent_as_tool, requests=4, sites=2, static=2),
    Shape("L34_chain_decorator", decorated),
    _agent("L35_agent_astream", agent, run=agent_streamed, stream=agent_streamed),
    _graph(
        "L36_async_nodes",
        async_nodes,
        run=ainvoked,
        stream=lambda program, given, config: agent_streamed(program, given, config),
    ),
]


# Two frameworks in one program


def dspy_lm(url: str) -> Any:
    import dspy

    return dspy.LM("openai/m", api_base=url, api_key="secret-key", cache=False)


def dspy_in_a_node(url: str) -> Any:
    import dspy

    module = dspy.ChainOfThought("q -> a")
    module.set_lm(dspy_lm(url))
    built = StateGraph(State)
    built.add_node("n", lambda state: {"a": module(q=state["q"]).a})
    return in_line(built, "n")


def tool_in_react(url: str) -> Any:
    import dspy

    react = dspy.ReAct("q -> a", tools=[dspy.Tool.from_langchain(look_up)], max_iters=3)
    react.set_lm(dspy_lm(url))
    return react


def chain_in_forward(url: str) -> Any:
    import dspy

    inner = prompt() | model(url) | text()

    class Mixed(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = dspy.Predict("q -> a")
            self.p.lm = dspy_lm(url)

        def forward(self, q: str) -> Any:
            return self.p(q=inner.invoke({"q": q}))

    return Mixed()


def dspy_called(program: Any, given: Any, config: Config) -> Any:
    import dspy

    with dspy.context(allow_tool_async_sync_conversion=True):
        return program(**given).a


_NO_CONFIG = "DSPy's modules take no config"

MIXED = [
    _graph("X1a_dspy_in_a_node", dspy_in_a_node, sites=0, static=0, foreign=1, stream=None),
    Shape(
        "X1b_tool_in_react",
        tool_in_react,
        requests=3,
        sites=0,
        static=0,
        run=dspy_called,
        foreign=3,
        stream=None,
    ),
    Shape(
        "X1c_chain_in_dspy",
        chain_in_forward,
        requests=2,
        static=0,
        run=dspy_called,
        unreached=_NO_CONFIG,
        foreign=1,
        stream=None,
    ),
]
