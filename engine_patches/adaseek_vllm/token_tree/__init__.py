"""Token-tree speculative decoding: drafts of several sources verified in one forward pass.

Source: SpecInfer (arXiv 2305.09781). Importing this package imports nothing of vLLM.
"""

from adaseek_vllm.token_tree.tree import (
    ROOT,
    Expansion,
    Law,
    TokenTree,
    TreeTokens,
    Trial,
    ancestor_words,
    dense_mask,
    depths,
)
from adaseek_vllm.token_tree.verify import (
    Chance,
    RandomChance,
    Verified,
    batch_walk,
    draw_with_replacement,
    draw_without_replacement,
    greedy_walk,
    multi_step,
    sampled_walk,
    traversal,
)

__all__ = [
    "ROOT",
    "Chance",
    "Expansion",
    "Law",
    "RandomChance",
    "TokenTree",
    "TreeTokens",
    "Trial",
    "Verified",
    "ancestor_words",
    "batch_walk",
    "dense_mask",
    "depths",
    "draw_with_replacement",
    "draw_without_replacement",
    "greedy_walk",
    "multi_step",
    "sampled_walk",
    "traversal",
]
