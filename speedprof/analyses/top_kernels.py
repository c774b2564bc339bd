"""Which kernels cost most, and in which stage?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from speedprof.analyses.grouped_intervals import GroupLine
from speedprof.analyses.traced_steps import in_traced_windows
from speedprof.trace.intervals import Int64s
from speedprof.trace.model import Timeline, Trace
from speedprof.trace.schema import to_numpy


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTime:
    """All launches of one kernel in one stage and group on one rank, summed over the traced steps.

    Outside the optimizer's stages both are None. `alone_ns` is the time in which only such launches run on the device,
    on any stream: the least that goes away with them.
    """

    name: str
    kind: str
    stage: str | None
    group: str | None
    count: int
    total_ns: int
    alone_ns: int


def measure_kernels(trace: Trace) -> tuple[KernelTime, ...]:
    """Costliest first by `total_ns`; empty on a host timeline.

    A kernel counts that begins in the window of a training step, whatever launched it, or any where there is no such
    window. `total_ns` sums durations; of two that overlap, `alone_ns` has neither's time beside the other:

        stream 7     aaaa  bbbbb
        stream 23      ccccc
        alone        aa  cc  bbb         a 2 of 4, b 3 of 5, c 1 of 5
    """
    if trace.timeline is Timeline.HOST or trace.kernels.is_empty():
        return ()
    kernels = _with_stages(trace)
    # Every kernel's row is known by the first kernel of that row.
    first_of_row = to_numpy(kernels.with_row_index().select(pl.col("index").first().over(_ROW)).to_series())
    firsts, row = np.unique(first_of_row, return_inverse=True)
    start, end = to_numpy(kernels["start_ns"]), to_numpy(kernels["end_ns"])
    counts = in_traced_windows(trace, start)
    # What does not count still is beside what does: as one more row.
    row = np.where(counts, row, len(firsts))
    total_ns = np.zeros(len(firsts) + 1, dtype=np.int64)
    np.add.at(total_ns, row, end - start)
    columns = zip(
        kernels[firsts].select(pl.col(name).cast(pl.String) for name in _ROW).iter_rows(named=True),
        np.bincount(row, minlength=len(firsts)).tolist(),
        total_ns.tolist(),
        _measure_alone(row, start, end, len(firsts) + 1).tolist(),
        strict=False,
    )
    found = [KernelTime(**names, count=count, total_ns=total, alone_ns=alone) for names, count, total, alone in columns]
    return tuple(sorted((one for one in found if one.count), key=lambda one: -one.total_ns))


_ROW = ("name", "kind", "stage", "group")


def _with_stages(trace: Trace) -> pl.DataFrame:
    stage_row = trace.kernels["stage_row"]
    stages = (trace.ranges[name].gather(stage_row).alias(name) for name in ("stage", "group"))
    return trace.kernels.select("name", "kind", "start_ns", "end_ns").with_columns(*stages)


def _measure_alone(row: Int64s, start: Int64s, end: Int64s, num_rows: int) -> Int64s:
    """For each row of the result how many ns only kernels of that row run."""
    times = np.sort(np.concatenate((start, end)))
    laid = GroupLine(times=times, num_groups=num_rows).lay(row, start, end)
    owner = laid.start // len(times)
    begins, ends = laid.start - owner * len(times), laid.end - owner * len(times)
    # At each time, how many rows' kernels run from there on and the sum of those rows: of one alone, the row itself.
    num_running = np.cumsum(_count(begins, len(times)) - _count(ends, len(times)))
    sum_of_rows = np.cumsum(_count(begins, len(times), owner) - _count(ends, len(times), owner))
    is_alone = num_running[:-1] == 1
    alone_ns = np.zeros(num_rows, dtype=np.int64)
    np.add.at(alone_ns, sum_of_rows[:-1][is_alone], np.diff(times)[is_alone])
    return alone_ns


def _count(places: Int64s, length: int, weights: Int64s | int = 1) -> Int64s:
    counted = np.zeros(length, dtype=np.int64)
    np.add.at(counted, places, weights)
    return counted
