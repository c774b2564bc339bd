"""What does launching work cost the host, and how far ahead of the device is it?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from speedprof.analyses.host_calls import find_launching_calls
from speedprof.analyses.traced_steps import in_traced_host_steps
from speedprof.trace.intervals import Bools, Int64s, union
from speedprof.trace.model import Timeline, Trace
from speedprof.trace.schema import to_numpy


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOverhead:
    """The launches of one rank within the traced host steps, or of the whole capture where there are none.

    A launch is a call of the runtime that gave the device work; a copy that the host sits through is none.
    `num_kernels` counts what they launched, copies and sets of memory included: a graph's launch has many. `launch_ns`
    is the union of the time inside launches on all threads. `median_lead_ns` is how long work lies in the queue, from
    the start of its launch to its own, at the median: what the host is ahead. `num_late` counts launches made when the
    device had nothing left to do. `num_short` counts kernels that take less time than their launch took the host (in a
    graph, than their share of it). All None or 0 on a host timeline.
    """

    num_launches: int
    num_kernels: int
    launch_ns: int
    median_launch_ns: int | None
    median_lead_ns: int | None
    num_late: int
    num_short: int


def measure_launches(trace: Trace) -> LaunchOverhead:
    """What launching costs, and what it hides.

    host      [launch a][launch b]                     [launch c]
    device         [a       ][b      ]                       [c       ]
    queue     <---->                                   <----->             lead of a and c; c is late
                        <----->                                            lead of b
    """
    if trace.timeline is Timeline.HOST:
        return _NO_LAUNCHES
    start, end = (to_numpy(trace.launches[name]) for name in ("start_ns", "end_ns"))
    counts = find_launching_calls(trace) & in_traced_host_steps(trace, start)
    work = _LaunchedWork.of(trace, counts)
    num_launched = np.bincount(work.launch_row, minlength=len(counts))
    call_ns = end - start
    busy = union(start[counts], end[counts])
    return LaunchOverhead(
        num_launches=int(counts.sum()),
        num_kernels=len(work.launch_row),
        launch_ns=busy.length,
        median_launch_ns=_median(call_ns[counts]),
        median_lead_ns=_median(work.start - start[work.launch_row]),
        num_late=int(_find_late(trace, start)[counts].sum()),
        num_short=int((work.end - work.start < call_ns[work.launch_row] / num_launched[work.launch_row]).sum()),
    )


_NO_LAUNCHES = LaunchOverhead(
    num_launches=0, num_kernels=0, launch_ns=0, median_launch_ns=None, median_lead_ns=None, num_late=0, num_short=0
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _LaunchedWork:
    """Device work with a recorded launch: the launch's row, and the work's start and end in ns."""

    launch_row: Int64s
    start: Int64s
    end: Int64s

    @staticmethod
    def of(trace: Trace, counts: Bools) -> _LaunchedWork:
        """The work of the launches that count."""
        linked = trace.kernels.filter("linked")
        row, start, end = (to_numpy(linked[name]) for name in ("launch_row", "start_ns", "end_ns"))
        kept = counts[row]
        return _LaunchedWork(launch_row=row[kept], start=start[kept], end=end[kept])


def _find_late(trace: Trace, launch_start: Int64s) -> Bools:
    """For each launch whether all work known to be launched before it had ended.

    Unlinked work counts from its own start. The first launch of a capture is late only if there is such work.
    """
    kernels = trace.kernels
    known_at = to_numpy(kernels["launch_start_ns"].fill_null(kernels["start_ns"]))
    order = np.argsort(known_at, kind="stable")
    ended = np.maximum.accumulate(to_numpy(kernels["end_ns"])[order])
    num_before = np.searchsorted(known_at[order], launch_start)
    late = num_before > 0
    late[late] = ended[num_before[late] - 1] <= launch_start[late]
    return late


def _median(values: Int64s) -> int | None:
    return int(np.median(values)) if len(values) else None
