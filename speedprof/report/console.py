"""The report on a terminal: the costliest finding first, then what it rests on. Fits 100 columns."""

from __future__ import annotations

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from speedprof.findings import Finding, Severity
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
from speedprof.report.document import Report
from speedprof.report.tables import TextTable, costliest_stage_table, partition_table, step_time_table
from speedprof.report.text import MOST_OF_A_CLAIM, make_plain, make_printable

_MAX_STAGES = 12

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
    _say(console, format_step_time(report))
    if report.findings:
        _print_findings(report, console)
    _print_table(step_time_table(report), console)
    _print_table(partition_table(report), console)
    _print_table(costliest_stage_table(report, limit=_MAX_STAGES), console)
    notes = all_notes(report)
    if notes:
        console.print()
        _say(console, "Notes", "bold")
        for note in notes:
            _say(console, f"- {note}", "dim")


def _print_findings(report: Report, console: Console) -> None:
    console.print()
    _say(console, "Findings, costliest first (ms per step)", "bold")
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
        grid.add_row(*(Text(make_printable(make_plain(cell, limit=60), console.encoding)) for cell in row))
    console.print(grid)
    if table.remark:
        _say(console, table.remark, "dim")


def _say(console: Console, sentence: str, style: str = "") -> None:
    console.print(Text(make_printable(make_plain(sentence, limit=2_000), console.encoding), style=style))
