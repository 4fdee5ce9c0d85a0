"""Finds a program's data flow by running it on marked values, without a model or a real tool."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Mapping
from typing import Any, get_args, get_origin  # Any: DSPy is untyped

import dspy
from adaseek.recipe import Recipe
from adaseek.workflow import Edge, Note, Step, Workflow

from adaseek_dspy._apply import apply_to_copy, exchanged
from adaseek_dspy._calling import called
from adaseek_dspy._compat import BaseLM
from adaseek_dspy._naming import DIRECT_CALL, dynamic_step
from adaseek_dspy._recorder import OWN_TOOLS
from adaseek_dspy._sentinels import Sentinels
from adaseek_dspy._translate import COGS, dynamic_lm_step, input_types, translate
from adaseek_dspy._walk import walk

__all__ = ["discover", "probe"]

_MAX_ROUNDS = 6
_MAX_CALLS = 400
"""Predictor calls per round, so that a program that loops until an answer suits it ends."""

_INTERPRETING = ("ProgramOfThought", "CodeAct", "RLM", "Flex")


def probe(program: Any, workflow: Workflow) -> frozenset[Edge]:
    """Returns the field-level edges found by running `program` on marked values.

    Every predictor answers with values that can be recognised; where one turns up in the inputs
    of another step, there is an edge. Models and `dspy.Tool`s that the program holds are replaced
    in a copy; plain functions that the program calls do run. Branches that depend on free text
    are not all taken. Programs that run model-written code are not probed.
    """
    return _probed(program)[0]


def discover(program: Any, workflow: Workflow | None = None) -> Workflow:
    """Returns `workflow` with probed edges and the steps that only exist at run time.

    Predictors that are made in `forward` become dynamic steps, which cogs may touch; so do direct
    calls of a language model, which are only observed.
    """
    workflow = workflow or translate(program)
    edges, dynamic = _probed(program)
    notes = tuple(_note(step) for step in dynamic.values() if step.id not in workflow.steps)
    added = workflow.with_steps(dynamic.values())
    return Workflow(
        framework=added.framework,
        steps=added.steps,
        edges=workflow.edges | edges,
        inputs=added.inputs,
        outputs=tuple(sorted({e.target_field for e in edges if e.target == "OUTPUT"})),
        name=added.name,
        notes=(*workflow.notes, *notes),
    )


def _note(step: Step) -> Note:
    if not step.allowed:
        reason = next(iter(step.blocked.values()))
        return Note("warning", f"`{step.id}` is observed but not tuned: {reason}.", step.id)
    text = f"`{step.id}` is made while the program runs; its settings are put into each call."
    return Note("info", text, step.id)


def _probed(program: Any) -> tuple[frozenset[Edge], dict[str, Step]]:
    found = walk(program)
    if any(type(module).__name__ in _INTERPRETING for module in found.modules.values()):
        return frozenset(), {}
    edges: set[Edge] = set()
    dynamic: dict[str, Step] = {}
    for index in range(_num_rounds(found.predictors)):
        observed = _Round(program, Sentinels(index))
        observed.run()
        edges |= observed.edges
        dynamic |= observed.dynamic
    return frozenset(edges), dynamic


def _num_rounds(predictors: Mapping[str, Any]) -> int:
    """Returns how many rounds take every choice of every field once, within reason."""
    sizes = [1]
    for predictor in predictors.values():
        for field in predictor.signature.output_fields.values():
            if field.annotation is bool:
                sizes.append(2)
            elif str(get_origin(field.annotation)) == "typing.Literal":
                sizes.append(len(get_args(field.annotation)))
    return min(max(sizes), _MAX_ROUNDS)


class _Round:
    """One run of a copy of the program on marked values."""

    def __init__(self, program: Any, sentinels: Sentinels) -> None:
        self.edges: set[Edge] = set()
        self.dynamic: dict[str, Step] = {}
        self._sentinels = sentinels
        self._calls: dict[str, int] = {}
        self._lock = threading.Lock()
        applied = apply_to_copy(program, Recipe(), models={}, rewards={})
        self._steps = applied.steps
        self._program = self._without_models_and_tools(applied.program)

    def run(self) -> None:
        inputs = {
            name: self._sentinels.value(annotation, "INPUT", name)
            for name, annotation in input_types(self._program).items()
        }
        settings = {"lm": _ProbeLM(self), "adapter": _ProbeAdapter(self), "trace": []}
        with dspy.context(**settings):
            try:
                output = called(self._program, inputs)
            except Exception:
                # Marked values may not suit the user's code, which may raise anything; the edges
                # up to there are real.
                return
        if hasattr(output, "items"):
            for name, value in output.items():
                self._arrived(value, "OUTPUT", name)

    def answer(self, signature: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns marked values for the output fields of the predictor that is being called."""
        callers = dspy.settings.get("caller_modules") or []
        step = self._step_of(callers[-1] if callers else None, signature)
        for name, value in inputs.items():
            self._arrived(value, step, name)
        with self._lock:
            index = self._calls[step] = self._calls.get(step, 0) + 1
            if sum(self._calls.values()) > _MAX_CALLS:
                raise RuntimeError("the probe ends here")
        agent = callers[-2] if len(callers) > 1 else None
        answer = {
            name: self._sentinels.value(field.annotation, step, name)
            for name, field in signature.output_fields.items()
            if field.annotation is not dspy.ToolCalls
        }
        return {**answer, **self._tool_choice(signature, agent, answer, step, index)}

    def direct_answer(self, prompt: Any) -> str:
        """Returns a marked text for a language model that the program calls itself."""
        self._arrived(prompt, DIRECT_CALL, "prompt")
        self._add_dynamic(_direct_call())
        text: str = self._sentinels.value(str, DIRECT_CALL, "text")
        return text

    def _tool_choice(
        self, signature: Any, agent: Any, answer: dict[str, Any], step: str, index: int
    ) -> dict[str, Any]:
        """Returns the fields in which an agent chooses a tool and its arguments, if it has any."""
        tools = getattr(agent, "tools", None)
        if not isinstance(tools, dict) or not tools:
            return {}
        calls = [n for n, f in signature.output_fields.items() if f.annotation is dspy.ToolCalls]
        if calls:
            tool = list(tools.values())[(index - 1) % len(tools)]
            call = {"name": tool.name, "args": self._arguments(tool, step, calls[0])}
            return {calls[0]: dspy.ToolCalls.from_dict_list([call])}
        if "next_tool_args" in answer and answer.get("next_tool_name") in tools:
            tool = tools[answer["next_tool_name"]]
            return {"next_tool_args": self._arguments(tool, step, "next_tool_args")}
        return {}

    def _arguments(self, tool: Any, step: str, name: str) -> dict[str, Any]:
        types = tool.arg_types or {}
        return {
            arg: self._sentinels.value(types.get(arg, str), step, name) for arg in tool.args or {}
        }

    def _arrived(self, value: Any, target: str, name: str) -> None:
        edges = {
            Edge(source, target, source_field, name, "probe")
            for source, source_field in self._sentinels.origins(value)
            if source != target
        }
        with self._lock:
            self.edges |= edges

    def _step_of(self, predictor: Any, signature: Any) -> str:
        stage = getattr(predictor, "stage", None)
        if stage in self._steps:
            return str(stage)
        declared = getattr(predictor, "signature", signature)
        self._add_dynamic(dynamic_lm_step(declared))
        return dynamic_step(declared)

    def _add_dynamic(self, step: Step) -> None:
        with self._lock:
            self.dynamic[step.id] = step

    def _without_models_and_tools(self, program: Any) -> Any:
        found = walk(program)
        stubs: dict[int, Any] = {id(lm): _ProbeLM(self) for lm in found.lms}
        for path, tool in found.tools.items():
            if tool.name not in OWN_TOOLS:
                stubs[id(tool)] = self._stub(path, tool)
        return exchanged(program, stubs)

    def _stub(self, path: str, tool: Any) -> Any:
        def stub(**arguments: Any) -> str:
            for value in arguments.values():
                self._arrived(value, path, "args")
            text: str = self._sentinels.value(str, path, "result")
            return text

        async def astub(**arguments: Any) -> str:
            return stub(**arguments)

        replaced = tool.model_copy()
        replaced.func = astub if inspect.iscoroutinefunction(tool.func) else stub
        return replaced


