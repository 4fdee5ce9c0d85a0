"""Examples and metrics as users of LangChain write them."""

from __future__ import annotations

from typing import Any

import pytest
from adaseek.errors import ExampleError, MetricError
from adaseek.evaluation.scoring import score_run
from adaseek.testing.loopback import LoopbackServer
from adaseek.workflow import Example, Trace

pytest.importorskip("langchain")
pytest.importorskip("langchain_openai")

from langchain_programs import chain, chat
from langchain_runs import RAW, bound, run


@pytest.mark.parametrize(
    ("raw", "inputs", "labels"),
    [
        ({"inputs": {"q": "x"}, "outputs": {"a": "y"}}, {"q": "x"}, {"a": "y"}),
        ({"inputs": {"q": "x"}, "answer": "y"}, {"q": "x"}, {"answer": "y"}),
        ({"q": "x", "answer": "y"}, {"q": "x"}, {"answer": "y"}),
        (({"q": "x"}, "y"), {"q": "x"}, {"expected": "y"}),
        (("x", "y"), {"input": "x"}, {"expected": "y"}),
        ({"input": "x", "answer": "y"}, {"input": "x"}, {"answer": "y"}),
    ],
)
def test_examples_are_taken_in_the_usual_forms(
    server: LoopbackServer, raw: Any, inputs: Any, labels: Any
) -> None:
    (example,) = bound(chain(server)).examples("trainset", [raw])
    assert (example.inputs, example.labels, example.raw) == (inputs, labels, raw)


def test_example_without_any_input_is_refused(server: LoopbackServer) -> None:
    with pytest.raises(ExampleError, match="which of its fields are inputs"):
        bound(chain(server)).examples("trainset", [{"answer": "y"}])


def test_example_from_a_file_calls_the_program(server: LoopbackServer) -> None:
    assert run(chain(server), raw=Example("1", {"q": "hello"}, {"a": "x"})).error is None
    bare = Example("2", {"input": "hello"})
    assert run(chat(server), raw=bare).output.text.endswith("hello")


def test_metric_gets_the_users_own_example_and_output(server: LoopbackServer) -> None:
    told: list[Any] = []

    def metric(example: Any, output: Any) -> dict[str, Any]:
        told.extend((example, output))
        return {"score": True, "feedback": "good"}

    scored = bound(chain(server)).metric(metric)
    score = score_run(scored, Example("1", {}, raw=RAW), Trace(output="out"))
    assert told == [RAW, "out"]
    assert (score.value, score.feedback) == (1.0, "good")


def test_metric_that_takes_one_argument_is_refused(server: LoopbackServer) -> None:
    with pytest.raises(MetricError, match="must take"):
        bound(chain(server)).metric(lambda output: True)
