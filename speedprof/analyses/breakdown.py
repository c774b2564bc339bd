"""Where does the time of a rank and of each of its steps go: compute, exposed communication, exposed copies, idle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from speedprof.trace.intervals import Int64s, Intervals, clip, covered_before, join, overlap, union
from speedprof.trace.model import Timeline, Trace
from speedprof.trace.occupied import Occupied, find_occupied
from speedprof.vocabulary import StepKind


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A window cut without remainder. An instant is compute if any compute runs in it, else communication if
    any collective runs, else a copy if one runs, else idle."""

    compute_ns: int
    exposed_communication_ns: int
    exposed_copy_ns: int
    idle_ns: int

    @property
    def window_ns(self) -> int:
        return self.compute_ns + self.exposed_communication_ns + self.exposed_copy_ns + self.idle_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One step's window on its timeline, or with `step` None what precedes the first. Segments tile the capture.

    `kind` is None before the first step, and for every step of a trace so damaged that none is known to be whole.
    """

    step: int | None
    kind: StepKind | None
    start_ns: int
    end_ns: int
    partition: Partition


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """The partition of one rank's whole capture and of each segment.

    `communication_ns` is the union of collective time; the part of it with compute beside it is overlapped.
    """

    rank: int
    timeline: Timeline
    partition: Partition
    communication_ns: int
    overlapped_communication_ns: int
    segments: tuple[Segment, ...]

    @property
    def window_ns(self) -> int:
        return self.partition.window_ns

    @property
    def steps(self) -> tuple[Segment, ...]:
        """The whole training steps, of which means are taken."""
        return tuple(segment for segment in self.segments if segment.kind == "train")

    @property
    def overlap_ratio(self) -> float | None:
        """The share of communication that compute hides; None where there is no communication."""
        return self.overlapped_communication_ns / self.communication_ns if self.communication_ns else None


def measure_breakdown(trace: Trace) -> Breakdown:
    """The partition of the rank's capture and of each of its segments, in ns on the trace's timeline.

        compute        ####    ######
        communication    ######    ####
        copy                  #####   ####
        partition      CCCCMMMMCCCCCCMMPP        C compute, M exposed communication, P exposed copy

    On the device the capture runs from the start of the first device event to the end of the last; compute includes
    sets of memory. On the host it runs from the first host step to the end of the last, or without steps over all
    operators; nothing is a copy there. The parts are unions over all streams or threads, never sums of durations.
    """
    occupied = find_occupied(trace)
    start, end = find_window(trace)
    borders = _find_segments(trace, start)
    times = np.array([start, *(segment_start for _, _, segment_start in borders[1:]), end], dtype=np.int64)
    segments = tuple(
        Segment(step=step, kind=kind, start_ns=int(times[at]), end_ns=int(times[at + 1]), partition=partition)
        for at, ((step, kind, _), partition) in enumerate(zip(borders, _partition(occupied, times), strict=True))
    )
    communication = clip(occupied.communication, start, end)
    return Breakdown(
        rank=trace.rank,
        timeline=trace.timeline,
        partition=_partition(occupied, np.array([start, end], dtype=np.int64))[0],
        communication_ns=communication.length,
        overlapped_communication_ns=overlap(communication, occupied.compute),
        segments=segments,
    )


def find_window(trace: Trace) -> tuple[int, int]:
    """Start and end of the rank's capture on its timeline, in ns; (0, 0) where nothing was recorded."""
    if trace.timeline is Timeline.DEVICE:
        table = trace.kernels
    elif len(trace.steps):
        table = trace.steps
    else:
        table = pl.concat([trace.ops.select("start_ns", "end_ns"), trace.collectives.select("start_ns", "end_ns")])
    if table.is_empty():
        return 0, 0
    start, end = table.select(pl.col("start_ns").min(), pl.col("end_ns").max()).row(0)
    return int(start), int(end)


def _find_segments(trace: Trace, start: int) -> list[tuple[int | None, StepKind | None, int]]:
    """Step, kind and start of each segment; a capture that begins before its first window begins with None."""
    windows = trace.steps.filter(pl.col("start_ns").is_not_null())
    rows = windows.select("step", pl.col("kind").cast(pl.String), "start_ns").iter_rows()
    segments: list[tuple[int | None, StepKind | None, int]] = [(step, kind, at) for step, kind, at in rows]
    return segments if segments and segments[0][2] == start else [(None, None, start), *segments]


def _partition(occupied: Occupied, times: Int64s) -> list[Partition]:
    """The partition of each window between one time and the next."""
    layers: Sequence[Intervals] = (
        occupied.compute,
        join(occupied.compute, occupied.communication),
        join(occupied.compute, occupied.communication, occupied.copy),
        union(times[:1], times[-1:]),
    )
    # Each layer holds the one before it, so what a layer adds is the difference of what the two cover.
    covered = np.stack([np.diff(covered_before(layer, times)) for layer in layers])
    parts = np.diff(covered, axis=0, prepend=0)
    return [
        Partition(compute_ns=compute, exposed_communication_ns=communication, exposed_copy_ns=copy, idle_ns=idle)
        for compute, communication, copy, idle in parts.T.tolist()
    ]
