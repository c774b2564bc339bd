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
from speedprof.analyses.host_spans import HostSpans, find_innermost, find_longest, find_overlaps
from speedprof.trace.intervals import Bools, Int64s
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

    Until the work that ends a gap is launched the host is late, and each ns of that has the cause that covers it. In
    calls of cudaMalloc, cudaFree or the like it is allocator, and while the host loads data input, compiles recompile,
    collects garbage gc. Sync is the time that the host is blocked in a synchronizing call. If that call blocked the
    host already before the device ran dry, as much of the time after the call is sync too: it took that much of the
    host's lead, and without it the launch would have come that much earlier. The rest, for which the trace shows no
    reason, is late_launch.

        device       #########                             ####
        host            [sync   ]  python         [launch]
        idle time             <-><---><---------->           sync, sync as long as the call had lasted, late_launch

    Once the work is launched, idle time up to the resolution of launches is below_launch_resolution, and longer queued:
    the work waits on another stream, or the device takes its time. Unlinked: its launch is not known.
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
    """A trace's ops, ranges and launches as one: rows of ops come first, launches last. Rows are by start in each.

    The main thread and autograd's take turns: while one works the other waits for it. What either does is evidence for
    launches of both, so `turns` is the thread of each row with these two made one.
    """

    trace: Trace
    spans: HostSpans
    turns: Int64s

    @staticmethod
    def of(trace: Trace) -> HostEvents:
        parts = [HostSpans.of(table) for table in (trace.ops, trace.ranges, trace.launches)]
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in ("track", "start", "end")}
        spans = HostSpans(**columns)
        return HostEvents(trace=trace, spans=spans, turns=_take_turns(trace, spans.track))

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
    """Stretches of idle time before the launch that ended it; `launch_row` is in launches. They do not overlap."""

    start: Int64s
    end: Int64s
    launch_row: Int64s

    def __len__(self) -> int:
        return len(self.start)

    def take(self, rows: Int64s | Bools) -> LateTime:
        return LateTime(start=self.start[rows], end=self.end[rows], launch_row=self.launch_row[rows])


@dataclass(frozen=True, slots=True, kw_only=True)
class CauseTime:
    """Idle time of one cause: parts that do not overlap, by start, and the row of `HostEvents` to blame for each."""

    cause: GapCause
    start: Int64s
    end: Int64s
    blamed_row: Int64s

    def __len__(self) -> int:
        return len(self.start)

    def blamed_at(self, times: Int64s) -> Int64s:
        """The row to blame at each time, -1 where this is not the cause."""
        if not len(self):
            return np.full(len(times), -1, dtype=np.int64)
        at = np.searchsorted(self.start, times, side="right") - 1
        return np.where((at >= 0) & (times < self.end[at]), self.blamed_row[at], -1)


def find_host_causes(events: HostEvents, late: LateTime) -> list[CauseTime]:
    """What the host was late for in each stretch. Where several cover an instant the first holds, and where none does
    the launch is late for no reason that shows.

        device      ######                              ####
        host          [sync ]  [DataLoader ]   [launch]
        stretch           <-------------------->
        input                  <----------->
        sync              <->                              its own time
        sync                <-->                           and from its end the time before the device ran dry

    Collecting garbage, compiling, the allocator and loading data are the cause for the time that they take, and a call
    that waits for the device for its own. If such a call blocked the host as the device ran dry, it took of the host's
    lead what it lasted up to then: without it what the host does next would have been done that much earlier, while the
    device was still busy. So that much of the stretch, from the call's end on, is the call's too, but for what is due
    to another cause. A call that begins when the device is dry took no lead. A call that outlasts the launch, on the
    other of two threads that take turns, did not hold it back.
    """
    found = []
    for cause, wanted in _evidence(events):
        spans, rows = _outermost_of(events, wanted)
        found.append(_time_inside(events, cause, spans, rows, late))
        if cause is GapCause.SYNC:
            found.append(_lead_taken(events, spans, rows, late))
    return found


