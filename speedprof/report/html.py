"""index.html: the whole report in one file that loads nothing, runs no script, and can be printed."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import polars as pl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from speedprof import __version__
from speedprof.analyses.analysis import RankAnalysis
from speedprof.findings import Finding, mean_step_ns
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
    format_warnings,
    slowest_step_time,
    split_findings,
    with_advice_once,
)
from speedprof.report.charts import (
    MARK_LABELS,
    Chart,
    draw_mean_steps,
    draw_step_times,
    draw_steps,
    longest_step_ns,
    timed_steps,
)
from speedprof.report.document import SCHEMA_VERSION, Report, run_facts
from speedprof.report.tables import (
    TextTable,
    environment_table,
    error_budget_table,
    partition_table,
    segment_table,
    stage_rows,
    stage_table,
    step_time_table,
    whole_ranks,
)
from speedprof.report.text import make_plain
from speedprof.run_dir import write_atomically
from speedprof.step_log import StepLog
from speedprof.step_records import Mark
from speedprof.units import format_ms, format_ns

# Beyond so many cells a table behind a chart is left to report.json, so that the page stays under 3 MB.
_MAX_TABLE_CELLS = 20_000

_LONGEST_NAME = 100

_PATH_DATA = re.compile(r"[MmLlHhVvAaZz0-9. -]*")


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


def format_html(report: Report) -> str:
    """The page. Every word from outside goes through `make_plain` and Jinja's escaping."""
    environment = _environment()
    style, _, _ = environment.loader.get_source(environment, "page.css")  # type: ignore[union-attr]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return environment.get_template("index.html.j2").render(
        style=Markup(style), style_digest=Markup(digest), **_context(report)
    )


def write_html(report: Report, path: Path) -> None:
    write_atomically(path, format_html(report).encode(), durable=False)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("speedprof.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["path_data"] = _path_data
    environment.filters["short"] = _short
    return environment


def _path_data(path: str) -> Markup:
    """The outline of a shape, past `_finalize`, which would shorten it."""
    if not _PATH_DATA.fullmatch(path):
        raise ValueError("a path holds more than SVG path data")
    return Markup(path)


def _short(text: str) -> str:
    """A name from outside, which may be a kernel's of 2,000 characters, for a title or a cell."""
    return make_plain(text, limit=_LONGEST_NAME)


def _finalize(value: Any) -> Any:
    """What a template prints: words made plain, but for markup of our own."""
    if isinstance(value, Markup) or not isinstance(value, str):
        return value
    return make_plain(value, limit=2_000)


def _context(report: Report) -> dict[str, Any]:
    slowest = slowest_step_time(report)
    log, analysis = report.step_log, report.analysis
    shown, smaller = split_findings(report)
    return {
        "title": report.manifest.run_id if report.manifest else ", ".join(report.sources) or "speedprof report",
        "facts": run_facts(report.manifest) if report.manifest else None,
        "warnings": format_warnings(report),
        "headline": format_headline(report),
        "step_time": format_ns(slowest.typical_ns) if slowest else None,
        "step_time_basis": format_basis(report, slowest) if slowest else "",
        "levels": format_levels(slowest) if slowest else "",
        "interval": format_interval(slowest) if slowest else "",
        "interval_meaning": INTERVAL_MEANING,
        "cards": _cards(report, shown),
        "smaller": format_smaller(report, smaller),
        "smaller_cards": _cards(report, smaller),
        "step_charts": draw_step_times(log, analysis.step_times) if log else (),
        "step_time_table": step_time_table(report),
        "every_step": _every_step_table(log) if log else None,
        "mean_bars": draw_mean_steps(analysis),
        "partition_table": partition_table(report),
        "ranks": _rank_parts(analysis.ranks),
        "stages": _stages_of(whole_ranks(report), "Mean over the ranks") if len(analysis.ranks) > 1 else None,
        "error_budget": error_budget_table(report),
        "environment": environment_table(report),
        "notes": all_notes(report),
        "sources": report.sources,
        "failures": [(one.rank, str(one.error)) for one in report.manifest.ranks if one.error]
        if report.manifest
        else [],
        "schema_version": SCHEMA_VERSION,
        "version": __version__,
    }


def _cards(report: Report, findings: tuple[Finding, ...]) -> list[FindingCard]:
    step_ns = mean_step_ns(report.analysis) or 0
    return [
        FindingCard(
            finding=finding,
            cost=format_cost(report, finding),
            bar_width=round(100 * min(1.0, finding.cost_ns / step_ns), 1) if step_ns else 0.0,
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
            stages=_stages_of((rank,), f"Rank {rank.rank}"),
        )
        for rank in ranks
    ]


def _stages_of(ranks: tuple[RankAnalysis, ...], title: str) -> TextTable:
    return stage_table(stage_rows(ranks), title=f"{title}, ms per traced step")


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