def _direct_call() -> Step:
    reason = "the program calls the language model itself, so there is no predictor to change"
    blocked = dict.fromkeys(COGS, reason)
    return Step(id=DIRECT_CALL, name="lm", blocked=blocked, dynamic=True)


class _ProbeAdapter(dspy.ChatAdapter):  # type: ignore[misc]  # DSPy is untyped
    """Answers in place of a model. DSPy may make instances of its own, hence the class attribute
    default."""

    _round: _Round | None = None

    def __init__(self, owner: _Round | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._round = owner

    def __call__(
        self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any
    ) -> list[dict[str, Any]]:
        assert self._round is not None, "a subclass that DSPy made must hand over to its original"
        return [self._round.answer(signature, inputs)]

    async def acall(
        self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any
    ) -> list[dict[str, Any]]:
        return self(lm, lm_kwargs, signature, demos, inputs)


class _ProbeLM(BaseLM):  # type: ignore[misc]  # DSPy is untyped
    """Stands where a language model stood; direct calls get a marked text."""

    def __init__(self, owner: _Round) -> None:
        super().__init__(model="probe", cache=False)
        self._round = owner

    def __call__(self, prompt: Any = None, *, messages: Any = None, **_: Any) -> list[str]:
        return [self._round.direct_answer(messages or prompt)]

    async def acall(self, prompt: Any = None, *, messages: Any = None, **_: Any) -> list[str]:
        return [self._round.direct_answer(messages or prompt)]

    def __deepcopy__(self, _memo: dict[int, Any]) -> _ProbeLM:
        return self
