"""What a draft model's directory says about it. Imports no torch: settings are checked with it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

__all__ = [
    "CONFIG_FILE",
    "SUCCESSORS_FILE",
    "WEIGHTS_FILE",
    "DraftConfig",
    "DraftError",
    "TargetFacts",
    "check_draft",
    "check_target",
    "has_model",
    "has_successors",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
SUCCESSORS_FILE = "successors.safetensors"
_KIND = "adaseek-draft"
_FORMAT = 1


class DraftError(ValueError):
    """A draft model, or what it is to be trained on, cannot be used."""


@dataclass(frozen=True)
class TargetFacts:
    """What must be equal in the target that a draft was trained for and the one it drafts for."""

    vocab_size: int
    hidden_size: int
    tokenizer: str
    """Fingerprint of token -> id; empty if the model has no tokenizer of its own."""


@dataclass(frozen=True)
class DraftConfig:
    """Shape of a draft model.

    Args:
        target: what it was trained for.
        hidden_size: width of the draft's layers; a multiple of twice `num_heads`.
        num_layers: decoder layers.
        num_heads: attention heads.
        intermediate_size: width inside the feed-forward parts.
        num_tokens: size of the trimmed vocabulary; `tokens` of the weights maps it to the
            target's.
        window: how many of the latest tokens it sees, each with the target's hidden state.
    """

    target: TargetFacts
    hidden_size: int = 512
    num_layers: int = 1
    num_heads: int = 8
    intermediate_size: int = 1536
    num_tokens: int = 8192
    window: int = 6

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "target" and (type(value) is not int or value < 1):
                raise DraftError(f"`{field.name}` is {value!r}, but must be an integer >= 1.")
        if self.hidden_size % (2 * self.num_heads):
            raise DraftError(
                f"`hidden_size` is {self.hidden_size}, but must be a multiple of twice "
                f"`num_heads`, which is {self.num_heads}."
            )

    def save(self, directory: Path) -> None:
        """Writes the configuration's file."""
        written = {"kind": _KIND, "format": _FORMAT, **asdict(self)}
        (directory / CONFIG_FILE).write_text(json.dumps(written, indent=2) + "\n")

    @classmethod
    def load(cls, directory: Path) -> DraftConfig:
        """Returns the configuration of a draft model's directory.

        Raises:
            DraftError: there is none, or it is no draft model's.
        """
        path = directory / CONFIG_FILE
        try:
            read = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DraftError(
                f"{directory} is no draft model: it has no {CONFIG_FILE}. "
                "`adaseek drafts train` makes one."
            ) from error
        except (OSError, ValueError) as error:
            raise DraftError(f"{path} cannot be read: {error}.") from error
        if not isinstance(read, dict) or read.pop("kind", None) != _KIND:
            raise DraftError(
                f"{path} is not the configuration of a draft made by `adaseek drafts train`."
            )
        if (version := read.pop("format", None)) != _FORMAT:
            raise DraftError(
                f"{path} has format {version!r}, but this version reads {_FORMAT}: train it again."
            )
        try:
            return cls(target=TargetFacts(**read.pop("target")), **read)
        except (KeyError, TypeError) as error:
            raise DraftError(f"{path} is damaged: {error}.") from error


def has_model(directory: Path) -> bool:
    """Returns whether a draft's directory has a draft model."""
    return (directory / CONFIG_FILE).exists()


def has_successors(directory: Path) -> bool:
    """Returns whether a draft's directory has a table of successors."""
    return (directory / SUCCESSORS_FILE).exists()


def check_draft(directory: Path) -> None:
    """Raises `DraftError` if a directory holds neither table nor model, or no right model."""
    if has_model(directory):
        DraftConfig.load(directory)
    elif not has_successors(directory):
        raise DraftError(
            f"{directory} is no draft: it has neither {CONFIG_FILE} nor {SUCCESSORS_FILE}. "
            "`adaseek drafts train` makes one."
        )


def check_target(directory: Path, trained: TargetFacts, served: TargetFacts) -> None:
    """Raises `DraftError` if the draft in `directory` was trained for another target."""
    for name, described in (
        ("tokenizer", "tokenizer"),
        ("vocab_size", "vocabulary size"),
        ("hidden_size", "hidden size"),
    ):
        mine, other = getattr(trained, name), getattr(served, name)
        if mine != other:
            raise DraftError(
                f"The draft {directory} was trained for a target with {described} "
                f"{mine or 'none'}, but the model that is served has {other or 'none'}: "
                "train a draft for this model with `adaseek drafts train`."
            )
