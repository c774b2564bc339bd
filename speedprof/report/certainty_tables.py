"""How certain the other numbers are, as tables: the error budget, the partition without it, and the clocks."""

from __future__ import annotations

from speedprof.analyses.analysis import RankAnalysis
from speedprof.analyses.breakdown import Partition
from speedprof.report.document import Report
from speedprof.report.means import device_ranks
from speedprof.report.text_table import TextTable
from speedprof.units import NS_PER_US, format_ms, format_percent

BUDGET_MEANS = (
    "Unlinked: no launch was recorded. Cut: the border of the capture cuts it from its launch, start or end. Crossing: "
    "it begins inside an earlier event of its stream and outlasts it. All are counted, none is dropped."
)

_KIND_LABELS = {"zero_length": "zero length", "any": "any of these"}


def error_budget_table(report: Report) -> TextTable:
    """How much of each rank's device work is known only in part; no row for a rank without any."""
    columns = ("rank", "device events", "unlinked", "cut", "crossing", "zero length", "unlinked share")
    ranks = [rank for rank in report.analysis.ranks if rank.error_budget.device_events]
    return TextTable(
        title="Device events by what is known of them",
        columns=columns,
        rows=tuple(_budget_row(rank) for rank in ranks),
        num_labels=1,
        remark=BUDGET_MEANS,
        weights=tuple(float(rank.error_budget.unlinked) for rank in ranks),
    )


def _budget_row(rank: RankAnalysis) -> tuple[str, ...]:
    budget = rank.error_budget
    counts = (budget.device_events, budget.unlinked, budget.cut, budget.crossing, budget.zero_length)
    share = format_percent(budget.unlinked / budget.device_events)
    return (str(rank.rank), *(f"{count:,}" for count in counts), share)


def without_table(report: Report) -> TextTable:
    """The partition of each rank's capture with all events, and without those of each kind that is known in part."""
    rows: list[tuple[str, ...]] = []
    for rank in device_ranks(report.analysis):
        shown = [one for one in rank.certainty if one.num_events]
        if shown:
            rows.append((str(rank.rank), "nothing", "", *_parts(rank.breakdown.partition)))
        for one in shown:
            label = _KIND_LABELS.get(one.kind, one.kind)
            rows.append((str(rank.rank), label, f"{one.num_events:,}", *_parts(one.partition)))
    return TextTable(
        title="The partition of the whole capture without uncertain events, in ms",
        columns=("rank", "without", "events", "compute", "exposed communication", "exposed copy", "idle"),
        rows=tuple(rows),
        num_labels=2,
        remark="Each row leaves out the events of one kind; the window stays, so that what they covered becomes "
        "something else.",
    )


def format_certainty(report: Report) -> str:
    """How much of any rank's capture would be something else without all that is known only in part; empty where
    that was not measured."""
    changes = [
        (_difference(one.partition, rank.breakdown.partition) / rank.breakdown.window_ns, one.num_events, rank)
        for rank in device_ranks(report.analysis)
        for one in rank.certainty
        if one.kind == "any"
    ]
    if not changes:
        return ""
    share, num_events, rank = max(changes, key=lambda change: change[0])
    if not share:
        return "Without the device events known only in part, the partition of no rank would change."
    of_rank = f" of rank {rank.rank}'s capture" if len(report.analysis.ranks) > 1 else " of the capture"
    # What the border cuts from its launch is unlinked too: the first says why.
    kinds = sorted(rank.certainty, key=lambda one: one.kind != "cut")
    most = max((one for one in kinds if one.kind != "any"), key=lambda one: one.num_events)
    return (
        f"Without the {num_events:,} device events known only in part, most of them "
        f"{_KIND_LABELS.get(most.kind, most.kind)}, {100 * share:.2g}%{of_rank} would be something else"
        f"{', of the other ranks less' if len(changes) > 1 else ''}."
    )


def _difference(one: Partition, other: Partition) -> int:
    """How much time is one thing here and another there."""
    parts = zip(_times(one), _times(other), strict=True)
    return sum(abs(mine - theirs) for mine, theirs in parts) // 2


def _times(partition: Partition) -> tuple[int, ...]:
    return (partition.compute_ns, partition.exposed_communication_ns, partition.exposed_copy_ns, partition.idle_ns)


def _parts(partition: Partition) -> tuple[str, ...]:
    return tuple(map(format_ms, _times(partition)))


def clock_table(report: Report) -> TextTable:
    """How the ranks' clocks stand to the first rank's; no rows where none had to be moved."""
    clocks = report.analysis.match.clocks if report.analysis.match else ()
    moved = any(clock.offset_ns for clock in clocks)
    return TextTable(
        title="Clocks of the ranks in us",
        columns=("rank", "offset", "residual", "collectives"),
        rows=tuple(
            (
                str(clock.rank),
                f"{clock.offset_ns / NS_PER_US:+,.1f}",
                f"{clock.residual_ns / NS_PER_US:,.1f}",
                f"{clock.num_collectives:,}",
            )
            for clock in clocks
        )
        if moved
        else (),
        num_labels=1,
        remark="Offset: what was added to the rank's times to bring them onto the first rank's clock, from the ends of "
        "so many matched collectives. Residual: how far such ends still lie apart, the uncertainty of every "
        "comparison across ranks.",
        weights=tuple(float(abs(clock.offset_ns)) for clock in clocks) if moved else (),
    )
