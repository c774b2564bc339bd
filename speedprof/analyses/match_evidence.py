"""How far do times bear out what was put together, and what of it is good enough to use?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from speedprof.analyses.alignment import KEYS, UNKNOWN
from speedprof.analyses.clock_fit import LEAST_SHARE, LOOSEST_RATIO, measure_ratios
from speedprof.analyses.clocks import CommonClock
from speedprof.analyses.joined_parts import JoinedParts
from speedprof.analyses.separate_groups import Sets, find_separate_groups
from speedprof.analyses.timeline import RankTimeline
from speedprof.trace.intervals import Int64s
from speedprof.trace.schema import to_numpy

# The columns of CollectiveMatch's instances.
INSTANCES = {
    "collective": pl.Int64(),
    "rank": pl.Int64(),
    "row": pl.Int64(),
    "start_ns": pl.Int64(),
    "end_ns": pl.Int64(),
    "last_start_ns": pl.Int64(),
    "last_rank": pl.Int64(),
    "is_complete": pl.Boolean(),
}
# Kernels that send and receive are an exchange among all ranks of their group only if nearly all of them are found on
# all of them at one time. Messages between two ranks of a pipeline meet like that now and then.
_LEAST_SHARE_OF_EXCHANGES = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was put together, and whether it is used.

    `parts` has a row for each part that is used, sorted by `collective` and `rank`, with the columns of
    CollectiveMatch's instances and `distance_ns`, of its end from the median of the others'. `collectives` has a row
    for each collective with, beside its times, `num_parts`, `is_found` (on all traced ranks of its group),
    `is_matchable` (found, or within the captures of them all), `is_sure` (borne out by time and by what is known) and
    `is_used`; those of exchanges that are none are left out. `separate` holds, for each group that times show to be
    several groups side by side, the sets of ranks that these are; where there are any, no group is used whose ranks
    no file lists.
    """

    parts: pl.DataFrame
    collectives: pl.DataFrame
    separate: dict[int, Sets]

    @property
    def num_matched(self) -> int:
        return self.collectives.filter("is_used", "is_found").height

    @property
    def num_matchable(self) -> int:
        return self.collectives.filter("is_matchable").height

    @property
    def certainty(self) -> float | None:
        sure = self.collectives.filter("is_used", "is_found")["is_sure"]
        return int(sure.sum()) / len(sure) if len(sure) else None

    @property
    def assumes_complete(self) -> bool:
        """Whether some collectives count as complete though nobody says how many ranks take part in them."""
        return not self.collectives.filter("is_used", "is_complete", ~pl.col("is_size_known")).is_empty()


def weigh(joined: JoinedParts, ranks: Sequence[RankTimeline], clock: CommonClock) -> Evidence:
    """Judge what was put together, group by group.

    A group is used where most parts that can have mates have some, where the ends of each collective lie together by
    far more than chance has it, and where they do not show that it is several groups: see `find_sets`.
    """
    parts = _list_parts(joined, ranks)
    collectives = _describe(parts, _list_groups(joined, ranks, clock), clock.slack_ns)
    collectives = _drop_messages(collectives)
    parts = parts.join(collectives, on="collective", how="semi").sort("collective", "rank")
    parts = parts.with_columns(distance_ns=pl.Series(_distances(parts)))
    collectives = _judge_groups(parts, collectives)
    unlisted = [number for number, group in enumerate(joined.parts.groups) if not group.is_listed]
    separate = _find_separate(parts, collectives, unlisted)
    if separate:
        # One name, or none, means several groups in these files: those that show it, and others too short to show it.
        collectives = collectives.with_columns(is_used=pl.col("is_used") & ~pl.col("group").is_in(unlisted))
    return Evidence(parts=_number_by_time(parts, collectives), collectives=collectives, separate=separate)


def _list_parts(joined: JoinedParts, ranks: Sequence[RankTimeline]) -> pl.DataFrame:
    numbers = np.array([rank.rank for rank in ranks], dtype=np.int64)
    parts = joined.parts
    known = {name: pl.Series(parts.keys[:, KEYS.index(name)]) for name in ("dtype", "elements", "size")}
    return pl.DataFrame(
        {
            "collective": joined.collective,
            "group": joined.group[joined.collective],
            "rank": numbers[parts.rank],
            "row": parts.row,
            "name": parts.name,
            "stream": parts.stream,
            "start_ns": parts.start,
            "end_ns": parts.end,
            "ends_together": parts.ends_together,
            "is_exchange": parts.is_exchange,
            **{name: series.set(series == UNKNOWN, None) for name, series in known.items()},
        }
    ).sort("collective", "rank")


