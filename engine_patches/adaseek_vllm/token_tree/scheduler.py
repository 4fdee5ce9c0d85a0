"""Token trees inside vLLM's scheduler, which sees lists of tokens that may be cut short."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import torch
from vllm.v1.core.sched.scheduler import Scheduler

from adaseek_vllm.token_tree.grammar import Grammar, allowed_nodes, fill_masks
from adaseek_vllm.token_tree.tree import ROOT, TreeTokens

__all__ = ["TreeSchedulerMixin"]

_PADDING = -1
"""What vLLM takes for a drafted token that is none."""


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

    # The arguments and the result are the scheduler's own.
    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        output: Any = super().schedule(*args, **kwargs)
        # vLLM tells its workers everything of a request but this.
        output.tenants = {
            new.req_id: self.requests[new.req_id].cache_salt or ""
            for new in output.scheduled_new_reqs
        }
        return output

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:
        plain, trees = list[list[int]](), dict[str, TreeTokens]()
        for request_id, tokens in zip(
            draft_token_ids.req_ids, draft_token_ids.draft_token_ids, strict=True
        ):
            request = self.requests.get(request_id)
            if request is None or not request.use_structured_output or not _branches(tokens):
                plain.append(tokens)
            elif self._is_constrained(request):
                plain.append([])
                trees[request_id] = tokens
            else:
                # While a model still reasons, the constraint starts somewhere on its way.
                plain.append(_first_branch(tokens))
        super().update_draft_token_ids(replace(draft_token_ids, draft_token_ids=plain))
        for request_id, tree in trees.items():
            request = self.requests[request_id]
            if not request.is_finished() and not request.is_prefill_chunk:
                request.spec_token_ids = allowed_nodes(tree, _grammar_of(request), request_id)

    def get_grammar_bitmask(self, scheduler_output: Any) -> Any:
        drafted = scheduler_output.scheduled_spec_decode_tokens
        trees = {
            request_id: tokens
            for request_id, tokens in drafted.items()
            if _branches(tokens) and self.requests[request_id].use_structured_output
        }
        if not trees:
            return super().get_grammar_bitmask(scheduler_output)
        # vLLM fills chains; it lets everything follow the rows of padding, and counts them.
        hidden = {request_id: [_PADDING] * len(tree) for request_id, tree in trees.items()}
        padded = copy(scheduler_output)
        padded.scheduled_spec_decode_tokens = {**drafted, **hidden}
        output = super().get_grammar_bitmask(padded)
        if output is not None:
            self._fill_trees(output, trees, drafted)
        return output

    def _fill_trees(self, output: Any, trees: dict[str, TreeTokens], drafted: Any) -> None:
        """Writes what may follow each row of the trees in vLLM's masks."""
        bitmask, first_row = torch.from_numpy(output.grammar_bitmask), 0
        for index, request_id in enumerate(output.structured_output_request_ids):
            if (tree := trees.get(request_id)) is not None:
                grammar = _grammar_of(self.requests[request_id])
                fill_masks(tree, grammar, request_id, bitmask, first_row)
                output.num_acceptable_drafts[index] = len(tree)
            first_row += 1 + len(drafted.get(request_id, ()))

    def _is_constrained(self, request: Any) -> bool:
        """Whether the grammar holds from the next token on."""
        bounds = self.structured_output_manager._get_constraint_bounds(request, ())
        return bool(bounds.constraint_start == 0)


# vLLM's request.
def _grammar_of(request: Any) -> Grammar:
    grammar: Grammar = request.structured_output_request.grammar
    return grammar


def _branches(tokens: list[int]) -> bool:
    return isinstance(tokens, TreeTokens) and not tokens.is_chain


def _first_branch(tokens: list[int]) -> list[int]:
    """Returns the first child of the first child and so on, as a chain."""
    if not isinstance(tokens, TreeTokens):
        return tokens
    chain, node = list[int](), ROOT
    for child, parent in enumerate(tokens.parents):
        if parent == node:
            chain.append(tokens[child])
            node = child
    return chain
