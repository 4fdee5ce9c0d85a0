"""Wheels made on the spot."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def write_wheel(tmp_path: Path) -> Callable[[str, bytes], Path]:
    """Returns a function that writes a wheel with one data file, and says where."""

    def write(name: str, data: bytes) -> Path:
        info = f"{name}-1.0.dist-info"
        files = {
            f"{name}/data/weights.bin": data,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in files).encode()
        path = tmp_path / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            for file, content in files.items():
                archive.writestr(file, content)
        return path

    return write
