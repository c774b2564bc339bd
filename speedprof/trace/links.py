"""Who launched each device event: correlation id, then the launch's thread and time, then the ranges around it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from speedprof.trace.events import ABSENT
from speedprof.trace.intervals import Bools, Int64s, innermost, rows_of_each
from speedprof.trace.ranges import RangeKind
from speedprof.trace.raw_columns import RawEvents
from speedprof.trace.schema import to_numpy
from speedprof.trace.steps import HostSteps


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """For each device event the row of its launch, the index of its host step and rows of ranges; -1 for none.

    `placed_before` is the row of the linked event of the same stream that stands for an unlinked one.
    """

    launch_row: Int64s
    placed_before: Int64s
    step_index: Int64s
    range_row: Int64s
    stage_row: Int64s

    @property
    def linked(self) -> Bools:
        return self.launch_row >= 0


def link_kernels(device: RawEvents, launches: RawEvents, ranges: pl.DataFrame, steps: HostSteps) -> Links:
    """Link every device event to its launch, and through it to its host step, range and stage.

    A launch on the autograd thread belongs to the step by time, since marks are on the main thread, and to a stage
    only if that stage was entered on the autograd thread, as hooks do. Of an unlinked event only the step is known,
    by stream order: a stream runs what it is given in order, so it came with or after the linked event before it.
    """
    launch_row = _rows_by_correlation(device.correlation, launches.correlation)
    linked = launch_row >= 0
    placed = _last_linked_before(device, linked)
    stands_for = np.where(linked, np.arange(len(device)), placed)
    launched_at, thread = launches.start[launch_row[linked]], launches.track[launch_row[linked]]
    step_index = np.full(len(device), -1, dtype=np.int64)
    step_index[linked] = steps.index_at(launched_at)
    step_index = np.where(stands_for >= 0, step_index[stands_for], -1)
    is_stage = (ranges["kind"] == RangeKind.STAGE.value).to_numpy()
    is_step = ranges["kind"].is_in([RangeKind.STEP.value, RangeKind.PROFILER_STEP.value]).to_numpy()
    found = {}
    for name, wanted in (("range_row", ~is_step), ("stage_row", is_stage)):
        found[name] = np.full(len(device), -1, dtype=np.int64)
        found[name][linked] = rows_around(ranges, wanted, thread, launched_at)
    return Links(launch_row=launch_row, placed_before=placed, step_index=step_index, **found)


def rows_around(ranges: pl.DataFrame, wanted: Bools, thread: Int64s, times: Int64s) -> Int64s:
    """For each host thread and time the row of the innermost wanted range around it on that thread, -1 for none."""
    rows = np.full(len(times), -1, dtype=np.int64)
    range_thread, start, end = (to_numpy(ranges[name]) for name in ("thread", "start_ns", "end_ns"))
    wanted_rows = np.flatnonzero(wanted)
    candidates_of = rows_of_each(range_thread[wanted_rows])
    for one, here in rows_of_each(thread).items():
        if one in candidates_of:
            candidates = wanted_rows[candidates_of[one]]
            found = innermost(start[candidates], end[candidates], times[here])
            rows[here] = np.where(found >= 0, candidates[found], -1)
    return rows


def find_crossing(device: RawEvents) -> Bools:
    """Which events begin inside an earlier event of their stream and outlast it, so that neither nests in the other.

    stream 7   ######            programmatic dependent launch lets a kernel start
                   #######       before the one before it has ended
    """
    crossing = np.zeros(len(device), dtype=np.bool_)
    for rows in _rows_by_stream(device):
        reach = np.maximum.accumulate(device.end[rows])[:-1]
        later = rows[1:]
        crossing[later] = (device.start[later] < reach) & (device.end[later] > reach)
    return crossing


def find_cut(device: RawEvents, links: Links, span: tuple[int, int] | None) -> Bools:
    """Which events the border of the capture cuts.

    Cut from their launch: unlinked, and before the first linked event of their stream (or of any stream, where theirs
    has none): launched before the capture began. Cut from their start or end: not within the profiler's own span.
    """
    if not len(device):
        return np.zeros(0, dtype=np.bool_)
    latest, all_linked = np.iinfo(np.int64).max, links.linked
    first_of_any = int(device.start[all_linked].min()) if all_linked.any() else latest
    cut = np.zeros(len(device), dtype=np.bool_)
    for rows in _rows_by_stream(device):
        linked = all_linked[rows]
        first = int(device.start[rows][linked].min()) if linked.any() else first_of_any
        cut[rows] = ~linked & (device.start[rows] < first)
    if span is not None:
        cut |= (device.start < span[0]) | (device.end > span[1])
    return cut


def _rows_by_correlation(wanted: Int64s, offered: Int64s) -> Int64s:
    """The first row of `offered` with each wanted id. A graph's launch has many kernels; id 0 stands for none."""
    order = np.argsort(offered, kind="stable")
    ids = offered[order]
    at = np.searchsorted(ids, wanted)
    found = np.zeros(len(wanted), dtype=np.bool_)
    inside = at < len(ids)
    found[inside] = ids[at[inside]] == wanted[inside]
    found &= (wanted != ABSENT) & (wanted != 0)
    rows = np.full(len(wanted), -1, dtype=np.int64)
    rows[found] = order[at[found]]
    return rows


def _rows_by_stream(device: RawEvents) -> list[Int64s]:
    """The rows of each stream of each device, in order of start."""
    order = np.lexsort((device.track, device.device))
    key = np.stack((device.device[order], device.track[order]))
    borders = np.flatnonzero((key[:, 1:] != key[:, :-1]).any(axis=0)) + 1
    return [rows for rows in np.split(order, borders) if len(rows)]


def _last_linked_before(device: RawEvents, linked: Bools) -> Int64s:
    """For each unlinked event the row of the last linked one before it on its stream; -1 for none, and for linked."""
    before = np.full(len(device), -1, dtype=np.int64)
    for rows in _rows_by_stream(device):
        place = np.maximum.accumulate(np.where(linked[rows], np.arange(len(rows)), -1))
        before[rows] = np.where(linked[rows] | (place < 0), -1, rows[place])
    return before
