"""Which blocks have a copy in host memory, and in which slot. Pure: no vLLM, no bytes."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

__all__ = ["HostPool"]


@dataclass
class _Copy:
    slot: int
    tenant: str
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
        max_tenant_slots: blocks of one tenant that may have a copy; None for all that fit. Copies
            without a salt are not one tenant's: only the room binds them.
    """

    def __init__(self, num_slots: int, *, max_tenant_slots: int | None = None) -> None:
        self.num_slots = num_slots
        self._max_tenant_slots = num_slots if max_tenant_slots is None else max_tenant_slots
        self._free = list(reversed(range(num_slots)))
        # The least recently used first; once for all, and once for each tenant with a salt.
        self._copies: OrderedDict[bytes, _Copy] = OrderedDict()
        self._of_tenant: defaultdict[str, OrderedDict[bytes, _Copy]] = defaultdict(OrderedDict)

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

    def num_slots_of(self, tenant: str) -> int:
        """Returns how many blocks of a tenant may have a copy."""
        return min(self.num_slots, self._max_tenant_slots) if tenant else self.num_slots

    def num_copies_of(self, tenant: str) -> int:
        """Returns how many blocks of a tenant with a salt have a copy, or get one."""
        return len(self._of_tenant.get(tenant, ()))

    def reserve(self, keys: Sequence[bytes], *, tenant: str = "") -> list[int]:
        """Returns slots to write copies to, for as many of the first `keys` as there is room.

        Args:
            keys: of blocks that have no copy; each is different.
            tenant: whose blocks they are; one at its limit gives its own copies up for new ones.
        """
        slots: list[int] = []
        wanted = frozenset(keys)
        for key in keys:
            if key in self._copies or not self._make_room(tenant, keep=wanted):
                break
            slot = self._free.pop()
            self._copies[key] = copy = _Copy(slot, tenant)
            if tenant:
                self._of_tenant[tenant][key] = copy
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
            if (copy := self._copies.get(key)) is not None:
                self._copies.move_to_end(key)
                if copy.tenant:
                    self._of_tenant[copy.tenant].move_to_end(key)

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

    def _make_room(self, tenant: str, *, keep: frozenset[bytes]) -> bool:
        """Forgets copies until a tenant may have one more; returns whether it may."""
        if tenant and self.num_copies_of(tenant) >= self._max_tenant_slots:
            return tenant in self._of_tenant and self._evict(self._of_tenant[tenant], keep=keep)
        return bool(self._free) or self._evict(self._copies, keep=keep)

    def _evict(self, copies: OrderedDict[bytes, _Copy], *, keep: frozenset[bytes]) -> bool:
        """Forgets the least recently used copy that nobody uses; returns whether there was one."""
        for key, copy in copies.items():
            if not copy.is_busy and key not in keep:
                self._remove(key)
                return True
        return False

    def _remove(self, key: bytes) -> None:
        copy = self._copies.pop(key)
        self._free.append(copy.slot)
        if copy.tenant:
            mine = self._of_tenant[copy.tenant]
            del mine[key]
            if not mine:
                del self._of_tenant[copy.tenant]
