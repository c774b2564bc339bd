"""Of which device a trace is, where its file holds work of several or of none.

A rank has one device, and a partition is of one device: compute on another hides nothing on this one. A file may hold
work of more all the same, from a stray context or from copies to a neighbour.
"""

from __future__ import annotations

import re

import numpy as np

from speedprof.trace.events import ABSENT
from speedprof.trace.intervals import Bools, busiest
from speedprof.trace.raw_columns import RawEvents

# What the CUDA, HIP and XPU runtimes and drivers call the launch of a kernel or graph, a copy, a set of memory.
_WORK_LAUNCH = re.compile("Launch|Memcpy|Memset")


def find_main_device(device: RawEvents, is_compute: Bools) -> int | None:
    """The device with most compute time, or where none computes most work; None where no event names its device."""
    known = device.device != ABSENT
    counted = known & is_compute if (known & is_compute).any() else known
    return busiest(device.device[counted], (device.end - device.start)[counted])


def note_other_devices(device: RawEvents, main: int | None, kept: Bools) -> tuple[str, ...]:
    """What to say of the work that is left out because another device does it."""
    if kept.all():
        return ()
    others = np.unique(device.device[~kept]).tolist()
    named = f"device {others[0]}" if len(others) == 1 else f"devices {', '.join(map(str, others))}"
    return (
        f"{int((~kept).sum())} of {len(kept)} device events ran on {named} and are left out: "
        f"the numbers are those of device {main}, which computes most",
    )


def note_missing_work(launches: RawEvents, texts: list[str], *, might_be_lost: bool) -> tuple[str, ...]:
    """What to say of a file without device work that shows a device all the same; nothing where it is a CPU rank's.

    A launch proves the device. `might_be_lost`: the machine has a device, and launches may lie in a lost part.
    """
    launches_work = np.array([_WORK_LAUNCH.search(text) is not None for text in texts], dtype=np.bool_)
    num_launches = int(launches_work[launches.name].sum())
    if num_launches:
        return (f"{num_launches} launches of device work, but its kernels are missing: nothing is known of the device",)
    if might_be_lost:
        return ("the machine has a device, but its kernels are missing: nothing is known of it",)
    return ()