def _time_inside(events: HostEvents, cause: GapCause, spans: HostSpans, rows: Int64s, late: LateTime) -> CauseTime:
    """What the spans, which are these rows, cover of the stretches."""
    stretch, span = find_overlaps(spans, events.turns[events.first_launch + late.launch_row], late.start, late.end)
    holds = _holds_back(events, rows[span], late.launch_row[stretch])
    stretch, span = stretch[holds], span[holds]
    return _by_start(
        cause,
        np.maximum(spans.start[span], late.start[stretch]),
        np.minimum(spans.end[span], late.end[stretch]),
        rows[span],
    )


def _lead_taken(events: HostEvents, spans: HostSpans, rows: Int64s, late: LateTime) -> CauseTime:
    """From the end of the calls that blocked the host as the device ran dry, as long as they had done so until then.

    Several calls may end within the slack of the clocks, as those of a copy that blocks and of waiting for it: what
    they took adds up, and the longest is to blame.
    """
    on = events.turns[events.first_launch + late.launch_row]
    stretch, span = find_overlaps(spans, on, late.start - SYNC_SLACK_NS - 1, late.start)
    holds = _holds_back(events, rows[span], late.launch_row[stretch])
    stretch, span = stretch[holds], span[holds]
    taken_ns = np.minimum(spans.end[span], late.start[stretch]) - spans.start[span]
    begin, lead_ns, blamed = late.start.copy(), np.zeros_like(late.start), np.full_like(late.start, -1)
    np.maximum.at(begin, stretch, spans.end[span])
    np.add.at(lead_ns, stretch, taken_ns)
    order = np.argsort(taken_ns, kind="stable")
    blamed[stretch[order]] = rows[span[order]]
    end = np.minimum(begin + lead_ns, late.end)
    some = begin < end
    return _by_start(GapCause.SYNC, begin[some], end[some], blamed[some])


def _holds_back(events: HostEvents, rows: Int64s, launch_row: Int64s) -> Bools:
    """Whether what each row does can hold back the launch: not if it is a call that outlasts it. A range or an operator
    may be around the launch."""
    spans = events.spans
    return (rows < events.first_launch) | (spans.end[rows] <= spans.start[events.first_launch + launch_row])


def _by_start(cause: GapCause, start: Int64s, end: Int64s, blamed_row: Int64s) -> CauseTime:
    order = np.argsort(start, kind="stable")
    return CauseTime(cause=cause, start=start[order], end=end[order], blamed_row=blamed_row[order])


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


def _outermost_of(events: HostEvents, rows: Int64s) -> tuple[HostSpans, Int64s]:
    """Those of the rows that no other one of their turns is around, in order of start, and which rows they are."""
    spans = events.spans
    rows = rows[np.lexsort((-spans.end[rows], spans.start[rows]))]
    chosen = HostSpans(track=events.turns[rows], start=spans.start[rows], end=spans.end[rows])
    outermost = chosen.find_outermost()
    return chosen.take(outermost), rows[outermost]


def find_doing(events: HostEvents, late: LateTime) -> Int64s:
    """The row of the operator, or of the call outside every operator, that takes most of each stretch; -1 where the
    host did nothing on record."""
    is_range = np.zeros(len(events.spans), dtype=np.bool_)
    is_range[events.first_range : events.first_launch] = True
    order = np.argsort(late.start, kind="stable")
    # Only spans that reach into a stretch: it must begin before the span ends, and end after the span begins.
    last = np.searchsorted(late.start[order], events.spans.end)
    first = np.searchsorted(late.end[order], events.spans.start, side="right")
    spans, rows = _outermost_of(events, np.flatnonzero((last > first) & ~is_range))
    longest = find_longest(spans, events.turns[events.first_launch + late.launch_row], late.start, late.end)
    found = np.full(len(late), -1, dtype=np.int64)
    found[longest >= 0] = rows[longest[longest >= 0]]
    return found
