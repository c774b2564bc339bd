"""How a process of a capture ends when it is told to, or when what started it is gone."""

from __future__ import annotations

import contextlib
import ctypes
import signal
from collections.abc import Iterator

from speedprof.errors import ExitCode

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


class CaptureTerminated(SystemExit):
    """Ends the program on SIGTERM or when its launcher is gone, leaving time to write what there is."""


class Termination:
    """Turns SIGTERM into CaptureTerminated, but not in the middle of what must not be cut short."""

    def __init__(self) -> None:
        self._num_deferring = 0
        self._is_pending = False

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._receive)

    def ignore(self) -> None:
        """From here on the process ends by itself, and is not to be hurried."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """A SIGTERM that comes in here takes effect at the end."""
        self._num_deferring += 1
        try:
            yield
        finally:
            self._num_deferring -= 1
        if self._is_pending and not self._num_deferring:
            self._is_pending = False
            raise CaptureTerminated(ExitCode.TERMINATED)

    def _receive(self, *_: object) -> None:
        if self._num_deferring:
            self._is_pending = True
            return
        raise CaptureTerminated(ExitCode.TERMINATED)


def die_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies. Linux alone; elsewhere it does nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
