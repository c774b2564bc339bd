"""What the page shows, part by part: tables, charts and sentences for the templates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from speedprof import __version__
from speedprof.analyses.analysis import RankAnalysis
from speedprof.findings import Finding, has_steps, mean_step_ns, mean_window_ns
from speedprof.report.answers import (
    INTERVAL_MEANING,
    all_notes,
    format_basis,
    format_cost,
    format_headline,
    format_interval,
    format_levels,
    format_place,
    format_smaller,
    format_traced_basis,
    format_warnings,
    slowest_step_time,
    split_findings,
    with_advice_once,
)
from speedprof.report.bars import draw_exposed, draw_idle, draw_mean_steps
from speedprof.report.certainty_tables import clock_table, error_budget_table, format_certainty, without_table
from speedprof.report.charts import MARK_LABELS, Chart, draw_step_times, draw_steps, longest_step_ns, timed_steps
from speedprof.report.communication_tables import bandwidth_table, collective_table, exposure_table
from speedprof.report.device_tables import gap_table, idle_table, kernel_table, launch_table
from speedprof.report.document import SCHEMA_VERSION, Report, run_facts
from speedprof.report.means import device_ranks
from speedprof.report.scatter import draw_bandwidths
from speedprof.report.sections import Section
from speedprof.report.stage_tables import STAGES_MEAN, costliest_stage_table, stage_table
from speedprof.report.straggler_tables import format_no_straggler, straggler_table, wait_matrix
from speedprof.report.tables import environment_table, partition_table, segment_table, step_time_table
from speedprof.report.text_table import TextTable
from speedprof.step_log import StepLog
from speedprof.step_records import Mark
from speedprof.units import format_ms, format_ns

# Beyond so many cells a table behind a chart is left to report.json, so that the page stays under 3 MB.
_MAX_TABLE_CELLS = 20_000

# How many rows are shown at once; so many more can be unfolded, and report.json has the rest.
_ROWS_AT_ONCE = 12
_ROWS_UNFOLDED = 60
_MOST_RANKS = 64
_MOST_STAGES = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingCard:
    """A finding as the page shows it. `bar_width` is its share of a step in px, of 100."""

    finding: Finding
    cost: str
    bar_width: float
    place: str
    advice: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPart:
    """What the page shows of one rank's trace."""

    rank: int
    chart: Chart | None
    segments: TextTable
    stages: TextTable


@dataclass(frozen=True, slots=True, kw_only=True)
class Folded:
    """A table whose costliest rows are shown at once; `more` holds further ones, None where there are none."""

    table: TextTable
    more: TextTable | None


def describe_page(report: Report) -> dict[str, Any]:
    """Everything that the templates name."""
    context = {
        "title": report.manifest.run_id if report.manifest else ", ".join(report.sources) or "speedprof report",
        "facts": run_facts(report.manifest) if report.manifest else None,
        "sections": {section.value for section in report.sections},
        "has_traces": bool(report.analysis.ranks),
        "warnings": format_warnings(report),
        "notes": all_notes(report),
        "sources": report.sources,
        "environment": environment_table(report),
        "failures": [(one.rank, str(one.error)) for one in report.manifest.ranks if one.error]
        if report.manifest
        else [],
        "schema_version": SCHEMA_VERSION,
        "version": __version__,
    }
    return context | _answer(report) | _steps(report) | _communication(report) | _device(report) | _certainty(report)


def _answer(report: Report) -> dict[str, Any]:
    slowest, traced_ns = slowest_step_time(report), mean_step_ns(report.analysis)
    shown, smaller = split_findings(report)
    return {
        "headline": format_headline(report),
        "step_time": format_ns(slowest.typical_ns) if slowest else None,
        "step_time_basis": format_basis(report, slowest) if slowest else "",
        "traced_step": format_ns(traced_ns) if traced_ns else None,
        "traced_basis": format_traced_basis(report) if traced_ns else "",
        "levels": format_levels(slowest) if slowest else "",
        "interval": format_interval(slowest) if slowest else "",
        "interval_meaning": INTERVAL_MEANING,
        "cost_of": "of a step" if has_steps(report.analysis) else "of the capture",
        "cards": _cards(report, shown),
        "smaller": format_smaller(report, smaller),
        "smaller_cards": _cards(report, smaller),
    }


