"""Slots of host memory: never more than there are, never reused while somebody needs them."""

from __future__ import annotations

import random

import pytest
from adaseek_vllm.retention.host_pool import HostPool


def keys(text: str) -> list[bytes]:
    return [letter.encode() for letter in text]


def filled(num_slots: int, text: str) -> HostPool:
    pool = HostPool(num_slots)
    pool.reserve(keys(text))
    pool.written(keys(text), is_good=True)
    return pool


def test_copy_can_be_read_once_it_is_written() -> None:
    pool = HostPool(4)
    assert len(set(pool.reserve(keys("ab")))) == 2
    assert b"a" in pool
    assert pool.num_ready(keys("ab")) == 0
    pool.written(keys("ab"), is_good=True)
    assert pool.num_ready(keys("abc")) == 2


def test_head_is_what_counts() -> None:
    pool = filled(4, "bc")
    assert pool.num_ready(keys("abc")) == 0
    assert pool.num_ready(keys("bcd")) == 2


def test_least_recently_used_gives_way_and_tails_before_heads() -> None:
    pool = filled(4, "ab")
    pool.reserve(keys("xy"))
    pool.written(keys("xy"), is_good=True)
    pool.used(keys("ab"))
    pool.used(keys("xy"))
    pool.reserve(keys("p"))
    assert pool.num_ready(keys("ab")) == 1
    pool.used(keys("a"))
    pool.reserve(keys("q"))
    assert pool.num_ready(keys("a")) == 1
    assert pool.num_ready(keys("xy")) == 1


def test_tenant_at_its_limit_gives_up_its_own() -> None:
    pool = HostPool(10, max_tenant_slots=3)
    assert pool.num_slots_of("a") == 3
    assert pool.num_slots_of("") == 10
    assert len(pool.reserve(keys("abcd"), tenant="a")) == 3
    # Nothing of it is written yet: nothing may give way.
    assert pool.reserve(keys("e"), tenant="a") == []
    pool.written(keys("abc"), is_good=True)
    pool.used(keys("a"))
    assert len(pool.reserve(keys("ef"), tenant="a")) == 2
    assert pool.num_ready(keys("a")) == 1
    assert pool.num_copies_of("a") == 3
    # Others have the rest; those without a salt get what anybody gives up, too: the copy of a.
    assert len(pool.reserve(keys("x"), tenant="b")) == 1
    assert len(pool.reserve(keys("0123456789"))) == 7
    assert pool.num_copies_of("a") == 2
    pool.written(keys("efx0123456"), is_good=True)
    pool.clear()
    assert pool.num_copies_of("a") == pool.num_copies_of("b") == 0
    assert pool.num_free == 10


def test_tenant_that_may_have_nothing_gets_nothing() -> None:
    pool = HostPool(10, max_tenant_slots=0)
    assert pool.reserve(keys("a"), tenant="a") == []
    assert len(pool.reserve(keys("a"))) == 1


def test_what_is_read_or_written_does_not_give_way() -> None:
    pool = filled(2, "a")
    pool.read(keys("a"))
    pool.reserve(keys("b"))
    assert pool.reserve(keys("c")) == []
    pool.was_read(keys("a"))
    assert len(pool.reserve(keys("c"))) == 1
    assert b"a" not in pool


def test_context_does_not_push_out_its_own_start() -> None:
    pool = HostPool(3)
    assert len(pool.reserve(keys("abcde"))) == 3


def test_bad_copy_is_forgotten() -> None:
    pool = HostPool(1)
    pool.reserve(keys("a"))
    pool.written(keys("a"), is_good=False)
    assert len(pool) == 0
    assert pool.num_free == 1


def test_copy_dropped_while_it_is_busy_goes_when_that_ends() -> None:
    pool = filled(2, "a")
    pool.read(keys("a"))
    pool.reserve(keys("b"))
    pool.clear()
    assert not pool.is_ready(b"a")
    assert b"b" not in pool
    assert pool.num_free == 0
    # The same data may be wanted again, but its slot is still in use.
    assert pool.reserve(keys("a")) == []
    pool.was_read(keys("a"))
    pool.written(keys("b"), is_good=True)
    assert len(pool) == 0
    assert pool.num_free == 2


def test_ending_what_was_not_begun_is_a_defect() -> None:
    pool = filled(1, "a")
    with pytest.raises(AssertionError, match="was not being read"):
        pool.was_read(keys("a"))


@pytest.mark.parametrize("seed", range(20))
def test_no_slot_is_lost_or_given_twice(seed: int) -> None:
    rng = random.Random(seed)
    pool = HostPool(5)
    writing: dict[bytes, int] = {}
    reading: list[tuple[bytes, int]] = []
    for _ in range(300):
        key = rng.choice(keys("abcdefghij"))
        action = rng.randrange(6)
        if action == 0 and (slots := pool.reserve([key])):
            used = {*writing.values(), *(slot for _, slot in reading)}
            assert slots[0] not in used
            writing[key] = slots[0]
        elif action == 1 and writing:
            done = rng.choice(list(writing))
            pool.written([done], is_good=rng.random() < 0.7)
            del writing[done]
        elif action == 2 and pool.is_ready(key):
            reading.append((key, pool.read([key])[0]))
        elif action == 3 and reading:
            pool.was_read([reading.pop(rng.randrange(len(reading)))[0]])
        elif action == 4:
            pool.drop([key])
        elif rng.random() < 0.1:
            pool.clear()
        assert len(pool) + pool.num_free == 5
