"""The device by itself as tables: its idle time, what launching costs, and the kernels that cost most."""

from __future__ import annotations

from collections.abc import Iterator

from speedprof.analyses.analysis import RankAnalysis
from speedprof.analyses.idle_gaps import GapCause, GapGroup
from speedprof.report.document import Report
from speedprof.report.means import device_ranks, mean_over_ranks, num_windows, per_what, whole_ranks
from speedprof.report.names import (
    CAUSE_LABELS,
    CAUSE_MEANINGS,
    format_stage,
    shorten,
    shorten_kernel,
    shorten_range,
)
from speedprof.report.text_table import ABSENT, TextTable
from speedprof.trace.model import Timeline
from speedprof.units import NS_PER_US, format_ms, format_percent

_LONGEST_PLACE = 40


def idle_causes(report: Report) -> list[GapCause]:
    """The causes of idle time that any rank has, in the order of `GapCause`."""
    return [
        cause for cause in GapCause if any(rank.idle.by_cause.get(cause, 0) for rank in device_ranks(report.analysis))
    ]


def idle_table(report: Report) -> TextTable:
    """The idle time of each rank's device by its cause."""
    ranks, causes = device_ranks(report.analysis), idle_causes(report)
    meanings = "; ".join(f"{CAUSE_LABELS[cause]}: {CAUSE_MEANINGS[cause]}" for cause in causes)
    return TextTable(
        title=f"Idle time of the device by cause, ms {per_what(ranks)}",
        columns=("rank", "idle", *(CAUSE_LABELS[cause] for cause in causes)),
        rows=tuple(_idle_row(rank, causes) for rank in ranks) if causes else (),
        num_labels=1,
        remark=f"{meanings[:1].upper()}{meanings[1:]}." if meanings else "",
        weights=tuple(_idle_ns(rank) for rank in ranks) if causes else (),
    )


def _idle_ns(rank: RankAnalysis) -> float:
    return sum(rank.idle.by_cause.values()) / num_windows(rank)


def _idle_row(rank: RankAnalysis, causes: list[GapCause]) -> tuple[str, ...]:
    times = (rank.idle.by_cause.get(cause, 0) / num_windows(rank) for cause in causes)
    return (str(rank.rank), format_ms(_idle_ns(rank)), *map(format_ms, times))


def gap_table(report: Report) -> TextTable:
    """Idle time by its cause and by the range of the host, or the operator outside every range, over all ranks."""
    ranks = [rank for rank in whole_ranks(report.analysis) if rank.breakdown.timeline is Timeline.DEVICE]
    means = mean_over_ranks(ranks, _gap_totals)
    longest: dict[_GapKey, tuple[RankAnalysis, GapGroup]] = {}
    for rank in ranks:
        for group in rank.idle.groups:
            known = longest.get(_gap_key(group))
            if known is None or group.longest_ns > known[1].longest_ns:
                longest[_gap_key(group)] = rank, group
    ordered = sorted(means, key=lambda key: -means[key][1])
    return TextTable(
        title=f"Idle time by what the host was at, ms {per_what(ranks)}{', mean over ranks' if len(ranks) > 1 else ''}",
        columns=("cause", "the host was in", "in the longest gap", "which is at", "gaps", "time", "longest"),
        rows=tuple(_gap_row(means[key], *longest[key]) for key in ordered),
        num_labels=4,
        remark="The host was in: its innermost range, or the operator outside every range. Which is at: ms since the "
        "step's window, or the capture, began. report.json has the 50 costliest of a rank by operator and call.",
    )


_GapKey = tuple[GapCause, str | None]


def _gap_key(group: GapGroup) -> _GapKey:
    return group.cause, _place(group)


def _place(group: GapGroup) -> str | None:
    return shorten_range(group.range) if group.range else group.op


def _gap_totals(rank: RankAnalysis) -> Iterator[tuple[_GapKey, tuple[int, ...]]]:
    for group in rank.idle.groups:
        yield _gap_key(group), (group.num_gaps, group.total_ns)


def _gap_row(means: list[float], rank: RankAnalysis, group: GapGroup) -> tuple[str, ...]:
    num_gaps, total_ns = means
    place = _place(group)
    return (
        CAUSE_LABELS[group.cause],
        shorten(place, _LONGEST_PLACE) if place else "nothing recorded",
        _format_calls(group, place) or ABSENT,
        _format_instant(rank, group),
        f"{num_gaps:.3g}" if num_gaps < 1_000 else f"{num_gaps:,.0f}",
        format_ms(total_ns),
        format_ms(group.longest_ns),
    )


