"""Sessions and the ledger of held blocks."""

from __future__ import annotations

from collections import Counter

import pytest
from adaseek_vllm.retention.sessions import Ledger, Session, SessionKey, SessionTable
from hypothesis import given
from hypothesis import strategies as st


def key(name: str, tenant: str = "") -> SessionKey:
    return SessionKey(tenant, "", name)


def test_block_held_twice_is_counted_once_and_freed_last() -> None:
    ledger = Ledger()
    ledger.add("a", [1, 2, 3])
    ledger.add("a", [1, 2])
    assert (ledger.num_blocks, ledger.num_tenant_blocks("a")) == (3, 3)
    assert ledger.num_exclusive([1, 2, 3]) == 1
    assert ledger.num_exclusive([3, 4], held=False) == 1
    assert ledger.num_new([3, 4]) == 1
    ledger.remove("a", [1, 2, 3])
    assert ledger.num_blocks == 2


def test_start_of_a_context_that_fits_both_limits() -> None:
    ledger = Ledger()
    ledger.add("a", [1, 2])
    ledger.add("b", [3])
    wanted = [1, 3, 4, 5]
    assert ledger.fitting("a", wanted, max_blocks=9, max_tenant_blocks=9) == wanted
    # Nobody holds 4 and 5; of tenant a nobody holds 3 either.
    assert ledger.fitting("a", wanted, max_blocks=4, max_tenant_blocks=9) == [1, 3, 4]
    assert ledger.fitting("a", wanted, max_blocks=9, max_tenant_blocks=3) == [1, 3]
    assert ledger.fitting("a", wanted, max_blocks=9, max_tenant_blocks=2) == [1]


def test_letting_go_of_what_is_not_held_is_an_error() -> None:
    ledger = Ledger()
    ledger.add("a", [1])
    with pytest.raises(KeyError, match="block 1 is not held by 'b'"):
        ledger.remove("b", [1])


@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 9), unique=True, max_size=6)),
        max_size=12,
    )
)
def test_ledger_agrees_with_a_recount(holdings: list[tuple[str, list[int]]]) -> None:
    ledger = Ledger()
    for tenant, blocks in holdings:
        ledger.add(tenant, blocks)
    everything = Counter(block for _, blocks in holdings for block in blocks)
    assert ledger.num_blocks == len(everything)
    for tenant in "ab":
        mine = {block for owner, blocks in holdings if owner == tenant for block in blocks}
        assert ledger.num_tenant_blocks(tenant) == len(mine)
    for tenant, blocks in holdings:
        ledger.remove(tenant, blocks)
    assert ledger.num_blocks == ledger.num_tenant_blocks("a") == ledger.num_tenant_blocks("b") == 0


def test_flood_of_sessions_pushes_out_the_least_recently_used() -> None:
    table = SessionTable(2)
    first, second, third = (Session(key(name), 0.0) for name in "abc")
    assert table.put(first) == table.put(second) == table.put(first) == []
    assert table.put(third) == [second]
    assert [session.key.name for session in table] == ["a", "c"]


def test_sessions_of_two_tenants_never_meet() -> None:
    table = SessionTable(9)
    table.put(Session(key("same", "x"), 0.0))
    assert table.get(key("same", "y")) is None


def test_context_is_recognised_by_its_last_fingerprint_only() -> None:
    table = SessionTable(9)
    session = Session(key("a"), 0.0)
    table.put(session)
    table.mark(session, "h1")
    table.mark(session, "h2")
    assert table.find(["h9", "h2"]) is session
    assert table.find(["h1"]) is None
    table.remove(session.key)
    assert table.find(["h2"]) is None
