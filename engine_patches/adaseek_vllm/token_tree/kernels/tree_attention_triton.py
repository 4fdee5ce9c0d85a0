"""Attention of tree rows over a paged KV cache, in Triton. Not run on a GPU yet.

What was shown without one: its results in Triton's interpreter, and that it compiles for compute
capabilities 8.0 and 9.0 within their limits (tests/engine_patches/token_tree/test_triton_*.py).

A program takes some queries of one tree and KV head, and a part of the sequence. Its queries are
rows times the query heads that share the KV head, so keys and values are read once for them. It
goes through its tokens in tiles with an online softmax. Tiles before the tree are seen by every
row; only tiles that reach into the tree look at the ancestors' bits. Where there are too few
programs for the GPU, long sequences are split, and a second kernel merges the parts.

Source: SpecInfer (arXiv 2305.09781), section 4.2, tree attention with a topology-aware mask; online
softmax and split sequences as in FlashAttention (arXiv 2205.14135) and Flash-Decoding. Unlike the
paper's kernel, several trees of different shapes share a launch, and the cache is paged.

Shape legend: M queries of a program (row times group of heads), N tokens of a tile, D head size
padded to a power of two, S parts of a sequence.
"""

# Triton's language only looks like Python.
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["attend_parts", "merge_parts"]

_LOG2E = tl.constexpr(1.4426950408889634)


