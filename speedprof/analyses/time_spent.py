"""What does each rank spend the same span of time on?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from speedprof.analyses.activity import measure_activity
from speedprof.analyses.idle_gaps import GapCause
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.timeline import RankTimeline
from speedprof.trace.intervals import Intervals, clip, union
from speedprof.trace.schema import to_numpy


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSpent:
    """By rank and category, the ns of a step: every rank's sum to the same.

    Categories are "compute", "communication" and "copy" (both exposed), each cause of idle time, and "idle" for idle
    time whose cause is not known.
    """

    by_rank: Mapping[int, Mapping[str, float]]

    def excess_ns(self, rank: int) -> dict[str, int]:
        """By how much the rank spends more than the mean of the others on each category that any of them has."""
        others = [spent for other, spent in self.by_rank.items() if other != rank]
        own = self.by_rank[rank]
        categories = dict.fromkeys(category for spent in (own, *others) for category in spent)
        return {
            category: round(own.get(category, 0) - sum(other.get(category, 0) for other in others) / len(others))
            for category in categories
        }


def measure_time_spent(ranks: Sequence[RankTimeline], match: CollectiveMatch, *, step_ns: float) -> TimeSpent:
    """What each rank spends between collectives that all take part in, scaled to a step of `step_ns`.

        rank 0     ####====##====       # compute, = a collective of all ranks
        rank 1     ##======#=====
        the span          <----->       from the end of one to the end of another

    Such a collective ends on all ranks at once, so what one has done less of by then it has waited more. The spans are
    those that end with a collective that a traced step launched, all where there are no steps, and where there are no
    such collectives all of the time that every rank has captured.
    """
    offsets = {clock.rank: clock.offset_ns for clock in match.clocks}
    shifted = [rank.shifted(offsets.get(rank.rank, 0)) for rank in ranks]
    spans = _find_spans(shifted, match)
    scale = step_ns / spans.length if spans.length else 0.0
    return TimeSpent(by_rank={rank.rank: _spend(rank, spans, scale) for rank in shifted})


def _spend(rank: RankTimeline, spans: Intervals, scale: float) -> dict[str, float]:
    did = measure_activity(rank, spans.start, spans.end).sum().row(0, named=True)
    spent: dict[str, int] = {name: did[f"{name}_ns"] for name in ("compute", "communication", "copy")}
    causes: dict[str, int] = {cause.value: did[cause.value] for cause in GapCause if cause.value in did}
    spent |= causes | {"idle": did["idle_ns"] - sum(causes.values())}
    return {category: ns * scale for category, ns in spent.items() if ns}


def _find_spans(ranks: Sequence[RankTimeline], match: CollectiveMatch) -> Intervals:
    """The spans on the common clock, within what every rank has captured."""
    first, last = max(rank.start_ns for rank in ranks), min(rank.end_ns for rank in ranks)
    joint = _joint_collectives(ranks, match)
    end, counts = to_numpy(joint["end_ns"]), joint["counts"].to_numpy()[1:]
    spans = clip(union(end[:-1][counts], end[1:][counts]), first, last)
    if len(spans) or first >= last:
        return spans
    return union(np.array([first], dtype=np.int64), np.array([last], dtype=np.int64))


def _joint_collectives(ranks: Sequence[RankTimeline], match: CollectiveMatch) -> pl.DataFrame:
    """The end of each collective that all of the ranks take part in, in order, and whether a traced step launched it.

    All count where no rank has steps.
    """
    launched = pl.concat(
        [
            rank.collectives.select(
                pl.lit(rank.rank, dtype=pl.Int64).alias("rank"),
                pl.int_range(pl.len(), dtype=pl.Int64).alias("row"),
                "host_step",
            )
            for rank in ranks
        ]
    )
    traced = {step.step for rank in ranks for step in rank.steps}
    in_traced = pl.col("host_step").is_in(sorted(step for step in traced if step is not None))
    return (
        match.instances.join(launched, on=["rank", "row"])
        .group_by("collective")
        .agg(
            pl.len().alias("parts"),
            pl.col("end_ns").max(),
            (in_traced.fill_null(value=False).any() if traced else pl.lit(value=True)).alias("counts"),
        )
        .filter(pl.col("parts") == len(ranks))
        .sort("end_ns")
    )
