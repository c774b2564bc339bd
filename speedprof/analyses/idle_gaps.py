"""When has the device nothing to do, why, and what was the host doing then?"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import polars as pl

from speedprof.trace.model import Trace


class GapCause(StrEnum):
    """Why the device had nothing to do, as far as the trace carries it.

    The launch of the work that ends the gap came after the gap began (the host was late), because the host was
    blocked in a synchronising call (sync), loading data (input), in the allocator's cudaMalloc, cudaFree or the like
    (allocator), compiling (recompile), collecting garbage (gc), or for no reason that the trace shows (late_launch).
    Or that work had been launched before: then a gap up to the resolution of launches is below_launch_resolution, and
    a longer one queued: it waited on another stream, or the device took its time. Unlinked: its launch is not known.
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
class GapGroup:
    """Idle gaps of one cause with the same range, operator and call on the host, over the traced training steps."""

    cause: GapCause
    range: str | None
    op: str | None
    call: str | None
    num_gaps: int
    total_ns: int
    longest_ns: int
    longest_start_ns: int
    longest_step: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleGaps:
    """The idle time of one rank, gap by gap.

    `table` has a row for each gap of the whole capture, sorted by start: `start_ns`, `end_ns`, `cause` (text),
    `step` (of the window it lies in, null before the first), `range`, `op`, `call` (names, null where not known) and
    `kernel` (the work that ends it). Gaps tile the idle time of the partition exactly. `groups`, costliest first, and
    `by_cause` (ns) cover the traced training steps alone, or the whole capture where there are none.
    """

    table: pl.DataFrame
    groups: tuple[GapGroup, ...]
    by_cause: dict[GapCause, int]


def measure_idle_gaps(trace: Trace) -> IdleGaps:
    raise NotImplementedError
