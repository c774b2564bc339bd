"""From sorted columns of events to the finished tables: link, place, and count what is known only in part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from speedprof.trace.collectives import (
    device_collectives,
    host_collectives,
    host_owners,
    is_collective_op,
    link_gloo,
    make_collectives,
)
from speedprof.trace.devices import find_main_device, note_missing_work, note_other_devices
from speedprof.trace.events import ABSENT
from speedprof.trace.intervals import Bools, Int64s
from speedprof.trace.kernels import (
    CollectivePattern,
    KernelKind,
    classify_kernel,
    name_collective,
    seems_to_communicate,
)
from speedprof.trace.links import Links, find_crossing, find_cut, link_kernels
from speedprof.trace.model import ErrorBudget, Timeline, Trace
from speedprof.trace.ranges import find_top_level, make_ranges
from speedprof.trace.raw_columns import RawEvents
from speedprof.trace.schema import flag_column, int_column, make_table, row_column, text_column
from speedprof.trace.steps import HostSteps, device_windows, find_host_steps, find_main_stream, host_windows
from speedprof.units import format_ns

# Names of templates fill many lines.
_LONGEST_NAME = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class RawTrace:
    """A file's events by what they are, each sorted by start; `name` and `category` number into the lists of text.

    `is_damaged`: more than a negligible part could not be read. `names_device`: the file lists a device of the machine.
    """

    rank: int
    world_size: int | None
    notes: tuple[str, ...]
    is_damaged: bool
    names_device: bool
    texts: list[str]
    categories: list[str]
    ops: RawEvents
    ranges: RawEvents
    gloo: RawEvents
    launches: RawEvents
    device: RawEvents
    span: tuple[int, int] | None


def assemble(raw: RawTrace, patterns: Sequence[CollectivePattern]) -> Trace:
    """The trace; on the device's timeline if there is any device work or should be, else on the host's."""
    collective_of = _collectives_by_name(raw, patterns)
    raw = _of_one_device(raw, collective_of)
    missing = () if len(raw.device) else _note_missing_work(raw)
    on_device = len(raw.device) > 0 or len(missing) > 0
    ranges = make_ranges(raw.ranges, raw.texts)
    steps = find_host_steps(ranges)
    links = link_kernels(raw.device, raw.launches, ranges, steps)
    work = _Work.of(raw, links, collective_of)
    collectives, notes = (
        _device_side(raw, work, ranges, steps) if on_device else _host_side(raw, ranges, steps, patterns)
    )
    return Trace(
        rank=raw.rank,
        world_size=raw.world_size,
        timeline=Timeline.DEVICE if on_device else Timeline.HOST,
        kernels=_make_kernels(raw, work, steps),
        launches=_make_launches(raw),
        ops=_make_ops(raw),
        ranges=ranges,
        collectives=collectives,
        steps=_device_steps(raw, work, steps) if on_device else host_windows(steps, is_whole=not raw.is_damaged),
        error_budget=work.error_budget(),
        is_damaged=raw.is_damaged,
        notes=(*raw.notes, *missing, *notes, *_note_unknown(raw, work), *_note_uncounted(raw, steps)),
    )


def _of_one_device(raw: RawTrace, collective_of: Sequence[str | None]) -> RawTrace:
    """Only the work of the device that computes most; work that does not name its device is taken as that one's."""
    device = raw.device
    if not len(device):
        return raw
    is_compute = np.equal(_kinds(raw, collective_of), list(KernelKind).index(KernelKind.COMPUTE))
    main = find_main_device(device, is_compute)
    kept = (device.device == main) | (device.device == ABSENT)
    notes = note_other_devices(device, main, kept)
    return replace(raw, device=device.take(kept), notes=(*raw.notes, *notes)) if notes else raw


def _note_missing_work(raw: RawTrace) -> tuple[str, ...]:
    return note_missing_work(raw.launches, raw.texts, might_be_lost=raw.names_device and raw.is_damaged)


