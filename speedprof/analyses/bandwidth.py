"""How fast do collectives of each size move their bytes?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import polars as pl

from speedprof.analyses.declared import BYTES_OF_DTYPE
from speedprof.analyses.instances import describe_complete
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.timeline import RankTimeline
from speedprof.units import NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveBandwidth:
    """Collectives of one name, size and number of ranks.

    `num_bytes` is the size as nccl-tests counts it: of the larger of a rank's input and output, on the rank that gives
    or gets most. The time of each runs from the start of the last rank's kernel to the end of the last one.
    `median_ns` and `fastest_ns` are over the `count` matched ones; bus bandwidth is bytes times the collective's factor
    over that time (nccl-tests' PERFORMANCE.md), None for a collective that has no such factor.
    """

    name: str
    dtype: str
    num_bytes: int
    group_size: int
    count: int
    median_ns: int
    fastest_ns: int
    bus_factor: float | None

    @property
    def bus_bytes_per_s(self) -> float | None:
        """At the median time."""
        if self.bus_factor is None or not self.median_ns:
            return None
        return self.bus_factor * self.num_bytes * NS_PER_S / self.median_ns


# Of the number of ranks: what part of the bytes crosses the slowest link once (nccl-tests, doc/PERFORMANCE.md).
_BUS_FACTORS: Mapping[str, Callable[[int], float]] = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "broadcast": lambda _: 1.0,
    "reduce": lambda _: 1.0,
}


def measure_bandwidth(ranks: Sequence[RankTimeline], match: CollectiveMatch) -> tuple[CollectiveBandwidth, ...]:
    """Smallest first within each name; empty where sizes are not known or nothing was matched.

    Collectives count where every rank's part is known: only then is it known when the last rank began and ended.
    """
    size = pl.max_horizontal("in_elements", "out_elements")
    bytes_of = pl.col("dtype").replace_strict(BYTES_OF_DTYPE, default=None, return_dtype=pl.Int64)
    key = ("name", "num_bytes", "dtype", "group_size")
    sizes = (
        describe_complete(ranks, match)
        .with_columns((size * bytes_of).alias("num_bytes"))
        .drop_nulls("num_bytes")
        .group_by(key)
        .agg(
            pl.len().alias("count"),
            pl.col("transfer_ns").median().cast(pl.Int64).alias("median_ns"),
            pl.col("transfer_ns").min().alias("fastest_ns"),
        )
        .sort(key)
    )
    return tuple(
        CollectiveBandwidth(**row, bus_factor=_bus_factor(row["name"], row["group_size"]))
        for row in sizes.iter_rows(named=True)
    )


def _bus_factor(name: str, group_size: int) -> float | None:
    return _BUS_FACTORS[name](group_size) if name in _BUS_FACTORS else None
