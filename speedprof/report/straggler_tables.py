"""Stragglers as tables: who is waited for and why, and the matrix of who waits for whom."""

from __future__ import annotations

from dataclasses import dataclass

from speedprof.analyses.idle_gaps import GapCause
from speedprof.analyses.stragglers import Straggler, StragglerCause
from speedprof.report.document import Report
from speedprof.report.means import num_windows, per_what, whole_ranks
from speedprof.report.names import CAUSE_LABELS, shorten_kernel
from speedprof.report.text_table import ABSENT, TextTable
from speedprof.units import format_ms, format_percent

STRAGGLER_LABELS = {
    StragglerCause.LATE_LAUNCH: "late launches",
    StragglerCause.SLOW_KERNEL: "slower kernels",
    StragglerCause.INPUT: "input",
    StragglerCause.SYNC: "blocking calls",
    StragglerCause.UNEXPLAINED: "unexplained",
}

HEAT_LEVELS = 8

_MOST_COLUMNS = 16
_MOST_ROWS = 64
_MOST_EXCESSES = 3
_SMALLEST_SHARE = 0.1  # of the largest excess
_MOST_KERNELS = 2
_NAME_LENGTH = 32


def straggler_table(report: Report) -> TextTable:
    """The ranks that others wait for, what that costs and what they have more of than the others."""
    return TextTable(
        title=f"Stragglers, ms {per_what(report.analysis.ranks)}",
        columns=("rank", "cause", "spends more in", "slower kernels (own, others)", "cost", "share of waiting"),
        rows=tuple(_straggler_row(one) for one in report.analysis.stragglers),
        num_labels=4,
        remark="Cost: the exposed wait that the rank causes, the mean over the ranks that wait. It is late by what "
        "it spends more in than the ranks that wait.",
    )


def format_no_straggler(report: Report) -> str:
    """Why no rank is named: that none stands out, or that it cannot be told."""
    match = report.analysis.match
    if len(report.analysis.ranks) == 1:
        return "Who waits for whom is not known, since there is the trace of one rank alone."
    if match is None or match.refused_because is not None or not match.num_matched:
        return "Who waits for whom is not known, since no collectives were matched across ranks."
    if not report.analysis.can_tell_overlap:
        return "Who is late cannot be told of ranks that share cores: one rank's wait may be another's work."
    return "No rank is waited for more than chance has it."


def _straggler_row(one: Straggler) -> tuple[str, ...]:
    least_ns = _SMALLEST_SHARE * max(one.excess_ns.values(), default=0)
    excesses = sorted(((ns, name) for name, ns in one.excess_ns.items() if ns > 0 and ns >= least_ns), reverse=True)
    slow = [
        f"{shorten_kernel(kernel.name, _NAME_LENGTH)} ({format_ms(kernel.own_ns)}, {format_ms(kernel.others_ns)})"
        for kernel in one.slow_kernels[:_MOST_KERNELS]
    ]
    return (
        str(one.rank),
        STRAGGLER_LABELS[one.cause],
        ", ".join(f"{_category(name)} +{format_ms(ns)}" for ns, name in excesses[:_MOST_EXCESSES]) or ABSENT,
        ", ".join(slow) or ABSENT,
        format_ms(one.cost_ns),
        format_percent(one.share),
    )


def _category(name: str) -> str:
    return CAUSE_LABELS[GapCause(name)] if name in set(GapCause) else name


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitCell:
    """Time in ms as text, and how dark its cell is, from 0 (nothing) to `HEAT_LEVELS`."""

    text: str
    level: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitMatrix:
    """Who waits for whom: a row for each rank that waits, a column for each that is waited for, and each row's sum."""

    title: str
    columns: tuple[int, ...]
    rows: tuple[tuple[int, tuple[WaitCell, ...], str], ...]
    remark: str


def wait_matrix(report: Report) -> WaitMatrix | None:
    """The exposed waiting of each rank for each other. None where nothing is known of any, or there is one rank."""
    ranks = [rank for rank in whole_ranks(report.analysis) if rank.exposure]
    waits = {
        rank.rank: {wait.rank: wait.ns / num_windows(rank) for wait in rank.exposure.waits}
        for rank in ranks
        if rank.exposure
    }
    totals = {late: sum(row.get(late, 0) for row in waits.values()) for late in sorted({*waits, *_late(waits)})}
    if len(totals) < 2 or not any(totals.values()):
        return None
    columns = sorted(sorted(totals, key=lambda late: -totals[late])[:_MOST_COLUMNS])
    rows = sorted(sorted(waits, key=lambda rank: -sum(waits[rank].values()))[:_MOST_ROWS])
    longest_ns = max(max(row.values(), default=0.0) for row in waits.values())
    num_left_out = len(totals) - len(columns)
    return WaitMatrix(
        title=f"Who waits for whom, ms {per_what(ranks)}",
        columns=tuple(columns),
        rows=tuple(
            (rank, tuple(_cell(waits[rank].get(late), longest_ns) for late in columns), _sum(waits[rank]))
            for rank in rows
        ),
        remark="Each row is a rank that waits with nothing to compute, each column the rank that began the collective "
        f"last.{f' {num_left_out} ranks that are waited for less are left out.' if num_left_out else ''}",
    )


def _late(waits: dict[int, dict[int, float]]) -> set[int]:
    return {late for row in waits.values() for late in row}


def _cell(ns: float | None, longest_ns: float) -> WaitCell:
    if not ns or not longest_ns:
        return WaitCell(text="", level=0)
    return WaitCell(text=format_ms(ns), level=round(HEAT_LEVELS * ns / longest_ns))


def _sum(row: dict[int, float]) -> str:
    return format_ms(sum(row.values()))
