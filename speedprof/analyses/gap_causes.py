"""Why had the host not yet launched what the device was waiting for?"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import polars as pl

from speedprof.analyses.host_calls import (
    ALLOCATES,
    COLLECTS_GARBAGE,
    COMPILES,
    LOADS_DATA,
    find_named,
    find_waiting_calls,
)
from speedprof.analyses.host_spans import HostSpans, find_innermost, find_longest
from speedprof.trace.intervals import Int64s
from speedprof.trace.model import Trace
from speedprof.trace.occupied import find_compute_threads
from speedprof.trace.ranges import RangeKind
from speedprof.trace.schema import row_column

# A call that waits for the device returns a few µs after it ran dry, or by the two clocks a few µs before.
SYNC_SLACK_NS = 5_000


class GapCause(StrEnum):
    """Why the device had nothing to do, as far as the trace carries it.

        device       ####                      ####
        host            |        [launch]
        idle time        <------>                    the host was late: from here to `input` below
                                 <----->             queued, or below_launch_resolution

    Until the work that ends a gap is launched the host is late, because it is blocked in a synchronizing call (sync),
    loading data (input), in the allocator's cudaMalloc, cudaFree or the like (allocator), compiling (recompile),
    collecting garbage (gc), or for no reason that the trace shows (late_launch). Once it is launched, idle time up to
    the resolution of launches is below_launch_resolution, and longer queued: the work waits on another stream, or the
    device takes its time. Unlinked: its launch is not known.
    """

    LATE_LAUNCH = "late_launch"
    SYNC = "sync"
    INPUT = "input"
    ALLOCATOR = "allocator"
    RECOMPILE = "recompile"
    GARBAGE_COLLECTION = "gc"
    QUEUED = "queued"
    BELOW_LAUNCH_RESOLUTION = "below_launch_resolution"
    UNLINKED = "unlinked"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEvents:
    """A trace's ops, ranges and launches as one: rows of ops come first, launches last. Rows are by start in each."""

    trace: Trace
    spans: HostSpans

    @staticmethod
    def of(trace: Trace) -> HostEvents:
        parts = [HostSpans.of(table) for table in (trace.ops, trace.ranges, trace.launches)]
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("track", "start", "end")}
        return HostEvents(trace=trace, spans=HostSpans(**columns))

    @property
    def first_range(self) -> int:
        return len(self.trace.ops)

    @property
    def first_launch(self) -> int:
        return len(self.trace.ops) + len(self.trace.ranges)

    def named(self, rows: Int64s) -> pl.Series:
        """The name of each row, null for -1."""
        tables = (self.trace.ops, self.trace.ranges, self.trace.launches)
        return pl.concat([table["name"] for table in tables]).gather(row_column(rows))

    def op_at(self, thread: Int64s, times: Int64s) -> Int64s:
        """The row of the innermost operator around each time on its thread, -1 for none."""
        return find_innermost(self.spans.take(np.arange(self.first_range)), thread, times)

    def range_at(self, thread: Int64s, times: Int64s) -> Int64s:
        """The row of the innermost range of the user's around each time on its thread, -1 for none.

        Where there is none, the innermost call of a compiled graph. Steps are around everything and say nothing, and
        what torch notes of collectives (`nccl:all_reduce`) is no range of the user's.
        """
        ranges = HostSpans.of(self.trace.ranges)
        kinds = (RangeKind.STAGE.value, RangeKind.RANGE.value, RangeKind.ANNOTATION.value)
        own = np.asarray(self.trace.ranges["kind"].is_in(kinds).to_numpy(), dtype=np.bool_)
        own &= ~find_named(self.trace.ranges["name"], "^(?:nccl|gloo):")
        compiled = np.asarray((self.trace.ranges["kind"] == RangeKind.COMPILED.value).to_numpy(), dtype=np.bool_)
        found = np.full(len(times), -1, dtype=np.int64)
        for wanted in (compiled, own):
            rows = np.flatnonzero(wanted)
            if len(rows):
                innermost = find_innermost(ranges.take(rows), thread, times)
                found = np.where(innermost >= 0, self.first_range + rows[innermost], found)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LateTime:
    """Stretches of idle time, each up to the launch that ended it at the latest; `launch_row` is in launches.

    Cut at step windows there may be several for one launch. They do not overlap.
    """

    start: Int64s
    end: Int64s
    launch_row: Int64s

    def __len__(self) -> int:
        return len(self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostCauses:
    """For each stretch its cause and the row of `HostEvents` that shows it: the late launch itself, or what held it
    back. `doing_row` is the operator or call that took most of the stretch, -1 where the host did nothing on record."""

    cause: list[GapCause]
    cause_index: Int64s
    blamed_row: Int64s
    doing_row: Int64s


def find_host_causes(events: HostEvents, late: LateTime) -> HostCauses:
    """Why the host was late in each stretch, from what the launching thread did in it.

    Collecting garbage, compiling, the allocator and loading data are each a cause where they take more than half of
    the stretch; where several do, the first of these. A call that waits for the device is one where it takes more than
    half, or was open when the stretch began and ended within it: the host launched nothing ahead and begins anew.

        device    ####                  ####
        host     [sync ]      [launch]
        stretch       <------>

    The main thread and autograd's take turns: while one works the other waits for it. What either does is evidence for
    launches of both.
    """
    trace = events.trace
    track = _take_turns(trace, events.spans.track)
    on = track[events.first_launch + late.launch_row]
    cause_index = np.zeros(len(late), dtype=np.int64)
    blamed_row = events.first_launch + late.launch_row
    causes = [GapCause.LATE_LAUNCH]
    for cause, wanted in _evidence(events):
        causes.append(cause)
        spans, rows = _outermost_of(events.spans, track, wanted)
        if not len(rows):
            continue
        longest, taken_ns = find_longest(spans, on, late.start, late.end)
        shown = taken_ns > late.end - late.start - taken_ns
        if cause is GapCause.SYNC:
            open_at_start = _find_open(spans, on, late)
            longest, shown = np.where(shown, longest, open_at_start), shown | (open_at_start >= 0)
        shown &= cause_index == 0
        cause_index[shown] = len(causes) - 1
        blamed_row[shown] = rows[longest[shown]]
    return HostCauses(
        cause=causes, cause_index=cause_index, blamed_row=blamed_row, doing_row=_find_doing(events, track, on, late)
    )


def _evidence(events: HostEvents) -> list[tuple[GapCause, Int64s]]:
    """The rows that show each cause, the most telling cause first."""
    trace = events.trace
    calls = {
        GapCause.ALLOCATOR: find_named(trace.launches["name"], ALLOCATES),
        GapCause.SYNC: find_waiting_calls(trace),
    }
    names = {
        GapCause.GARBAGE_COLLECTION: COLLECTS_GARBAGE,
        GapCause.RECOMPILE: COMPILES,
        GapCause.INPUT: LOADS_DATA,
    }
    found = {cause: events.first_launch + np.flatnonzero(wanted) for cause, wanted in calls.items()}
    for cause, pattern in names.items():
        wanted = [find_named(table["name"], pattern) for table in (trace.ops, trace.ranges)]
        found[cause] = np.flatnonzero(np.concatenate(wanted))
    order = (
        GapCause.GARBAGE_COLLECTION,
        GapCause.RECOMPILE,
        GapCause.ALLOCATOR,
        GapCause.INPUT,
        GapCause.SYNC,
    )
    return [(cause, found[cause]) for cause in order]


def _take_turns(trace: Trace, thread: Int64s) -> Int64s:
    """The threads with those that take turns made one."""
    together = find_compute_threads(trace)
    return np.where(np.isin(thread, together), together[0], thread) if together else thread


def _outermost_of(spans: HostSpans, track: Int64s, rows: Int64s) -> tuple[HostSpans, Int64s]:
    """Those of the rows that no other one of their track is around, in order of start, and which rows they are."""
    rows = rows[np.lexsort((-spans.end[rows], spans.start[rows]))]
    chosen = HostSpans(track=track[rows], start=spans.start[rows], end=spans.end[rows])
    outermost = chosen.find_outermost()
    return chosen.take(outermost), rows[outermost]


def _find_open(spans: HostSpans, on: Int64s, late: LateTime) -> Int64s:
    """For each stretch the index of the span that was open when it began and ended within it, -1 for none."""
    found = np.full(len(late), -1, dtype=np.int64)
    for one in np.unique(on):
        here, mine = np.flatnonzero(on == one), np.flatnonzero(spans.track == one)
        at = np.searchsorted(spans.start[mine], late.start[here]) - 1
        here, index = here[at >= 0], mine[at[at >= 0]]
        end = spans.end[index]
        ended = (end >= late.start[here] - SYNC_SLACK_NS) & (end <= late.end[here])
        found[here[ended]] = index[ended]
    return found


def _find_doing(events: HostEvents, track: Int64s, on: Int64s, late: LateTime) -> Int64s:
    """The row of the operator, or of the call outside every operator, that takes most of each stretch; -1 for none."""
    is_range = np.zeros(len(events.spans), dtype=np.bool_)
    is_range[events.first_range : events.first_launch] = True
    order = np.argsort(late.start, kind="stable")
    # Only spans that reach into a stretch: it must begin before the span ends, and end after the span begins.
    last = np.searchsorted(late.start[order], events.spans.end)
    first = np.searchsorted(late.end[order], events.spans.start, side="right")
    spans, rows = _outermost_of(events.spans, track, np.flatnonzero((last > first) & ~is_range))
    longest, _ = find_longest(spans, on, late.start, late.end)
    return rows[longest] if len(rows) else longest
