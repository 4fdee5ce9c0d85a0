"""How a tuned step gets its answer: one request, or several that are put together.

A flow is a generator without input or output of its own: it yields the requests to make at the
same time, is sent their replies, and returns the answer. So threads, tasks and tests drive the
same code.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import re
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any  # Any: rewards and models are the user's

from adaseek.recipe import Aggregate, Reasoning, Setting
from adaseek.voting import majority_index
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.ai import add_usage

from adaseek_langchain._chat import ChatRequest, is_constrained
from adaseek_langchain._request import rewritten
from adaseek_langchain._turns import (
    REASONING_KEY,
    answer_after,
    asks_for_reasoning,
    reasoning_alone,
    split_reasoning,
    subtask_alone,
)

__all__ = [
    "Ask",
    "Flow",
    "Reply",
    "Results",
    "Reward",
    "adrive",
    "drive",
    "ensemble_flow",
    "split_flow",
    "step_flow",
]

Reply = AIMessage | Exception
Reward = Callable[[Mapping[str, Any], Any], float]
"""`{"messages": [...]}` of the step and one answer (an AIMessage) -> a number, higher is better."""

_JUDGE = (
    "Several answers were given to the same conversation. Compare them and choose the one that is "
    "most consistent with the others. Reply with its number and nothing else."
)


@dataclass(frozen=True)
class Ask:
    """One request to make: which step it belongs to, on which model, and what to send."""

    step: str
    model: BaseChatModel
    request: ChatRequest


Flow = Generator[list[Ask], list[Reply], AIMessage]

Results = tuple[tuple[str, str], ...]
"""Instructions and answer of each subtask, in order."""


def drive(flow: Flow, ask: Callable[[Ask], AIMessage]) -> AIMessage:
    """Returns the answer of `flow`; requests of one round run in threads at the same time."""
    asks = next(flow)
    while True:
        replies = _ask_all(asks, ask)
        try:
            asks = flow.send(replies)
        except StopIteration as done:
            answer: AIMessage = done.value
            return answer


async def adrive(flow: Flow, ask: Callable[[Ask], Awaitable[AIMessage]]) -> AIMessage:
    """Returns the answer of `flow`; requests of one round run as tasks of the event loop."""
    asks = next(flow)
    while True:
        outcomes = await asyncio.gather(*(ask(item) for item in asks), return_exceptions=True)
        replies: list[Reply] = []
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, Exception):
                raise outcome  # cancelled, or the process is to end
            replies.append(outcome)
        try:
            asks = flow.send(replies)
        except StopIteration as done:
            answer: AIMessage = done.value
            return answer


def _ask_all(asks: Sequence[Ask], ask: Callable[[Ask], AIMessage]) -> list[Reply]:
    if len(asks) == 1:
        return [_outcome(ask, asks[0])]
    with ThreadPoolExecutor(len(asks)) as pool:
        runs = [pool.submit(contextvars.copy_context().run, _outcome, ask, item) for item in asks]
        return [run.result() for run in runs]


def _outcome(ask: Callable[[Ask], AIMessage], item: Ask) -> Reply:
    # The flow decides what a failed member means; a single request's failure is raised by it.
    try:
        return ask(item)
    except Exception as error:
        return error


def step_flow(ask: Ask, reasoning: Reasoning | None) -> Flow:
    """Asks once; with `reasoning`, so that whatever parses the answer sees only the answer.

    Without constraints of form one request is enough: the reasoning is cut off at a marker, and
    a second request asks for the bare answer only if the model left the marker out. Bound tools,
    a response format or stop words leave no room, so the reasoning is a request of its own.
    """
    if reasoning is None or reasoning == "off":
        (reply,) = yield [ask]
        return _success(reply)
    request = ask.request
    if is_constrained(request.kwargs):
        first = yield [replace(ask, request=reasoning_alone(request, reasoning))]
        thought = _success(first[0])
        second = yield [replace(ask, request=answer_after(request, thought.text))]
        return _answered(_success(second[0]), thought.text, [thought])
    first = yield [replace(ask, request=asks_for_reasoning(request, reasoning))]
    reply = _success(first[0])
    parts = split_reasoning(reply.text)
    if parts is not None:
        return _answered(reply.model_copy(update={"content": parts[1]}), parts[0], [])
    second = yield [replace(ask, request=answer_after(request, reply.text))]
    return _answered(_success(second[0]), reply.text, [reply])


def split_flow(
    subtasks: Sequence[tuple[Ask, str]],
    answering: Callable[[Results], Flow],
    *,
    needs_all: bool = True,
) -> Flow:
    """Asks the subtasks one after the other, then for the answer that `answering` gives on them.

    Args:
        subtasks: the step's request, to be made for each subtask, and what to do.
        needs_all: whether a failed subtask fails the step; else it goes on without its result.
    """
    results: Results = ()
    replies: list[AIMessage] = []
    for ask, instructions in subtasks:
        request = subtask_alone(ask.request, instructions, results)
        (reply,) = yield [replace(ask, request=request)]
        if isinstance(reply, Exception):
            if needs_all:
                raise reply
            continue
        results = (*results, (instructions, reply.text))
        replies.append(reply)
    answer = yield from answering(results)
    return _with_usage(answer, replies)


def ensemble_flow(
    request: ChatRequest,
    flows: Sequence[Flow],
    *,
    aggregate: Aggregate,
    judge: Ask | None = None,
    judge_setting: Setting | None = None,
    reward: Reward | None = None,
    needs_all: bool = True,
) -> Flow:
    """Runs the members' `flows` in step with each other and returns the preferred answer.

    Answers are compared by their tool calls if they have any, else by their JSON fields or their
    text. Equal answers need no judge.

    Args:
        request: the step's own request, shown to judge and reward.
        judge: the request of the judge, its messages left empty, for aggregate `judge`.
        reward: the function that rates, for aggregate `best_of`.
        needs_all: whether one failed member fails the step; else the others answer for it.
    """
    outcomes = yield from _together(flows)
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    if errors and (needs_all or len(errors) == len(outcomes)):
        raise errors[0]
    answers = [outcome for outcome in outcomes if isinstance(outcome, AIMessage)]
    chosen, others = majority_index([_ballot(a) for a in answers]), list[AIMessage]()
    if aggregate == "best_of" and reward is not None:
        rated = [reward({"messages": list(request.messages)}, answer) for answer in answers]
        chosen = rated.index(max(rated))
    elif judge is not None and len({_canonical(_ballot(a)) for a in answers}) > 1:
        asked = ChatRequest(_judge_messages(request, answers), judge.request.kwargs)
        verdict = yield [replace(judge, request=rewritten(asked, judge_setting or Setting()))]
        if isinstance(verdict[0], AIMessage):
            others = [verdict[0]]
            chosen = _verdict(verdict[0].text, len(answers), chosen)
        elif needs_all:
            raise verdict[0]
    rest = [answer for i, answer in enumerate(answers) if i != chosen]
    return _with_usage(answers[chosen], [*rest, *others])


def _together(flows: Sequence[Flow]) -> Generator[list[Ask], list[Reply], list[Reply]]:
    """Runs `flows` side by side: one round asks what each of them asks next."""
    waiting = {index: next(flow) for index, flow in enumerate(flows)}
    outcomes: dict[int, Reply] = {}
    while waiting:
        replies = yield [ask for asks in waiting.values() for ask in asks]
        position = 0
        following: dict[int, list[Ask]] = {}
        for index, asks in waiting.items():
            part = replies[position : position + len(asks)]
            position += len(asks)
            try:
                following[index] = flows[index].send(part)
            except StopIteration as done:
                outcomes[index] = done.value
            except Exception as error:  # the failure of this member's request
                outcomes[index] = error
        waiting = following
    return [outcomes[index] for index in range(len(flows))]


def _success(reply: Reply) -> AIMessage:
    if isinstance(reply, Exception):
        raise reply
    return reply


def _answered(answer: AIMessage, reasoning: str, earlier: Sequence[AIMessage]) -> AIMessage:
    kept = {**answer.additional_kwargs, REASONING_KEY: reasoning}
    return _with_usage(answer.model_copy(update={"additional_kwargs": kept}), earlier)


def _with_usage(answer: AIMessage, others: Sequence[AIMessage]) -> AIMessage:
    """Returns `answer` with the usage of every request that it took, as one message's usage."""
    usage = answer.usage_metadata
    for other in others:
        usage = add_usage(usage, other.usage_metadata)
    if usage == answer.usage_metadata:
        return answer
    return answer.model_copy(update={"usage_metadata": usage})


