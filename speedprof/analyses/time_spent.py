"""What does each rank spend the same span of time on?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
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

    def excess_ns(self, rank: int, weights: Mapping[int, float]) -> dict[str, int]:
        """By how much the rank spends more than others on each category that it or any of them has.

        `weights` says how much each of the others counts; those that it does not name count nothing.
        """
        total = sum(weights.values())
        others = {other: spent for other, spent in self.by_rank.items() if weights.get(other)}
        own = self.by_rank[rank]
        categories = dict.fromkeys(category for spent in (own, *others.values()) for category in spent)
        return {
            category: round(
                own.get(category, 0)
                - sum(weights[other] * spent.get(category, 0) for other, spent in others.items()) / total
            )
            for category in categories
        }


def measure_time_spent(
    ranks: Sequence[RankTimeline], match: CollectiveMatch, *, steps: Collection[int], step_ns: float
) -> TimeSpent:
    """What each rank spends between collectives that all take part in, scaled to a step of `step_ns`.

        rank 0     ####====##====       # compute, = a collective of all ranks
        rank 1     ##======#=====
        the span          <----->       from the end of one to the end of another

    Such a collective ends on all ranks at once, so what one has done less of by then it has waited more. The spans are
    those that end with a collective that one of `steps` launched, all where there are no steps, and where there are no
    such collectives all of the time that every rank has captured. The ranks are on the common clock.
    """
    spans = _find_spans(ranks, match, steps)
    scale = step_ns / spans.length if spans.length else 0.0
    return TimeSpent(by_rank={rank.rank: _spend(rank, spans, scale) for rank in ranks})


def _spend(rank: RankTimeline, spans: Intervals, scale: float) -> dict[str, float]:
    did = measure_activity(rank, spans.start, spans.end).sum().row(0, named=True)
    spent: dict[str, int] = {name: did[f"{name}_ns"] for name in ("compute", "communication", "copy")}
    causes: dict[str, int] = {cause.value: did[cause.value] for cause in GapCause if cause.value in did}
    spent |= causes | {"idle": did["idle_ns"] - sum(causes.values())}
    return {category: ns * scale for category, ns in spent.items() if ns}


def _find_spans(ranks: Sequence[RankTimeline], match: CollectiveMatch, steps: Collection[int]) -> Intervals:
    """The spans on the common clock, within what every rank has captured."""
    first, last = max(rank.start_ns for rank in ranks), min(rank.end_ns for rank in ranks)
    joint = _joint_collectives(ranks, match, steps)
    end, counts = to_numpy(joint["end_ns"]), joint["counts"].to_numpy()[1:]
    spans = clip(union(end[:-1][counts], end[1:][counts]), first, last)
    if len(spans) or first >= last:
        return spans
    return union(np.array([first], dtype=np.int64), np.array([last], dtype=np.int64))


def _joint_collectives(ranks: Sequence[RankTimeline], match: CollectiveMatch, steps: Collection[int]) -> pl.DataFrame:
    """The end of each collective that all of the ranks take part in, in order, and whether one of `steps` launched it.

    All count where there are no steps.
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
    is_of_step = pl.col("host_step").is_in(sorted(steps))
    return (
        match.instances.join(launched, on=["rank", "row"])
        .group_by("collective")
        .agg(
            pl.len().alias("parts"),
            pl.col("end_ns").max(),
            (is_of_step.fill_null(value=False).any() if steps else pl.lit(value=True)).alias("counts"),
        )
        .filter(pl.col("parts") == len(ranks))
        .sort("end_ns")
    )
