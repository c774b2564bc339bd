"""One row per collective of this rank: on the device from its kernels, on the host from gloo's own events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from speedprof.trace.events import ABSENT, Args
from speedprof.trace.intervals import Bools, Int64s
from speedprof.trace.kernels import CollectivePattern, name_collective
from speedprof.trace.links import Links, rows_around
from speedprof.trace.ranges import RangeKind
from speedprof.trace.raw_columns import RawEvents
from speedprof.trace.schema import int_column, make_table, row_column, text_column
from speedprof.trace.steps import HostSteps


def device_collectives(
    device: RawEvents, is_collective: Bools, collective_of: Sequence[str | None], launches: RawEvents, links: Links
) -> dict[str, pl.Series]:
    """The columns that kernels alone give; `collective_of` says by name number which collective a kernel is."""
    rows = np.flatnonzero(is_collective)
    launch = links.launch_row[rows]
    launched_at = launches.start[np.maximum(launch, 0)] if len(launches) else np.zeros(len(rows), dtype=np.int64)
    used = np.unique(device.name[rows])
    return {
        "name": text_column([collective_of[name] for name in used.tolist()], np.searchsorted(used, device.name[rows])),
        **_declared([device.collective_args.get(row) for row in rows.tolist()]),
        "start_ns": int_column(device.start[rows]),
        "end_ns": int_column(device.end[rows]),
        "stream": int_column(device.track[rows]),
        "thread": row_column(np.full(len(rows), -1)),
        "kernel_row": int_column(rows),
        "launch_start_ns": int_column(launched_at, launch < 0),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class HostWork:
    """Gloo's events on the host, and for each the row of the operator that began it, -1 where that is not known."""

    events: RawEvents
    begun_by: Int64s


def link_gloo(gloo: RawEvents, ops: RawEvents, begins: Bools, texts: Sequence[str]) -> HostWork:
    """Link gloo's events to the operators that began them, for each kind the k-th to the k-th.

        main thread   op 0  op 1              op 2
        gloo thread     ######## 0  ##### 1
        gloo thread                     ######### 2      taken from one queue, first in, first out

    `begins` tells the operators that begin a collective. Events at the head may have been begun before the capture,
    and operators at its tail may not have been carried out in it; where even so an event would begin before its
    operator, its kind is not linked at all.
    """
    op_rows = np.flatnonzero(begins)
    op_kind = np.array([_gloo_kind(texts[name]) for name in ops.name[op_rows].tolist()], dtype=np.str_)
    kind = np.array([_gloo_kind(texts[name]) for name in gloo.name.tolist()], dtype=np.str_)
    begun_by = np.full(len(gloo), -1, dtype=np.int64)
    for one in np.unique(kind):
        mine, theirs = np.flatnonzero(kind == one), op_rows[op_kind == one]
        for skip in range(max(len(mine) - len(theirs), 0), len(mine)):
            begun = theirs[: len(mine) - skip]
            if (gloo.start[mine[skip:]] >= ops.start[begun]).all():
                begun_by[mine[skip:]] = begun
                break
            if skip >= _MAX_BEGUN_BEFORE:
                break
    return HostWork(events=gloo, begun_by=begun_by)


# More collectives than this are never under way when a capture begins.
_MAX_BEGUN_BEFORE = 64
# Gloo carries out a reduce-scatter as an all-reduce, so the two are one kind in its queue.
_GLOO_KINDS = (
    ("reducescatter", "reduce to all"),
    ("allreduce", "reduce to all"),
    ("allgather", "all_gather"),
    ("alltoall", "all_to_all"),
    ("broadcast", "broadcast"),
    ("barrier", "barrier"),
    ("gather", "gather"),
    ("scatter", "scatter"),
    ("reduce", "reduce"),
    ("send", "send"),
    ("recv", "recv"),
)


def _gloo_kind(name: str) -> str:
    """What `c10d::_allgather_base_` and `gloo:all_gather` have in common."""
    plain = name.replace("_", "")
    return next((kind for part, kind in _GLOO_KINDS if part in plain), "other")