def _note_unknown(raw: RawTrace, work: _Work) -> tuple[str, ...]:
    """A note if kernels are counted as compute that by their names communicate, with the costliest of them."""
    computing = work.device.take(work.is_kind(KernelKind.COMPUTE))
    names, place = np.unique(computing.name, return_inverse=True)
    lasted_ns = np.zeros(len(names), dtype=np.int64)
    np.add.at(lasted_ns, place, computing.end - computing.start)
    unknown = [at for at, name in enumerate(names.tolist()) if seems_to_communicate(raw.texts[name])]
    if not unknown:
        return ()
    costliest = max(unknown, key=lambda at: int(lasted_ns[at]))
    name, cost = _shorten(raw.texts[names[costliest]]), format_ns(int(lasted_ns[costliest]))
    others = f", like {len(unknown) - 1} more of such names" if len(unknown) > 1 else ""
    return (
        f"the kernel {name} ({cost} in all) is counted as compute{others}: if it communicates and does nothing else, "
        "as its name suggests, --collective-pattern makes it count as communication",
    )


def _shorten(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def _note_uncounted(raw: RawTrace, steps: HostSteps) -> tuple[str, ...]:
    if not raw.is_damaged or not len(steps):
        return ()
    return ("none of its steps is known to be whole, so none counts in a mean",)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """Device events with what was found out about each."""

    device: RawEvents
    links: Links
    collective_of: Sequence[str | None]
    kind: Int64s
    cut: Bools
    crossing: Bools

    @staticmethod
    def of(raw: RawTrace, links: Links, collective_of: Sequence[str | None]) -> _Work:
        device = raw.device
        return _Work(
            device=device,
            links=links,
            collective_of=collective_of,
            kind=_kinds(raw, collective_of),
            cut=find_cut(device, links, raw.span),
            crossing=find_crossing(device),
        )

    def is_kind(self, kind: KernelKind) -> Bools:
        return np.equal(self.kind, list(KernelKind).index(kind))

    def error_budget(self) -> ErrorBudget:
        return ErrorBudget(
            device_events=len(self.device),
            unlinked=int((~self.links.linked).sum()),
            cut=int(self.cut.sum()),
            crossing=int(self.crossing.sum()),
            zero_length=int((self.device.start == self.device.end).sum()),
        )


def _collectives_by_name(raw: RawTrace, patterns: Sequence[CollectivePattern]) -> list[str | None]:
    """By name number the collective that a device event of that name is, None where it is none."""
    used = set(raw.device.name.tolist())
    return [name_collective(text, patterns) if name in used else None for name, text in enumerate(raw.texts)]


def _kinds(raw: RawTrace, collective_of: Sequence[str | None]) -> Int64s:
    """The kind of each device event, as an index into KernelKind."""
    # Decided once for every pair of category and name, not for every event.
    device = raw.device
    pairs, place = np.unique(device.category * len(raw.texts) + device.name, return_inverse=True)
    kinds = [
        list(KernelKind).index(classify_kernel(raw.categories[category], collective_of[name]))
        for category, name in (divmod(pair, len(raw.texts)) for pair in pairs.tolist())
    ]
    return np.array(kinds, dtype=np.int64)[place]


def _device_side(
    raw: RawTrace, work: _Work, ranges: pl.DataFrame, steps: HostSteps
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    is_collective = work.is_kind(KernelKind.COMMUNICATION)
    columns = device_collectives(raw.device, is_collective, work.collective_of, raw.launches, work.links)
    host_step = _step_numbers(steps, work.links.step_index[is_collective])
    return make_collectives(columns, work.links.stage_row[is_collective], host_step, ranges), ()


def _host_side(
    raw: RawTrace, ranges: pl.DataFrame, steps: HostSteps, patterns: Sequence[CollectivePattern]
) -> tuple[pl.DataFrame, tuple[str, ...]]:
    begins = np.array([is_collective_op(text) for text in raw.texts], dtype=np.bool_)[raw.ops.name]
    work = link_gloo(raw.gloo, raw.ops, begins, raw.texts)
    stage_row, step_index = host_owners(work, raw.ops, ranges, steps)
    columns = host_collectives(work, raw.ops, raw.texts, patterns)
    table = make_collectives(columns, stage_row, _step_numbers(steps, step_index), ranges)
    unlinked = int((work.begun_by < 0).sum())
    note = f"{unlinked} gloo collectives could not be linked to what began them: stages do not include them"
    return table, (note,) if unlinked else ()


def _make_kernels(raw: RawTrace, work: _Work, steps: HostSteps) -> pl.DataFrame:
    device, links, launches = raw.device, work.links, raw.launches
    launch = links.launch_row
    at_launch = np.maximum(launch, 0) if len(launches) else np.zeros(0, dtype=np.int64)
    launch_start = launches.start[at_launch] if len(launches) else np.zeros(len(device), dtype=np.int64)
    launch_thread = launches.track[at_launch] if len(launches) else np.zeros(len(device), dtype=np.int64)
    placed_by = np.where(links.linked, 0, np.where(links.placed_before >= 0, 1, 2))
    return make_table(
        "kernels",
        {
            "name": text_column(raw.texts, device.name),
            "kind": text_column([kind.value for kind in KernelKind], work.kind),
            "device": int_column(device.device, device.device == ABSENT),
            "stream": int_column(device.track),
            "start_ns": int_column(device.start),
            "end_ns": int_column(device.end),
            "correlation": int_column(device.correlation, device.correlation == ABSENT),
            "linked": flag_column(links.linked),
            "launch_row": row_column(launch),
            "launch_start_ns": int_column(launch_start, ~links.linked),
            "launch_thread": int_column(launch_thread, ~links.linked),
            "placed_by": text_column(["launch", "stream_order", None], placed_by),
            "host_step": _step_numbers(steps, links.step_index),
            "range_row": row_column(links.range_row),
            "stage_row": row_column(links.stage_row),
            "cut": flag_column(work.cut),
            "crossing": flag_column(work.crossing),
        },
    )


def _make_launches(raw: RawTrace) -> pl.DataFrame:
    launches = raw.launches
    return make_table(
        "launches",
        {
            "name": text_column(raw.texts, launches.name),
            "thread": int_column(launches.track),
            "start_ns": int_column(launches.start),
            "end_ns": int_column(launches.end),
            "correlation": int_column(launches.correlation, launches.correlation == ABSENT),
        },
    )


def _make_ops(raw: RawTrace) -> pl.DataFrame:
    ops = raw.ops
    return make_table(
        "ops",
        {
            "name": text_column(raw.texts, ops.name),
            "thread": int_column(ops.track),
            "start_ns": int_column(ops.start),
            "end_ns": int_column(ops.end),
            "top_level": flag_column(find_top_level(ops.track, ops.start, ops.end)),
            "external_id": int_column(ops.external_id, ops.external_id == ABSENT),
        },
    )


def _device_steps(raw: RawTrace, work: _Work, steps: HostSteps) -> pl.DataFrame:
    device = raw.device
    is_compute = work.is_kind(KernelKind.COMPUTE)
    main = find_main_stream(device.track, device.start, device.end, is_compute)
    launched_in = np.where(work.links.linked, work.links.step_index, -1)
    # Where nothing computes, any stream may open a window.
    on_main = np.ones(len(device), dtype=np.bool_) if main is None else device.track == main
    last_end = int(device.end.max()) if len(device) else 0
    return device_windows(steps, launched_in, device.start, on_main, last_end, is_whole=not raw.is_damaged)


def _step_numbers(steps: HostSteps, index: Int64s) -> pl.Series:
    return int_column(steps.step[index] if len(steps) else np.zeros(len(index), dtype=np.int64), index < 0)
