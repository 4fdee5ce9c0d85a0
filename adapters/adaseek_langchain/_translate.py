"""A program as a workflow: what can be read from it, what a run on marked values shows, traces."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any  # Any: programs, inputs and templates are the user's

from adaseek.errors import TranslationError
from adaseek.workflow import Edge, Note, Step, Workflow
from langchain_core.messages import AIMessage, BaseMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate, FewShotChatMessagePromptTemplate
from langchain_core.prompts.base import BasePromptTemplate
from langchain_core.prompts.chat import AIMessagePromptTemplate, SystemMessagePromptTemplate
from langchain_core.prompts.prompt import PromptTemplate

from adaseek_langchain._probe import Probed, probe
from adaseek_langchain._program import Translated, as_program, input_names
from adaseek_langchain._reports import model_reference
from adaseek_langchain._steps import COGS, FRAMEWORK, Observation, lm_step, short_name
from adaseek_langchain._walk import FoundModel, Walk, walk
from adaseek_langchain.hook import AdaSeekHook

__all__ = ["translate"]


def translate(
    program: Any,
    examples: Sequence[Any] | None = None,
    *,
    hook: AdaSeekHook | None = None,
    probe_steps: bool = True,
    live_tools: bool | Collection[str] = False,
) -> Workflow:
    """Returns `program` as a workflow; translating it twice gives equal ids and fingerprints.

    No model is asked. Steps come from three sources: the program's structure, a run on marked
    values (the user's own code between the calls runs, tools give marked results), and what a
    hook has seen of real runs.

    Args:
        program: a chain, an agent, a graph, a chat model, or a function that calls some.
        examples: inputs whose shape the marked run follows; without any, the input schema is.
        hook: a hook that has observed the program.
        probe_steps: False if the user's own code must not run now.
        live_tools: True, or the names of tools that may really run on marked values.

    Raises:
        TranslationError: if LangChain cannot run `program`.
    """
    if isinstance(program, Translated):
        return program.workflow
    try:
        runnable = as_program(program)
    except TypeError as error:
        raise TranslationError(
            f"`program` is a {type(program).__name__}, which LangChain cannot run: {error} Give a "
            "chain, an agent, a graph, a chat model, or a function."
        ) from None
    found = walk(runnable)
    probed = Probed()
    if probe_steps:
        probed = probe(runnable, found, examples or (), live_tools=live_tools)
    steps = _probed_steps(probed, found)
    notes = list(_notes(found, probed, steps))
    for step in _unreached(found, probed):
        steps.setdefault(step.id, step)
    steps |= {i: Step(i, kind=k, name=short_name(i)) for i, k in _others(found, probed).items()}
    edges = _edges(probed, steps)
    workflow = Workflow(
        framework=FRAMEWORK,
        name=_program_name(runnable),
        steps=_ordered(steps, edges),
        edges=edges,
        inputs=input_names(runnable),
        outputs=("output",),
        notes=tuple(notes),
    )
    return workflow if hook is None else _with_traces(workflow, hook)


def _program_name(program: Any) -> str:
    name: str = program.get_name() if hasattr(program, "get_name") else type(program).__name__
    return name


def _probed_steps(probed: Probed, found: Walk) -> dict[str, Step]:
    seen: dict[str, list[Observation]] = {}
    templates: dict[str, list[str]] = {}
    for observation, template in probed.observations:
        seen.setdefault(observation.step, []).append(observation)
        templates.setdefault(observation.step, []).append(template)
    steps = {}
    for step, observations in seen.items():
        prompts = {p for o in observations for p in _prompts_of(found, o)}
        num_demos = _num_demos(next(iter(prompts))) if len(prompts) == 1 else 0
        template = _with_partials(_agreed(templates[step]), observations, prompts)
        made = lm_step(observations, template, num_demos)
        steps[step] = _unreachable(made) if step in probed.detached else made
    return steps


def _prompts_of(found: Walk, observation: Observation) -> list[Any]:
    known = [f for f in found.models if f.step == observation.step and f.prompt is not None]
    if not known:
        same = [f for f in found.models if f.step is None and f.prompt is not None]
        known = [f for f in same if _has_kept_texts(f.prompt, observation.messages)]
    return [_ById(f.prompt) for f in known]


class _ById:
    """A prompt that is equal to itself only: templates compare by value, slowly."""

    def __init__(self, prompt: Any) -> None:
        self.prompt = prompt

    def __hash__(self) -> int:
        return id(self.prompt)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ById) and other.prompt is self.prompt


def _has_kept_texts(prompt: Any, messages: Sequence[BaseMessage]) -> bool:
    """Returns whether the constant messages of `prompt` stand in `messages`."""
    texts = {str(m.content) for m in messages}
    constant = [
        str(m.content) for m in getattr(prompt, "messages", ()) if isinstance(m, BaseMessage)
    ]
    return bool(constant) and set(constant) <= texts


def _num_demos(held: _ById) -> int:
    """Returns how many worked examples the author shows in a prompt."""
    count = 0
    for message in getattr(held.prompt, "messages", ()):
        if isinstance(message, FewShotChatMessagePromptTemplate):
            count += len(message.examples or ())
        elif isinstance(message, AIMessage | AIMessagePromptTemplate):
            count += 1
    return count


def _agreed(templates: Sequence[str]) -> str:
    """Returns the template that a step's calls share.

    Later turns of a conversation without a system message show no task, so they do not count.
    """
    distinct = sorted({template for template in templates if template})
    if len(distinct) < 2:
        return distinct[0] if distinct else ""
    head = os.path.commonprefix(distinct)  # noqa: RUF071  (characters are meant, not folders)
    rest = [template[len(head) :][::-1] for template in distinct]
    tail = os.path.commonprefix(rest)[::-1]  # noqa: RUF071  (as above)
    head, tail = head[: _before_open(head)], tail[_after_close(tail) :]
    return f"{head}{{varying}}{tail}" if any(c.isalpha() for c in head + tail) else ""


def _before_open(text: str) -> int:
    """Returns where a `{name}` begins that `text` has no end of."""
    opened = text.rfind("{")
    return opened if opened > text.rfind("}") else len(text)


def _after_close(text: str) -> int:
    """Returns where a `{name}` ends that `text` has no beginning of."""
    closed = text.find("}")
    opened = text.find("{")
    return closed + 1 if closed >= 0 and (opened < 0 or closed < opened) else 0


def _with_partials(template: str, seen: Sequence[Observation], prompts: Collection[_ById]) -> str:
    """Returns `template` with `{name}` where a prompt's partial variables stand in it.

    They are given by the program, not by its author's prose: format instructions, for one, which
    a parser relies on and new instructions must not lose.
    """
    if len(prompts) != 1:
        return template
    partials = getattr(next(iter(prompts)).prompt, "partial_variables", None) or {}
    # A template without any name yet is plain text, whose braces are not doubled.
    is_plain = any(template == text for o in seen for text in _system_texts(o.messages))
    text = _doubled(template) if is_plain else template
    filled = text
    for name, value in partials.items():
        if isinstance(value, str) and value.strip():
            filled = filled.replace(_doubled(value), f"{{{name}}}")
    return filled if filled != text else template


def _system_texts(messages: Sequence[BaseMessage]) -> Iterator[str]:
    """Yields the first system message, the first two, and so on, as one text each."""
    texts: list[str] = []
    for message in messages:
        if message.type != "system":
            return
        texts.append(str(message.text))
        yield "\n\n".join(texts)


def _doubled(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


def _unreachable(step: Step) -> Step:
    reason = (
        "it is called in a thread that the program starts without its context, so that a run "
        "cannot tell whose call it is"
    )
    return replace(step, allowed=frozenset(), blocked=dict.fromkeys(COGS, reason))


def _unreached(found: Walk, probed: Probed) -> list[Step]:
    """Returns the steps whose place is known, though no marked run came by."""
    steps = []
    for model in found.models:
        if model.step is None or id(model.model) in probed.models:
            continue
        text = _system_template(model.prompt)
        seen = Observation(
            step=model.step,
            messages=[SystemMessage(text)] if text else [],
            kwargs=model.kwargs,
            model=model_reference(model.model),
        )
        steps.append(lm_step([seen], text, _num_demos(_ById(model.prompt))))
    return steps


def _system_template(prompt: BasePromptTemplate[Any] | None) -> str:
    """Returns the text of a prompt's system messages, `{name}` for its variables."""
    if isinstance(prompt, PromptTemplate):
        return (
            prompt.template if prompt.template.strip("{} \n") not in prompt.input_variables else ""
        )
    if not isinstance(prompt, ChatPromptTemplate):
        return ""
    texts = []
    for message in prompt.messages:
        if isinstance(message, SystemMessage):
            texts.append(str(message.text))
        elif isinstance(message, SystemMessagePromptTemplate) and isinstance(
            message.prompt, PromptTemplate
        ):
            texts.append(_unfilled(message.prompt))
        else:
            break
    return "\n\n".join(texts)


def _unfilled(template: PromptTemplate) -> str:
    if template.template_format != "f-string":
        return ""
    if not template.input_variables:
        return template.format()
    return template.template


def _others(found: Walk, probed: Probed) -> dict[str, Any]:
    others = {f"tool:{name}": "tool" for name in found.tools if _is_tool(name, found)}
    return others | probed.others


def _is_tool(name: str, found: Walk) -> bool:
    return bool(name) and name in found.tools


def _edges(probed: Probed, steps: dict[str, Step]) -> frozenset[Edge]:
    known = {*steps, "INPUT", "OUTPUT"}
    return frozenset(e for e in probed.edges if e.source in known and e.target in known)


def _ordered(steps: Mapping[str, Step], edges: Collection[Edge]) -> dict[str, Step]:
    """Returns `steps`, each behind those that it gets something from, else by id.

    Not as they were found: branches that run side by side come in any order.
    """
    before = {
        step: {e.source for e in edges if e.target == step and e.source in steps} for step in steps
    }
    ordered: dict[str, Step] = {}
    while len(ordered) < len(steps):
        left = [step for step in steps if step not in ordered]
        ready = [step for step in left if before[step] - {step} <= ordered.keys()]
        following = min(ready or left, key=_natural)  # none is ready in a loop
        ordered[following] = steps[following]
    return ordered


def _natural(step: str) -> list[tuple[int, str]]:
    """Returns a key that sorts the numbers in ids by value."""
    parts = re.split(r"(\d+)", step)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _notes(found: Walk, probed: Probed, steps: dict[str, Step]) -> list[Note]:
    notes = [
        Note("warning", f"`{step}` cannot be tuned: {found_step.blocked['model']}.", step)
        for step, found_step in steps.items()
        if not found_step.allowed
    ]
    reached = {id(m.model) for m in found.models if id(m.model) in probed.models}
    for model in _apart(found.models):
        if id(model.model) not in reached and model.step is None:
            text = (
                f"A chat model ({model_reference(model.model).key}) in {model.where or 'the code'}"
                " was not asked on marked values, so its step is not known. Pass `examples`, or a "
                "`hook` that has seen it run."
            )
            notes.append(Note("warning", text))
    if not steps and probed.troubles:
        notes.append(Note("warning", f"The run on marked values ended: {probed.troubles[0]}"))
    return notes


def _apart(models: Sequence[FoundModel]) -> list[FoundModel]:
    """Returns one entry per chat model, one whose place is known before others."""
    chosen: dict[int, FoundModel] = {}
    for model in sorted(models, key=lambda m: m.step is None):
        chosen.setdefault(id(model.model), model)
    return list(chosen.values())


def _with_traces(workflow: Workflow, hook: AdaSeekHook) -> Workflow:
    seen = hook.workflow
    added = [step for name, step in seen.steps.items() if name not in workflow.steps]
    strong = {(e.source, e.target, e.source_field) for e in workflow.edges}
    edges = {e for e in seen.edges if (e.source, e.target, e.source_field) not in strong}
    known = {text.text for text in workflow.notes}
    reached = [n for n in seen.notes if n.text not in known]
    joined = workflow.with_steps(added)
    return replace(joined, edges=workflow.edges | edges, notes=(*workflow.notes, *reached))