def _steps(report: Report) -> dict[str, Any]:
    log = report.step_log
    return {
        "step_charts": draw_step_times(log, report.analysis.step_times) if log else (),
        "step_time_table": step_time_table(report),
        "every_step": _every_step_table(log) if log else None,
        "mean_bars": draw_mean_steps(report),
        "partition_table": partition_table(report).shortened(_MOST_RANKS),
        "ranks": _rank_parts(report.analysis.ranks[:_MOST_RANKS]),
    }


def _communication(report: Report) -> dict[str, Any]:
    if not report.sections & {Section.OVERLAP, Section.STRAGGLERS}:
        return {}
    stragglers = straggler_table(report)
    return {
        "exposed_bars": draw_exposed(report),
        "exposure_table": exposure_table(report).shortened(_MOST_RANKS),
        "collectives": _folded(collective_table(report)),
        "bandwidth_chart": draw_bandwidths(report.analysis.bandwidths),
        "bandwidths": _folded(bandwidth_table(report)),
        "stages": _folded(costliest_stage_table(report)),
        "stages_mean": STAGES_MEAN,
        "wait_matrix": wait_matrix(report),
        "stragglers": stragglers,
        "no_straggler": "" if stragglers.rows else format_no_straggler(report),
    }


def _device(report: Report) -> dict[str, Any]:
    if not report.sections & {Section.IDLE, Section.LAUNCHES, Section.KERNELS}:
        return {}
    return {
        "has_device": bool(device_ranks(report.analysis)),
        "idle_bars": draw_idle(report),
        "idle_table": idle_table(report).shortened(_MOST_RANKS),
        "gaps": _folded(gap_table(report)),
        "launch_table": launch_table(report).shortened(_MOST_RANKS),
        "kernels": _folded(kernel_table(report)),
    }


def _certainty(report: Report) -> dict[str, Any]:
    return {
        "error_budget": error_budget_table(report).shortened(_MOST_RANKS),
        "certainty": format_certainty(report),
        "without": without_table(report).shortened(_MAX_TABLE_CELLS // 10),
        "clocks": clock_table(report).shortened(_MOST_RANKS),
    }


def _folded(table: TextTable) -> Folded:
    """The costliest rows at once, and more of them to unfold where there are many."""
    if len(table.rows) <= _ROWS_AT_ONCE:
        return Folded(table=table.shortened(_ROWS_AT_ONCE), more=None)
    return Folded(table=table.shortened(_ROWS_AT_ONCE), more=table.shortened(_ROWS_UNFOLDED))


def _cards(report: Report, findings: tuple[Finding, ...]) -> list[FindingCard]:
    window_ns = mean_window_ns(report.analysis) or 0
    return [
        FindingCard(
            finding=finding,
            cost=format_cost(report, finding),
            bar_width=round(100 * min(1.0, finding.cost_ns / window_ns), 1) if window_ns else 0.0,
            place=format_place(finding),
            advice=advice,
        )
        for finding, advice in with_advice_once(findings)
    ]


def _rank_parts(ranks: tuple[RankAnalysis, ...]) -> list[RankPart]:
    longest_ns = longest_step_ns(ranks)
    return [
        RankPart(
            rank=rank.rank,
            chart=draw_steps(rank, longest_ns=longest_ns, height=190 if len(ranks) <= 4 else 140),
            segments=segment_table(rank),
            stages=stage_table((rank,), title=f"Rank {rank.rank}").shortened(_MOST_STAGES),
        )
        for rank in ranks
    ]


def _every_step_table(log: StepLog) -> TextTable | None:
    """The table behind the step-time charts: a row for each step, a column for each rank. None if it is too long."""
    timed = timed_steps(log)
    wide = timed.with_columns(name=pl.format("rank {}", "rank")).pivot("name", index="step", values="time_ns")
    if wide.height * wide.width > _MAX_TABLE_CELLS or timed.is_empty():
        return None
    marks = dict(timed.select("step", "mark").rows())
    rows = tuple(
        (
            str(row[0]),
            MARK_LABELS[Mark(marks[row[0]])],
            *("-" if time_ns is None else format_ms(time_ns) for time_ns in row[1:]),
        )
        for row in wide.sort("step").iter_rows()
    )
    columns = ("step", "kind", *wide.columns[1:])
    return TextTable(title="Every step in ms", columns=columns, rows=rows, num_labels=2)
