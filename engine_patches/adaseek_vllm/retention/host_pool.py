"""Which blocks have a copy in host memory, and in which slot. Pure: no vLLM, no bytes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["HostPool"]


@dataclass
class _Copy:
    slot: int
    is_ready: bool = False
    num_readers: int = 0
    is_doomed: bool = False

    @property
    def is_busy(self) -> bool:
        return not self.is_ready or self.num_readers > 0


class HostPool:
    """A fixed number of slots, each the copy of one block; the least recently used gives way.

    A copy is known by the hash of its block, which covers the whole context before it and the
    tenant's salt: nobody can read what they could not have computed. A slot that is being
    written or read is never reused.

    Args:
        num_slots: blocks that fit.
    """

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._free = list(reversed(range(num_slots)))
        self._copies: OrderedDict[bytes, _Copy] = OrderedDict()

    def __len__(self) -> int:
        return len(self._copies)

    def __contains__(self, key: bytes) -> bool:
        """Whether there is a copy, or one is being made."""
        copy = self._copies.get(key)
        return copy is not None and not copy.is_doomed

    @property
    def num_free(self) -> int:
        """Slots that hold nothing."""
        return len(self._free)

    @property
    def num_busy(self) -> int:
        """Copies that are being written or read."""
        return sum(copy.is_busy for copy in self._copies.values())

    def is_ready(self, key: bytes) -> bool:
        """Returns whether a copy can be read."""
        copy = self._copies.get(key)
        return copy is not None and copy.is_ready and not copy.is_doomed

    def num_ready(self, keys: Iterable[bytes]) -> int:
        """Returns how many of `keys` can be read, up to the first that cannot."""
        count = 0
        for key in keys:
            if not self.is_ready(key):
                break
            count += 1
        return count

    def reserve(self, keys: Sequence[bytes]) -> list[int]:
        """Returns slots to write copies to, for as many of the first `keys` as there is room.

        Args:
            keys: of blocks that have no copy; each is different.
        """
        slots: list[int] = []
        wanted = frozenset(keys)
        for key in keys:
            if key in self._copies or not (self._free or self._evict(keep=wanted)):
                break
            slot = self._free.pop()
            self._copies[key] = _Copy(slot)
            slots.append(slot)
        return slots

    def written(self, keys: Iterable[bytes], *, is_good: bool) -> None:
        """Ends the writing of copies; those that are no good are forgotten."""
        for key in keys:
            copy = self._copies[key]
            assert not copy.is_ready, f"copy in slot {copy.slot} was written before"
            copy.is_ready = True
            if not is_good or copy.is_doomed:
                self._remove(key)

    def read(self, keys: Iterable[bytes]) -> list[int]:
        """Returns the slots of copies; they stay as they are until `was_read`."""
        slots = []
        for key in keys:
            copy = self._copies[key]
            assert copy.is_ready, f"copy in slot {copy.slot} is not written yet"
            copy.num_readers += 1
            slots.append(copy.slot)
        return slots

    def was_read(self, keys: Iterable[bytes]) -> None:
        """Ends one reading of copies."""
        for key in keys:
            copy = self._copies[key]
            copy.num_readers -= 1
            assert copy.num_readers >= 0, f"copy in slot {copy.slot} was not being read"
            if copy.is_doomed and not copy.is_busy:
                self._remove(key)

    def used(self, keys: Sequence[bytes]) -> None:
        """Records that a context was wanted: its head outlasts its tail, which is no use alone."""
        for key in reversed(keys):
            if key in self._copies:
                self._copies.move_to_end(key)

    def drop(self, keys: Iterable[bytes]) -> None:
        """Forgets copies, at once or when whoever reads or writes them is done."""
        for key in list(keys):
            copy = self._copies.get(key)
            if copy is None:
                continue
            if copy.is_busy:
                copy.is_doomed = True
            else:
                self._remove(key)

    def clear(self) -> None:
        """Forgets every copy."""
        self.drop(list(self._copies))

    def _evict(self, *, keep: frozenset[bytes]) -> bool:
        """Forgets the least recently used copy that nobody uses; returns whether there was one."""
        for key, copy in self._copies.items():
            if not copy.is_busy and key not in keep:
                self._remove(key)
                return True
        return False

    def _remove(self, key: bytes) -> None:
        self._free.append(self._copies.pop(key).slot)
