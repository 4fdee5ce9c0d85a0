"""The common workflow model: what an adapter translates a program into, and what a run leaves.

A `Workflow` says which steps a program has and how they are connected. A `Trace` says what one
run of it did. Everything here is plain frozen data: no framework object, no secret, no clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any, Literal  # Any: inputs and outputs belong to the user's program

from adaseek._canonical import fingerprint

__all__ = [
    "Call",
    "Edge",
    "Example",
    "Field",
    "ModelRef",
    "Note",
    "Score",
    "Signature",
    "Step",
    "Trace",
    "Usage",
    "Workflow",
]

StepKind = Literal["lm", "tool", "code", "retriever"]
Evidence = Literal["static", "order", "probe", "trace"]
ErrorKind = Literal["model", "program", "endpoint"]


@dataclass(frozen=True)
class Field:
    """One named input or output of a step; `type` is readable text such as `Literal['a', 'b']`."""

    name: str
    role: Literal["input", "output"]
    type: str = "str"
    description: str = ""


@dataclass(frozen=True)
class Signature:
    """What a language-model step is told to do, and the shape of its answer.

    `output` is `text` (free text), `fields` (named fields that a framework parses),
    `json_schema` (constrained decoding) or `tool_calls`.
    """

    instructions: str
    fields: tuple[Field, ...] = ()
    output: Literal["text", "fields", "json_schema", "tool_calls"] = "fields"

    @property
    def inputs(self) -> tuple[Field, ...]:
        return tuple(f for f in self.fields if f.role == "input")

    @property
    def outputs(self) -> tuple[Field, ...]:
        return tuple(f for f in self.fields if f.role == "output")


@dataclass(frozen=True, order=True)
class ModelRef:
    """A model by name and endpoint. Never holds a key or a header.

    `endpoint` is the base URL of the server, or empty for the provider's own.
    """

    id: str
    endpoint: str = ""

    @property
    def key(self) -> str:
        """A short text that names this model in options, prices and reports."""
        return f"{self.id}@{self.endpoint}" if self.endpoint else self.id


@dataclass(frozen=True)
class Step:
    """One node of a workflow.

    Attributes:
        id: stable over runs and processes, readable (a path in the user's program).
        parent: id of the container (agent, sub-graph, ensemble), if any.
        allowed: names of the cogs that may touch this step.
        blocked: cog name -> why that cog may not touch this step.
        dynamic: the step was only seen at run time, not found in the program.
    """

    id: str
    kind: StepKind = "lm"
    name: str = ""
    parent: str | None = None
    signature: Signature | None = None
    model: ModelRef | None = None
    tools: tuple[str, ...] = ()
    num_demos: int = 0
    allowed: frozenset[str] = frozenset()
    blocked: Mapping[str, str] = field(default_factory=dict)
    dynamic: bool = False

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what a recipe relies on: kind, instructions, field names and types, tools."""
        signature = self.signature
        fields = [] if signature is None else [[f.name, f.role, f.type] for f in signature.fields]
        instructions = "" if signature is None else signature.instructions
        return fingerprint([self.kind, instructions, fields, list(self.tools)])


@dataclass(frozen=True, order=True)
class Edge:
    """A message from one step to another, with the strongest evidence that it exists.

    Evidence in growing strength: `static` (read from the code), `order` (ran one after the
    other), `probe` (a marker put into the source came out at the target), `trace` (seen in a
    real run). `source` may be `INPUT` and `target` may be `OUTPUT`.
    """

    source: str
    target: str
    source_field: str = ""
    target_field: str = ""
    evidence: Evidence = "static"


@dataclass(frozen=True)
class Note:
    """Something the user should know about a translation, e.g. a call that cannot be tuned."""

    level: Literal["info", "warning"]
    text: str
    step: str = ""


@dataclass(frozen=True)
class Workflow:
    """A program as steps and edges, in the order in which the adapter found the steps."""

    framework: str
    steps: Mapping[str, Step]
    edges: frozenset[Edge] = frozenset()
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    name: str = ""
    notes: tuple[Note, ...] = ()

    def __post_init__(self) -> None:
        # A plain dict: a mappingproxy can be neither pickled nor deep-copied.
        object.__setattr__(self, "steps", dict(self.steps))

    @cached_property
    def fingerprint(self) -> str:
        """Hash of framework, step ids and step fingerprints; dynamic steps are left out."""
        static = {s.id: s.fingerprint for s in self.steps.values() if not s.dynamic}
        return fingerprint([self.framework, static])

    def lm_steps(self) -> tuple[Step, ...]:
        """Returns the language-model steps in program order."""
        return tuple(step for step in self.steps.values() if step.kind == "lm")

    def with_steps(self, steps: Iterable[Step]) -> Workflow:
        """Returns a copy in which `steps` are added, or replace those of the same id."""
        return replace(self, steps={**self.steps, **{step.id: step for step in steps}})

    def to_json(self) -> dict[str, Any]:
        """Returns this workflow as JSON values, sets sorted."""
        return {
            "framework": self.framework,
            "name": self.name,
            "fingerprint": self.fingerprint,
            "steps": [_step_json(step) for step in self.steps.values()],
            "edges": [asdict(edge) for edge in sorted(self.edges)],
            "inputs": list(self.inputs),
            "outputs": list(self.outputs),
            "notes": [asdict(note) for note in self.notes],
        }

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Workflow:
        """Returns the workflow that `to_json` wrote."""
        steps = [_step_from_json(step) for step in body["steps"]]
        return cls(
            framework=body["framework"],
            name=body["name"],
            steps={step.id: step for step in steps},
            edges=frozenset(Edge(**edge) for edge in body["edges"]),
            inputs=tuple(body["inputs"]),
            outputs=tuple(body["outputs"]),
            notes=tuple(Note(**note) for note in body["notes"]),
        )


@dataclass(frozen=True)
class Usage:
    """What calls consumed; `+` adds. An unknown cost stays unknown when added to a known one.

    Attributes:
        input_tokens: prompt tokens, cached ones included.
        output_tokens: generated tokens, reasoning included.
        cached_tokens: prompt tokens that the server took from its prefix cache.
        requests: requests that the model server answered.
        cost_usd: money, or None if the price of any of the calls is unknown.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    requests: int = 0
    cost_usd: float | None = 0.0

    def __add__(self, other: Usage) -> Usage:
        known = self.cost_usd is not None and other.cost_usd is not None
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            requests=self.requests + other.requests,
            cost_usd=(self.cost_usd or 0.0) + (other.cost_usd or 0.0) if known else None,
        )

    @classmethod
    def total(cls, usages: Iterable[Usage]) -> Usage:
        """Returns the sum of `usages`; of none of them, zero usage at zero cost."""
        return sum(usages, cls())


@dataclass(frozen=True)
class Call:
    """One executed step of one run.

    Attributes:
        step: id of the step, or the name of an unmapped call (see `Workflow.notes`).
        parent: id of the enclosing call, if any.
        start_s, end_s: seconds on one monotonic clock per trace. A call answered from a memo
            keeps the duration of the call that was really made, see `duration_s`.
        duration_s: seconds that the call takes when it is not answered from a cache.
        cached: the answer came from a cache or a memo; `usage` is then that of the real call.
        first_token_s: seconds from the start to the first token, None if it did not stream.
    """

    id: str
    step: str
    parent: str | None = None
    kind: StepKind = "lm"
    start_s: float = 0.0
    end_s: float = 0.0
    duration_s: float = 0.0
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    model: ModelRef | None = None
    usage: Usage = Usage(cost_usd=0.0)
    cached: bool = False
    error: str | None = None
    first_token_s: float | None = None


@dataclass(frozen=True)
class Trace:
    """One run of a workflow on one example.

    Attributes:
        output: what the program returned, in the framework's own type; None if it failed.
        latency_s: length of the critical path over the calls, from uncached durations; None if
            it cannot be known (an answer from a cache that kept no duration).
        error: text of the exception that ended the run, or None.
        error_kind: `model` (the model's answer could not be used), `program` (the user's code
            raised) or `endpoint` (the server could not be reached or refused).
    """

    calls: tuple[Call, ...] = ()
    output: Any = None
    latency_s: float | None = None
    error: str | None = None
    error_kind: ErrorKind | None = None
    id: str = ""

    @cached_property
    def usage(self) -> Usage:
        """The sum over the language-model calls."""
        return Usage.total(call.usage for call in self.calls if call.kind == "lm")


@dataclass(frozen=True)
class Example:
    """One example of the user's data.

    Attributes:
        id: hash of inputs and labels; equal examples have equal ids.
        inputs: what the program is called with, as JSON values.
        labels: everything else, as JSON values.
        raw: the framework's own object, handed to the user's metric unchanged.
    """

    id: str
    inputs: Mapping[str, Any]
    labels: Mapping[str, Any] = field(default_factory=dict)
    raw: Any = None


@dataclass(frozen=True)
class Score:
    """A metric's verdict: higher is better. `feedback` is text that instruction tuning may read."""

    value: float
    feedback: str = ""


def _step_json(step: Step) -> dict[str, Any]:
    body = {name: getattr(step, name) for name in ("id", "kind", "name", "parent", "dynamic")}
    body["signature"] = asdict(step.signature) if step.signature else None
    body["model"] = asdict(step.model) if step.model else None
    body["tools"] = list(step.tools)
    body["num_demos"] = step.num_demos
    body["allowed"] = sorted(step.allowed)
    body["blocked"] = dict(step.blocked)
    return body


def _step_from_json(body: Mapping[str, Any]) -> Step:
    signature = body["signature"]
    return Step(
        **{name: body[name] for name in ("id", "kind", "name", "parent", "dynamic", "num_demos")},
        signature=Signature(
            instructions=signature["instructions"],
            fields=tuple(Field(**f) for f in signature["fields"]),
            output=signature["output"],
        )
        if signature
        else None,
        model=ModelRef(**body["model"]) if body["model"] else None,
        tools=tuple(body["tools"]),
        allowed=frozenset(body["allowed"]),
        blocked=dict(body["blocked"]),
    )
