"""A small decoder that guesses what a large one says next.

A Llama-type decoder with three differences. Its vocabulary is the target's likeliest tokens only.
A token's input holds, beside its embedding, the target's last hidden state that chose it; a drafted
token has the state that the draft foresees instead. It sees no more than a short window before the
root: what came earlier is in the hidden states. So it needs no cache of its own between two steps.

Sources: SpecInfer (arXiv 2305.09781) for drafts by small models; EAGLE (arXiv 2401.15077) for the
hidden states; the window and the frozen output rows of the target are ours.

Letters: B requests or examples, S tokens, K keys, N heads, D width of a head, H width of the draft,
T width of the target, V tokens of the trimmed vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from adaseek_vllm.token_tree.drafts.config import DraftConfig

__all__ = ["DraftModel", "Memory"]

_ROPE_BASE = 10_000.0
_EPSILON = 1e-6
_RIDGE = 1e-2

Memory = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, both [B, N, K, D]."""


class DraftModel(nn.Module):
    """The draft. Its token ids are those of the trimmed vocabulary; V stands for any other."""

    tokens: Tensor  # [V] int64, the target's ids
    output_rows: Tensor  # [V, T], the target's, not trained

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.config = config
        width, target_width = config.hidden_size, config.target.hidden_size
        self.register_buffer("tokens", torch.zeros(config.num_tokens, dtype=torch.int64))
        self.register_buffer("output_rows", torch.zeros(config.num_tokens, target_width))
        self.embedding = nn.Embedding(config.num_tokens + 1, width)
        self.hidden_in = nn.Linear(target_width, width, bias=False)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(width, eps=_EPSILON)
        self.hidden_out = nn.Linear(width, target_width, bias=False)

    @torch.no_grad()
    def start_from(self, tokens: Tensor, output_rows: Tensor) -> None:
        """Takes over the vocabulary, and embeddings that keep most of the target's geometry.

        Args:
            tokens: the target's ids of the trimmed vocabulary, [V].
            output_rows: the target's output layer for them, [V, T].
        """
        self.tokens.copy_(tokens)
        self.output_rows.copy_(output_rows)
        rank = min(self.config.hidden_size, *output_rows.shape)
        generator = torch.Generator().manual_seed(0)
        sketch = torch.randn(output_rows.shape[1], rank, generator=generator)
        # A random projection before the decomposition: the same subspace, nearly, in a second.
        basis, _ = torch.linalg.qr(output_rows.T @ (output_rows @ sketch))
        projected = output_rows @ basis
        self.embedding.weight.zero_()
        self.embedding.weight[:-1, :rank] = projected / projected.std().clamp_min(1e-12)
        # Logits of about unit size: the draft begins with hardly an opinion.
        self.hidden_out.weight[:, :rank] = basis / output_rows.norm(dim=1).mean().clamp_min(1e-12)

    @torch.no_grad()
    def foresee(self, tokens: Tensor, before: Tensor, after: Tensor) -> None:
        """Starts as the best linear guess of the target's next hidden state.

        Ridge regression from the state that chose a token, and the token's output row, to the
        state after it; then its best approximation of rank H. It takes seconds, and what it finds
        would take the training long.

        Args:
            tokens: trimmed ids, [N].
            before: states that chose them, [N, T].
            after: states after them, [N, T].
        """
        width = before.shape[1]
        table = torch.cat([self.output_rows, torch.zeros(1, width)])
        gram, products = torch.zeros(2 * width, 2 * width), torch.zeros(2 * width, width)
        for part in torch.split(torch.arange(len(tokens)), 4096):
            states = functional.rms_norm(before[part].float(), (width,), eps=_EPSILON)
            x = torch.cat([states, table[tokens[part]]], dim=1)
            gram += x.T @ x
            products += x.T @ after[part].float()
        gram += _RIDGE * gram.diagonal().mean() * torch.eye(2 * width)
        best = torch.linalg.solve(gram, products)
        basis = torch.linalg.eigh(best.T @ gram @ best).eigenvectors.flip(1)
        rank = min(self.config.hidden_size, width)
        inwards = best @ basis[:, :rank]
        size = (inwards.T @ gram @ inwards).trace() / len(tokens) / self.config.hidden_size
        self.hidden_in.weight[:rank] = inwards[:width].T
        self.embedding.weight[:-1, :rank] = self.output_rows @ inwards[width:]
        self.hidden_out.weight[:, :rank] = basis[:, :rank] * size.sqrt()

    def embed(self, tokens: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Returns the inputs of tokens, [B, S, H].

        Args:
            tokens: trimmed ids, [B, S].
            hidden: the hidden states that chose them, [B, S, T]; None: there are none.
        """
        inputs: Tensor = self.embedding(tokens)
        if hidden is None:
            return inputs
        states = functional.rms_norm(hidden.to(inputs.dtype), (hidden.shape[-1],), eps=_EPSILON)
        added: Tensor = self.hidden_in(states)
        return inputs + added

    def forward(
        self, inputs: Tensor, positions: Tensor, mask: Tensor | None, memory: Memory | None = None
    ) -> tuple[Tensor, Memory]:
        """Returns the target's states as foreseen, [B, S, T], and the memory, which has grown.

        Args:
            inputs: what `embed` returned, [B, S, H].
            positions: of each, [B, S] or [1, S].
            mask: what attends to what, [B, 1, S, K]; None: causal.
            memory: of earlier tokens.
        """
        rotation = _rotation(positions, self.config.hidden_size // self.config.num_heads)
        x, grown = inputs, Memory()
        for index, layer in enumerate(self.layers):
            past = None if memory is None else memory[index]
            x, now = layer(x, rotation, mask, past)
            grown.append(now)
        return self.hidden_out(self.norm(x)), grown

    def logits(self, states: Tensor) -> Tensor:
        """Returns logits over the trimmed vocabulary, [..., V], of foreseen states [..., T]."""
        # NOTE: as [1, 1, T] cut out of a longer tensor, one bfloat16 row takes torch 2.13 on a CPU
        # thirty times as long: its outer strides choose another kernel.
        flat = functional.linear(states.reshape(-1, states.shape[-1]), self.output_rows)
        return flat.view(*states.shape[:-1], -1)


class _Layer(nn.Module):
    """Attention and a gated feed-forward part, each behind a norm."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        width, inner = config.hidden_size, config.intermediate_size
        self.num_heads = config.num_heads
        self.attention_norm = nn.RMSNorm(width, eps=_EPSILON)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.inner_norm = nn.RMSNorm(width, eps=_EPSILON)
        self.gate_up = nn.Linear(width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)
        for last in (self.attention_out, self.down):
            nn.init.zeros_(last.weight)

    def forward(
        self,
        x_bsh: Tensor,
        rotation: tuple[Tensor, Tensor],
        mask: Tensor | None,
        past: tuple[Tensor, Tensor] | None,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        heads = self.qkv(self.attention_norm(x_bsh)).unflatten(-1, (3, self.num_heads, -1))
        q_bnsd, k_bnsd, v_bnsd = heads.permute(2, 0, 3, 1, 4)
        q_bnsd, k_bnsd = _rotated(q_bnsd, rotation), _rotated(k_bnsd, rotation)
        if past is not None:
            k_bnsd, v_bnsd = torch.cat([past[0], k_bnsd], 2), torch.cat([past[1], v_bnsd], 2)
        seen_bnsd = functional.scaled_dot_product_attention(
            q_bnsd, k_bnsd, v_bnsd, attn_mask=mask, is_causal=mask is None
        )
        x_bsh = x_bsh + self.attention_out(seen_bnsd.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.inner_norm(x_bsh)).chunk(2, dim=-1)
        return x_bsh + self.down(functional.silu(gate) * up), (k_bnsd, v_bnsd)


def _rotation(positions: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary positions, both [B, 1, S, D / 2] float32."""
    steps = torch.arange(0, width, 2, dtype=torch.float32) / width
    angles = positions[:, None, :, None].float() * _ROPE_BASE**-steps
    return angles.cos(), angles.sin()


def _rotated(x_bnsd: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x_bnsd.chunk(2, dim=-1)
    cos, sin = (part.to(x_bnsd.dtype) for part in rotation)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