def _ballot(answer: AIMessage) -> dict[str, Any]:
    """Returns what an answer votes for; the order of parallel tool calls does not count."""
    if answer.tool_calls:
        calls = [{"name": call["name"], "args": call["args"]} for call in answer.tool_calls]
        return {"tool_calls": sorted(calls, key=_canonical)}
    text = answer.text
    try:
        value = json.loads(text)
    except ValueError:
        return {"output": text}
    return value if isinstance(value, dict) and value else {"output": value}


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _judge_messages(request: ChatRequest, answers: Sequence[AIMessage]) -> tuple[BaseMessage, ...]:
    turns = [f"{message.type}: {_said(message)}" for message in request.messages]
    listed = [f"[{i}] {_said(answer)}" for i, answer in enumerate(answers, start=1)]
    text = "\n".join(["Conversation:", *turns, "", "Answers:", *listed])
    return SystemMessage(_JUDGE), HumanMessage(text)


def _said(message: BaseMessage) -> str:
    calls = getattr(message, "tool_calls", None)
    if calls:
        return " ".join(f"{call['name']}({json.dumps(call['args'])})" for call in calls)
    return message.text


def _verdict(text: str, num_answers: int, otherwise: int) -> int:
    found = re.search(r"\d+", text)
    number = int(found[0]) if found else 0
    return number - 1 if 1 <= number <= num_answers else otherwise
