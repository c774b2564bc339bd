"""When a rank computes, communicates and copies, as interval unions: what partitions and overlaps are made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from speedprof.trace.intervals import Intervals, join, subtract, union
from speedprof.trace.kernels import KernelKind
from speedprof.trace.model import Timeline, Trace
from speedprof.trace.ranges import RangeKind
from speedprof.trace.schema import to_numpy


@dataclass(frozen=True, slots=True, kw_only=True)
class Occupied:
    """Unions over all streams of the device, or over the threads of the host where there is no device."""

    compute: Intervals
    communication: Intervals
    copy: Intervals


def find_occupied(trace: Trace) -> Occupied:
    """What occupies the trace's timeline. Compute includes sets of memory.

    On the host, compute is the union of the top-level operators of the main and autograd threads and of calls of
    compiled graphs, less what a collective's own operator (`c10d::…`) spends in it; communication is the union of
    gloo's events on any thread.
    """
    if trace.timeline is Timeline.DEVICE:
        kinds = {kind: _union_of(trace.kernels.filter(pl.col("kind") == kind.value)) for kind in KernelKind}
        return Occupied(
            compute=join(kinds[KernelKind.COMPUTE], kinds[KernelKind.MEMSET]),
            communication=kinds[KernelKind.COMMUNICATION],
            copy=kinds[KernelKind.COPY],
        )
    none = np.zeros(0, dtype=np.int64)
    return Occupied(
        compute=_host_compute(trace),
        communication=_union_of(trace.collectives),
        copy=Intervals(start=none, end=none),
    )


def _host_compute(trace: Trace) -> Intervals:
    """Thread by thread, since one thread may compute while another's collective operator runs.

    main thread    [aten::mm][c10d::all_reduce_]      [aten::add]
    autograd             [Node: [c10d::reduce_scatter_] ]
    compute        ############                       #
    """
    compiled = trace.ranges.filter(pl.col("kind") == RangeKind.COMPILED.value)
    parts = []
    for thread in find_compute_threads(trace):
        here = pl.col("thread") == thread
        ops = trace.ops.filter(here)
        collective = ops.filter(is_collective_op())
        alone = ops.filter(pl.col("top_level"))
        parts.append(subtract(join(_union_of(alone), _union_of(compiled.filter(here))), _union_of(collective)))
    return join(*parts) if parts else _union_of(trace.ops.clear())


def is_collective_op() -> pl.Expr:
    """Whether an operator is a collective's own."""
    return pl.col("name").cast(pl.String).str.starts_with("c10d::")


def find_compute_threads(trace: Trace) -> list[int]:
    """The main thread (that of the steps, else the one with most operator time) and those of autograd.

    Left out are gloo's and the data loader's own threads.
    """
    nodes = trace.ops.filter(pl.col("name").cast(pl.String).str.starts_with("autograd::engine::"))
    threads = set(nodes["thread"].unique().to_list())
    marks = trace.ranges.filter(pl.col("kind").is_in([RangeKind.STEP.value, RangeKind.PROFILER_STEP.value]))
    if len(marks):
        threads |= set(marks["thread"].unique().to_list())
    elif len(trace.ops):
        busy = (
            trace.ops.filter(pl.col("top_level"))
            .group_by("thread")
            .agg((pl.col("end_ns") - pl.col("start_ns")).sum().alias("busy_ns"))
            .sort("busy_ns", "thread", descending=[True, False])
        )
        threads.add(busy["thread"][0])
    return sorted(threads)


def _union_of(table: pl.DataFrame) -> Intervals:
    return union(to_numpy(table["start_ns"]), to_numpy(table["end_ns"]))
