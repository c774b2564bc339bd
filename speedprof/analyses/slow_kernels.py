"""Which kernels take longer on one rank than on others, and does that explain why it computes longer?"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from speedprof.analyses.timeline import RankTimeline
from speedprof.trace.kernels import KernelKind

_MOST_KERNELS = 10
# Means of equal times differ by rounding.
_LEAST_NS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowKernel:
    """A kernel whose launches take longer on a straggler than on the ranks that wait for it, in ns per traced step.

    `own_ns` is what as many launches as the others make (`others_ns`) take on the straggler.
    """

    name: str
    own_ns: int
    others_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelExcess:
    """By how much the kernels of one rank take longer than those of others, in ns per step.

    `slower_ns` is what the same launches take longer, of kernels that both run; `total_ns` has also what one runs more
    often than the other, or alone. `slow` are the former that take longer, worst first.
    """

    total_ns: float
    slower_ns: float
    slow: tuple[SlowKernel, ...]


def compare_kernels(
    ranks: Sequence[RankTimeline], rank: int, weights: Mapping[int, float], steps: Collection[int]
) -> KernelExcess:
    """Compare the rank's kernels with those of others, of which each counts as much as `weights` says.

    Kernels that one of `steps` launched, per step; all of them where there are no steps.
    """
    total = sum(weights.values())
    of_rank = {other: weight / total for other, weight in weights.items() if weight} | {rank: 1.0}
    times = pl.concat([_kernel_times(one, of_rank[one.rank], steps) for one in ranks if one.rank in of_rank])
    is_own = pl.col("rank") == rank
    compared = (
        times.group_by("name")
        .agg(
            pl.col("ns", "count").filter(is_own).sum().name.prefix("own_"),
            pl.col("ns", "count").filter(~is_own).sum().name.prefix("others_"),
        )
        .with_columns((pl.col("own_ns") / pl.col("own_count") * pl.col("others_count")).alias("as_often_ns"))
        .with_columns((pl.col("as_often_ns") - pl.col("others_ns")).alias("slower_ns"))
    )
    common = compared.filter((pl.col("own_count") > 0) & (pl.col("others_count") > 0))
    slow = common.filter(pl.col("slower_ns") >= _LEAST_NS).sort("slower_ns", "name", descending=[True, False])
    return KernelExcess(
        total_ns=float((compared["own_ns"] - compared["others_ns"]).sum()),
        slower_ns=float(common["slower_ns"].sum()),
        slow=tuple(
            SlowKernel(name=row["name"], own_ns=round(row["as_often_ns"]), others_ns=round(row["others_ns"]))
            for row in slow.head(_MOST_KERNELS).iter_rows(named=True)
        ),
    )


def _kernel_times(rank: RankTimeline, weight: float, steps: Collection[int]) -> pl.DataFrame:
    """Time and number of each kernel that computes, per step, times the weight of the rank."""
    kernels = rank.kernels.filter(
        pl.col("kind").cast(pl.String).is_in([KernelKind.COMPUTE.value, KernelKind.MEMSET.value])
    )
    if steps:
        kernels = kernels.filter(pl.col("host_step").is_in(sorted(steps)))
    scale = weight / max(len(steps), 1)
    return kernels.select(
        pl.lit(rank.rank, dtype=pl.Int64).alias("rank"),
        pl.col("name").cast(pl.String),
        (pl.col("total_ns") * scale).alias("ns"),
        (pl.col("count") * scale).alias("count"),
    )
