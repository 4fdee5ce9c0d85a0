"""Threads that share transactions: nobody goes on before its own entry is committed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
from adaseek.evaluation.group_commit import GroupCommit


class Table:
    """Takes entries in transactions; the first one waits until `go` is set. Refuses negatives."""

    def __init__(self) -> None:
        self.groups: list[list[int]] = []
        self.begun = threading.Event()
        self.go = threading.Event()

    def write(self, entries: Sequence[int]) -> None:
        self.begun.set()
        assert self.go.wait(10)
        if min(entries) < 0:
            raise ValueError(f"{min(entries)} is negative")
        self.groups.append(list(entries))


def commit_while_one_is_written(table: Table, entries: Sequence[int]) -> list[BaseException | None]:
    """Commits `entries` in a thread each, all of them waiting while the first is written."""
    commits = GroupCommit(table.write)
    with ThreadPoolExecutor(len(entries)) as threads:
        futures = [threads.submit(commits.commit, entries[0])]
        assert table.begun.wait(10)
        futures += [threads.submit(commits.commit, entry) for entry in entries[1:]]
        while len(commits._queue) < len(entries) - 1:
            threading.Event().wait(0.001)
        assert not any(future.done() for future in futures)
        table.go.set()
        return [future.exception(10) for future in futures]


def test_what_waits_is_committed_together():
    table = Table()
    assert commit_while_one_is_written(table, range(8)) == [None] * 8
    assert table.groups[0] == [0]
    assert [sorted(group) for group in table.groups[1:]] == [list(range(1, 8))]


def test_an_entry_that_fails_takes_no_other_with_it():
    table = Table()
    errors = commit_while_one_is_written(table, [0, 1, -2, 3])
    assert [str(error) for error in errors if error] == ["-2 is negative"]
    assert sorted(entry for group in table.groups for entry in group) == [0, 1, 3]


def test_the_error_of_one_alone_is_raised():
    table = Table()
    table.go.set()
    with pytest.raises(ValueError, match="-1 is negative"):
        GroupCommit(table.write).commit(-1)


def test_a_thread_that_is_ended_claims_no_commit():
    def write(entries: Sequence[int]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GroupCommit(write).commit(1)
