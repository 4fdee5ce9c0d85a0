"""Prompt files: what is read, what is held out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from adaseek_vllm.token_tree.drafts.config import DraftError
from adaseek_vllm.token_tree.drafts.prompts import is_held_out, read_prompts, read_texts


def written(tmp_path: Path, *lines: object) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines))
    return path


def enough() -> list[dict[str, object]]:
    return [{"text": "def f", "group": f"file {number}"} for number in range(40)]


def test_both_kinds_are_read_and_groups_stay_together(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hello"}]
    path = written(tmp_path, *enough(), *enough(), {"messages": messages}, "")
    prompts = read_prompts(path)
    assert len(prompts) == 81
    assert prompts[-1].messages == tuple(messages)
    assert prompts[-1].group == "line 81"
    learned = {prompt.group for prompt in prompts if not prompt.is_held_out}
    held_out = {prompt.group for prompt in prompts if prompt.is_held_out}
    assert learned and held_out and not learned & held_out


def test_about_one_group_in_ten_is_held_out() -> None:
    assert 70 < sum(is_held_out(f"group {number}") for number in range(1000)) < 130


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 41 is no JSON"),
        ([1], "either `text` or `messages`"),
        ({"question": "?"}, "either `text` or `messages`"),
        ({"text": "a", "messages": []}, "either `text` or `messages`"),
        ({"text": " "}, "`text` must be a string that is not empty"),
        ({"messages": []}, "`messages` must be a list"),
        ({"messages": [{"role": "user"}]}, "`messages` must be a list"),
    ],
)
def test_line_that_is_no_prompt_is_named(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(DraftError, match=message):
        read_prompts(written(tmp_path, *enough(), line))


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DraftError, match="cannot be read"):
        read_prompts(tmp_path / "none.jsonl")


def test_too_few_groups_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DraftError, match="none for the held-out report"):
        read_prompts(written(tmp_path, {"text": "a", "group": "file 0"}))


def test_texts_of_a_folder_are_grouped_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.py").write_text("x = 1")
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\xff\xfe")
    assert list(read_texts([tmp_path])) == [("inner/a.py", "x = 1")]
    with pytest.raises(DraftError, match="does not exist"):
        list(read_texts([tmp_path / "none"]))