# Triton would compile anew for a one or a multiple of 16, and these differ from step to step.
@triton.jit(do_not_specialize=["num_words", "num_parts"])
def attend_parts(
    output_ptr,  # [tokens, heads, d]; written if the sequences are not split
    part_ptr,  # [rows, heads, parts, d] float32, relative to the peak; written if they are
    peak_ptr,  # [rows, heads, parts] float32, highest score; written if they are
    total_ptr,  # [rows, heads, parts] float32, sum of weights; written if they are
    query_ptr,  # [tokens, heads, d]
    key_ptr,  # [blocks, KV heads, slots, d]
    value_ptr,  # [blocks, KV heads, slots, d]
    table_ptr,  # [requests, blocks] int32
    trees_ptr,  # [trees, 5] int32: request, first token, rows, tokens of context, rows before
    words_ptr,  # [rows, words] int32: bit j % 32 of word j // 32 is set if row j is seen
    depths_ptr,  # [rows] int32
    scale,
    softcap,
    window,
    num_words,
    num_kv_heads,
    num_parts,
    output_stride,  # of a token
    query_stride,  # of a token
    table_stride,  # of a request
    key_block_stride,
    key_head_stride,
    key_slot_stride,
    key_element_stride,
    value_block_stride,
    value_head_stride,
    value_slot_stride,
    value_element_stride,
    HEAD_SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    GROUPS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    TILE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Attends for `QUERIES` queries of a tree and KV head to one part of the sequence.

    Grid: (trees, KV heads * blocks of queries, parts). Queries past a tree's last are not stored.
    """
    tree_ptr = trees_ptr + tl.program_id(0) * 5
    request = tl.load(tree_ptr)
    first_token = tl.load(tree_ptr + 1)
    num_rows = tl.load(tree_ptr + 2)
    num_context = tl.load(tree_ptr + 3)
    first_row = tl.load(tree_ptr + 4)
    kv_head = tl.program_id(1) % num_kv_heads
    first_query = tl.program_id(1) // num_kv_heads * QUERIES
    part = tl.program_id(2)
    if first_query >= num_rows * GROUPS:
        return

    query_M = first_query + tl.arange(0, QUERIES)
    row_M = query_M // GROUPS
    head_M = kv_head * GROUPS + query_M % GROUPS
    is_row_M = row_M < num_rows
    element_D = tl.arange(0, PADDED_SIZE)
    stored_MD = is_row_M[:, None] & (element_D < HEAD_SIZE)[None, :]
    token_M = (first_token + row_M).to(tl.int64)
    at_MD = head_M[:, None] * HEAD_SIZE + element_D[None, :]
    query_MD = tl.load(
        query_ptr + token_M[:, None] * query_stride + at_MD, mask=stored_MD, other=0.0
    )
    depths_ptr += first_row
    words_ptr += first_row * num_words
    position_M = num_context + tl.load(depths_ptr + row_M, mask=is_row_M, other=0)

    # Whole tiles, and none that the window hides from the root: it hides them from all nodes.
    end = num_context + num_rows
    begin = 0
    if HAS_WINDOW:
        begin = tl.maximum(num_context - window + 1, 0) // TILE * TILE
    tiles = tl.cdiv(tl.cdiv(end - begin, TILE), num_parts)
    begin += part * tiles * TILE
    end = tl.minimum(begin + tiles * TILE, end)
    tree_begin = tl.minimum(tl.maximum(num_context // TILE * TILE, begin), end)

    part_MD = tl.zeros([QUERIES, PADDED_SIZE], dtype=tl.float32)
    peak_M = tl.full([QUERIES], float("-inf"), dtype=tl.float32)
    total_M = tl.zeros([QUERIES], dtype=tl.float32)
    for in_tree in tl.static_range(2):
        part_MD, peak_M, total_M = _attend_tiles(
            part_MD,
            peak_M,
            total_M,
            query_MD,
            row_M,
            position_M,
            tree_begin if in_tree else begin,
            end if in_tree else tree_begin,
            key_ptr + kv_head.to(tl.int64) * key_head_stride,
            value_ptr + kv_head.to(tl.int64) * value_head_stride,
            table_ptr + request.to(tl.int64) * table_stride,
            words_ptr,
            depths_ptr,
            num_context,
            num_rows,
            num_words,
            scale,
            softcap,
            window,
            key_block_stride,
            key_slot_stride,
            key_element_stride,
            value_block_stride,
            value_slot_stride,
            value_element_stride,
            HEAD_SIZE,
            PADDED_SIZE,
            BLOCK_SIZE,
            TILE,
            HAS_SOFTCAP,
            HAS_WINDOW,
            in_tree == 1,
            PRECISION,
        )

    if IS_SPLIT:
        place_M = ((first_row + row_M) * num_kv_heads * GROUPS + head_M) * num_parts + part
        place_M = place_M.to(tl.int64)
        tl.store(peak_ptr + place_M, peak_M, mask=is_row_M)
        tl.store(total_ptr + place_M, total_M, mask=is_row_M)
        part_at_MD = place_M[:, None] * HEAD_SIZE + element_D[None, :]
        tl.store(part_ptr + part_at_MD, part_MD, mask=stored_MD)
    else:
        output_MD = part_MD / tl.where(is_row_M, total_M, 1.0)[:, None]
        tl.store(
            output_ptr + token_M[:, None] * output_stride + at_MD,
            output_MD.to(output_ptr.dtype.element_ty),
            mask=stored_MD,
        )


@triton.jit
def _attend_tiles(
    part_MD,
    peak_M,
    total_M,
    query_MD,
    row_M,
    position_M,
    begin,
    end,
    key_ptr,  # of the KV head
    value_ptr,  # of the KV head
    table_ptr,  # of the request
    words_ptr,  # of the tree
    depths_ptr,  # of the tree
    num_context,
    num_rows,
    num_words,
    scale,
    softcap,
    window,
    key_block_stride,
    key_slot_stride,
    key_element_stride,
    value_block_stride,
    value_slot_stride,
    value_element_stride,
    HEAD_SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    IN_TREE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Goes on with the softmax over tokens [begin, end); returns what it was given, updated."""
    is_element_D = tl.arange(0, PADDED_SIZE) < HEAD_SIZE
    element_D = tl.arange(0, PADDED_SIZE)
    for first in range(begin, end, TILE):
        token_N = first + tl.arange(0, TILE)
        # What nobody wrote may be any number, so it is not even read.
        is_token_N = token_N < end
        block_N = tl.load(table_ptr + token_N // BLOCK_SIZE, mask=is_token_N, other=0)
        block_N = block_N.to(tl.int64)
        slot_N = token_N % BLOCK_SIZE
        key_DN = tl.load(
            key_ptr
            + (block_N * key_block_stride + slot_N * key_slot_stride)[None, :]
            + (element_D * key_element_stride)[:, None],
            mask=is_token_N[None, :] & is_element_D[:, None],
            other=0.0,
        )
        score_MN = tl.dot(query_MD, key_DN, input_precision=PRECISION) * scale
        if HAS_SOFTCAP:
            # c * tanh(x / c)
            score_MN = softcap * (2.0 * tl.sigmoid(2.0 / softcap * score_MN) - 1.0)
        score_MN *= _LOG2E
        if IN_TREE or HAS_WINDOW:
            seen_MN = _seen(
                row_M,
                position_M,
                token_N,
                is_token_N,
                words_ptr,
                depths_ptr,
                num_context,
                num_rows,
                num_words,
                window,
                HAS_WINDOW,
                IN_TREE,
            )
            score_MN = tl.where(seen_MN, score_MN, float("-inf"))
        new_peak_M = tl.maximum(peak_M, tl.max(score_MN, 1))
        # Without a token seen so far, infinities would cancel to NaN.
        base_M = tl.where(new_peak_M == float("-inf"), 0.0, new_peak_M)
        weight_MN = tl.exp2(score_MN - base_M[:, None])
        rescale_M = tl.exp2(peak_M - base_M)
        value_ND = tl.load(
            value_ptr
            + (block_N * value_block_stride + slot_N * value_slot_stride)[:, None]
            + (element_D * value_element_stride)[None, :],
            mask=is_token_N[:, None] & is_element_D[None, :],
            other=0.0,
        )
        part_MD = tl.dot(
            weight_MN.to(value_ND.dtype),
            value_ND,
            acc=part_MD * rescale_M[:, None],
            input_precision=PRECISION,
        )
        total_M = total_M * rescale_M + tl.sum(weight_MN, 1)
        peak_M = new_peak_M
    return part_MD, peak_M, total_M


@triton.jit
def _seen(
    row_M,
    position_M,
    token_N,
    is_token_N,
    words_ptr,
    depths_ptr,
    num_context,
    num_rows,
    num_words,
    window,
    HAS_WINDOW: tl.constexpr,
    IN_TREE: tl.constexpr,
):
    """Returns which tokens of a tile each query sees, [M, N]."""
    node_N = token_N - num_context
    is_node_N = is_token_N & (node_N >= 0)
    seen_MN = (is_token_N & (node_N < 0))[None, :] & (row_M >= 0)[:, None]
    if IN_TREE:
        for word in range(num_words):
            word_M = tl.load(words_ptr + row_M * num_words + word, mask=row_M < num_rows, other=0)
            is_set_MN = (word_M[:, None] >> (node_N & 31)[None, :]) & 1 == 1
            seen_MN |= (is_node_N & (node_N >> 5 == word))[None, :] & is_set_MN
    if HAS_WINDOW:
        depth_N = tl.load(depths_ptr + node_N, mask=is_node_N, other=0)
        position_N = tl.where(node_N < 0, token_N, num_context + depth_N)
        seen_MN &= position_M[:, None] - position_N[None, :] < window
    return seen_MN


@triton.jit
def merge_parts(
    output_ptr,  # [tokens, heads, d]; written
    part_ptr,  # [rows, heads, parts, d] float32
    peak_ptr,  # [rows, heads, parts] float32
    total_ptr,  # [rows, heads, parts] float32
    tokens_ptr,  # [rows] int32: the token of each row
    num_heads,
    output_stride,  # of a token
    HEAD_SIZE: tl.constexpr,
    PADDED_SIZE: tl.constexpr,
    PARTS: tl.constexpr,
):
    """Merges the parts of a row and head. Grid: (rows, heads). `PARTS` is a power of two."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    element_D = tl.arange(0, PADDED_SIZE)
    is_element_D = element_D < HEAD_SIZE
    place_S = (row * num_heads + head) * PARTS + tl.arange(0, PARTS)
    peak_S = tl.load(peak_ptr + place_S)
    # A row sees at least itself, so some peak is finite.
    factor_S = tl.exp2(peak_S - tl.max(peak_S, 0))
    part_SD = tl.load(
        part_ptr + place_S[:, None] * HEAD_SIZE + element_D[None, :],
        mask=is_element_D[None, :],
        other=0.0,
    )
    total = tl.sum(factor_S * tl.load(total_ptr + place_S), 0)
    output_D = tl.sum(factor_S[:, None] * part_SD, 0) / total
    token = tl.load(tokens_ptr + row).to(tl.int64)
    tl.store(
        output_ptr + token * output_stride + head * HEAD_SIZE + element_D,
        output_D.to(output_ptr.dtype.element_ty),
        mask=is_element_D,
    )
