"""Token trees inside vLLM's scheduler, which sees lists of tokens that may be cut short."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from adaseek_vllm.token_tree.tree import ROOT, TreeTokens

__all__ = ["TreeSchedulerMixin"]


# vLLM's types are not followed by every type checker.
class TreeSchedulerMixin(Scheduler):  # type: ignore[misc]
    """Goes before vLLM's scheduler class, synchronous or asynchronous."""

    # The arguments are the scheduler's own.
    def __init__(self, *args: Any, vllm_config: Any, **kwargs: Any) -> None:
        super().__init__(*args, vllm_config=vllm_config, **kwargs)
        self.dynamic_sd_lookup: list[int] | None
        if self.dynamic_sd_lookup is None:
            # With a lookup, vLLM does not fill a prompt's last token up to the width of a full
            # draft. That is for CUDA graphs of one width; here it would cost a tree's price.
            num_sequences = self.scheduler_config.max_num_seqs
            self.dynamic_sd_lookup = [self.num_spec_tokens] * (num_sequences + 1)

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        drafts = [
            _first_branch(tokens) if self._has_grammar(request_id) else tokens
            for request_id, tokens in zip(
                draft_token_ids.req_ids, draft_token_ids.draft_token_ids, strict=True
            )
        ]
        super().update_draft_token_ids(replace(draft_token_ids, draft_token_ids=drafts))

    def _has_grammar(self, request_id: str) -> bool:
        request = self.requests.get(request_id)
        return request is not None and request.use_structured_output


def _first_branch(tokens: list[int]) -> list[int]:
    """Returns the first child of the first child and so on, as a chain.

    vLLM fills grammar masks along chains.
    """
    if not isinstance(tokens, TreeTokens):
        return tokens
    chain, node = list[int](), ROOT
    for child, parent in enumerate(tokens.parents):
        if parent == node:
            chain.append(tokens[child])
            node = child
    return chain