def _list_groups(joined: JoinedParts, ranks: Sequence[RankTimeline], clock: CommonClock) -> pl.DataFrame:
    """Each group with how many of its ranks were traced, how many it has, and when all their captures ran."""
    start, end = (
        np.array([getattr(rank, name) for rank in ranks], dtype=np.int64) + clock.offset_ns
        for name in ("start_ns", "end_ns")
    )
    rows = [
        (
            number,
            len(group.traced),
            group.size,
            int(start[list(group.traced)].max()),
            int(end[list(group.traced)].min()),
            group.is_size_known,
        )
        for number, group in enumerate(joined.parts.groups)
        if group.traced
    ]
    names = ("group", "num_traced", "num_ranks", "captured_from_ns", "captured_to_ns")
    schema = {**dict.fromkeys(names, pl.Int64()), "is_size_known": pl.Boolean()}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _describe(parts: pl.DataFrame, groups: pl.DataFrame, slack_ns: int) -> pl.DataFrame:
    """One row for each collective, from its parts, which are sorted by rank."""
    start, end = pl.col("start_ns"), pl.col("end_ns")
    is_same = [pl.col(name).drop_nulls().n_unique() <= 1 for name in ("dtype", "elements")]
    known = parts.group_by("collective", "group", maintain_order=True).agg(
        pl.len().cast(pl.Int64).alias("num_parts"),
        start.min().alias("first_start_ns"),
        start.max().alias("last_start_ns"),
        end.min().alias("first_end_ns"),
        end.max().alias("last_end_ns"),
        pl.col("rank").get(start.arg_max()).alias("last_rank"),
        (end - start).min().alias("shortest_ns"),
        pl.col("size").max(),
        pl.col("is_exchange").any(),
        pl.all_horizontal(is_same).alias("agrees"),
    )
    is_found = pl.col("num_parts") == pl.col("num_traced")
    is_within = (pl.col("first_start_ns") >= pl.col("captured_from_ns")) & (
        pl.col("last_end_ns") <= pl.col("captured_to_ns")
    )
    overlaps = pl.col("last_start_ns") <= pl.col("first_end_ns") + slack_ns
    return known.join(groups, on="group", maintain_order="left").with_columns(
        is_found=is_found,
        is_matchable=is_found | is_within,
        is_complete=pl.col("num_parts") == pl.max_horizontal("num_ranks", "size"),
        is_size_known=pl.col("is_size_known") | pl.col("size").is_not_null(),
        is_sure=overlaps & pl.col("agrees"),
    )


def _drop_messages(collectives: pl.DataFrame) -> pl.DataFrame:
    """Without what sends and receives in groups where too little of it is found on all ranks to be an exchange."""
    exchanges = collectives.filter("is_exchange", "is_matchable")
    shares = exchanges.group_by("group").agg((pl.col("is_found").mean() >= _LEAST_SHARE_OF_EXCHANGES).alias("is_one"))
    groups = shares.filter("is_one")["group"]
    return collectives.filter(~pl.col("is_exchange") | pl.col("group").is_in(groups.implode()))


def _distances(parts: pl.DataFrame) -> Int64s:
    """How far each part's end lies from the (lower) median of the other parts' ends of its collective."""
    collective, end = to_numpy(parts["collective"]), to_numpy(parts["end_ns"])
    order = np.lexsort((end, collective))
    first = np.searchsorted(collective, collective, side="left")
    others = np.searchsorted(collective, collective, side="right") - first - 1
    place = np.empty(len(order), dtype=np.int64)
    place[order] = np.arange(len(order))
    middle = np.maximum(others - 1, 0) // 2
    # Without the part itself, those after it move up by one.
    middle += first + ((place - first <= middle) & (others > 0))
    return np.asarray(np.abs(end - end[order][middle]), dtype=np.int64)


def _judge_groups(parts: pl.DataFrame, collectives: pl.DataFrame) -> pl.DataFrame:
    """With `is_used`: found on two ranks or more, in a group whose evidence is good enough."""
    has_mates = pl.col("num_parts") > 1
    can = pl.col("num_parts").filter(has_mates | pl.col("is_matchable")).sum()
    groups = collectives.group_by("group").agg(
        (pl.col("num_parts").filter(has_mates).sum() >= LEAST_SHARE * can).alias("is_dense")
    )
    together = parts.join(collectives.filter(has_mates).select("collective", "shortest_ns"), on="collective").filter(
        "ends_together"
    )
    ratio = measure_ratios(to_numpy(together["distance_ns"]), to_numpy(together["shortest_ns"]))
    loose = (
        together.with_columns(ratio=ratio)
        .group_by("group")
        .agg(pl.col("ratio").median())
        .filter(pl.col("ratio") > LOOSEST_RATIO)
    )
    is_good = pl.col("is_dense") & ~pl.col("group").is_in(loose["group"].implode())
    return collectives.join(groups, on="group", maintain_order="left").with_columns(is_used=has_mates & is_good)


def _find_separate(parts: pl.DataFrame, collectives: pl.DataFrame, unlisted: list[int]) -> dict[int, Sets]:
    """What `find_separate_groups` finds of these groups."""
    found = collectives.filter("is_used", "is_found", pl.col("group").is_in(unlisted))
    return find_separate_groups(parts.filter("ends_together").join(found, on="collective", how="semi"))


def _number_by_time(parts: pl.DataFrame, collectives: pl.DataFrame) -> pl.DataFrame:
    """The parts of what is used, their collectives numbered in order of time."""
    used = collectives.filter("is_used").sort("last_start_ns", "first_end_ns", "collective")
    numbers = used.select(
        "collective",
        "last_start_ns",
        "last_rank",
        "is_complete",
        pl.int_range(pl.len(), dtype=pl.Int64).alias("number"),
    )
    return (
        parts.join(numbers, on="collective")
        .with_columns(collective=pl.col("number"))
        .sort("collective", "rank")
        .select(*INSTANCES, "distance_ns")
    )
