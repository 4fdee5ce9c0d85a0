"""Rewriting of one request: where instructions and demos go, and what is left alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest

pytest.importorskip("langchain_core")

from adaseek.errors import ConfigurationError
from adaseek.recipe import Demo, Setting
from adaseek.workflow import Field, Signature, Step
from adaseek_langchain._chat import CONSTRAINTS, ChatRequest, is_constrained
from adaseek_langchain._demos import demo_messages
from adaseek_langchain._request import fills_in, rewritten
from adaseek_langchain._turns import (
    answer_after,
    asks_for_reasoning,
    reasoning_alone,
    split_reasoning,
    subtask_alone,
    with_results,
)
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

SYSTEM, HUMAN = SystemMessage("Be brief."), HumanMessage("why?")


def request(*messages: BaseMessage, **kwargs: Any) -> ChatRequest:
    return ChatRequest(messages, kwargs)


def shown(made: ChatRequest) -> list[tuple[str, Any]]:
    return [(message.type, message.content) for message in made.messages]


def step(instructions: str, num_demos: int = 0, output: Any = "text") -> Step:
    fields = (Field("input", "input"), Field("output", "output"))
    return Step("s", signature=Signature(instructions, fields, output), num_demos=num_demos)


def test_an_empty_setting_gives_the_very_same_request() -> None:
    asked = request(SYSTEM, HUMAN, tools=[{"name": "t"}])
    assert rewritten(asked, Setting()) is asked
    assert rewritten(asked, Setting(engine={"a": 1})) is asked


def test_instructions_replace_the_system_message() -> None:
    made = rewritten(request(SYSTEM, HUMAN), Setting(instructions="Sing."))
    assert shown(made) == [("system", "Sing."), ("human", "why?")]


def test_a_prompt_without_instructions_gets_a_system_message() -> None:
    made = rewritten(request(HUMAN), Setting(instructions="Sing."))
    assert shown(made) == [("system", "Sing."), ("human", "why?")]
    made = rewritten(request(HUMAN), Setting(instructions="Sing."), step(""))
    assert shown(made) == [("system", "Sing."), ("human", "why?")]


def test_the_users_messages_are_not_changed() -> None:
    messages = [SystemMessage("S"), HumanMessage("q")]
    before = copy.deepcopy(messages)
    demos = (Demo({"input": "a", "output": "b"}),)
    setting = Setting(instructions="T", demos=demos, reasoning="plan")
    asks_for_reasoning(rewritten(request(*messages), setting), "plan")
    assert messages == before


def test_what_the_program_fills_in_stays() -> None:
    known = step("Answer about {topic} in {language}.")
    asked = request(SystemMessage("Answer about {sea} in one\nword."), HUMAN)
    made = rewritten(asked, Setting(instructions="Say {language} words on {topic}!"), known)
    assert shown(made)[0] == ("system", "Say one\nword words on {sea}!")


def test_a_value_that_new_instructions_forget_is_not_lost() -> None:
    asked = request(SystemMessage("Context: facts. Short."), HUMAN)
    one = rewritten(asked, Setting(instructions="Be wise."), step("Context: {ctx}. Short."))
    assert shown(one)[0] == ("system", "Be wise.\n\nfacts")
    asked = request(SystemMessage("a/b"), HUMAN)
    two = rewritten(asked, Setting(instructions="Be {x}."), step("{x}/{y}"))
    assert shown(two)[0] == ("system", "Be a.\n\ny: b")


def test_doubled_braces_of_a_template_are_single_in_the_message() -> None:
    known = step('Reply {{"a": 1}} about {x}.')
    asked = request(SystemMessage('Reply {"a": 1} about dogs.'), HUMAN)
    made = rewritten(asked, Setting(instructions='Write {{"a": 2}} on {x}.'), known)
    assert shown(made)[0] == ("system", 'Write {"a": 2} on dogs.')


def test_braces_in_plain_instructions_are_text() -> None:
    known = step('Reply {"a": 1}')
    made = rewritten(request(SystemMessage('Reply {"a": 1}'), HUMAN), Setting(instructions="{x}"))
    assert shown(made)[0] == ("system", "{x}")
    made = rewritten(
        request(SystemMessage('Reply {"a": 1}'), HUMAN), Setting(instructions='{"b"}'), known
    )
    assert shown(made)[0] == ("system", '{"b"}')


def test_several_leading_system_messages_are_one_set_of_instructions() -> None:
    asked = request(SystemMessage("A"), SystemMessage("about x"), HUMAN)
    made = rewritten(asked, Setting(instructions="B {y}"), step("A\n\nabout {y}"))
    assert shown(made) == [("system", "B x"), ("human", "why?")]


def test_a_changed_prompt_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no longer holds the instructions"):
        rewritten(request(SYSTEM, HUMAN), Setting(instructions="x"), step("Be long."))


def test_blocks_that_are_not_text_stay() -> None:
    image = {"type": "image_url", "image_url": {"url": "data:,"}}
    blocks = [{"type": "text", "text": "S", "cache_control": {"type": "ephemeral"}}, image]
    made = rewritten(request(SystemMessage(blocks), HUMAN), Setting(instructions="T"))
    assert made.messages[0].content == [
        {"type": "text", "text": "T", "cache_control": {"type": "ephemeral"}},
        image,
    ]


def test_demos_stand_behind_the_system_messages_and_before_the_history() -> None:
    history = [HumanMessage("hi"), AIMessage("ho")]
    demos = (Demo({"input": "1+1", "output": "2"}), Demo({"input": "2+2", "output": "4"}))
    made = rewritten(request(SYSTEM, *history, HUMAN), Setting(demos=demos))
    assert [content for _, content in shown(made)] == [
        *("Be brief.", "1+1", "2", "2+2", "4", "hi", "ho", "why?")
    ]
    assert [kind for kind, _ in shown(made)][1:5] == ["human", "ai", "human", "ai"]


def test_the_authors_examples_are_replaced_if_they_are_known() -> None:
    asked = request(SYSTEM, HumanMessage("a"), AIMessage("b"), HUMAN)
    demos = (Demo({"input": "c", "output": "d"}),)
    made = rewritten(asked, Setting(demos=demos), step("Be brief.", num_demos=1))
    assert [content for _, content in shown(made)] == ["Be brief.", "c", "d", "why?"]
    made = rewritten(asked, Setting(demos=()), step("Be brief.", num_demos=1))
    assert [content for _, content in shown(made)] == ["Be brief.", "why?"]


def test_an_example_that_the_author_shows_already_is_not_repeated() -> None:
    asked = request(SYSTEM, HumanMessage("a"), AIMessage("b"), HUMAN)
    made = rewritten(asked, Setting(demos=(Demo({"input": "a", "output": "b"}),)))
    assert [content for _, content in shown(made)] == ["Be brief.", "a", "b", "why?"]


def test_a_demo_is_never_taken_for_the_prompt() -> None:
    demos = (Demo({"input": "Topic: demo", "output": "x"}),)
    asked = request(SystemMessage("Topic: real"), HUMAN)
    made = rewritten(asked, Setting(instructions="On {t}", demos=demos), step("Topic: {t}"))
    assert shown(made)[0] == ("system", "On real")


def test_parameters_join_the_arguments() -> None:
    asked = request(HUMAN, stop=["x"], temperature=1)
    made = rewritten(asked, Setting(params={"temperature": 0}))
    assert made.kwargs == {"stop": ["x"], "temperature": 0}
    assert asked.kwargs == {"stop": ["x"], "temperature": 1}


def test_several_inputs_become_lines_and_several_outputs_json() -> None:
    signature = Signature("", (Field("a", "output"), Field("b", "output")))
    known = Step("s", signature=signature)
    made = demo_messages(Demo({"q": "x", "n": 2, "a": 1, "b": [2]}), known)
    assert [m.content for m in made] == ["q: x\nn: 2", '{"a": 1, "b": [2]}']


def test_a_schema_is_answered_in_json() -> None:
    signature = Signature("", (Field("color", "output"),), "json_schema")
    made = demo_messages(Demo({"q": "x", "color": "red"}), Step("s", signature=signature))
    assert [m.content for m in made] == ["x", '{"color": "red"}']


def test_reasoning_of_a_demo_shows_only_where_the_step_reasons() -> None:
    demo = Demo({"input": "q", "reasoning": "because", "output": "a"})
    assert demo_messages(demo)[1].content == "a"
    reasoned = demo_messages(demo, reasoning=True)[1].content
    assert isinstance(reasoned, str)
    assert split_reasoning(reasoned) == ("because", "a")
    setting = Setting(demos=(demo,), reasoning="chain_of_thought")
    inline = rewritten(request(HUMAN), setting)
    assert split_reasoning(str(inline.messages[1].content)) == ("because", "a")
    apart = rewritten(request(HUMAN, tools=[{"name": "t"}]), setting)
    assert apart.messages[1].content == "a"


def test_a_demo_of_tool_calls_has_a_result_for_each() -> None:
    calls = [{"name": "f", "args": {"x": 1}}, {"name": "g", "args": {}}]
    made = demo_messages(Demo({"input": "q", "output": "", "tool_calls": calls}), index=3)
    human, answer, *results = made
    assert human.content == "q"
    assert isinstance(answer, AIMessage)
    assert [(c["name"], c["args"]) for c in answer.tool_calls] == [("f", {"x": 1}), ("g", {})]
    ids = [c["id"] for c in answer.tool_calls]
    assert [r.tool_call_id for r in results if isinstance(r, ToolMessage)] == ids
    assert len(set(ids)) == 2


def test_an_answer_of_a_step_with_tools_that_called_none_is_shown_as_its_text() -> None:
    fields = (Field("output", "output"), Field("tool_calls", "output", "list"))
    step = Step("s", signature=Signature("", fields, "text"))
    demo = Demo({"input": "q", "output": "it is 42", "tool_calls": []})
    assert [m.content for m in demo_messages(demo, step)] == ["q", "it is 42"]


def test_a_recorded_conversation_is_shown_as_messages() -> None:
    turns = [
        {"role": "human", "content": "q"},
        {"role": "ai", "content": "", "tool_calls": [{"name": "f", "args": {"x": 1}}]},
        {"role": "tool", "content": "42"},
    ]
    made = demo_messages(Demo({"input": turns, "output": "it is 42"}))
    assert [m.type for m in made] == ["human", "ai", "tool", "ai"]
    call, result = made[1], made[2]
    assert isinstance(call, AIMessage)
    assert isinstance(result, ToolMessage)
    assert result.tool_call_id == call.tool_calls[0]["id"]
    assert made[3].content == "it is 42"


@pytest.mark.parametrize("kind", ["chain_of_thought", "plan"])
def test_reasoning_is_asked_for_in_the_instructions(kind: Any) -> None:
    made = asks_for_reasoning(request(SYSTEM, HUMAN), kind)
    text = str(made.messages[0].content)
    assert text.startswith("Be brief.\n\n")
    assert "=== ANSWER ===" in text
    assert made.messages[1:] == (HUMAN,)
    assert asks_for_reasoning(request(HUMAN), kind).messages[0].type == "system"


def test_reasoning_alone_is_free_of_every_constraint() -> None:
    kwargs = {name: ["x"] for name in CONSTRAINTS}
    made = reasoning_alone(request(SYSTEM, HUMAN, temperature=0.5, **kwargs), "plan")
    assert made.kwargs == {"temperature": 0.5}
    assert made.messages[:2] == (SYSTEM, HUMAN)
    assert not is_constrained(made.kwargs)


def test_the_answer_is_asked_for_with_the_reasoning_and_the_constraints() -> None:
    asked = request(SYSTEM, HUMAN, tools=["t"])
    made = answer_after(asked, "thoughts")
    assert made.kwargs == asked.kwargs
    assert shown(made)[2] == ("ai", "thoughts")
    assert made.messages[3].type == "human"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("why\n=== ANSWER ===\n42", ("why", "42")),
        ("why\n**=== ANSWER ===**\n 42 ", ("why", "42")),
        ("=== ANSWER ===\n42", ("", "42")),
        ("I will write === ANSWER === later\n=== ANSWER ===\nx", None),
        ("a\n=== ANSWER ===\nfirst\n=== ANSWER ===\nlast", None),
        ("no marker", None),
        ("=== ANSWER ===\n  ", None),
        ("Answer: 42", None),
    ],
)
def test_reasoning_is_cut_at_the_last_marker(text: str, expected: Any) -> None:
    found = split_reasoning(text)
    if "later" in text:
        assert found == ("I will write === ANSWER === later", "x")
    elif "first" in text:
        assert found is not None
        assert found[1] == "last"
    else:
        assert found == expected


def test_a_subtask_is_asked_behind_the_earlier_ones_and_free_of_every_constraint() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    request = ChatRequest((HumanMessage("q"),), {"tools": [tool], "stop": ["x"], "top_p": 0.5})
    asked = subtask_alone(request, "List it.", [("Find it.", "found"), ("Check it.", "")])
    assert asked.kwargs == {"top_p": 0.5}
    told = [(message.type, message.text.partition("\n")[0]) for message in asked.messages]
    first = "First do only this part of the task, which prepares the rest:"
    assert told == [
        ("human", "q"),
        ("human", f"{first} Find it."),
        ("ai", "found"),
        ("human", f"{first} Check it."),
        ("ai", "..."),
        ("human", f"{first} List it."),
    ]
    answering = with_results(request, [("Find it.", "found")])
    assert answering.kwargs == request.kwargs
    assert answering.messages[:3] == asked.messages[:3]
    assert "respond to the whole task" in answering.messages[3].text
    assert with_results(request, []) is request


@given(
    parts=st.lists(st.text(st.characters(exclude_characters="{}"), min_size=1), min_size=2),
    values=st.lists(st.text(), min_size=1, max_size=3),
)
def test_a_filled_template_is_recognised(parts: list[str], values: list[str]) -> None:
    names = [f"n{i}" for i in range(len(values))]
    slots = [f"{{{name}}}" for name in names]
    template = "".join(p + s for p, s in zip(parts, slots, strict=False)) + parts[-1]
    filled = template
    for slot, value in zip(slots, values, strict=True):
        filled = filled.replace(slot, value.replace("{", "(").replace("}", ")"), 1)
    assert fills_in(template, filled)
