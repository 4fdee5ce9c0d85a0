"""How much a hook costs: chains of 1 ms model calls with and without it, interleaved.

    python examples/benchmarks/langchain_overhead/measure.py --rounds 40

Four ways take turns, 25 calls each per round: no handler and no interposition (`bare`); a handler
that does nothing, without interposition (`empty`: LangChain's own part); interposition installed,
but no handler on the call (`inert`); our handler on the call (`hook`). The model works for one
millisecond and answers; the one called `openai` is a `ChatOpenAI` that does so in place of its
request, since a hook makes a copy of such models for each call. Time is this thread's own CPU time,
which other work on the machine does not count in, but slows down. Reported are the median of
`bare`, and the median over the rounds of the difference of a round's medians, with quartiles.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from adaseek_langchain import AdaSeekHook
from adaseek_langchain._interpose import install, uninstall
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_openai import ChatOpenAI

CALL_S = 0.001
CALLS, WARM_UP = 25, 5


class OneMillisecond(BaseChatModel):
    """Answers after one millisecond, with a usage report."""

    @property
    def _llm_type(self) -> str:
        return "one-millisecond"

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        until = time.thread_time() + CALL_S
        while time.thread_time() < until:
            pass
        usage = {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12}
        return ChatResult(
            generations=[ChatGeneration(message=AIMessage("yes", usage_metadata=usage))]
        )


class OneMillisecondOpenAI(ChatOpenAI):
    """The same as a model of an OpenAI-compatible server."""

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return OneMillisecond._generate(self, messages)  # type: ignore[arg-type]


class Empty(BaseCallbackHandler):
    """Does nothing."""

    run_inline = True

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None: ...


def timed(call: Callable[[], Any]) -> float:
    began = time.thread_time()
    call()
    return time.thread_time() - began


def measure(num_rounds: int, program: Any, given: Any) -> dict[str, list[float]]:
    """Returns the median seconds per call of each way and round, after one unmeasured round."""
    hook = AdaSeekHook()
    handlers: dict[str, BaseCallbackHandler] = {"empty": Empty(), "hook": hook}
    medians: dict[str, list[float]] = {"bare": [], "empty": [], "inert": [], "hook": []}
    for index in range(-1, num_rounds):
        for name, values in medians.items():
            # Changing a class slows the next calls of its methods, so not once per call.
            uninstall() if name in ("bare", "empty") else install(hook)
            config = {"callbacks": [handlers[name]]} if name in handlers else None
            calls = [timed(partial(program.invoke, given, config)) for _ in range(CALLS)]
            if index >= 0:
                values.append(statistics.median(calls[WARM_UP:]))
    return medians


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    bare = statistics.median(seconds["bare"])
    rows: dict[str, Any] = {"bare_us": round(bare * 1e6, 1)}
    for name in ("empty", "inert", "hook"):
        differences = [a - b for a, b in zip(seconds[name], seconds["bare"], strict=True)]
        low, middle, high = statistics.quantiles(differences, n=4)
        rows[name] = {
            "added_us": round(middle * 1e6, 1),
            "quartiles_us": [round(low * 1e6, 1), round(high * 1e6, 1)],
            "percent": round(100 * middle / bare, 1),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    num_rounds = parser.parse_args().rounds
    model = OneMillisecond()
    openai = OneMillisecondOpenAI(model="m", base_url="http://127.0.0.1:1/v1", api_key="none")
    prompt = ChatPromptTemplate.from_messages([("system", "Answer."), ("human", "{q}")])
    chain = prompt | model | StrOutputParser()
    result = {
        "rounds": num_rounds,
        "load": round(os.getloadavg()[0], 1),
        "model alone": summary(measure(num_rounds, model, "what is it")),
        "openai model alone": summary(measure(num_rounds, openai, "what is it")),
        "prompt | model | parser": summary(measure(num_rounds, chain, {"q": "what is it"})),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
