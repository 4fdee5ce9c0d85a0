"""The proposal model as cogs ask it: every answer journalled, priced and paid from the ledger."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any  # Any: the proposal model is the framework's own

from adaseek._canonical import fingerprint
from adaseek.cogs.base import Completion, Proposer
from adaseek.evaluation.journal import Journal
from adaseek.evaluation.limits import Ledger
from adaseek.setup import Setup

__all__ = ["journalled_proposer", "unused_proposer"]


def journalled_proposer(model: Any, setup: Setup, journal: Journal, ledger: Ledger) -> Proposer:
    """Returns a proposer that asks `model` and pays no question twice, even over resumes."""
    reference = setup.program.reference(model)

    def ask(prompt: str, seed: int, max_tokens: int) -> Completion:
        began = time.monotonic()
        answer = setup.program.complete(model, prompt, seed=seed, max_tokens=max_tokens)
        cost = setup.price(reference, answer.usage, time.monotonic() - began)
        priced = replace(answer, usage=replace(answer.usage, cost_usd=cost))
        ledger.spend(priced.usage)
        return priced

    def propose(prompt: str, *, seed: int, max_tokens: int = 512) -> Completion:
        key = fingerprint([reference.key, prompt, seed, max_tokens], length=32)
        return journal.complete(key, lambda: ask(prompt, seed, max_tokens))

    return propose


def unused_proposer(prompt: str, *, seed: int, max_tokens: int = 512) -> Completion:
    """Stands for the proposer while the space is built: cogs may ask whether there is one."""
    raise AssertionError("a cog asked for a completion before the run began")
