"""`adaseek drafts train` on the command line: what it passes on, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from adaseek.cli import main

pytest.importorskip("torch")
pytest.importorskip("transformers")
from adaseek_vllm.token_tree.drafts import train as training


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["drafts", "train", *arguments])
    code = ended.value.code
    assert isinstance(code, int)
    return code


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"text": "def f", "group": str(number)}) for number in range(40)]
    path.write_text("\n".join(lines))
    return path


def test_settings_are_passed_on_and_the_flag_is_printed(
    tmp_path: Path,
    prompts: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: dict[str, Any] = {}

    def train(target: str, directory: Path, settings: object, **others: Any) -> str:
        seen.update(target=target, directory=directory, settings=settings, **others)
        return "the report"

    monkeypatch.setattr(training, "train", train)
    out = tmp_path / "out"
    options = ["--minutes", "3", "--num-drafts", "2", "--vocabulary", "99", "--seed", "7"]
    assert run("model", "--out", str(out), "--prompts", str(prompts), *options) == 0
    assert seen["target"] == "model"
    assert seen["prompts"] == prompts
    assert seen["settings"] == training.TrainSettings(
        minutes=3.0, num_drafts=2, num_tokens=99, seed=7
    )
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "the report"
    flag, value = printed[1].split(" ", 1)
    assert flag == "--token-tree"
    assert json.loads(value.strip("'")) == {"drafts": [str(out), str(out / "2")]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "is no model at all"),
        (("--minutes", "0"), "`minutes` is 0.0, but must be > 0"),
        (("--num-drafts", "-1"), "`num_drafts` is -1, but must be >= 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(
    tmp_path: Path,
    prompts: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    arguments = [str(empty), "--out", str(tmp_path / "out"), "--prompts", str(prompts)]
    assert run(*arguments, *options) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_the_options_are_pinned(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    options = capsys.readouterr().out.partition("Options:\n")[2]
    names = [line.split()[0] for line in options.splitlines() if line.startswith("  --")]
    assert names == [
        "--out",
        "--prompts",
        "--text",
        "--minutes",
        "--num-drafts",
        "--max-tokens",
        "--vocabulary",
        "--seed",
        "--debug",
    ]
