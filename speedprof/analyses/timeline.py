"""What comparing ranks needs of one rank's trace: small beside the trace, and sent on from the process that read it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import polars as pl

from speedprof.analyses.breakdown import Breakdown, Segment
from speedprof.analyses.idle_gaps import IdleGaps
from speedprof.trace.intervals import Intervals
from speedprof.trace.model import Timeline, Trace
from speedprof.trace.occupied import Occupied, find_occupied


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTimeline:
    """One rank's collectives, and when it computed, communicated, copied and had nothing to do; times in ns.

    `collectives` is the trace's table. `gaps` are the idle gaps of `measure_idle_gaps`, empty on a host timeline.
    `kernels` holds the columns `host_step`, `name`, `kind`, `count` and `total_ns`: device work by the step that
    launched it. `world_size` is None where the file does not say.
    """

    rank: int
    world_size: int | None
    timeline: Timeline
    is_damaged: bool
    start_ns: int
    end_ns: int
    steps: tuple[Segment, ...]
    occupied: Occupied
    collectives: pl.DataFrame
    gaps: pl.DataFrame
    kernels: pl.DataFrame

    def shifted(self, offset_ns: int) -> RankTimeline:
        """The same on a clock that is `offset_ns` ahead of this rank's own."""
        if not offset_ns:
            return self
        return replace(
            self,
            start_ns=self.start_ns + offset_ns,
            end_ns=self.end_ns + offset_ns,
            steps=tuple(
                replace(step, start_ns=step.start_ns + offset_ns, end_ns=step.end_ns + offset_ns) for step in self.steps
            ),
            occupied=Occupied(
                compute=_shift(self.occupied.compute, offset_ns),
                communication=_shift(self.occupied.communication, offset_ns),
                copy=_shift(self.occupied.copy, offset_ns),
            ),
            collectives=_shift_table(self.collectives, ("start_ns", "end_ns", "launch_start_ns"), offset_ns),
            gaps=_shift_table(self.gaps, ("start_ns", "end_ns"), offset_ns),
        )


def make_timeline(trace: Trace, breakdown: Breakdown, gaps: IdleGaps) -> RankTimeline:
    start, end = breakdown.segments[0].start_ns, breakdown.segments[-1].end_ns
    return RankTimeline(
        rank=trace.rank,
        world_size=trace.world_size,
        timeline=trace.timeline,
        is_damaged=trace.is_damaged,
        start_ns=start,
        end_ns=end,
        steps=breakdown.steps,
        occupied=find_occupied(trace),
        collectives=trace.collectives,
        gaps=gaps.table,
        kernels=trace.kernels.group_by("host_step", "name", "kind").agg(
            pl.len().cast(pl.Int64).alias("count"), (pl.col("end_ns") - pl.col("start_ns")).sum().alias("total_ns")
        ),
    )


def _shift(intervals: Intervals, offset_ns: int) -> Intervals:
    return Intervals(start=intervals.start + offset_ns, end=intervals.end + offset_ns)


def _shift_table(table: pl.DataFrame, columns: tuple[str, ...], offset_ns: int) -> pl.DataFrame:
    return table.with_columns(pl.col(column) + offset_ns for column in columns)
