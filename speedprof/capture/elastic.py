"""torch.distributed.run, tied to the launcher's life.

    python -m speedprof.capture.elastic [ARGS OF torch.distributed.run...]

A launcher that is killed outright can end nobody. So the kernel is asked to: when the launcher dies it sends SIGTERM to
this process, which then ends its ranks, hanging ones too.
"""

from __future__ import annotations

import contextlib
import ctypes
import signal

_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def die_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies. Linux alone; elsewhere it does nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    die_with_parent()
    from torch.distributed.run import main

    main()
