"""A tiny target that a draft can learn: it has itself learned a language of twelve letters.

Each letter follows from the two before it, so a draft that sees the last letters and the target's
hidden states can be right nearly always. A random target says what no draft can learn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from scripted_drafts import VOCABULARY, Texts
from torch import Tensor

FIRST, NUM_LETTERS = 3, 12
_STEPS, _BATCH, _LENGTH = 250, 16, 64


def prompts(num: int, length: int, seed: int) -> Texts:
    """Returns texts of the language with random beginnings."""
    return _texts(np.random.default_rng(seed), num, length).tolist()


def save_model(directory: Path) -> None:
    """Trains the target for some seconds on one thread and writes it."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = transformers.LlamaForCausalLM(config).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=_STEPS)
    rng = np.random.default_rng(0)
    for _ in range(_STEPS):
        texts = _texts(rng, _BATCH, _LENGTH)
        loss: Tensor = model(input_ids=texts, labels=texts).loss
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    model.save_pretrained(directory)


def _texts(rng: np.random.Generator, num: int, length: int) -> Tensor:
    """Texts of the language, [num, length]; one letter in ten is a surprise."""
    after = np.random.default_rng(5).integers(0, NUM_LETTERS, (NUM_LETTERS, NUM_LETTERS))
    letters = rng.integers(0, NUM_LETTERS, (num, length))
    for place in range(2, length):
        is_surprise = rng.random(num) < 0.1
        follows = after[letters[:, place - 2], letters[:, place - 1]]
        letters[:, place] = np.where(is_surprise, letters[:, place], follows)
    return torch.from_numpy(FIRST + letters)
