"""What each stage of the optimizer takes, by parameter group: on the host, on the device, and exposed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from speedprof.trace.intervals import Bools, Int64s, Intervals, join, overlap, union
from speedprof.trace.kernels import KernelKind
from speedprof.trace.links import rows_around
from speedprof.trace.model import Timeline, Trace
from speedprof.trace.occupied import find_occupied, is_collective_op
from speedprof.trace.ranges import RangeKind
from speedprof.trace.schema import to_numpy
from speedprof.vocabulary import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTime:
    """One stage of one group on one rank, summed over the traced training steps.

    `device_ns` is the union of the device work that the stage launched, wherever it ran; `exposed_ns` the part of
    its collectives with no compute beside it on that device. On CPU ranks both come from the host timeline: the work
    is the operators inside the stage on its thread and the gloo collectives that it began, wherever those run.
    """

    stage: str
    group: str
    num_calls: int
    host_ns: int
    device_ns: int
    exposed_ns: int


def measure_stages(trace: Trace) -> tuple[StageTime, ...]:
    """Each stage of each group: stages in the order of `Stage`, groups in the order in which they first appear.

        host thread      [reduce_scatter]      [reduce_scatter_wait]
        stream 23             #####################                      device_ns of reduce_scatter
        stream 7         ##########      ####                            what computes, whoever launched it
        exposed                    ######    ######                      exposed_ns of reduce_scatter

    A collective counts for the stage that launched it, also where its wait is a stage of its own: on a device that
    stage launches nothing, and on the host its `host_ns` is the waiting. Only stages that begin within a host step
    of training count, and only of steps that have a window, as in `Breakdown.steps`; or all where there are no steps.
    On CPU ranks, collectives that could not be linked to the operator that began them count for no stage; the trace's
    notes say how many.
    """
    ranges, calls = trace.ranges, _traced_calls(trace)
    if not len(calls):
        return ()
    busy = find_occupied(trace)
    is_device = trace.timeline is Timeline.DEVICE
    work = _device_work(trace) if is_device else _host_work(trace)
    length = to_numpy(ranges["end_ns"]) - to_numpy(ranges["start_ns"])
    result = []
    for (stage, group), rows in _in_order(ranges, calls):
        does, communicates = work.of(rows, communication=False), work.of(rows, communication=True)
        result.append(
            StageTime(
                stage=stage,
                group=group,
                num_calls=len(rows),
                host_ns=int(length[rows].sum()),
                device_ns=join(does, communicates).length,
                exposed_ns=communicates.length - overlap(communicates, busy.compute),
            )
        )
    return tuple(result)


@dataclass(frozen=True, slots=True, kw_only=True)
class _StageWork:
    """Pieces of work, each with the row of the stage's call that it belongs to, sorted by that row."""

    call: Int64s
    start: Int64s
    end: Int64s
    communication: Bools

    @staticmethod
    def sorted_by_call(call: Int64s, start: Int64s, end: Int64s, communication: Bools) -> _StageWork:
        order = np.argsort(call, kind="stable")
        return _StageWork(call=call[order], start=start[order], end=end[order], communication=communication[order])

    def of(self, calls: Int64s, *, communication: bool) -> Intervals:
        """The union of the work of these calls that is communication, or that is not."""
        first, last = np.searchsorted(self.call, calls), np.searchsorted(self.call, calls, side="right")
        rows = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
        rows = rows[self.communication[rows] == communication]
        return union(self.start[rows], self.end[rows])


def _traced_calls(trace: Trace) -> Int64s:
    """Rows in ranges of the stages' calls that begin within host steps that count."""
    is_stage = (trace.ranges["kind"] == RangeKind.STAGE.value).to_numpy()
    if len(trace.steps):
        start = to_numpy(trace.ranges["start_ns"])
        counts = trace.steps.filter((pl.col("kind") == "train") & pl.col("start_ns").is_not_null())
        at = np.searchsorted(to_numpy(counts["host_start_ns"]), start, side="right") - 1
        # Before the first step `at` is -1, the appended end before all times.
        ends = np.append(to_numpy(counts["host_end_ns"]), np.iinfo(np.int64).min)
        is_stage = is_stage & (start < ends[at])
    return np.flatnonzero(is_stage)


def _in_order(ranges: pl.DataFrame, calls: Int64s) -> Iterator[tuple[tuple[str, str], Int64s]]:
    """The calls of each (stage, group): known stages in their order, unknown ones after them."""
    named = ranges[calls].select(pl.col("stage", "group").cast(pl.String)).with_columns(call=pl.Series(calls))
    rows: dict[tuple[str, str], list[int]] = {}
    for stage, group, call in named.iter_rows():
        rows.setdefault((stage, group), []).append(call)
    known = [stage.value for stage in Stage]
    groups = dict.fromkeys(group for _, group in rows)
    stages = [*known, *sorted({stage for stage, _ in rows} - set(known))]
    for stage in stages:
        for group in groups:
            if (stage, group) in rows:
                yield (stage, group), np.array(rows[stage, group], dtype=np.int64)


def _device_work(trace: Trace) -> _StageWork:
    mine = trace.kernels.filter(pl.col("stage_row").is_not_null())
    return _StageWork.sorted_by_call(
        to_numpy(mine["stage_row"]),
        to_numpy(mine["start_ns"]),
        to_numpy(mine["end_ns"]),
        (mine["kind"] == KernelKind.COMMUNICATION.value).to_numpy(),
    )


def _host_work(trace: Trace) -> _StageWork:
    """Operators by the stage that they are in, but for those of a collective's own operator; and linked collectives."""
    ops, gloo = trace.ops, trace.collectives.filter(pl.col("stage_row").is_not_null())
    thread, start, end = (to_numpy(ops[name]) for name in ("thread", "start_ns", "end_ns"))
    is_stage = (trace.ranges["kind"] == RangeKind.STAGE.value).to_numpy()
    collective = ops.select(is_collective_op()).to_series().to_numpy()
    call = rows_around(trace.ranges, is_stage, thread, start)
    mine = (call >= 0) & (rows_around(ops, collective, thread, start) < 0)
    is_communication = np.concatenate((np.zeros(mine.sum(), dtype=np.bool_), np.ones(len(gloo), dtype=np.bool_)))
    return _StageWork.sorted_by_call(
        np.concatenate((call[mine], to_numpy(gloo["stage_row"]))),
        np.concatenate((start[mine], to_numpy(gloo["start_ns"]))),
        np.concatenate((end[mine], to_numpy(gloo["end_ns"]))),
        is_communication,
    )
