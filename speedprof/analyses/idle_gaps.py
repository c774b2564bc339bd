"""When has the device nothing to do, why, and what was the host doing then?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from speedprof.analyses.breakdown import find_window
from speedprof.analyses.gap_causes import CauseTime, GapCause, HostEvents, LateTime, find_doing, find_host_causes
from speedprof.analyses.traced_steps import in_traced_windows
from speedprof.trace.intervals import Bools, Int64s, Intervals, union
from speedprof.trace.model import Timeline, Trace
from speedprof.trace.schema import NAME, int_column, text_column, to_numpy

__all__ = ["GapCause", "GapGroup", "IdleGaps", "measure_idle_gaps"]

# Kernels that follow one another on a stream begin 1 to 3 µs apart, and a launch reaches an idle device in about 5:
# nothing that the host does makes gaps shorter than that.
LAUNCH_RESOLUTION_NS = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GapGroup:
    """Idle time of one cause with the same range, operator and call on the host, over the traced training steps.

    `num_gaps` counts the gaps that it has a part in. The longest is that of its rows of `IdleGaps.table`;
    `longest_step` is None before the first step window.
    """

    cause: GapCause
    range: str | None
    op: str | None
    call: str | None
    num_gaps: int
    total_ns: int
    longest_ns: int
    longest_start_ns: int
    longest_step: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class IdleGaps:
    """The idle time of one rank, gap by gap.

    `table` covers the whole capture, sorted by start, and tiles the idle time of the partition exactly. A gap is cut
    where the work that ends it is launched, before that where what the host is late for changes (see `GapCause`), and
    where a step's window begins, so that a row has one cause and one step:
    `start_ns`, `end_ns`, `cause`, `step` (of the window it lies in, null before the first), `range`, `op` and `call`
    (what the host was at, null where not known) and `kernel` (the work that ends the gap).

    Of a late launch without further cause, `op` is the operator that launched, or where none did the operator or call
    that took most of the row's time, null where nothing ran on record, and `call` the launch. With a cause that the
    trace shows, they are those of the cause: the synchronizing call and the operator around it, or the operator that
    loads data. `range` is the innermost range of the user's around that, or where there is none the call of a compiled
    graph.

    `groups`, costliest first, and `by_cause` (ns, costliest first) cover the traced training steps alone, or the whole
    capture where there are none. On a host timeline everything is empty.
    """

    table: pl.DataFrame
    groups: tuple[GapGroup, ...]
    by_cause: dict[GapCause, int]


def measure_idle_gaps(trace: Trace) -> IdleGaps:
    """Every stretch of the capture in which the device ran nothing, and why."""
    if trace.timeline is Timeline.HOST or trace.kernels.is_empty():
        return IdleGaps(table=_empty_table(), groups=(), by_cause={})
    rows = _make_rows(trace, _find_gaps(trace))
    groups = _group(rows.filter(pl.Series(in_traced_windows(trace, to_numpy(rows["start_ns"])))))
    by_cause: dict[GapCause, int] = {}
    for group in groups:
        by_cause[group.cause] = by_cause.get(group.cause, 0) + group.total_ns
    return IdleGaps(
        table=rows.drop("gap"),
        groups=groups,
        by_cause=dict(sorted(by_cause.items(), key=lambda item: -item[1])),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Gaps:
    """Whole gaps, the row in kernels of the work that ends each, and of its launch (-1 for none) row and start.

    `launched` is the launch's start, moved into the gap: its start where the work was launched before it.
    """

    idle: Intervals
    kernel_row: Int64s
    launch_row: Int64s
    launched: Int64s


def _find_gaps(trace: Trace) -> _Gaps:
    kernels = trace.kernels
    start, end = to_numpy(kernels["start_ns"]), to_numpy(kernels["end_ns"])
    linked = np.asarray(kernels["linked"].to_numpy(), dtype=np.bool_)
    idle = _find_idle(start, end, find_window(trace))
    kernel_row = np.full(len(idle), -1, dtype=np.int64)
    # Of several that begin where the gap ends, the best known; last of all an event of zero length, which ends a gap
    # only at the end of the capture.
    for wanted in (linked & (end > start), end > start, linked, np.ones(len(kernels), dtype=np.bool_)):
        kernel_row = np.where(kernel_row < 0, _first_at(start, wanted, idle.end), kernel_row)
    launch_row = to_numpy(kernels["launch_row"].fill_null(-1))[kernel_row]
    launched = to_numpy(kernels["launch_start_ns"].fill_null(0))[kernel_row]
    launched = np.where(launch_row < 0, idle.start, np.clip(launched, idle.start, idle.end))
    return _Gaps(idle=idle, kernel_row=kernel_row, launch_row=launch_row, launched=launched)


def _find_idle(start: Int64s, end: Int64s, window: tuple[int, int]) -> Intervals:
    """What is left of the window between the work; at its borders that is time up to an event of zero length."""
    busy = union(start, end)
    begins, ends = np.append(window[0], busy.end), np.append(busy.start, window[1])
    return Intervals(start=begins[begins < ends], end=ends[begins < ends])


def _first_at(start: Int64s, wanted: Bools, times: Int64s) -> Int64s:
    """The first wanted row that starts at each time, -1 for none."""
    rows = np.flatnonzero(wanted)
    at = np.searchsorted(start[rows], times)
    found = np.full(len(times), -1, dtype=np.int64)
    inside = np.flatnonzero(at < len(rows))
    row = rows[at[inside]]
    found[inside] = np.where(start[row] == times[inside], row, -1)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Rows of the table: each is a part of the gap with this index, and `is_late` before the launch that ends it."""

    gap: Int64s
    start: Int64s
    end: Int64s
    is_late: Bools


