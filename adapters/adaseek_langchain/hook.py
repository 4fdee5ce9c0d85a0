"""The hook: one callback handler that observes a program, and carries a recipe into it."""

from __future__ import annotations

import threading
import warnings
from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import Any  # Any: callback arguments are the framework's own
from uuid import UUID

from adaseek.errors import choices
from adaseek.evaluation.pricing import PriceTable
from adaseek.recipe import Recipe, check_recipe, owner_id
from adaseek.workflow import ModelRef, Step, StepKind, Trace, Workflow
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult
from langchain_core.runnables import RunnableConfig

from adaseek_langchain._hinting import Hinting, add_to_requests, takes_hints
from adaseek_langchain._keys import tool_step_id, user_frame
from adaseek_langchain._recorder import Recorder, Run, Tree
from adaseek_langchain._reports import copied, model_reference
from adaseek_langchain._seam import MODEL_RUN, Carrier, Request, current_request
from adaseek_langchain._steps import observed_workflow
from adaseek_langchain._traces import trace_of

__all__ = ["AdaSeekHook"]


class AdaSeekHook(Carrier):
    """Observes LangChain and LangGraph programs; with a recipe, also tunes what they send.

    Give it with a call, `chain.invoke(x, config={"callbacks": [hook]})`, or to `enable`. It may be
    used for any number of calls at once. Whatever goes wrong in it, the program runs on as it
    would without it.

    Args:
        recipe: what to change at which step; None: nothing is changed.
        session: name of the conversation that the calls belong to. It is sent to OpenAI-compatible
            servers that are given by URL (`adaseek.hints`); None: nothing is sent.
        hints: whether to send, too, what will probably follow a request: the tool that its answer
            calls and how long that takes, as runs before have shown, or that the session ends.
            None: if there is a `session`. True without one: each invocation is a session, called
            by LangGraph's thread if there is one. No answer depends on it.
        models: model key -> chat model, for settings that name a model. One that is missing is
            made from the step's own model under the other name.
        rewards: name -> reward function, for `best_of` ensembles.
        prices: model key or id -> {"input": USD per 1M tokens, "output": ...} or
            {"per_second": USD per engine-second}.
        workflow: the translated program, if there is one: its steps tell the constant part of a
            prompt from what the program fills in.
        max_traces: how many finished invocations to keep.
        stream_usage: whether a stream asks an OpenAI-compatible server for its usage report. Such
            a server sends none by itself; no answer depends on it.

    Raises:
        ConfigurationError: if `recipe` is no Recipe but, say, the path of one.
    """

    def __init__(
        self,
        recipe: Recipe | None = None,
        session: str | None = None,
        *,
        hints: bool | None = None,
        models: Mapping[str, Any] | None = None,
        rewards: Mapping[str, Any] | None = None,
        prices: Mapping[str, Mapping[str, float]] | None = None,
        workflow: Workflow | None = None,
        max_traces: int = 100,
        stream_usage: bool = True,
    ) -> None:
        super().__init__()
        if recipe is not None:
            check_recipe(recipe)
        self.session = session
        self._hinting: Hinting | None = None
        if session or hints:
            self._hinting = Hinting(session, foresees=hints is not False)
        self.misses: Counter[str] = Counter()
        self._recipe = recipe if recipe is not None else Recipe()
        self._models = dict(models or {})
        self._rewards = dict(rewards or {})
        self._workflow = workflow
        self._stream_usage = stream_usage
        self._is_met = self._recipe.is_empty
        self._lock = threading.Lock()
        table = PriceTable.parse(prices or {})
        self._recorder = Recorder(max_traces, table.price)
        self._interpose()

    def _interpose(self) -> None:
        """Makes chat models ask the handlers of their calls, for as long as this hook lives."""
        from adaseek_langchain._interpose import install

        install(self)

    # -- what was seen ---------------------------------------------------------------------

    @property
    def traces(self) -> list[Trace]:
        """The finished invocations, newest last."""
        recorder = self._recorder
        return [trace_of(tree, recorder.priced) for tree in recorder.trees()]

    @property
    def workflow(self) -> Workflow:
        """The steps and edges seen so far, merged with the given workflow."""
        return observed_workflow(self._recorder, self._workflow)

    @property
    def missed(self) -> int:
        """How many requests were sent as the program made them, though the recipe wanted more.

        `misses` says why: reason -> how often.
        """
        return self.misses.total()

    # -- what the interposition asks -------------------------------------------------------

    @property
    def recipe(self) -> Recipe:
        return self._recipe

    @property
    def models(self) -> Mapping[str, Any]:
        return self._models

    @property
    def rewards(self) -> Mapping[str, Any]:
        return self._rewards

    def step(self, step: str) -> Step | None:
        return self._workflow.steps.get(owner_id(step)) if self._workflow is not None else None

    def request(
        self,
        model: BaseChatModel,
        given: Any,
        kwargs: Mapping[str, Any],
        config: RunnableConfig,
    ) -> Request:
        manager = config.get("callbacks")
        parent = getattr(manager, "parent_run_id", None)
        tags = getattr(manager, "tags", None) or config.get("tags")
        frame = user_frame()
        step = self._recorder.step_of(parent, tags, frame, partial(_variant, model), model)
        made = Request(step, model, given, dict(kwargs), id(frame) if frame is not None else 0)
        if self._hinting is not None:
            made.hint = self._hinting.hint(step, self._recorder.tree(parent))
        return made

    def serving(self, model: BaseChatModel, request: Request) -> BaseChatModel:
        # Also where the program does not ask for a stream: a handler may turn any call into one.
        streams = self._stream_usage and vars(model).get("stream_usage", False) is None
        hint = request.hint if request.hint is not None and takes_hints(model) else None
        if not streams and hint is None:
            return model
        # Worked out before the copy is made, and so shared by it: a response cache then knows the
        # copy by the same name as the original.
        getattr(model, "_serialized", None)
        copy = copied(model, {"stream_usage": True} if streams else {})
        if hint is not None:
            add_to_requests(copy, hint)
        return copy

    def expects(self, run_id: UUID, request: Request) -> None:
        self._recorder.expects(run_id, request)

    def fail_open(self, step: str, reason: str) -> None:
        with self._lock:
            is_first = not self.misses
            self.misses[f"{step}: {reason}"] += 1
        if is_first:
            warnings.warn(
                f"AdaSeek left a request of step `{step}` as the program made it: {reason}. "
                "Later ones are only counted, in `hook.misses`.",
                RuntimeWarning,
                stacklevel=2,
            )

    def _ended(self, tree: Tree | None) -> None:
        """Takes in an invocation that has ended, if one has."""
        if tree is not None:
            self._check_met(tree)
            if self._hinting is not None:
                self._hinting.learn(tree)

    def _check_met(self, ended: Tree) -> None:
        """Counts an invocation that asked models, none of them at a step of the recipe.

        Once a step of the recipe was met, it is for this program: another branch may lack it.
        """
        if self._is_met:
            return
        seen = {owner_id(run.step) for run in ended.runs if run.kind == "lm"}
        wanted = sorted({owner_id(step) for step in self._recipe.settings})
        self._is_met = not seen.isdisjoint(wanted)
        if seen and not self._is_met:
            self.fail_open(min(seen), f"the recipe is for other steps: {choices(wanted)}")

    # -- LangChain's callback protocol -----------------------------------------------------

    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        name: str | None = None,
        run_type: str | None = None,
        **kwargs: Any,
    ) -> None:
        run = self._recorder.begin(
            run_id, parent_run_id, None, name or _name(serialized), tags, inputs
        )
        if run is None:
            return
        run.run_type, run.settings = run_type or "", serialized
        if run.parent is None and self._hinting is not None:
            tree = self._recorder.tree(run_id)
            if tree is not None:
                self._hinting.began(tree, metadata)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._ended(self._recorder.end(run_id, outputs))

    def on_chain_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._recorder.end(run_id, error=error)

    def on_chat_model_start(
        self,
        serialized: dict[str, Any] | None,
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        first = messages[0] if messages else []
        self._begin_model(serialized, first, run_id, parent_run_id, tags, kwargs)

    def on_llm_start(
        self,
        serialized: dict[str, Any] | None,
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        from langchain_core.messages import HumanMessage

        given: list[BaseMessage] = [HumanMessage(prompt) for prompt in prompts[:1]]
        self._begin_model(serialized, given, run_id, parent_run_id, tags, kwargs)

    def on_llm_new_token(self, token: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._recorder.first_token(run_id)

    def on_stream_event(self, event: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._recorder.first_token(run_id)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **kwargs: Any) -> None:
        self._ended(self._recorder.end(run_id, response))

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._recorder.end(run_id, error=error)

    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        inputs: dict[str, Any] | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        tool = (serialized or {}).get("name") or name or "tool"
        given = inputs if inputs is not None else input_str
        run = self._recorder.begin(run_id, parent_run_id, "tool", tool, tags, given)
        if run is not None:
            run.step = tool_step_id(tool)

    def on_tool_end(self, output: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._recorder.end(run_id, output)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._recorder.end(run_id, error=error)

    def on_retriever_start(
        self,
        serialized: dict[str, Any] | None,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        tags: list[str] | None = None,
        metadata: dict[str, Any] | None = None,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        kind: StepKind = "retriever"
        named = name or _name(serialized)
        self._recorder.begin(run_id, parent_run_id, kind, named, tags, {"query": query})
        MODEL_RUN.set(run_id)

    def on_retriever_end(self, documents: Any, *, run_id: UUID, **kwargs: Any) -> None:
        self._recorder.end(run_id, documents)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **kwargs: Any) -> None:
        self._recorder.end(run_id, error=error)

    def _begin_model(
        self,
        serialized: dict[str, Any] | None,
        messages: list[BaseMessage],
        run_id: UUID,
        parent_run_id: UUID | None,
        tags: list[str] | None,
        details: Mapping[str, Any],
    ) -> Run | None:
        request = current_request() or self._recorder.expected(run_id)
        name = _name(serialized)
        begin = self._recorder.begin
        run = begin(run_id, parent_run_id, "lm", name, tags, messages, request)
        if run is None:
            return None
        MODEL_RUN.set(run_id)
        parameters: Mapping[str, Any] = details.get("invocation_params") or {}
        run.parameters = parameters
        if request is not None:
            run.step = request.step
        else:
            settings = (serialized or {}).get("kwargs") or {}
            run.settings = {**parameters, **settings, "_class": name}
            variant = partial(_first_text, {**parameters, **settings}, "model_name", "model")
            run.step = self._recorder.step_of(parent_run_id, tags, user_frame(), variant, name)
        return run


def _variant(model: BaseChatModel) -> str:
    reference: ModelRef = model_reference(model)
    return reference.id


def _first_text(settings: Mapping[str, Any], *names: str) -> str:
    return next((str(settings[name]) for name in names if settings.get(name)), "")


def _name(serialized: Mapping[str, Any] | None) -> str:
    body = serialized or {}
    path = body.get("id") or ["run"]
    return str(body.get("name") or path[-1])
