"""Which rank do the others wait for, what does it cost them, and why is it late?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal

import numpy as np
import polars as pl

from speedprof.analyses.exposure import RankExposure
from speedprof.analyses.idle_gaps import GapCause
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.time_spent import TimeSpent, measure_time_spent
from speedprof.analyses.timeline import RankTimeline
from speedprof.trace.kernels import KernelKind

# A rank is a straggler if it causes this many times its fair share of the waiting, and costs this part of a step.
MIN_OF_FAIR_SHARE = 1.5
MIN_COST_RATIO = 0.002
# What explains this part of what a rank is late by is its cause.
MIN_EXPLAINED_RATIO = 0.5
# Where fewer of the matched collectives are known on all their ranks, the rank that truly came last may not be known.
MIN_COMPLETE_RATIO = 0.5
_MOST_KERNELS = 10


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


# What chance is judged by: the waiting of traced steps, of blocks of collectives, or who came last in each collective.
ChanceUnit = Literal["step", "block", "collective"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowKernel:
    """A kernel whose launches take longer on a straggler than on the ranks that wait for it, in ns per traced step.

    `own_ns` is what as many launches as the others make (`others_ns`) take on the straggler.
    """

    name: str
    own_ns: int
    others_ns: int


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


def find_stragglers(
    ranks: Sequence[RankTimeline], match: CollectiveMatch, exposures: Sequence[RankExposure]
) -> tuple[Straggler, ...]:
    """The ranks that cause clearly more than their share of the waiting, costliest first.

        rank 0   ####========####========      # compute   = a collective, from its begin on this rank
        rank 1   ########====#  #####====      rank 1 is late by 4 of compute, then by 2 of compute and 2 idle

    Why: between the ends of two collectives that all ranks take part in, every rank spends the same time. The late one
    waits less than the others, and so spends more on something else; compute that only comes later is no more compute.
    None where nothing was matched, or too few of the ranks are known to tell who came last.
    """
    if len(ranks) < 2 or not _knows_last_ranks(match):
        return ()
    caused = {rank.rank: 0 for rank in ranks}
    cost = dict.fromkeys(caused, 0.0)
    num_steps = {rank.rank: max(len(rank.steps), 1) for rank in ranks}
    for exposure in exposures:
        for wait in exposure.waits:
            caused[wait.rank] += wait.ns
            cost[wait.rank] += wait.ns / num_steps[exposure.rank] / (len(ranks) - 1)
    least_ns = MIN_COST_RATIO * _mean_step_ns(ranks)
    total_ns = sum(caused.values())
    late = [
        rank
        for rank in caused
        if caused[rank] and caused[rank] * len(ranks) >= MIN_OF_FAIR_SHARE * total_ns and cost[rank] >= least_ns
    ]
    if not late:
        return ()
    spent = measure_time_spent(ranks, match, step_ns=_mean_step_ns(ranks))
    found = [_explain(ranks, spent, rank, round(cost[rank]), caused[rank] / total_ns) for rank in late]
    return tuple(sorted(found, key=lambda one: (-one.cost_ns, one.rank)))


def _knows_last_ranks(match: CollectiveMatch) -> bool:
    if match.instances.is_empty():
        return False
    return match.num_matched >= MIN_COMPLETE_RATIO * match.instances["collective"].n_unique()


def _mean_step_ns(ranks: Sequence[RankTimeline]) -> float:
    """Of the traced steps, or where there are none of the captures."""
    steps = [step.end_ns - step.start_ns for rank in ranks for step in rank.steps]
    return float(np.mean(steps or [rank.end_ns - rank.start_ns for rank in ranks]))


def _explain(ranks: Sequence[RankTimeline], spent: TimeSpent, rank: int, cost_ns: int, share: float) -> Straggler:
    excess = spent.excess_ns(rank)
    cause = _find_cause(excess)
    slow: tuple[SlowKernel, ...] = ()
    if cause is StragglerCause.SLOW_KERNEL:
        slow = _find_slow_kernels(ranks, rank, excess["compute"])
        cause = cause if slow else StragglerCause.UNEXPLAINED
    return Straggler(
        rank=rank,
        cost_ns=cost_ns,
        cost_interval_ns=None,
        gain_ns=cost_ns,
        as_late=(),
        share=share,
        p_value=0.0,
        num_units=0,
        unit="step",
        cause=cause,
        excess_ns=excess,
        slow_kernels=slow,
    )


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


def _find_slow_kernels(ranks: Sequence[RankTimeline], rank: int, excess_ns: int) -> tuple[SlowKernel, ...]:
    """The kernels that take more of a step on this rank than at the median of the others, worst first.

    None if all kernels together do not explain the excess of compute: then it is not they that are slow.
    """
    others = [str(one.rank) for one in ranks if one.rank != rank]
    times = (
        pl.concat([_kernel_times(one) for one in ranks])
        .pivot(on="rank", on_columns=[*others, str(rank)], index="name", values="ns", aggregate_function="sum")
        .fill_null(0)
        .select("name", pl.col(str(rank)).alias("own"), pl.concat_list(others).list.median().alias("others"))
        .with_columns((pl.col("own") - pl.col("others")).alias("excess"))
    )
    if times["excess"].sum() < MIN_EXPLAINED_RATIO * excess_ns:
        return ()
    slow = times.filter(pl.col("excess") > 0).sort("excess", "name", descending=[True, False]).head(_MOST_KERNELS)
    return tuple(
        SlowKernel(name=row["name"], own_ns=round(row["own"]), others_ns=round(row["others"]))
        for row in slow.iter_rows(named=True)
    )


def _kernel_times(rank: RankTimeline) -> pl.DataFrame:
    """Time of each kernel that computes, in ns per traced step that launched it, or in all where there are none."""
    kernels = rank.kernels.filter(
        pl.col("kind").cast(pl.String).is_in([KernelKind.COMPUTE.value, KernelKind.MEMSET.value])
    )
    if rank.steps:
        kernels = kernels.filter(pl.col("host_step").is_in([step.step for step in rank.steps]))
    return kernels.select(
        pl.lit(str(rank.rank)).alias("rank"),
        pl.col("name").cast(pl.String),
        (pl.col("total_ns") / max(len(rank.steps), 1)).alias("ns"),
    )