def _cut(gaps: _Gaps, times: Int64s) -> _Rows:
    """Every gap cut at the launch that ends it and at those of the times that lie in it."""
    borders = np.sort(np.concatenate((times, gaps.launched)))
    borders = borders[np.diff(borders, append=np.iinfo(np.int64).max) > 0]
    first = np.searchsorted(borders, gaps.idle.start, side="right")
    count = np.searchsorted(borders, gaps.idle.end) - first + 1
    gap = np.repeat(np.arange(len(gaps.idle)), count)
    is_first = np.diff(gap, prepend=-1) > 0
    is_last = np.diff(gap, append=len(gaps.idle)) > 0
    # The borders inside a gap, in order: where each of its parts but the last ends, and each but the first begins.
    inside = borders[np.arange(count.sum()) - np.repeat(np.cumsum(count) - count - first, count) - is_last]
    start = np.where(is_first, gaps.idle.start[gap], np.roll(inside, 1))
    end = np.where(is_last, gaps.idle.end[gap], inside)
    return _Rows(gap=gap, start=start, end=end, is_late=start < gaps.launched[gap])


def _make_rows(trace: Trace, gaps: _Gaps) -> pl.DataFrame:
    """The table, and in the column gap which gap each row is a part of."""
    events = HostEvents.of(trace)
    late = LateTime(start=gaps.idle.start, end=gaps.launched, launch_row=gaps.launch_row)
    causes = find_host_causes(events, late.take(gaps.launched > gaps.idle.start))
    borders = [border for one in causes for border in (one.start, one.end)]
    rows = _cut(gaps, np.concatenate((_step_starts(trace), *borders)))
    cause, blamed, doing = _blame(events, rows, gaps.launch_row[rows.gap], causes)
    return _join_equal(
        pl.DataFrame(
            [
                int_column(rows.start).alias("start_ns"),
                int_column(rows.end).alias("end_ns"),
                text_column([one.value for one in _CAUSES], cause).alias("cause"),
                _steps_at(trace, rows.start).alias("step"),
                *_names(events, blamed, doing),
                trace.kernels["name"].gather(gaps.kernel_row[rows.gap]).alias("kernel"),
                int_column(rows.gap).alias("gap"),
            ]
        )
    )


_CAUSES = tuple(GapCause)


