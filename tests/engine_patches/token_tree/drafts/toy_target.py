"""A toy target that needs no engine: texts by a random rule, and hidden states that know it.

The next token is a function of the last two, most of the time. The target's hidden state at a
token is the output row of what comes next, so its output layer finds it likely.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from adaseek_vllm.token_tree.drafts.config import DraftConfig, TargetFacts
from adaseek_vllm.token_tree.drafts.corpus import Corpus, Document, trimmed
from adaseek_vllm.token_tree.drafts.model import DraftModel
from safetensors.torch import save_file

VOCABULARY, WIDTH = 40, 32
FACTS = TargetFacts(VOCABULARY, WIDTH, "toy")
CONFIG = DraftConfig(
    FACTS,
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    intermediate_size=48,
    num_tokens=32,
    window=4,
)


def rows() -> torch.Tensor:
    """The target's output layer, [vocabulary, width]."""
    generator = torch.Generator().manual_seed(0)
    return 2.0 * torch.randn(VOCABULARY, WIDTH, generator=generator)


def rule() -> np.ndarray:
    return np.random.default_rng(1).integers(0, 30, (VOCABULARY, VOCABULARY))


def document(seed: int, length: int = 60, temperature: float = 0.0) -> Document:
    rng, after = np.random.default_rng(seed), rule()
    tokens = list(rng.integers(0, 30, 2))
    while len(tokens) < length:
        surprise = rng.random() < 0.1
        tokens.append(rng.integers(0, 30) if surprise else after[tokens[-2], tokens[-1]])
    said = torch.tensor(tokens)
    return Document(
        said.numpy().astype(np.int32), 8, rows()[said[1:]].to(torch.bfloat16), temperature
    )


def documents(num: int, first_seed: int) -> list[Document]:
    return [document(first_seed + n, temperature=float(n % 2)) for n in range(num)]


def vocabulary() -> torch.Tensor:
    """A trimmed vocabulary that leaves out some, and is not the identity."""
    return torch.tensor([*range(26), *range(27, 30), 33, 35, 39])


def corpus(found: list[Document], *, depth: int = 4) -> Corpus:
    tokens = vocabulary()
    return Corpus(
        found,
        ids=trimmed(tokens, VOCABULARY),
        output_rows=rows()[tokens],
        window=CONFIG.window,
        depth=depth,
    )


def model(seed: int = 0, *, is_random: bool = False) -> DraftModel:
    """A draft that knows nothing; with random weights also in its last layers if wanted."""
    torch.manual_seed(seed)
    draft = DraftModel(CONFIG)
    tokens = vocabulary()
    draft.start_from(tokens, rows()[tokens])
    if is_random:
        for parameter in draft.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return draft.eval()


def save_target(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    save_file({"model.embed_tokens.weight": rows()}, directory / "model.safetensors")
    return directory
