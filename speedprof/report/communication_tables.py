"""Exposed communication as tables: where it goes by rank and by kind, and how fast bytes move."""

from __future__ import annotations

from collections.abc import Iterator

from speedprof.analyses.analysis import RankAnalysis
from speedprof.analyses.bandwidth import CollectiveBandwidth
from speedprof.analyses.exposure import Wait
from speedprof.report.comparison_document import why_nothing_matched
from speedprof.report.document import Report
from speedprof.report.means import mean_over_ranks, num_windows, per_what, traced_split, whole_ranks
from speedprof.report.names import CAUSE_LABELS, format_stage
from speedprof.report.text_table import ABSENT, TextTable
from speedprof.units import NS_PER_US, format_bytes, format_ms, format_percent

EXPOSED_MEANS = (
    "Exposed: communication with no compute beside it. It is wait until the last rank has begun the collective, "
    "transfer after that, unsplit where the other ranks' parts are not known. Contention: an estimate of how much "
    "longer transfers took than the fastest equal collective."
)

# What a late rank did is told down to this share of the time waited for it, and at most so many parts of it.
_SMALLEST_SHARE = 0.1
_MOST_PARTS = 3


def format_match(report: Report) -> str:
    """How many collectives were put together over the ranks, and how sure that is."""
    match = report.analysis.match
    if match is None or match.refused_because is not None:
        why = match.refused_because if match else why_nothing_matched(report.analysis)
        return f"Collectives are not matched across ranks: {str(why).rstrip('.')}."
    sure = (
        "" if match.certainty is None else f"; time, name and size bear out {format_percent(match.certainty)} of them"
    )
    return (
        f"{match.num_matched:,} of {match.num_matchable:,} collectives within the captures of all their ranks are "
        f"matched{sure}."
    )


def exposure_table(report: Report) -> TextTable:
    """The exposed communication of each rank, and whom it waits for most."""
    ranks = [rank for rank in report.analysis.ranks if rank.breakdown.window_ns]
    columns = ("rank", "waits most for", "which meanwhile", "exposed", "wait", "transfer", "unsplit", "contention")
    return TextTable(
        title=f"Exposed communication, ms {per_what(ranks)}",
        columns=columns,
        rows=tuple(_exposure_row(rank) for rank in ranks) if any(map(_communicates, ranks)) else (),
        num_labels=3,
        remark=" ".join((EXPOSED_MEANS, *_shared_cores(report), format_match(report))),
        weights=tuple(float(traced_split(rank).exposed_ns) / num_windows(rank) for rank in ranks),
    )


def _shared_cores(report: Report) -> tuple[str, ...]:
    if report.analysis.can_tell_overlap:
        return ()
    return (
        "Of ranks that share cores the scheduler decides what runs beside what, so one's wait may be another's work.",
    )


def _communicates(rank: RankAnalysis) -> bool:
    return rank.breakdown.communication_ns > 0


def _exposure_row(rank: RankAnalysis) -> tuple[str, ...]:
    if rank.is_damaged:
        return (str(rank.rank), "damaged", *[ABSENT] * 6)
    split, windows = traced_split(rank), num_windows(rank)
    times = (split.exposed_ns, split.wait_ns, split.transfer_ns, split.unsplit_ns)
    contention_ns = rank.exposure.contention_ns if rank.exposure else None
    longest = rank.exposure.waits[0] if rank.exposure and rank.exposure.waits else None
    return (
        str(rank.rank),
        f"rank {longest.rank}: {format_ms(longest.ns / windows)}" if longest else ABSENT,
        format_meanwhile(longest, windows) if longest else ABSENT,
        *(format_ms(time_ns / windows) for time_ns in times),
        ABSENT if contention_ns is None else format_ms(contention_ns / windows),
    )


def format_meanwhile(wait: Wait, windows: int) -> str:
    """What the rank that is waited for did: `late launch 3.812, compute 0.511`, in ms per step."""
    parts = {"compute": wait.compute_ns, "other collectives": wait.communication_ns, "copies": wait.copy_ns}
    parts |= {CAUSE_LABELS[cause]: ns for cause, ns in wait.idle_by_cause.items()}
    parts["idle"] = wait.idle_ns - sum(wait.idle_by_cause.values())
    told = sorted(((ns, label) for label, ns in parts.items() if ns >= _SMALLEST_SHARE * wait.ns > 0), reverse=True)
    return ", ".join(f"{label} {format_ms(ns / windows)}" for ns, label in told[:_MOST_PARTS]) or ABSENT


def collective_table(report: Report) -> TextTable:
    """The collectives by name, stage and group, the most exposed first."""
    ranks = whole_ranks(report.analysis)
    means = mean_over_ranks(ranks, _collective_totals)
    ordered = sorted(means, key=lambda key: (-means[key][2], -means[key][1]))
    stages = " Stage: the optimizer's that launched it, where one did." if any(stage for *_, stage in means) else ""
    columns = ("collective", "stage", "calls", "time", "hidden", "exposed", "wait", "transfer")
    return TextTable(
        title=f"Collectives, ms {per_what(ranks)}{', mean over ranks' if len(ranks) > 1 else ''}",
        columns=columns,
        rows=tuple(_collective_row(key, means[key]) for key in ordered),
        num_labels=2,
        remark=f"Hidden: the part of the time with compute beside it.{stages} report.json tells sizes apart.",
    )


_CollectiveKey = tuple[str, str | None, str | None]


def _collective_totals(rank: RankAnalysis) -> Iterator[tuple[_CollectiveKey, tuple[int, ...]]]:
    for one in rank.exposure.collectives if rank.exposure else ():
        split = one.split
        yield (
            (one.name, one.group, one.stage),
            (one.count, one.time_ns, split.exposed_ns, one.hidden_ns, split.wait_ns, split.transfer_ns),
        )


def _collective_row(key: _CollectiveKey, means: list[float]) -> tuple[str, ...]:
    name, group, stage = key
    count, time_ns, exposed_ns, hidden_ns, wait_ns, transfer_ns = means
    is_split = not exposed_ns or wait_ns + transfer_ns > 0
    return (
        name,
        format_stage(stage, group) or ABSENT,
        f"{count:.3g}",
        *(format_ms(one) for one in (time_ns, hidden_ns, exposed_ns)),
        *(format_ms(one) if is_split else ABSENT for one in (wait_ns, transfer_ns)),
    )


def bandwidth_table(report: Report) -> TextTable:
    """How fast collectives of each size move their bytes; those that take most time matter most."""
    bandwidths = report.analysis.bandwidths
    return TextTable(
        title="Bandwidth of collectives by size",
        columns=("collective", "type", "ranks", "size", "count", "median us", "fastest us", "bus GB/s"),
        rows=tuple(_bandwidth_row(one) for one in bandwidths),
        num_labels=2,
        remark="Times run from the start of the last rank to the end of the last one. Bus bandwidth is at the median "
        "time and as nccl-tests counts it: what each link carries, whatever the number of ranks.",
        weights=tuple(float(one.count * one.median_ns) for one in bandwidths),
    )


def _bandwidth_row(one: CollectiveBandwidth) -> tuple[str, ...]:
    speed = one.bus_bytes_per_s
    return (
        one.name,
        one.dtype,
        str(one.group_size),
        format_bytes(one.num_bytes),
        f"{one.count:,}",
        f"{one.median_ns / NS_PER_US:.1f}",
        f"{one.fastest_ns / NS_PER_US:.1f}",
        ABSENT if speed is None else f"{speed / 1e9:.3g}",
    )
