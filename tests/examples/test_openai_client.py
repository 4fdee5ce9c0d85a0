"""The example adapter for the plain `openai` client: it conforms, and its programs are tunable."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from adaseek.cogs.base import Option
from adaseek.recipe import Recipe, Setting
from adaseek.testing.conformance import AdapterConformance
from adaseek.testing.loopback import LoopbackServer, Reply
from adaseek.tuner import Tuner
from adaseek.workflow import Example, ModelRef, Trace

openai = pytest.importorskip("openai")

FOLDER = Path(__file__).parents[2] / "examples" / "adapters" / "openai_client"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


adapter = sys.modules.get("adaseek_openai") or load("adaseek_openai")


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def two_steps(url: str, *, told: str = "Draft.", error: BaseException | None = None) -> Any:
    client = openai.OpenAI(base_url=url, api_key="secret-key", max_retries=0)

    @adapter.tunable
    def answer(q: str) -> str:
        with adapter.step("draft"):
            draft = client.chat.completions.create(model="m", messages=[system(told), user(q)])
        if error is not None:
            raise error
        final = client.chat.completions.create(
            model="m3",
            messages=[system("Answer."), user(f"{q}: {draft.choices[0].message.content}")],
        )
        return str(final.choices[0].message.content)

    return answer


class TestOpenAIClient(AdapterConformance):
    plugins = (adapter,)
    framework = "openai"

    def program(self, url: str) -> Any:
        return two_steps(url)

    def example(self) -> Any:
        return {"q": "what", "a": "that"}

    def call(self, program: Any, example: Example) -> Any:
        return program(**example.inputs)

    def changed(self, url: str) -> Any:
        return two_steps(url, told="Write a draft.")

    def failing(self, url: str, error: BaseException) -> Any:
        return two_steps(url, error=error)

    def streaming_program(self, url: str) -> Any:
        client = openai.OpenAI(base_url=url, api_key="secret-key", max_retries=0)

        @adapter.tunable
        def answer(q: str) -> Any:
            return client.chat.completions.create(model="m", messages=[user(q)], stream=True)

        return answer

    def stream(self, program: Any, example: Example) -> Iterable[Any]:
        return (chunk for chunk in program(**example.inputs))

    def snapshot(self, program: Any) -> Any:
        return (program.function.__code__, program.recipe)


def test_the_steps_have_names_places_and_edges() -> None:
    workflow = adapter.adaseek_translate(obj=two_steps("http://127.0.0.1:9/v1"))
    assert list(workflow.steps) == ["draft", "two_steps.<locals>.answer+6"]
    edges = {(edge.source, edge.target) for edge in workflow.edges}
    place = "two_steps.<locals>.answer+6"
    assert edges == {("INPUT", "draft"), ("INPUT", place), ("draft", place), (place, "OUTPUT")}


def test_data_in_the_system_message_blocks_new_instructions() -> None:
    client = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="k")

    @adapter.tunable
    def answer(q: str) -> Any:
        return client.chat.completions.create(model="m", messages=[system(f"About {q}")])

    (step,) = adapter.adaseek_translate(obj=answer).steps.values()
    assert "holds data" in step.blocked["instructions"]
    assert "instructions" not in step.allowed


def test_code_that_refuses_a_marker_is_named_in_a_note() -> None:
    @adapter.tunable
    def answer(q: str) -> Any:
        return two_steps("http://127.0.0.1:9/v1").function(q) + str(int(q))

    workflow = adapter.adaseek_translate(obj=answer)
    assert "draft" in workflow.steps
    assert "ValueError" in workflow.notes[0].text


def test_without_a_run_the_client_is_as_it_was() -> None:
    with LoopbackServer(models=("m",)) as server:
        client = openai.OpenAI(base_url=server.url, api_key="k")
        reply = client.chat.completions.create(model="m", messages=[user("hello")])
        assert reply.choices[0].message.content == "echo[m]: hello"


def counts(body: Mapping[str, Any]) -> Reply:
    """A model that counts letters: "m2" can, "m" only if it is told to be exact."""
    messages = body["messages"]
    word = str(messages[-1]["content"])
    exact = body["model"] == "m2" or "exact" in str(messages[0]["content"])
    return Reply(str(len(word) if exact else 0))


class Exact:
    """A cog of the test: one better instruction."""

    name, family = "instructions", "weight"

    def refuses(self, step: Any) -> str | None:
        refused: str | None = step.blocked.get("instructions")
        return refused

    def options(self, step: Any, context: Any) -> list[Option]:
        return [Option("original"), Option("exact", Setting(instructions="Be exact."))]


def is_right(example: Example, trace: Trace) -> bool:
    return bool(trace.output == example.labels["n"])


@pytest.mark.parametrize("cogs", [[Exact()], None], ids=["instructions", "built-in cogs"])
def test_a_plain_function_is_tuned_end_to_end(cogs: Any, tmp_path: Path) -> None:
    examples = [{"word": "x" * n, "n": str(n)} for n in range(1, 25)]
    with LoopbackServer(counts, models=("m", "m2")) as server:
        client = openai.OpenAI(base_url=server.url, api_key="k")

        @adapter.tunable
        def count(word: str) -> str:
            messages = [system("Count the letters."), user(word)]
            reply = client.chat.completions.create(model="m", messages=messages)
            return str(reply.choices[0].message.content)

        tuner = Tuner(
            is_right,
            budget=160,
            models=[f"m2@{server.url}"],
            objectives=("quality",),
            cogs=cogs,
            plugins=[adapter],
            run_dir=tmp_path,
            verbose=False,
        )
        result = tuner.tune(count, trainset=examples)
        (setting,) = result.recipe.settings.values()
        if cogs is None:
            assert setting.model == ModelRef("m2", server.url)
        else:
            assert setting.instructions == "Be exact."
        tuned = adapter.adaseek_apply(
            obj=count, workflow=adapter.adaseek_translate(obj=count), recipe=Recipe.load(tmp_path)
        )
        assert tuned("abcde") == "5"
        assert count("abcde") == "0"
