"""What the memo of a tuning run answers, and what it must not."""

from __future__ import annotations

from typing import Any

import pytest
from adaseek.evaluation.base import RunContext
from adaseek.recipe import Ensemble, Recipe, Setting
from adaseek.testing.loopback import LoopbackServer, Reply
from adaseek.workflow import ModelRef, Usage

pytest.importorskip("langchain")
pytest.importorskip("langchain_openai")

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from langchain_programs import chain, chat, prompt
from langchain_runs import Memo, run
from pydantic import BaseModel


def test_memo_answers_an_equal_request(server: LoopbackServer) -> None:
    context = RunContext(memo=Memo())
    first, second = run(chain(server), None, context), run(chain(server), None, context)
    assert len(server.requests) == 1
    assert second.output == first.output
    assert [call.cached for call in (*first.calls, *second.calls)] == [False, True]
    assert second.usage == first.usage
    assert second.latency_s is not None and first.latency_s is not None
    assert second.calls[0].duration_s == pytest.approx(first.calls[0].duration_s, rel=0.2)


@pytest.mark.parametrize("streams", [True, False])
def test_memo_answers_streams_tools_and_schemas_alike(
    server: LoopbackServer, streams: bool
) -> None:
    class Answer(BaseModel):
        """An answer."""

        answer: str

    server.answer = lambda _: Reply('{"answer": "yes"}')
    program = prompt() | chat(server, streaming=streams).with_structured_output(Answer)
    context = RunContext(memo=Memo())
    outputs = [run(program, None, context).output for _ in range(2)]
    assert outputs == [Answer(answer="yes")] * 2
    assert len(server.requests) == 1


def test_stream_is_remembered_whole(server: LoopbackServer) -> None:
    def streamed(x: Any) -> str:
        return "|".join(chunk.text for chunk in chat(server).stream(x["q"]))

    context = RunContext(memo=Memo())
    first = run(RunnableLambda(streamed), None, context)
    second = run(RunnableLambda(streamed), None, context)
    assert first.output.count("|") > second.output.count("|")
    assert second.output.replace("|", "") == first.output.replace("|", "")
    assert second.usage == first.usage and first.usage.input_tokens > 0
    assert len(server.requests) == 1


def test_equal_requests_of_one_run_are_separate_draws(server: LoopbackServer) -> None:
    llm = chat(server, temperature=0.7)
    twice = RunnableLambda(lambda x: [llm.invoke(x["q"]).text for _ in range(2)])
    context = RunContext(memo=Memo())
    run(twice, None, context)
    assert len(server.requests) == 2
    run(twice, None, context)
    assert len(server.requests) == 2


def test_replicates_are_separate_draws_unless_at_temperature_zero(server: LoopbackServer) -> None:
    memo = Memo()
    for replicate in (0, 1):
        run(chain(server, temperature=1.0), None, RunContext(memo=memo, replicate=replicate))
    assert len(server.requests) == 2
    for replicate in (0, 1):
        run(chain(server, temperature=0), None, RunContext(memo=memo, replicate=replicate))
    assert len(server.requests) == 3


def test_members_of_an_ensemble_are_separate_draws(server: LoopbackServer) -> None:
    recipe = Recipe({"2.lm": Setting(ensemble=Ensemble(3, "majority"))})
    trace = run(chain(server), recipe, RunContext(memo=Memo()))
    assert len(server.requests) == 3
    assert sorted(c.step for c in trace.calls) == ["2.lm#0", "2.lm#1", "2.lm#2"]
    assert trace.usage.requests == 3


def test_langchains_own_cache_does_not_answer_in_a_run(server: LoopbackServer) -> None:
    from langchain_core.caches import InMemoryCache

    program = chain(server, cache=InMemoryCache())
    run(program)
    run(program)
    assert len(server.requests) == 2
    run(program, None, RunContext(use_cache=True))
    trace = run(program, None, RunContext(use_cache=True))
    assert len(server.requests) == 3
    assert trace.calls[0].cached


def test_prices_give_costs_also_from_the_memo(server: LoopbackServer) -> None:
    def price(reference: ModelRef, usage: Usage, duration_s: float) -> float | None:
        return usage.input_tokens * 1.0 if reference.id == "m" else None

    context = RunContext(memo=Memo(), price=price)
    first, second = run(chain(server), None, context), run(chain(server), None, context)
    assert first.usage.cost_usd == second.usage.cost_usd == first.usage.input_tokens


def test_answers_survive_the_memo_with_their_tool_calls() -> None:
    from adaseek_langchain._messages import answer_chunk, restored_answer, stored_answer

    calls = [{"name": "f", "args": {"a": [1, None, "x"]}, "id": "1", "type": "tool_call"}]
    usage = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
    message = AIMessage("text", tool_calls=calls, usage_metadata=usage, id="run-1")
    again = restored_answer(stored_answer(message))
    assert again == message.model_copy(update={"id": None})
    chunk = answer_chunk(again)
    assert [c["args"] for c in chunk.tool_calls] == [{"a": [1, None, "x"]}]
    assert chunk.usage_metadata == usage


def test_wall_time_of_a_replayed_run_is_not_its_latency(server: LoopbackServer) -> None:
    server.answer = lambda _: Reply("hello", delay_s=0.3)
    context = RunContext(memo=Memo())
    run(chain(server), None, context)
    trace = run(chain(server), None, context)
    assert trace.calls[0].cached
    assert trace.latency_s is not None and trace.latency_s >= 0.3
