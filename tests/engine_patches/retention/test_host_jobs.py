"""What is copied when: in order, within bounds, and never in anyone's way."""

from __future__ import annotations

import pytest
from adaseek_vllm.retention.host_jobs import CopyJob, HostSwap
from adaseek_vllm.retention.host_pool import HostPool
from adaseek_vllm.retention.sessions import SessionKey

ME, YOU = SessionKey("", "", "me"), SessionKey("", "", "you")


def make(num_slots: int = 20, *, max_in_flight: int = 4) -> HostSwap:
    return HostSwap(
        HostPool(num_slots), max_in_flight=max_in_flight, key_of=lambda block: b"%d" % block
    )


def run(swap: HostSwap, *, is_good: bool = True) -> list[CopyJob]:
    """Copies until nothing is left to copy."""
    done: list[CopyJob] = []
    for _ in range(100):
        jobs = swap.start(100)
        done += jobs
        for job in jobs:
            swap.finished(job.job_id, is_good=is_good)
        if not swap.num_outgoing:
            return done
    raise AssertionError("copying never ends")


def test_context_is_copied_from_its_start_within_bounds() -> None:
    swap = make(max_in_flight=4)
    swap.copy_out(ME, range(10))
    first = swap.start(3)
    assert [job.blocks for job in first] == [[0, 1, 2]]
    # Three are under way: one more may begin.
    assert [job.blocks for job in swap.start(100)] == [[3]]
    assert swap.start(100) == []
    assert swap.num_in_flight == 4
    swap.finished(first[0].job_id, is_good=True)
    assert [job.blocks for job in swap.start(100)] == [[4, 5, 6]]


def test_slow_link_copies_a_block_at_a_time() -> None:
    swap = make()
    swap.copy_out(ME, range(2))
    (job,) = swap.start(0)
    assert job.blocks == [0]
    assert swap.start(0) == []


def test_session_is_told_when_all_is_copied() -> None:
    swap = make()
    swap.copy_out(ME, range(6))
    assert swap.is_copying(ME)
    run(swap)
    assert swap.num_copied(range(9)) == 6
    # Until it is told, nobody begins again.
    assert swap.is_copying(ME)
    assert swap.take_copied() == [ME]
    assert not swap.is_copying(ME)


def test_only_what_has_no_copy_is_copied() -> None:
    swap = make()
    swap.copy_out(ME, range(4))
    run(swap)
    swap.copy_out(ME, range(6))
    assert [job.blocks for job in run(swap)] == [[4, 5]]
    swap.copy_out(YOU, range(6))
    assert run(swap) == []
    assert swap.take_copied() == [ME, ME, YOU]


def test_source_that_is_let_go_makes_its_copy_worthless() -> None:
    swap = make()
    swap.copy_out(ME, range(4))
    (job,) = swap.start(100)
    swap.cancel(ME, 2)
    swap.finished(job.job_id, is_good=True)
    assert swap.num_copied(range(4)) == 0
    # What is left is copied again.
    assert [job.blocks for job in run(swap)] == [[0, 1]]
    assert swap.take_copied() == [ME]


def test_session_that_is_gone_copies_nothing_more() -> None:
    swap = make()
    swap.copy_out(ME, range(10))
    (job,) = swap.start(2)
    swap.cancel(ME, 0)
    assert swap.start(100) == []
    swap.finished(job.job_id, is_good=True)
    assert swap.take_copied() == []
    assert len(swap.pool) == 0


def test_failed_copy_leaves_the_session_as_it_is() -> None:
    swap = make()
    swap.copy_out(ME, range(3))
    (job,) = swap.start(100)
    swap.finished(job.job_id, is_good=False)
    assert not swap.is_copying(ME)
    assert swap.take_copied() == []
    assert len(swap.pool) == 0


def test_what_another_session_is_copying_is_waited_for() -> None:
    swap = make()
    swap.copy_out(ME, range(3))
    (mine,) = swap.start(100)
    swap.copy_out(YOU, range(3))
    assert swap.start(100) == []
    swap.finished(mine.job_id, is_good=False)
    # Mine came to nothing: yours does it.
    assert [job.blocks for job in run(swap)] == [[0, 1, 2]]
    assert swap.take_copied() == [YOU]


def test_pool_that_is_too_small_takes_the_start() -> None:
    swap = make(num_slots=3)
    swap.copy_out(ME, range(8))
    run(swap)
    assert swap.take_copied() == [ME]
    assert swap.num_copied(range(8)) == 3


def test_pool_full_of_what_is_read_is_not_waited_for_for_ever() -> None:
    swap = make(num_slots=2)
    swap.copy_out(ME, range(2))
    run(swap)
    swap.load("r", [b"0", b"1"], [8, 9])
    swap.copy_out(YOU, range(5, 7))
    assert swap.start(100) == []
    (load,) = swap.take_loads()
    swap.finished(load.job_id, is_good=True)
    assert [job.blocks for job in run(swap)] == [[5, 6]]


def test_load_reads_the_slots_of_its_keys_and_a_failed_one_drops_them() -> None:
    swap = make()
    swap.copy_out(ME, range(3))
    (stored,) = run(swap)
    swap.load("r", stored.keys[1:], [7, 8])
    (load,) = swap.take_loads()
    assert (load.slots, load.blocks, load.request_id) == (stored.slots[1:], [7, 8], "r")
    assert swap.take_loads() == []
    assert swap.num_loading == 1
    swap.finished(load.job_id, is_good=False)
    assert swap.num_copied(range(3)) == 1


@pytest.mark.parametrize("is_good", [True, False])
def test_clear_forgets_what_is_there_and_what_is_under_way(is_good: bool) -> None:
    swap = make()
    swap.copy_out(ME, range(2))
    run(swap)
    swap.load("r", [b"0"], [9])
    swap.copy_out(YOU, range(5, 8))
    (store,) = swap.start(100)
    (load,) = swap.take_loads()
    swap.clear()
    assert swap.num_copied(range(2)) == 0
    for job in (store, load):
        swap.finished(job.job_id, is_good=is_good)
    assert swap.take_copied() == []
    assert (len(swap.pool), swap.pool.num_free, swap.num_jobs) == (0, 20, 0)


def test_copies_nobody_will_want_make_room() -> None:
    swap = make()
    swap.copy_out(ME, range(4))
    run(swap)
    swap.forget(range(2, 4))
    assert swap.num_copied(range(4)) == 2
    assert swap.pool.num_free == 18


def test_block_without_a_hash_ends_what_is_copied() -> None:
    swap = HostSwap(
        HostPool(9), max_in_flight=9, key_of=lambda block: None if block == 2 else b"%d" % block
    )
    swap.copy_out(ME, range(4))
    assert [job.blocks for job in run(swap)] == [[0, 1]]
