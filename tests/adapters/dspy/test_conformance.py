"""The DSPy adapter passes the suite that every adapter inherits."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pytest
from adaseek.testing.conformance import AdapterConformance
from adaseek.testing.loopback import LoopbackServer, Reply
from adaseek.workflow import Example

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

dspy = pytest.importorskip("dspy")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


class TwoSteps(dspy.Module):
    """Two predictors that hold their own models, so that no global configuration is needed."""

    def __init__(self, url: str, told: str, error: BaseException | None = None) -> None:
        super().__init__()
        self.draft = dspy.Predict(dspy.Signature("q -> draft", told))
        self.answer = dspy.ChainOfThought("q, draft -> a")
        self.error = error
        for predictor, name in ((self.draft, "m"), (self.answer.predict, "m3")):
            predictor.lm = dspy.LM(
                f"openai/{name}", api_base=url, api_key="secret-key", cache=False, num_retries=0
            )

    def forward(self, q: str) -> Any:
        draft = self.draft(q=q).draft
        if self.error is not None:
            raise self.error
        return self.answer(q=q, draft=draft)


class TestDSPy(AdapterConformance):
    framework = "dspy"
    model_prefix = "openai/"

    def program(self, url: str) -> Any:
        return TwoSteps(url, "Draft an answer.")

    def changed(self, url: str) -> Any:
        return TwoSteps(url, "Write a first draft.")

    def failing(self, url: str, error: BaseException) -> Any:
        return TwoSteps(url, "Draft an answer.", error)

    def example(self) -> Any:
        return dspy.Example(q="what", a="that").with_inputs("q")

    def call(self, program: Any, example: Example) -> Any:
        return program(**example.inputs)

    def answer(self, body: Mapping[str, Any]) -> Reply:
        """Returns a word for each output field that the system message lists."""
        listed = body["messages"][0]["content"].partition("Your output fields are:")[2]
        listed = listed.partition("All interactions")[0]
        names = re.findall(r"^\d+\. `(\w+)`", listed, re.MULTILINE)
        fields = [f"[[ ## {name} ## ]]\n{'some words for ' * 8}{name}\n" for name in names]
        return Reply("\n".join([*fields, "[[ ## completed ## ]]"]))

    def stream(self, program: Any, example: Example) -> Iterable[Any]:
        listener = dspy.streaming.StreamListener(signature_field_name="a")
        streamed = dspy.streamify(program, stream_listeners=[listener], async_streaming=False)
        chunks: Iterator[Any] = streamed(**example.inputs)
        return chunks

    def snapshot(self, program: Any) -> Any:
        return [
            (name, p.signature, p.signature.instructions, list(p.demos), p.config, id(p.lm))
            for name, p in program.named_sub_modules(dspy.Predict)
        ]

    def test_a_program_without_a_model_of_its_own_uses_the_context(
        self, server: LoopbackServer
    ) -> None:
        program = dspy.Predict("q -> a")
        lm = dspy.LM("openai/m", api_base=server.url, api_key="secret-key", cache=False)
        with dspy.context(lm=lm):
            bound = self.bound(program)
            assert self.run(bound).usage.requests == 1