def is_collective_op(name: str) -> bool:
    """Whether an operator of this name begins a collective: `c10d::allreduce_`, but no query of c10d."""
    return name.startswith("c10d::") and not name.startswith("c10d::monitored_barrier")


def host_collectives(
    work: HostWork, ops: RawEvents, texts: Sequence[str], patterns: Sequence[CollectivePattern]
) -> dict[str, pl.Series]:
    """The columns that gloo's events and the operators that began them give."""
    gloo, linked = work.events, work.begun_by >= 0
    launched_at = ops.start[work.begun_by] if linked.any() else np.zeros(len(gloo), dtype=np.int64)
    used = np.unique(gloo.name)
    names = [name_collective(texts[name], patterns) or "other" for name in used.tolist()]
    return {
        "name": text_column(names, np.searchsorted(used, gloo.name)),
        **_declared([gloo.collective_args.get(row) for row in range(len(gloo))]),
        "declared_name": _declared_by_ops(work, ops, texts),
        "start_ns": int_column(gloo.start),
        "end_ns": int_column(gloo.end),
        "stream": row_column(np.full(len(gloo), -1)),
        "thread": int_column(gloo.track),
        "kernel_row": row_column(np.full(len(gloo), -1)),
        "launch_start_ns": int_column(launched_at, ~linked),
    }


def host_owners(work: HostWork, ops: RawEvents, ranges: pl.DataFrame, steps: HostSteps) -> tuple[Int64s, Int64s]:
    """The stage's row in ranges and the host step's index of each gloo event, by the operator that began it."""
    linked = work.begun_by >= 0
    stage_row = np.full(len(linked), -1, dtype=np.int64)
    step_index = stage_row.copy()
    if linked.any():
        is_stage = (ranges["kind"] == RangeKind.STAGE.value).to_numpy()
        begun = work.begun_by
        stage_row = rows_around(ranges, is_stage, ops.track[begun], ops.start[begun])
        step_index = steps.index_at(ops.start[begun])
    return stage_row, step_index


def make_collectives(
    columns: dict[str, pl.Series], stage_row: Int64s, host_step: pl.Series, ranges: pl.DataFrame
) -> pl.DataFrame:
    """The table, with the step and the stage that launched each collective."""
    owner = row_column(stage_row)
    stages = {name: ranges[name].gather(owner) for name in ("stage", "group")}
    return make_table("collectives", {**columns, "host_step": host_step, "stage_row": owner, **stages})


def _declared_by_ops(work: HostWork, ops: RawEvents, texts: Sequence[str]) -> pl.Series:
    """What PyTorch called each collective: gloo carries out a reduce-scatter as an all-reduce, and names it so."""
    begun = np.where(work.begun_by >= 0, work.begun_by, 0)
    names = ops.name[begun] if len(ops) else np.zeros(len(begun), dtype=np.int64)
    used = np.unique(names)
    said: list[str | None] = [texts[name].removeprefix("c10d::").strip("_") for name in used.tolist()]
    place = np.where(work.begun_by >= 0, np.searchsorted(used, names), len(said))
    return text_column([*said, None], place)


def _declared(args: list[Args | None]) -> dict[str, pl.Series]:
    """What the file says of each collective beside its name and time; None where it says nothing."""
    known = [Args() if one is None else one for one in args]
    texts = {
        "declared_name": [one.collective for one in known],
        "process_group": [one.process_group for one in known],
        "group_ranks": [one.group_ranks for one in known],
        "dtype": [one.dtype for one in known],
    }
    numbers = {
        "seq": [one.seq for one in known],
        "in_elements": [one.in_elements for one in known],
        "out_elements": [one.out_elements for one in known],
        "group_size": [one.group_size for one in known],
    }
    every = np.arange(len(known))
    columns = {name: text_column(values, every) for name, values in texts.items()}
    for name, values in numbers.items():
        array = np.array(values, dtype=np.int64)
        columns[name] = int_column(array, array == ABSENT)
    return columns
