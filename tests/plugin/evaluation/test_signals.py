from __future__ import annotations

import os
import signal
import threading

import pytest
from adaseek.evaluation.signals import graceful_signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_sets_the_flag_and_the_second_interrupts(number: signal.Signals) -> None:
    with graceful_signals() as stop:
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_earlier_handlers_come_back() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(ValueError, match="inside"), graceful_signals():
        assert [signal.getsignal(number) for number in numbers] != before
        raise ValueError("inside")
    assert [signal.getsignal(number) for number in numbers] == before


def test_outside_the_main_thread_nothing_is_installed() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen: list[object] = []

    def enter() -> None:
        with graceful_signals() as stop:
            seen.extend([signal.getsignal(signal.SIGINT), stop.is_set()])

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before, False]
