"""The settings of token-tree decoding, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from adaseek_vllm.config import FeatureSettingsError, check_keys, read_mapping
from adaseek_vllm.token_tree.drafts.config import DraftError, check_draft
from adaseek_vllm.token_tree.recycling import RecyclingSource
from adaseek_vllm.token_tree.sources import DraftSource
from adaseek_vllm.token_tree.suffix import PastSource, SuffixSource
from adaseek_vllm.token_tree.tree import Expansion

__all__ = ["FLAG", "MAX_NODES", "TreeSettings"]

FLAG = "--token-tree"
MAX_NODES = 127
"""With the root 128 rows, two words of a tree mask."""
SOURCES: Mapping[str, Callable[[], DraftSource]] = {
    "suffix": SuffixSource,
    "past": PastSource,
    "recycling": RecyclingSource,
}
TREE, CHAIN = "tree", "chain"
BUDGETS = ("cost", "full")


@dataclass(frozen=True)
class TreeSettings:
    """What a user can set.

    Args:
        num_nodes: most drafted tokens per request and step; with the root they fill 32 rows, two
            tiles of a matrix unit.
        sources: where drafts come from: `suffix` looks the last tokens up in the request's own
            text, `past` in past answers, `recycling` remembers what the target found likely after a
            token; the last two know of requests with the same cache salt only.
        drafts: directories made by `adaseek drafts train`; the draft model of each and its table
            of successors are sources as well.
        shape: `tree`, whatever is likeliest; or, to compare with, `chain`, the likeliest branch
            only, or a fixed shape <k1, ..., km>: each node's likeliest children, so many by depth.
        budget: `cost` drafts as much as pays at the measured price of a step's rows; `full` as
            much as `num_nodes` allows.
    """

    num_nodes: int = 31
    sources: tuple[str, ...] = ("suffix", "past", "recycling")
    drafts: tuple[str, ...] = ()
    shape: str | tuple[int, ...] = TREE
    budget: str = "cost"

    def __post_init__(self) -> None:
        if type(self.num_nodes) is not int or not 1 <= self.num_nodes <= MAX_NODES:
            raise FeatureSettingsError(
                f"{FLAG}: `num_nodes` is {self.num_nodes!r}, but must be an integer from 1 to "
                f"{MAX_NODES}."
            )
        known = [name for name in SOURCES if name in self.sources]
        if not (known or self.drafts) or len(known) != len(self.sources):
            raise FeatureSettingsError(
                f"{FLAG}: `sources` is {list(self.sources)!r}, but must name some of "
                f"{', '.join(map(repr, SOURCES))}, each once."
            )
        if len(set(self.drafts)) != len(self.drafts):
            raise FeatureSettingsError(
                f"{FLAG}: `drafts` names a directory twice: {self.drafts!r}."
            )
        self._check_shape()
        if self.budget not in BUDGETS:
            raise FeatureSettingsError(
                f"{FLAG}: `budget` is {self.budget!r}, but must be one of "
                f"{', '.join(map(repr, BUDGETS))}."
            )

    @classmethod
    def read(cls, value: object) -> TreeSettings:
        """Returns the settings that a flag's value holds.

        Raises:
            FeatureSettingsError: an unknown key, or a value out of its range.
        """
        given = read_mapping(FLAG, value)
        check_keys(FLAG, given, known=[field.name for field in fields(cls)])
        for name in ("sources", "drafts"):
            if name in given:
                given[name] = _names(name, given[name])
        if isinstance(shape := given.get("shape"), list):
            given["shape"] = tuple(shape)
        settings = cls(**given)  # type: ignore[arg-type]  # checked by __post_init__
        settings._check_drafts()
        return settings

    @property
    def expansion(self) -> Expansion | None:
        """The shape that all trees are cut to, if there is one."""
        if self.shape == TREE:
            return None
        widths = (1,) * self.num_nodes if isinstance(self.shape, str) else self.shape
        return Expansion(widths)

    def _check_shape(self) -> None:
        if self.shape in (TREE, CHAIN):
            return
        widths = self.shape
        if (
            isinstance(widths, tuple)
            and widths
            and all(type(width) is int and width >= 1 for width in widths)
            and Expansion(widths).num_nodes <= self.num_nodes
        ):
            return
        shown = list(widths) if isinstance(widths, tuple) else widths
        raise FeatureSettingsError(
            f"{FLAG}: `shape` is {shown!r}, but must be {TREE!r}, {CHAIN!r} or a list of how many "
            f"children a node has by its depth, such as [1, 1, 3, 1], each at least 1, of no more "
            f"than `num_nodes` ({self.num_nodes}) nodes in all."
        )

    def _check_drafts(self) -> None:
        for directory in self.drafts:
            try:
                check_draft(Path(directory))
            except DraftError as error:
                raise FeatureSettingsError(f"{FLAG}: `drafts`: {error}") from error

    def as_mapping(self) -> dict[str, object]:
        """Returns the settings in JSON form."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    def make_sources(self) -> list[DraftSource]:
        """Returns new sources in the order of their names; draft models are loaded elsewhere."""
        return [SOURCES[name]() for name in self.sources]


def _names(name: str, value: object) -> tuple[str, ...]:
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list | tuple) or not all(isinstance(one, str) for one in listed):
        raise FeatureSettingsError(f"{FLAG}: `{name}` is {value!r}, but must be a list of names.")
    return tuple(listed)
