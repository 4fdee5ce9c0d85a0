"""What the target is asked so that a draft model can learn how it answers.

Prompts and texts belong to a *group* (the file they were taken from). Every tenth group or so is
held out: nothing of it is trained on.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from adaseek_vllm.token_tree.drafts.config import DraftError

__all__ = ["Prompt", "is_held_out", "read_prompts", "read_texts"]

_HELD_OUT_SHARE = 0.1
_KEYS = ("text", "messages")


@dataclass(frozen=True)
class Prompt:
    """One prompt: plain text that goes on, or the messages of a chat."""

    group: str
    text: str = ""
    messages: tuple[dict[str, str], ...] = ()

    @property
    def is_held_out(self) -> bool:
        return is_held_out(self.group)


def is_held_out(group: str) -> bool:
    """Returns whether a group is kept for the report; the same on every machine."""
    number = int.from_bytes(sha256(group.encode()).digest()[:8], "big")
    return number / 2**64 < _HELD_OUT_SHARE


def read_prompts(path: Path) -> list[Prompt]:
    """Returns the prompts of a JSONL file: objects with `text` or `messages`, and maybe `group`.

    Raises:
        DraftError: the file cannot be read, a line is no such object, or no prompt is left for
            training or for the report.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DraftError(f"`--prompts` {path} cannot be read: {error}.") from error
    prompts = [
        _prompt(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()
    ]
    for held_out, purpose in ((False, "training"), (True, "the held-out report")):
        if not any(prompt.is_held_out is held_out for prompt in prompts):
            raise DraftError(
                f"`--prompts` {path} has {len(prompts)} prompts and none for {purpose}: about one "
                "group in ten is held out, so give at least a few dozen groups."
            )
    return prompts


def _prompt(path: Path, number: int, line: str) -> Prompt:
    place = f"`--prompts` {path}, line {number}"
    try:
        read = json.loads(line)
    except json.JSONDecodeError as error:
        raise DraftError(f"{place} is no JSON: {error}.") from error
    if not isinstance(read, dict) or sum(key in read for key in _KEYS) != 1:
        raise DraftError(f"{place} must be an object with either `text` or `messages`.")
    group = str(read.get("group", f"line {number}"))
    if "text" in read:
        if not isinstance(read["text"], str) or not read["text"].strip():
            raise DraftError(f"{place}: `text` must be a string that is not empty.")
        return Prompt(group, text=read["text"])
    messages = read["messages"]
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
        raise DraftError(f"{place}: `messages` must be a list of objects with `role`, `content`.")
    return Prompt(group, messages=tuple(messages))


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )


def read_texts(paths: Sequence[Path]) -> Iterator[tuple[str, str]]:
    """Yields (group, text) of files, and of the files in folders; unreadable ones are skipped.

    The group of a file in a folder is its path there.

    Raises:
        DraftError: a path does not exist.
    """
    for path in paths:
        if not path.exists():
            raise DraftError(f"`--text` {path} does not exist.")
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if not file.is_file():
                continue
            try:
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                continue  # A folder of sources may hold a picture.
            group = file.relative_to(path).as_posix() if path.is_dir() else file.name
            yield group, text
