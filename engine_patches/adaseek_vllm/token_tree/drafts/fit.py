"""Trains a draft model on a corpus; killed at any time it goes on from its last checkpoint."""

from __future__ import annotations

import math
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adaseek_vllm.token_tree.drafts.config import DraftError
from adaseek_vllm.token_tree.drafts.corpus import Batch, Corpus
from adaseek_vllm.token_tree.drafts.model import DraftModel

__all__ = ["Plan", "draft_logits", "fit", "learned_logits", "loss_of"]

_DEPTH_WEIGHT = 0.85
"""A node one deeper is reached this much less often, or about so."""
_WARM_UP = 0.03


@dataclass(frozen=True)
class Plan:
    """How long and how to train.

    Args:
        seconds: time for the training, what earlier runs took included.
        steps: number of steps in place of a time; the result is then the same for every machine
            speed and number of interruptions.
        batch: examples per step.
        learning_rate: its peak.
        seed: of the examples' choice.
        prompt_share: how many of the examples are taken from inside prompts.
    """

    seconds: float = math.inf
    steps: int | None = None
    batch: int = 64
    learning_rate: float = 1e-3
    seed: int = 0
    prompt_share: float = 0.2

    def progress(self, step: int, seconds: float) -> float:
        """Returns the share that is done, 1 or more at the end."""
        return step / self.steps if self.steps is not None else seconds / self.seconds


def learned_logits(model: DraftModel, batch: Batch) -> Tensor:
    """Returns the logits after the root and each token behind it, [B, depth + 1, V].

    The tokens behind the root have states that the draft foresaw, as in drafting, but foresaw from
    the target's own ones, so that all are read at once. Source: in the spirit of EAGLE-3's
    training-time test (arXiv 2503.01840), one step of it.
    """
    window, hidden = model.config.window, batch.hidden
    positions = torch.arange(batch.tokens.shape[1])[None]
    if hidden is not None:
        with torch.no_grad():
            foreseen, _ = model(model.embed(batch.tokens, hidden), positions, None)
        known, foreseen = hidden[:, :window], foreseen[:, window - 1 : -1]
        hidden = torch.cat([known.to(foreseen.dtype), foreseen], dim=1)
    states, _ = model(model.embed(batch.tokens, hidden), positions, None)
    return model.logits(states[:, window - 1 :])


def draft_logits(model: DraftModel, batch: Batch) -> Tensor:
    """Returns the same logits as drafting sees them: each state foreseen from the one before."""
    window = model.config.window
    hidden = None if batch.hidden is None else batch.hidden[:, :window]
    inputs = model.embed(batch.tokens[:, :window], hidden)
    states, memory = model(inputs, torch.arange(window)[None], None)
    found = [states[:, -1:]]
    for position in range(window, batch.tokens.shape[1]):
        before = None if hidden is None else found[-1]
        inputs = model.embed(batch.tokens[:, position : position + 1], before)
        mask = torch.ones(1, 1, 1, position + 1, dtype=torch.bool)
        states, memory = model(inputs, torch.tensor([[position]]), mask, memory)
        found.append(states)
    return model.logits(torch.cat(found, dim=1))


def loss_of(logits: Tensor, batch: Batch) -> Tensor:
    """Returns the mean cross-entropy against what the target found likely, in nats.

    A token of which nothing is known counts nothing.
    """
    depths = _DEPTH_WEIGHT ** torch.arange(logits.shape[1])
    mass = batch.chances.sum(-1)
    found = (logits.gather(-1, batch.wanted) * batch.chances).sum(-1)
    losses = mass * logits.logsumexp(-1) - found
    return (losses * depths).sum() / (mass * depths).sum().clamp_min(1e-6)


def fit(
    model: DraftModel,
    corpus: Corpus,
    plan: Plan,
    checkpoint: Path,
    *,
    weights: Tensor | None = None,
    report: Callable[[int, float], None] = lambda _step, _loss: None,
    seconds_between_saves: float = 30.0,
) -> None:
    """Trains `model` in place.

    Args:
        model: where to begin, unless the checkpoint is there already.
        corpus: what to learn.
        plan: how long.
        checkpoint: file of the state; it stays after the end, so that a later call does nothing.
        weights: how often each of `corpus.roots` is wanted; None: all alike.
        report: called with step and mean loss after each save.
        seconds_between_saves: how much a killed run loses at most.

    Raises:
        DraftError: the checkpoint cannot be read.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=plan.learning_rate, weight_decay=0.05)
    step, seconds = _resume(model, optimizer, checkpoint)
    model.train()
    began_s, saved_s, losses = time.monotonic() - seconds, time.monotonic(), list[float]()
    while (progress := plan.progress(step, time.monotonic() - began_s)) < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * _schedule(progress)
        batch = corpus.batch(_chosen(corpus, plan, step, weights))
        with torch.autocast("cpu", torch.bfloat16, enabled=_has_fast_bfloat16()):
            logits = learned_logits(model, batch)
        loss = loss_of(logits.float(), batch)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        losses.append(loss.item())
        if time.monotonic() - saved_s > seconds_between_saves:
            _save(model, optimizer, checkpoint, step, time.monotonic() - began_s)
            report(step, sum(losses) / len(losses))
            saved_s, losses = time.monotonic(), []
    _save(model, optimizer, checkpoint, step, time.monotonic() - began_s)
    if losses:
        report(step, sum(losses) / len(losses))
    model.eval()


def _chosen(corpus: Corpus, plan: Plan, step: int, weights: Tensor | None) -> Tensor:
    """The roots of a step's examples; they depend on the step's number alone, not on the past."""
    generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
    num_others = int(plan.batch * plan.prompt_share) if len(corpus.other_roots) else 0
    roots = corpus.roots
    wanted = torch.ones(len(roots)) if weights is None else weights
    own = roots[torch.multinomial(wanted, plan.batch - num_others, True, generator=generator)]
    at = torch.randint(len(corpus.other_roots) or 1, (num_others,), generator=generator)
    return torch.cat([own, corpus.other_roots[at]])


def _schedule(progress: float) -> float:
    if progress < _WARM_UP:
        return progress / _WARM_UP
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - _WARM_UP) / (1 - _WARM_UP)))


def _has_fast_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported())


def _save(
    model: DraftModel, optimizer: torch.optim.Optimizer, path: Path, step: int, seconds: float
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "seconds": seconds,
    }
    unfinished = path.with_suffix(".part")
    torch.save(state, unfinished)
    unfinished.replace(path)


def _resume(model: DraftModel, optimizer: torch.optim.Optimizer, path: Path) -> tuple[int, float]:
    """Returns step and seconds so far."""
    if not path.exists():
        return 0, 0.0
    try:
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    except (OSError, KeyError, RuntimeError, ValueError, pickle.UnpicklingError) as error:
        raise DraftError(f"The checkpoint {path} cannot be read: {error}. Delete it.") from error
    return state["step"], state["seconds"]
