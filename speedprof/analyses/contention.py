"""How much of the exposed transfer is more than such a transfer takes when nothing slows it down? An estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from speedprof.analyses.exposed_parts import ExposedParts
from speedprof.analyses.instances import describe_complete
from speedprof.analyses.matching import CollectiveMatch
from speedprof.trace.intervals import Int64s
from speedprof.trace.schema import to_numpy

# Fewer equal collectives than this say nothing of how fast they can be.
MIN_EQUAL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Contention:
    """`ns` over the traced steps of one rank; `basis` says in words what it is measured against."""

    ns: int
    basis: str


def estimate_contention(parts: Sequence[ExposedParts], match: CollectiveMatch) -> list[Contention | None]:
    """For each rank, what its exposed transfers took beyond the fastest equal collective of all ranks.

    Two collectives are equal where name, element type, sizes and number of ranks are known and the same. What a
    transfer takes beyond the fastest counts at most as far as it is exposed, and each instant once. None for a rank
    without collectives that have their equal.
    """
    equals = _equals(describe_complete([each.rank for each in parts], match))
    return [_estimate(each, *equals) for each in parts]


def _equals(described: pl.DataFrame) -> tuple[Int64s, Int64s, Int64s]:
    """Collectives that have their equal, in order; the transfer of the fastest equal one (ns); how many are equal."""
    same = ("name", "dtype", "in_elements", "out_elements", "group_size")
    found = (
        described.drop_nulls(same)
        .with_columns(pl.col("transfer_ns").min().over(same).alias("fastest_ns"), pl.len().over(same).alias("count"))
        .filter(pl.col("count") >= MIN_EQUAL)
    )
    return to_numpy(found["collective"]), to_numpy(found["fastest_ns"]), to_numpy(found["count"])


def _estimate(part: ExposedParts, collective: Int64s, fastest: Int64s, count: Int64s) -> Contention | None:
    rows = np.flatnonzero(np.isin(part.collective, collective))
    if not len(rows):
        return None
    at = np.searchsorted(collective, part.collective[rows])
    beyond = np.zeros(len(part.start), dtype=np.int64)
    # A rank may be done before the last one: only its own transfer counts against it.
    beyond[rows] = np.maximum(part.end[rows] - part.cut[rows] - fastest[at], 0)
    exposed = np.zeros(len(part.start), dtype=np.int64)
    pieces = part.transfers()
    np.add.at(exposed, pieces.row, pieces.end - pieces.start)
    equal = int(np.median(count[at]))
    return Contention(
        ns=int(np.minimum(beyond, exposed).sum()), basis=f"the fastest of {equal} equal collectives at the median"
    )
