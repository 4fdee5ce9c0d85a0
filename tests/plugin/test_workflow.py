"""Workflows as JSON, their fingerprints, and the arithmetic of usage."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import replace

import pytest
from adaseek.workflow import (
    Call,
    Edge,
    Field,
    ModelRef,
    Note,
    Signature,
    Step,
    Trace,
    Usage,
    Workflow,
)
from hypothesis import given
from hypothesis import strategies as st

names = st.text(min_size=1, max_size=8)
field_values = st.builds(
    Field, names, st.sampled_from(["input", "output"]), type=names, description=st.text(max_size=8)
)
signatures = st.builds(
    Signature,
    st.text(max_size=20),
    st.lists(field_values, max_size=3).map(tuple),
    st.sampled_from(["text", "fields", "json_schema", "tool_calls"]),
)
model_refs = st.builds(ModelRef, names, st.sampled_from(["", "http://localhost:8000/v1"]))
steps = st.builds(
    Step,
    id=names,
    kind=st.sampled_from(["lm", "tool", "code", "retriever"]),
    name=st.text(max_size=8),
    parent=st.none() | names,
    signature=st.none() | signatures,
    model=st.none() | model_refs,
    tools=st.lists(names, max_size=2).map(tuple),
    num_demos=st.integers(0, 3),
    allowed=st.frozensets(names, max_size=3),
    blocked=st.dictionaries(names, st.text(max_size=8), max_size=2),
    dynamic=st.booleans(),
)
edges = st.builds(
    Edge, names, names, names, names, st.sampled_from(["static", "order", "probe", "trace"])
)
workflows = st.builds(
    Workflow,
    framework=names,
    steps=st.lists(steps, max_size=4).map(lambda found: {step.id: step for step in found}),
    edges=st.frozensets(edges, max_size=3),
    inputs=st.lists(names, max_size=2).map(tuple),
    outputs=st.lists(names, max_size=2).map(tuple),
    name=st.text(max_size=8),
    notes=st.lists(
        st.builds(Note, st.sampled_from(["info", "warning"]), st.text(max_size=8)), max_size=2
    ).map(tuple),
)
usages = st.builds(
    Usage,
    input_tokens=st.integers(0, 1000),
    output_tokens=st.integers(0, 1000),
    cached_tokens=st.integers(0, 1000),
    requests=st.integers(0, 10),
    cost_usd=st.none() | st.integers(0, 100).map(lambda cents: cents / 128),
)


@given(workflows)
def test_a_workflow_survives_json(workflow: Workflow) -> None:
    again = Workflow.from_json(json.loads(json.dumps(workflow.to_json())))
    assert again == workflow
    assert list(again.steps) == list(workflow.steps)
    assert again.fingerprint == workflow.fingerprint


@given(workflows)
def test_a_workflow_can_be_pickled_and_deep_copied(workflow: Workflow) -> None:
    assert pickle.loads(pickle.dumps(workflow)) == workflow
    assert copy.deepcopy(workflow) == workflow


STEP = Step(
    "qa",
    signature=Signature(
        "Answer the question.", (Field("question", "input"), Field("answer", "output"))
    ),
    model=ModelRef("small"),
    tools=("search",),
)


def signature_of(step: Step) -> Signature:
    assert step.signature is not None
    return step.signature


@pytest.mark.parametrize(
    "changed",
    [
        replace(STEP, kind="tool"),
        replace(STEP, tools=("search", "calculator")),
        replace(STEP, signature=replace(signature_of(STEP), instructions="Answer it.")),
        replace(STEP, signature=replace(signature_of(STEP), fields=(Field("answer", "output"),))),
        replace(
            STEP,
            signature=replace(
                signature_of(STEP),
                fields=(Field("question", "input"), Field("answer", "output", "int")),
            ),
        ),
    ],
)
def test_step_fingerprint_changes_with_what_a_recipe_relies_on(changed: Step) -> None:
    assert changed.fingerprint != STEP.fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        replace(STEP, id="other"),
        replace(STEP, name="Other"),
        replace(STEP, model=ModelRef("large")),
        replace(STEP, num_demos=3),
        replace(STEP, allowed=frozenset({"model"})),
        replace(STEP, blocked={"model": "no"}),
    ],
)
def test_step_fingerprint_does_not_change_with_what_a_recipe_may_set(changed: Step) -> None:
    assert changed.fingerprint == STEP.fingerprint


def test_workflow_fingerprint_leaves_dynamic_steps_out() -> None:
    workflow = Workflow("dspy", {"qa": STEP})
    seen = workflow.with_steps([Step("tool", kind="tool", dynamic=True)])
    grown = workflow.with_steps([Step("tool", kind="tool")])
    assert seen.fingerprint == workflow.fingerprint
    assert grown.fingerprint != workflow.fingerprint
    assert Workflow("langchain", {"qa": STEP}).fingerprint != workflow.fingerprint


def test_with_steps_leaves_the_workflow_as_it_was() -> None:
    workflow = Workflow("dspy", {"qa": STEP})
    other = workflow.with_steps([replace(STEP, num_demos=2), Step("code", kind="code")])
    assert list(workflow.steps) == ["qa"]
    assert workflow.steps["qa"].num_demos == 0
    assert [step.id for step in other.steps.values()] == ["qa", "code"]
    assert [step.id for step in other.lm_steps()] == ["qa"]


def test_a_workflow_does_not_see_later_changes_of_the_mapping_it_was_made_from() -> None:
    mapping = {"qa": STEP}
    workflow = Workflow("dspy", mapping)
    mapping["late"] = Step("late")
    assert list(workflow.steps) == ["qa"]


def test_inputs_and_outputs_of_a_signature() -> None:
    signature = signature_of(STEP)
    assert [f.name for f in signature.inputs] == ["question"]
    assert [f.name for f in signature.outputs] == ["answer"]


def test_model_key_tells_endpoints_apart() -> None:
    assert ModelRef("m").key == "m"
    assert ModelRef("m", "http://a").key == "m@http://a"


@given(usages, usages)
def test_unknown_cost_stays_unknown(one: Usage, two: Usage) -> None:
    total = one + two
    known = one.cost_usd is not None and two.cost_usd is not None
    assert (total.cost_usd is not None) == known
    assert total.input_tokens == one.input_tokens + two.input_tokens
    assert total.requests == one.requests + two.requests


@given(st.lists(usages, max_size=5))
def test_total_does_not_depend_on_order(found: list[Usage]) -> None:
    assert Usage.total(found) == Usage.total(reversed(found))


def test_total_of_nothing_is_free() -> None:
    assert Usage.total([]) == Usage(cost_usd=0.0)


def test_usage_of_a_trace_counts_language_model_calls_only() -> None:
    calls = (
        Call("1", "qa", usage=Usage(10, 5, requests=1, cost_usd=0.25)),
        Call("2", "search", kind="tool", usage=Usage(99, cost_usd=9.0)),
        Call("3", "qa", usage=Usage(1, 1, requests=1, cost_usd=0.5)),
    )
    assert Trace(calls).usage == Usage(11, 6, requests=2, cost_usd=0.75)
