"""What does launching work cost the host, and how far ahead of the device is it?"""

from __future__ import annotations

from dataclasses import dataclass

from speedprof.trace.model import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOverhead:
    """The launches of one rank within the traced host steps, or of the whole capture where there are none.

    `launch_ns` is the union of the time inside launching calls on the threads that launch; `median_lead_ns` how long
    work lies in the queue between its launch and its start, at the median: what the host is ahead. `num_late` counts
    launches made when the device had nothing left to do. `num_short` counts kernels that take less time than their
    own launch on the host. All None or 0 on a host timeline.
    """

    num_launches: int
    num_kernels: int
    launch_ns: int
    median_launch_ns: int | None
    median_lead_ns: int | None
    num_late: int
    num_short: int


def measure_launches(trace: Trace) -> LaunchOverhead:
    raise NotImplementedError
