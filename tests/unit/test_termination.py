"""A SIGTERM ends a rank at once, but never in the middle of what must be whole."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from speedprof.capture.termination import CaptureTerminated, Termination


@pytest.fixture
def termination() -> Iterator[Termination]:
    before = signal.getsignal(signal.SIGTERM)
    installed = Termination()
    installed.install()
    yield installed
    signal.signal(signal.SIGTERM, before)


def send() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_ends_the_program(termination: Termination) -> None:
    with pytest.raises(CaptureTerminated) as stop:
        send()
    assert stop.value.code == 143


def test_a_signal_waits_for_the_end_of_what_must_be_whole(termination: Termination) -> None:
    done = []

    def close_up() -> None:
        with termination.deferred():
            send()
            with termination.deferred():
                done.append("inner")
            done.append("outer")

    with pytest.raises(CaptureTerminated):
        close_up()
    assert done == ["inner", "outer"]


def test_without_a_signal_nothing_happens_at_the_end(termination: Termination) -> None:
    with termination.deferred():
        pass


def test_a_process_that_closes_is_not_hurried(termination: Termination) -> None:
    termination.ignore()
    send()
