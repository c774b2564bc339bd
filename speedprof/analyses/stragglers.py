"""Which rank do the others wait for, what does it cost them, and why is it late?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import polars as pl

from speedprof.analyses.chance import MAX_CHANCE, Chance, ChanceUnit, judge_by_chance
from speedprof.analyses.common_time import CommonTime, find_common_time
from speedprof.analyses.exposed_parts import cut_exposed
from speedprof.analyses.idle_gaps import GapCause
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.slow_kernels import SlowKernel, compare_kernels
from speedprof.analyses.time_spent import TimeSpent, measure_time_spent
from speedprof.analyses.timeline import RankTimeline
from speedprof.analyses.waiting import find_waiting
from speedprof.stats import interval_of_mean

# A rank is a straggler if it causes this many times its fair share of the waiting, and costs this part of a step.
MIN_OF_FAIR_SHARE = 1.5
MIN_COST_RATIO = 0.002
# From fewer steps than this no interval of the cost is told.
MIN_STEPS_FOR_INTERVAL = 3
# A rank that begins a collective within this part of its longest wait before the last one is as late.
MAX_AHEAD_RATIO = 0.1
# What explains this part of what a rank is late by is its cause.
MIN_EXPLAINED_RATIO = 0.5
# Where fewer of the matched collectives are known on all their ranks, the rank that truly came last may not be known.
MIN_COMPLETE_RATIO = 0.5


class StragglerCause(StrEnum):
    """Why a rank comes late to collectives: its host launches late (for no reason that the trace shows, or since it
    allocates, compiles or collects garbage), its kernels take longer, it waits for input, or its host blocks."""

    LATE_LAUNCH = "late_launch"
    SLOW_KERNEL = "slow_kernel"
    INPUT = "input"
    SYNC = "sync"
    UNEXPLAINED = "unexplained"


# The keys of `Straggler.excess_ns` that stand for each cause.
EXCESS_OF_CAUSE: Mapping[StragglerCause, tuple[str, ...]] = {
    StragglerCause.LATE_LAUNCH: (
        GapCause.LATE_LAUNCH.value,
        GapCause.ALLOCATOR.value,
        GapCause.RECOMPILE.value,
        GapCause.GARBAGE_COLLECTION.value,
    ),
    StragglerCause.SLOW_KERNEL: ("compute",),
    StragglerCause.INPUT: (GapCause.INPUT.value,),
    StragglerCause.SYNC: (GapCause.SYNC.value,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """A rank that the others wait for more than chance has it.

    `cost_ns` is the exposed wait that it causes per traced step, the mean over the other ranks and over the steps that
    all ranks have captured; `cost_interval_ns` is the 95% interval of that mean over the steps, None where there are
    fewer than 3. `gain_ns` is how much less the others would wait if it came no later than the second-last rank of each
    collective. `as_late` are the ranks that come almost as late as it: within the last tenth of the longest wait, in
    collectives with more than half of the waiting for it. `share` is its part of all exposed waiting.

    `p_value` is how likely chance alone makes some rank stand out as this one does, corrected for the number of ranks,
    judged by `num_units` units of the kind `unit` (see `speedprof.analyses.chance`).

    `excess_ns` says by how much, per traced step, it spends more than the ranks that wait for it, weighted by how long
    each does, in compute ("compute"), exposed communication ("communication"), exposed copies ("copy") and each cause
    of idle time (where none is known "idle"), between the same two collectives. As all ranks take equally long for
    that, these sum to 0 but for rounding: what a late rank has more of, it is late by, and the others wait in
    communication meanwhile. With the cause `slow_kernel`, `slow_kernels` are those that both run and that take longer
    here, worst first; empty where these do not make half of the excess of compute: then it does more or other work.
    """

    rank: int
    cost_ns: int
    cost_interval_ns: tuple[int, int] | None
    gain_ns: int
    as_late: tuple[int, ...]
    share: float
    p_value: float
    num_units: int
    unit: ChanceUnit
    cause: StragglerCause
    excess_ns: Mapping[str, int]
    slow_kernels: tuple[SlowKernel, ...]


def find_stragglers(ranks: Sequence[RankTimeline], match: CollectiveMatch) -> tuple[Straggler, ...]:
    """The ranks that cause clearly more than their share of the waiting, costliest first.

        rank 0   ####========####========      # compute   = a collective, from its begin on this rank
        rank 1   ########====#  #####====      rank 1 is late by 4 of compute, then by 2 of compute and 2 idle

    More than chance has it (`judge_by_chance`), and by enough to matter: see `MIN_OF_FAIR_SHARE`, `MIN_COST_RATIO`.

    Why: between the ends of two collectives that all ranks take part in, every rank spends the same time. The late one
    waits less than the others, and so spends more on something else; compute that only comes later is no more compute.
    None where nothing was matched, or too few of the ranks are known to tell who came last.
    """
    if len(ranks) < 2 or not _knows_last_ranks(match):
        return ()
    parts = [cut_exposed(rank, match) for rank in ranks]
    shifted = [part.rank for part in parts]
    common = find_common_time(shifted)
    waiting = find_waiting(parts, match, common)
    total_ns = int(waiting["ns"].sum())
    costs = {rank.rank: _measure_cost(waiting, rank.rank, len(ranks) - 1, common) for rank in ranks}
    late: dict[int, Chance] = {}
    for rank, cost in sorted(costs.items(), key=lambda item: -item[1].caused_ns):
        is_costly = cost.mean_ns >= MIN_COST_RATIO * common.step_ns
        if not (is_costly and cost.caused_ns and cost.caused_ns * len(ranks) >= MIN_OF_FAIR_SHARE * total_ns):
            continue
        chance = judge_by_chance(waiting, match, common, among=costs.keys() - late.keys(), rank=rank)
        if chance.p_value <= MAX_CHANCE:
            late[rank] = chance
    if not late:
        return ()
    spent = measure_time_spent(shifted, match, steps=common.steps, step_ns=common.step_ns)
    found = []
    for rank, chance in late.items():
        cost, reason = costs[rank], _explain(shifted, spent, rank, costs[rank].by_rank, common)
        found.append(
            Straggler(
                rank=rank,
                cost_ns=round(cost.mean_ns),
                cost_interval_ns=_find_cost_interval(waiting, rank, len(ranks) - 1, common),
                gain_ns=round(cost.gain_ns),
                as_late=_find_as_late(waiting, match, rank),
                share=cost.caused_ns / total_ns,
                p_value=chance.p_value,
                num_units=chance.num_units,
                unit=chance.unit,
                cause=reason.cause,
                excess_ns=reason.excess_ns,
                slow_kernels=reason.slow_kernels,
            )
        )
    return tuple(sorted(found, key=lambda one: (-one.cost_ns, one.rank)))


def _knows_last_ranks(match: CollectiveMatch) -> bool:
    if match.instances.is_empty():
        return False
    return match.num_matched >= MIN_COMPLETE_RATIO * match.instances["collective"].n_unique()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cost:
    """The waiting that one rank causes: in all, by the rank that waits, and per step, the mean over the others."""

    caused_ns: int
    by_rank: Mapping[int, int]
    mean_ns: float
    gain_ns: float


def _measure_cost(waiting: pl.DataFrame, rank: int, num_others: int, common: CommonTime) -> _Cost:
    mine = waiting.filter(pl.col("last_rank") == rank)
    caused_ns = int(mine["ns"].sum())
    return _Cost(
        caused_ns=caused_ns,
        by_rank=dict(mine.group_by("rank").agg(pl.col("ns").sum()).sort("rank").iter_rows()),
        mean_ns=caused_ns * common.per_step / num_others,
        gain_ns=int(mine["gain_ns"].sum()) * common.per_step / num_others,
    )


def _find_cost_interval(
    waiting: pl.DataFrame, rank: int, num_others: int, common: CommonTime
) -> tuple[int, int] | None:
    """No one waits for less than 0 ns: an interval does not reach below."""
    if not common.steps:
        return None
    mine = waiting.filter(pl.col("last_rank") == rank)
    by_step = np.bincount(mine["window"].to_numpy(), mine["ns"].to_numpy(), minlength=common.num_windows)
    interval = interval_of_mean(by_step / num_others, fewest=MIN_STEPS_FOR_INTERVAL)
    return (max(round(interval[0]), 0), round(interval[1])) if interval else None


def _find_as_late(waiting: pl.DataFrame, match: CollectiveMatch, rank: int) -> tuple[int, ...]:
    """The ranks that come within the last tenth of the longest wait, where more than half of the waiting is."""
    caused = waiting.filter(pl.col("last_rank") == rank).group_by("collective").agg(pl.col("ns").sum())
    behind_ns = pl.col("last_start_ns") - pl.col("start_ns")
    late = (
        match.instances.join(caused, on="collective")
        .with_columns(behind_ns.alias("ahead_ns"), behind_ns.max().over("collective").alias("longest_ns"))
        .filter((pl.col("ahead_ns") < MAX_AHEAD_RATIO * pl.col("longest_ns")) & (pl.col("rank") != rank))
        .group_by("rank")
        .agg(pl.col("ns").sum())
        .filter(2 * pl.col("ns") > caused["ns"].sum())
    )
    return tuple(sorted(late["rank"].to_list()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reason:
    cause: StragglerCause
    excess_ns: Mapping[str, int]
    slow_kernels: tuple[SlowKernel, ...]


def _explain(
    ranks: Sequence[RankTimeline], spent: TimeSpent, rank: int, weights: Mapping[int, int], common: CommonTime
) -> _Reason:
    """Compared with the ranks that wait for it, each as much as it waits."""
    excess = spent.excess_ns(rank, weights)
    cause = _find_cause(excess)
    slow: tuple[SlowKernel, ...] = ()
    if cause is StragglerCause.SLOW_KERNEL:
        kernels = compare_kernels(ranks, rank, weights, common.steps)
        # If all kernels together take no longer, it is not they that are slow.
        least_ns = MIN_EXPLAINED_RATIO * excess["compute"]
        slow = kernels.slow if kernels.slower_ns >= least_ns else ()
        cause = cause if slow or kernels.total_ns >= least_ns else StragglerCause.UNEXPLAINED
    return _Reason(cause=cause, excess_ns=excess, slow_kernels=slow)


def _find_cause(excess: Mapping[str, int]) -> StragglerCause:
    """What explains most of what a rank is late by, if that is enough."""
    late_by = {category: ns for category, ns in excess.items() if ns > 0}
    explained = {
        cause: sum(late_by.get(category, 0) for category in categories) for cause, categories in EXCESS_OF_CAUSE.items()
    }
    cause = max(explained, key=lambda one: explained[one])
    if not explained[cause] or explained[cause] < MIN_EXPLAINED_RATIO * sum(late_by.values()):
        return StragglerCause.UNEXPLAINED
    return cause
