"""How much do the numbers change without the events that are known only in part?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from speedprof.analyses.breakdown import Partition, find_window
from speedprof.trace.intervals import Bools, join
from speedprof.trace.model import Timeline, Trace
from speedprof.trace.occupied import find_occupied


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionWithout:
    """The partition of the whole capture where events of one kind are left out: unlinked, cut, crossing, zero_length,
    or any (all of these). The window stays that of all events, so that what an event covered becomes something else."""

    kind: str
    num_events: int
    partition: Partition


def measure_certainty(trace: Trace) -> tuple[PartitionWithout, ...]:
    """One for each kind, in the order above; empty on a host timeline.

    They belong beside the partition of the breakdown, which counts every event: what a number loses here is the part of
    it that rests on such events. A kind without events has that partition itself.
    """
    if trace.timeline is Timeline.HOST:
        return ()
    whole = _partition_without(trace, np.zeros(len(trace.kernels), dtype=np.bool_))
    return tuple(
        PartitionWithout(
            kind=kind,
            num_events=int(doubtful.sum()),
            partition=_partition_without(trace, doubtful) if doubtful.any() else whole,
        )
        for kind, doubtful in _find_doubtful(trace.kernels).items()
    )


def _find_doubtful(kernels: pl.DataFrame) -> Mapping[str, Bools]:
    is_zero = kernels.select(pl.col("start_ns") == pl.col("end_ns")).to_series()
    columns = {
        "unlinked": ~kernels["linked"],
        "cut": kernels["cut"],
        "crossing": kernels["crossing"],
        "zero_length": is_zero,
    }
    found = {kind: np.asarray(column.to_numpy(), dtype=np.bool_) for kind, column in columns.items()}
    return {**found, "any": np.logical_or.reduce(list(found.values()))}


def _partition_without(trace: Trace, left_out: Bools) -> Partition:
    start, end = find_window(trace)
    occupied = find_occupied(replace(trace, kernels=trace.kernels.filter(pl.Series(~left_out))))
    busy = join(occupied.compute, occupied.communication)
    all_work = join(busy, occupied.copy)
    return Partition(
        compute_ns=occupied.compute.length,
        exposed_communication_ns=busy.length - occupied.compute.length,
        exposed_copy_ns=all_work.length - busy.length,
        idle_ns=end - start - all_work.length,
    )