def _format_calls(group: GapGroup, place: str | None) -> str:
    """The operator of the host, and its call where that is the cause: of a launch nobody asks by which."""
    is_launch = group.cause in (GapCause.LATE_LAUNCH, GapCause.QUEUED, GapCause.BELOW_LAUNCH_RESOLUTION)
    names = dict.fromkeys((group.op, None if is_launch and group.op else group.call))
    return " > ".join(shorten(name, _LONGEST_PLACE) for name in names if name and name != place)


def _format_instant(rank: RankAnalysis, group: GapGroup) -> str:
    """Where a group's longest gap is: `rank 1, step 11 +3.215`, in ms since the step's window began."""
    for segment in rank.breakdown.segments:
        if segment.start_ns <= group.longest_start_ns < segment.end_ns:
            where = "" if segment.step is None else f", step {segment.step}"
            return f"rank {rank.rank}{where} +{format_ms(group.longest_start_ns - segment.start_ns)}"
    return f"rank {rank.rank}"


def launch_table(report: Report) -> TextTable:
    """What launching work costs the host of each rank, and how far it is ahead."""
    ranks = [rank for rank in device_ranks(report.analysis) if rank.launches.num_launches]
    return TextTable(
        title=f"Launches, {per_what(ranks)}",
        columns=("rank", "launches", "kernels", "launching ms", "median launch us", "median lead ms", "late", "short"),
        rows=tuple(_launch_row(rank) for rank in ranks),
        num_labels=1,
        remark="Launching: time in launching calls. Lead: how long work lies in the queue before it starts. Late: the "
        "device had nothing left to do. Short: kernels that take less time than their own launch.",
        weights=tuple(rank.launches.launch_ns / num_windows(rank) for rank in ranks),
    )


def _launch_row(rank: RankAnalysis) -> tuple[str, ...]:
    found, windows = rank.launches, num_windows(rank)
    return (
        str(rank.rank),
        _per(found.num_launches, windows),
        _per(found.num_kernels, windows),
        format_ms(found.launch_ns / windows),
        ABSENT if found.median_launch_ns is None else f"{found.median_launch_ns / NS_PER_US:.1f}",
        ABSENT if found.median_lead_ns is None else format_ms(found.median_lead_ns),
        _share(found.num_late, found.num_launches, windows),
        _share(found.num_short, found.num_kernels, windows),
    )


def _per(count: int, windows: int) -> str:
    mean = count / windows
    return f"{mean:,.0f}" if mean >= 100 or mean.is_integer() else f"{mean:.3g}"


def _share(count: int, of: int, windows: int) -> str:
    return f"{_per(count, windows)} ({format_percent(count / of)})" if of else _per(count, windows)


def kernel_table(report: Report) -> TextTable:
    """The kernels that cost most, by stage, over all ranks."""
    ranks = [rank for rank in whole_ranks(report.analysis) if rank.breakdown.timeline is Timeline.DEVICE]
    means = mean_over_ranks(ranks, _kernel_totals)
    ordered = sorted(means, key=lambda key: -means[key][1])
    return TextTable(
        title=f"Kernels that cost most, ms {per_what(ranks)}{', mean over ranks' if len(ranks) > 1 else ''}",
        columns=("kernel", "kind", "stage", "calls", "time", "alone"),
        rows=tuple(_kernel_row(key, means[key]) for key in ordered),
        num_labels=3,
        remark="Time: the sum of its runs. Alone: the part with no other work beside it on the device. Names are "
        "shortened; report.json has the 50 costliest of a rank whole.",
    )


_KernelKey = tuple[str, str, str | None, str | None]


def _kernel_totals(rank: RankAnalysis) -> Iterator[tuple[_KernelKey, tuple[int, ...]]]:
    for one in rank.kernels:
        yield (one.name, one.kind, one.group, one.stage), (one.count, one.total_ns, one.alone_ns)


def _kernel_row(key: _KernelKey, means: list[float]) -> tuple[str, ...]:
    name, kind, group, stage = key
    count, total_ns, alone_ns = means
    return (
        shorten_kernel(name),
        kind,
        format_stage(stage, group) or ABSENT,
        f"{count:.3g}" if count < 1_000 else f"{count:,.0f}",
        format_ms(total_ns),
        format_ms(alone_ns),
    )
