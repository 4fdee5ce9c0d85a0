"""Reading and writing a draft model's directory: config.json and model.safetensors."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from adaseek_vllm.token_tree.drafts.config import WEIGHTS_FILE, DraftConfig, DraftError
from adaseek_vllm.token_tree.drafts.model import DraftModel

__all__ = ["load_draft", "save_draft"]


def save_draft(model: DraftModel, directory: Path) -> None:
    """Writes a draft model, its weights in bfloat16."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {
        name: tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    unfinished = directory / f"{WEIGHTS_FILE}.part"
    save_file(weights, unfinished)
    unfinished.replace(directory / WEIGHTS_FILE)
    model.config.save(directory)


def load_draft(directory: Path, dtype: torch.dtype = torch.bfloat16) -> DraftModel:
    """Returns the draft model of a directory, ready to draft.

    Raises:
        DraftError: files are missing or damaged, or do not belong together.
    """
    config = DraftConfig.load(directory)
    path = directory / WEIGHTS_FILE
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DraftError(f"The draft's weights {path} cannot be read: {error}.") from error
    model = DraftModel(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise DraftError(f"The weights {path} do not fit its configuration: {error}") from error
    limit, tokens = config.target.vocab_size, model.tokens
    if len(set(tokens.tolist())) != len(tokens) or not 0 <= tokens.min() <= tokens.max() < limit:
        raise DraftError(
            f"The vocabulary of {path} must be different numbers from 0 to {limit - 1}."
        )
    return model.to(dtype).eval().requires_grad_(False)
