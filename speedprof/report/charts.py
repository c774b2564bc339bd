"""Where every mark of a chart lies: numbers in, SVG path data out. The templates draw it and know no arithmetic.

One path holds all marks of a kind, so a chart of 8 ranks and 1,000 steps is a few hundred kB. Coordinates are px.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import polars as pl

from speedprof.analyses.analysis import RankAnalysis
from speedprof.analyses.breakdown import Partition
from speedprof.analyses.step_time import StepTime
from speedprof.report.answers import format_count
from speedprof.report.tables import PARTS
from speedprof.step_log import StepLog
from speedprof.step_records import Mark
from speedprof.units import NS_PER_MS, format_ms

WIDTH = 1040
LEFT = 64
RIGHT = WIDTH - 16
TOP = 14
_MAX_COLUMN_WIDTH = 56
# More steps than this would be columns under a pixel wide.
_MOST_COLUMNS = 1_000
# A chart of fewer is as wide as one of so many.
_FEWEST_COLUMNS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """Values from `low` to `high`, laid from px `start` to px `end`."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        span = self.high - self.low
        return self.start + (value - self.low) / span * (self.end - self.start) if span else self.start

    def ticks(self, num_wanted: int, *, smallest: float = 0.0) -> tuple[Tick, ...]:
        """About so many ticks at round values, `smallest` or more apart."""
        size = round_up(max((self.high - self.low) / num_wanted, smallest))
        decimals = max(0, -math.floor(math.log10(size)) + (1 if f"{size:e}"[:3] == "2.5" else 0))
        first, last = math.ceil(self.low / size), math.floor(self.high / size)
        return tuple(
            Tick(at=round(self.at(k * size), 1), label=f"{k * size:.{decimals}f}") for k in range(first, last + 1)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """All marks of one kind: `name` is their CSS class, `path` their outline."""

    name: str
    label: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart: its marks, its axes, and in words what it shows. `line_at` is where the typical step lies.

    `legend` holds one mark of each kind at the origin, where a chart has a legend of its own.
    """

    title: str
    description: str
    height: float
    shapes: tuple[Shape, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    line_at: float | None = None
    line_label: str = ""
    remark: str = ""
    x_name: str = "step"
    y_name: str = "ms"
    legend: tuple[Shape, ...] = ()
    width: float = WIDTH

    @property
    def bottom(self) -> float:
        return self.height - 24

    @property
    def right(self) -> float:
        return self.width - (WIDTH - RIGHT)


MARK_LABELS = {
    Mark.WARMUP: "warm-up",
    Mark.CLEAN: "clean",
    Mark.TRANSITION: "profiler starting or stopping",
    Mark.PROFILED: "profiled",
}

# Each kind of step has a shape of its own besides its colour: cross, dot, diamond, square.
_OUTLINES = {
    Mark.WARMUP: "m-3-3l6 6m0-6l-6 6",
    Mark.CLEAN: "m-2.5 0a2.5 2.5 0 1 0 5 0a2.5 2.5 0 1 0-5 0",
    Mark.TRANSITION: "m0-4.5l4 4.5l-4 4.5l-4-4.5z",
    Mark.PROFILED: "m-2.5-2.5h5v5h-5z",
}


def timed_steps(log: StepLog) -> pl.DataFrame:
    """The training steps with `time_ns`: device time where there is one, else host time."""
    timed = log.steps.filter(pl.col("kind") == "train").with_columns(time_ns=pl.coalesce("device_ns", "host_ns"))
    return timed.drop_nulls("time_ns").sort("rank", "step")


def draw_step_times(log: StepLog, step_times: Sequence[StepTime]) -> tuple[Chart, ...]:
    """A chart of every step for each rank, all on the same axes."""
    timed = timed_steps(log)
    if timed.is_empty():
        return ()
    ranks = log.ranks
    height = 190 if len(ranks) <= 4 else 140
    first, last = timed["step"].to_numpy().min(), timed["step"].to_numpy().max()
    x_axis = Axis(low=float(first), high=float(max(last, first + 1)), start=LEFT + 12, end=RIGHT - 8)
    low_ms, high_ms = _time_range(timed)
    y_axis = Axis(low=low_ms, high=high_ms, start=height - 24, end=TOP)
    typical = {one.rank: one for one in step_times}
    return tuple(
        _draw_rank(rank, timed.filter(pl.col("rank") == rank), x_axis, y_axis, typical.get(rank), height)
        for rank in ranks
    )


def draw_steps(rank: RankAnalysis, *, longest_ns: int, height: float = 190) -> Chart | None:
    """A column for each traced step of a rank; `longest_ns` is the top of the axis, the same for all ranks."""
    steps = rank.breakdown.steps[:_MOST_COLUMNS]
    if not steps:
        return None
    num_left_out = len(rank.breakdown.steps) - len(steps)
    y_axis = Axis(low=0, high=longest_ns / NS_PER_MS, start=height - 24, end=TOP)
    pitch = min((RIGHT - LEFT) / len(steps), _MAX_COLUMN_WIDTH)
    lefts = [LEFT + 6 + k * pitch for k in range(len(steps))]
    shapes = _draw_columns([step.partition for step in steps], lefts, max(0.8 * pitch, 0.5), y_axis)
    every = math.ceil(len(steps) / 20)
    labels = [(left + 0.4 * pitch, str(step.step)) for left, step in zip(lefts, steps, strict=True)]
    return Chart(
        title=f"Traced steps of rank {rank.rank}",
        description=f"{format_count(len(steps), 'traced step')} of rank {rank.rank}, each a column cut into compute, "
        "exposed communication, exposed copy and idle time. The table below holds every number.",
        height=height,
        shapes=shapes,
        x_ticks=tuple(Tick(at=round(at, 1), label=label) for at, label in labels[::every]),
        y_ticks=y_axis.ticks(4),
        remark=f"{format_count(num_left_out, 'later step')} left out." if num_left_out else "",
        width=round(min(WIDTH, LEFT + 6 + pitch * max(len(steps), _FEWEST_COLUMNS) + WIDTH - RIGHT), 1),
    )


def _draw_rank(
    rank: int, steps: pl.DataFrame, x_axis: Axis, y_axis: Axis, typical: StepTime | None, height: int
) -> Chart:
    shapes = []
    for mark, outline in _OUTLINES.items():
        rows = steps.filter(pl.col("mark") == mark).select("step", "time_ns").rows()
        points = (f"M{px(x_axis.at(step))} {px(_inside(y_axis, ns / NS_PER_MS))}{outline}" for step, ns in rows)
        shapes.append(Shape(name=mark.value, label=MARK_LABELS[mark], path="".join(points)))
    num_above = int((steps["time_ns"] > y_axis.high * NS_PER_MS).sum())
    slowest_ns = int(steps["time_ns"].to_numpy().max()) if steps.height else 0
    above = f"{format_count(num_above, 'step')} above the axis, drawn at its edge: up to {format_ms(slowest_ns)} ms."
    label = _typical_label(typical) if typical else ""
    in_words = f" Its typical clean step: {label}." if label else ""
    return Chart(
        title=f"Step times of rank {rank}",
        description=f"Time of {format_count(steps.height, 'step')} of rank {rank} in ms, by step.{in_words} "
        "The table below holds every number.",
        height=height,
        shapes=tuple(shapes),
        x_ticks=x_axis.ticks(10, smallest=1),
        y_ticks=y_axis.ticks(4),
        line_at=round(_inside(y_axis, typical.typical_ns / NS_PER_MS), 1) if typical else None,
        line_label=label,
        remark=above if num_above else "",
    )


def _typical_label(one: StepTime) -> str:
    if one.levels_ns:
        return f"mean {format_ms(one.mean_ns)} ms: {' and '.join(map(format_ms, one.levels_ns))} ms in turn"
    return f"median {format_ms(one.median_ns)} ms"


def _time_range(timed: pl.DataFrame) -> tuple[float, float]:
    """The axis in ms. Clean and profiled steps set it: warm-up and the profiler's start may take a thousand times as
    long, and one clean step at most four medians."""
    settled = timed.filter(pl.col("mark").is_in([Mark.CLEAN, Mark.PROFILED]))
    times_ns = (settled if settled.height else timed)["time_ns"].to_numpy()
    middle = float(pl.Series(times_ns).median() or 0)  # type: ignore[arg-type]
    low, high = float(times_ns.min()), min(float(times_ns.max()), 4 * middle)
    margin = max(0.12 * (high - low), 0.02 * high, 1.0)
    # From zero, unless the times lie so close together that nothing could be told apart.
    bottom = low - margin if low > 0.6 * high else 0.0
    return max(0.0, bottom) / NS_PER_MS, (high + margin) / NS_PER_MS


def _draw_columns(
    partitions: Sequence[Partition], lefts: Sequence[float], width: float, y_axis: Axis
) -> tuple[Shape, ...]:
    paths: dict[str, list[str]] = {name: [] for name, _, _ in PARTS}
    for partition, left in zip(partitions, lefts, strict=True):
        below_ms = 0.0
        for name, _, measure in PARTS:
            bottom, top = y_axis.at(below_ms), y_axis.at(below_ms + measure(partition) / NS_PER_MS)
            below_ms += measure(partition) / NS_PER_MS
            if bottom - top >= 0.05:
                paths[name].append(_rectangle(left, top, width, bottom - top))
    return tuple(Shape(name=name, label=label, path="".join(paths[name])) for name, label, _ in PARTS)


def round_up(size: float) -> float:
    """The next of 1, 2, 2.5, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(size)) if size > 0 else 1.0
    return next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= 0.999 * size)


def _inside(axis: Axis, value: float) -> float:
    return axis.at(min(max(value, axis.low), axis.high))


def _rectangle(x: float, y: float, width: float, height: float) -> str:
    return f"M{px(x)} {px(y)}h{px(width)}v{px(height)}h{px(-width)}z"


def px(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def longest_step_ns(ranks: Iterable[RankAnalysis]) -> int:
    """The longest traced step of any rank; 0 where there is none."""
    return max((step.partition.window_ns for rank in ranks for step in rank.breakdown.steps), default=0)
