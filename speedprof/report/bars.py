"""Stacked bars, one for each rank: where its step goes, what its exposed communication is, why it idles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speedprof.analyses.analysis import RankAnalysis
from speedprof.report.charts import LEFT, RIGHT, TOP, Axis
from speedprof.report.device_tables import idle_causes
from speedprof.report.document import Report
from speedprof.report.means import device_ranks, num_windows, per_what, traced_split
from speedprof.report.names import CAUSE_LABELS
from speedprof.report.tables import PARTS
from speedprof.units import format_ms, format_percent

_BAR_HEIGHT = 26
_BAR_PITCH = 40
_SMALLEST_LABELLED = 48  # px
_MOST_BARS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class BarPart:
    """`name` is its CSS class; `label` is empty where it would not fit."""

    name: str
    x: float
    width: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    label: str
    y: float
    end: float
    total: str
    parts: tuple[BarPart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BarChart:
    """`legend` holds the CSS class and the meaning of each part."""

    title: str
    description: str
    height: float
    bar_height: float
    bars: tuple[Bar, ...]
    legend: tuple[tuple[str, str], ...]


def draw_mean_steps(report: Report) -> BarChart | None:
    """A bar for each rank: its mean traced step, or its whole capture where it has no step."""
    ranks = [rank for rank in report.analysis.ranks if rank.breakdown.window_ns]
    legend = tuple((name, label) for name, label, _ in PARTS)
    return _draw("Where a traced step goes, by rank", ranks, [_mean_partition(rank) for rank in ranks], legend)


def draw_exposed(report: Report) -> BarChart | None:
    """A bar for each rank: what its exposed communication is, in a step or in the capture."""
    ranks = [rank for rank in report.analysis.ranks if not rank.is_damaged]
    splits = [traced_split(rank) for rank in ranks]
    lengths = [
        [ns / num_windows(rank) for ns in (split.wait_ns, split.transfer_ns, split.unsplit_ns)]
        for rank, split in zip(ranks, splits, strict=True)
    ]
    legend = (
        ("wait", "waiting for the last rank"),
        ("transfer", "transfer"),
        ("unsplit", "not known which"),
    )
    return _draw(f"Exposed communication by rank, ms {per_what(ranks)}", ranks, lengths, legend)


def draw_idle(report: Report) -> BarChart | None:
    """A bar for each rank: why its device idles, in a step or in the capture."""
    ranks, causes = device_ranks(report.analysis), idle_causes(report)
    lengths = [[rank.idle.by_cause.get(cause, 0) / num_windows(rank) for cause in causes] for rank in ranks]
    legend = tuple((cause.value, CAUSE_LABELS[cause]) for cause in causes)
    return _draw(f"Idle time of the device by cause, ms {per_what(ranks)}", ranks, lengths, legend)


def _draw(
    title: str, ranks: Sequence[RankAnalysis], lengths: Sequence[Sequence[float]], legend: tuple[tuple[str, str], ...]
) -> BarChart | None:
    """None where every bar would be empty. Only parts that some bar has stand in the legend."""
    longest = max((sum(parts) for parts in lengths), default=0.0)
    if not longest:
        return None
    axis = Axis(low=0, high=longest, start=LEFT, end=RIGHT - 84)
    drawn = list(zip(ranks, lengths, strict=True))[:_MOST_BARS]
    left_out = f" {len(ranks) - len(drawn)} more ranks are left out." if len(ranks) > len(drawn) else ""
    return BarChart(
        title=title,
        description=" ".join(_describe(rank, parts, legend) for rank, parts in drawn) + left_out,
        height=TOP + len(drawn) * _BAR_PITCH,
        bar_height=_BAR_HEIGHT,
        bars=tuple(_draw_bar(rank, parts, axis, TOP + k * _BAR_PITCH, legend) for k, (rank, parts) in enumerate(drawn)),
        legend=tuple(one for k, one in enumerate(legend) if any(parts[k] for _, parts in drawn)),
    )


def _draw_bar(
    rank: RankAnalysis, parts: Sequence[float], axis: Axis, y: float, legend: Sequence[tuple[str, str]]
) -> Bar:
    whole = sum(parts)
    left = axis.start
    drawn = []
    for (name, _), part in zip(legend, parts, strict=True):
        width = axis.at(part) - axis.start
        label = format_percent(part / whole) if width >= _SMALLEST_LABELLED else ""
        drawn.append(BarPart(name=name, x=round(left, 2), width=round(width, 2), label=label))
        left += width
    return Bar(label=f"rank {rank.rank}", y=y, end=round(left, 2), total=f"{format_ms(whole)} ms", parts=tuple(drawn))


def _describe(rank: RankAnalysis, parts: Sequence[float], legend: Sequence[tuple[str, str]]) -> str:
    whole = sum(parts)
    named = (f"{label} {format_percent(part / whole)}" for (_, label), part in zip(legend, parts, strict=True) if part)
    return f"Rank {rank.rank}: {format_ms(whole)} ms{''.join(f', {one}' for one in named)}."


def _mean_partition(rank: RankAnalysis) -> list[float]:
    windows = [step.partition for step in rank.breakdown.steps] or [rank.breakdown.partition]
    return [sum(measure(window) for window in windows) / len(windows) for _, _, measure in PARTS]