def _blame(
    events: HostEvents, rows: _Rows, launch_row: Int64s, causes: list[CauseTime]
) -> tuple[Int64s, Int64s, Int64s]:
    """Of each row the index of its cause, the row of `HostEvents` to blame, and where the launch is late for no reason
    that shows, the one that took most of the time; -1 for none."""
    is_short = rows.end - rows.start <= LAUNCH_RESOLUTION_NS
    cause = np.where(is_short, _CAUSES.index(GapCause.BELOW_LAUNCH_RESOLUTION), _CAUSES.index(GapCause.QUEUED))
    cause[launch_row < 0] = _CAUSES.index(GapCause.UNLINKED)
    cause[rows.is_late] = _CAUSES.index(GapCause.LATE_LAUNCH)
    launch = np.where(launch_row < 0, -1, events.first_launch + launch_row)
    blamed = launch.copy()
    for one in reversed(causes):
        # Their parts lie before launches, and rows are cut at the borders of each: a row lies in one or outside it.
        found = one.blamed_at(rows.start)
        cause[found >= 0] = _CAUSES.index(one.cause)
        blamed[found >= 0] = found[found >= 0]
    doing = np.full(len(blamed), -1, dtype=np.int64)
    late = np.flatnonzero(cause == _CAUSES.index(GapCause.LATE_LAUNCH))
    doing[late] = find_doing(events, LateTime(start=rows.start[late], end=rows.end[late], launch_row=launch_row[late]))
    return cause, blamed, doing


def _join_equal(rows: pl.DataFrame) -> pl.DataFrame:
    """Rows that meet in a gap and say the same made one, as of calls that follow one another at once."""
    said = [pl.col(name).to_physical() for name in ("gap", "cause", "step", "range", "op", "call")]
    differs = rows.select(pl.any_horizontal(one.ne_missing(one.shift()) for one in said)).to_series()
    first = np.flatnonzero(differs.to_numpy())
    last = np.append(first[1:], len(rows)) - 1
    return rows[first].with_columns(rows["end_ns"].gather(last)) if len(first) < len(rows) else rows


def _names(events: HostEvents, blamed: Int64s, doing: Int64s) -> list[pl.Series]:
    """The columns range, op and call around the event that is to blame in each row (-1 for none), itself included."""
    known = np.flatnonzero(blamed >= 0)
    row = blamed[known]
    thread, at = events.spans.track[row], events.spans.start[row]
    is_call, is_op = row >= events.first_launch, row < events.first_range
    op = np.where(is_op, row, events.op_at(thread, at))
    op = np.where(op < 0, doing[known], op)
    names = {
        "range": np.where(is_call | is_op, events.range_at(thread, at), row),
        "op": op,
        "call": np.where(is_call, row, -1),
    }
    columns = []
    for name, found in names.items():
        rows = np.full(len(blamed), -1, dtype=np.int64)
        rows[known] = found
        columns.append(events.named(rows).alias(name))
    return columns


def _step_starts(trace: Trace) -> Int64s:
    return to_numpy(trace.steps["start_ns"].drop_nulls())


def _steps_at(trace: Trace, times: Int64s) -> pl.Series:
    """The number of the step in whose window each time lies, null before the first."""
    windows = trace.steps.filter(pl.col("start_ns").is_not_null())
    at = np.searchsorted(to_numpy(windows["start_ns"]), times, side="right") - 1
    return windows["step"].gather(int_column(at, at < 0))


def _group(table: pl.DataFrame) -> tuple[GapGroup, ...]:
    ns = pl.col("end_ns") - pl.col("start_ns")
    longest = ns.arg_max()
    found = (
        table.group_by("cause", "range", "op", "call", maintain_order=True)
        .agg(
            pl.col("gap").n_unique().cast(pl.Int64).alias("num_gaps"),
            ns.sum().alias("total_ns"),
            ns.max().alias("longest_ns"),
            pl.col("start_ns").get(longest).alias("longest_start_ns"),
            pl.col("step").get(longest).alias("longest_step"),
        )
        .sort("total_ns", descending=True, maintain_order=True)
    )
    return tuple(GapGroup(**{**row, "cause": GapCause(row["cause"])}) for row in found.iter_rows(named=True))


def _empty_table() -> pl.DataFrame:
    schema = {name: pl.Int64() for name in ("start_ns", "end_ns", "step")}
    names = ("start_ns", "end_ns", "cause", "step", "range", "op", "call", "kernel")
    return pl.DataFrame(schema={name: schema.get(name, NAME) for name in names})
