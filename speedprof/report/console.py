"""The report on a terminal: the costliest finding first, then what it rests on. Fits 100 columns."""

from __future__ import annotations

from collections.abc import Callable

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from speedprof.findings import Finding, Severity, has_steps
from speedprof.report.answers import (
    all_notes,
    format_cost,
    format_headline,
    format_place,
    format_smaller,
    format_step_time,
    format_warnings,
    split_findings,
    with_advice_once,
)
from speedprof.report.certainty_tables import clock_table, error_budget_table, format_certainty
from speedprof.report.communication_tables import bandwidth_table, collective_table, exposure_table
from speedprof.report.device_tables import gap_table, idle_table, kernel_table, launch_table
from speedprof.report.document import Report
from speedprof.report.sections import Section
from speedprof.report.stage_tables import costliest_stage_table
from speedprof.report.straggler_tables import format_no_straggler, straggler_table
from speedprof.report.tables import partition_table, step_time_table
from speedprof.report.text import MOST_OF_A_CLAIM, make_plain, make_printable
from speedprof.report.text_table import TextTable

_MOST_RANKS = 8

# Which tables are printed with which section, and how many rows of each.
TABLES: tuple[tuple[Section, Callable[[Report], TextTable], int], ...] = (
    (Section.STEP_TIME, step_time_table, _MOST_RANKS),
    (Section.PARTITION, partition_table, _MOST_RANKS),
    (Section.OVERLAP, exposure_table, _MOST_RANKS),
    (Section.STRAGGLERS, straggler_table, 4),
    (Section.OVERLAP, collective_table, 8),
    (Section.OVERLAP, costliest_stage_table, 8),
    (Section.OVERLAP, bandwidth_table, 8),
    (Section.IDLE, idle_table, _MOST_RANKS),
    (Section.IDLE, gap_table, 6),
    (Section.LAUNCHES, launch_table, _MOST_RANKS),
    (Section.KERNELS, kernel_table, 8),
    (Section.CERTAINTY, error_budget_table, _MOST_RANKS),
    (Section.CERTAINTY, clock_table, _MOST_RANKS),
)

_STYLES = {
    Severity.HIGH: "bold red",
    Severity.MEDIUM: "yellow",
    Severity.LOW: "cyan",
    Severity.INFO: "dim",
}


def print_report(report: Report, console: Console) -> None:
    """Print the report. Every word goes out as `Text`, so names are never read as markup, and in characters that the
    terminal's encoding has."""
    for warning in format_warnings(report):
        _say(console, warning, "bold red")
    _say(console, format_headline(report), "bold")
    if Section.STEP_TIME in report.sections:
        _say(console, format_step_time(report))
    if report.asked_findings:
        _print_findings(report, console)
    for section, make_table, limit in TABLES:
        if section in report.sections:
            _print_table(make_table(report).shortened(limit), console)
            _say_beside(make_table, report, console)
    notes = all_notes(report)
    if notes:
        console.print()
        _say(console, "Notes", "bold")
        for note in notes:
            _say(console, f"- {note}", "dim")


def _say_beside(make_table: Callable[[Report], TextTable], report: Report, console: Console) -> None:
    """What a sentence tells better than rows."""
    if make_table is straggler_table and len(report.analysis.ranks) > 1 and not report.analysis.stragglers:
        console.print()
        _say(console, format_no_straggler(report), "dim")
    if make_table is error_budget_table and (sentence := format_certainty(report)):
        _say(console, sentence, "dim")


def _print_findings(report: Report, console: Console) -> None:
    console.print()
    unit = "ms per step" if has_steps(report.analysis) else "ms of the capture"
    _say(console, f"Findings, costliest first ({unit})", "bold")
    grid = Table.grid(padding=(0, 1))
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(overflow="fold")
    shown, smaller = split_findings(report)
    for finding, advice in with_advice_once(shown):
        cost = format_cost(report, finding) or finding.severity.value
        grid.add_row(Text(cost, style=_STYLES[finding.severity]), _finding_text(finding, advice, console))
    console.print(grid)
    if smaller:
        _say(console, f"{format_smaller(report, smaller)}: see the report", "dim")


def _finding_text(finding: Finding, advice: str | None, console: Console) -> Text:
    text = Text(make_printable(make_plain(finding.claim, limit=MOST_OF_A_CLAIM), console.encoding))
    text.append(f" [{finding.slug}, {format_place(finding)}]", style="dim")
    if advice:
        text.append("\nTry: ", style="bold")
        text.append(advice)
    return text


def _print_table(table: TextTable, console: Console) -> None:
    if not table.rows:
        return
    console.print()
    _say(console, table.title, "bold")
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), collapse_padding=True, show_edge=False)
    for position, name in enumerate(table.columns):
        justify: JustifyMethod = "left" if position < table.num_labels else "right"
        longest_word = max(map(len, name.split()))
        grid.add_column(Text(name), justify=justify, overflow="fold", min_width=longest_word)
    for row in table.rows:
        grid.add_row(*(Text(make_printable(make_plain(cell, limit=120), console.encoding)) for cell in row))
    console.print(grid)
    if table.remark:
        _say(console, table.remark, "dim")


def _say(console: Console, sentence: str, style: str = "") -> None:
    console.print(Text(make_printable(make_plain(sentence, limit=2_000), console.encoding), style=style))
