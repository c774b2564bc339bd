"""report.md: the report for a pull request, under 140 lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from speedprof.findings import Finding
from speedprof.report.answers import (
    INTERVAL_MEANING,
    all_notes,
    format_cost,
    format_count,
    format_headline,
    format_place,
    format_step_time,
    format_warnings,
    with_advice_once,
)
from speedprof.report.certainty_tables import clock_table, format_certainty
from speedprof.report.communication_tables import collective_table, exposure_table
from speedprof.report.device_tables import gap_table, idle_table, kernel_table
from speedprof.report.document import Report, run_facts
from speedprof.report.sections import Section
from speedprof.report.stage_tables import costliest_stage_table
from speedprof.report.straggler_tables import straggler_table
from speedprof.report.tables import partition_table, step_time_table
from speedprof.report.text import MOST_OF_A_CLAIM, escape_markdown
from speedprof.report.text_table import TextTable
from speedprof.run_dir import write_atomically

# Together they keep the report under 140 lines, whatever the run.
_MAX_FINDINGS = 6
_MAX_RANKS = 8
_MAX_ROWS = 3
_MAX_NOTES = 3

_TABLES: tuple[tuple[Section, Callable[[Report], TextTable], int, str], ...] = (
    (Section.STEP_TIME, step_time_table, _MAX_RANKS, INTERVAL_MEANING),
    (Section.PARTITION, partition_table, _MAX_RANKS, ""),
    (Section.OVERLAP, exposure_table, _MAX_RANKS, ""),
    (Section.STRAGGLERS, straggler_table, 2, ""),
    (Section.OVERLAP, collective_table, _MAX_ROWS, ""),
    (Section.OVERLAP, costliest_stage_table, _MAX_ROWS, ""),
    (Section.IDLE, idle_table, _MAX_RANKS, ""),
    (Section.IDLE, gap_table, _MAX_ROWS, ""),
    (Section.KERNELS, kernel_table, _MAX_ROWS, ""),
    (Section.CERTAINTY, clock_table, 2, ""),
)


def format_markdown(report: Report) -> str:
    return "\n".join(_lines(report)) + "\n"


def write_markdown(report: Report, path: Path) -> None:
    write_atomically(path, format_markdown(report).encode(), durable=False)


def _lines(report: Report) -> Iterator[str]:
    yield f"# {escape_markdown(_title(report))}"
    yield ""
    warnings = "".join(f"**{_claim(warning)}** " for warning in format_warnings(report))
    answers = [_claim(format_headline(report))]
    if Section.STEP_TIME in report.sections:
        # How long a step takes comes first, where that is known.
        answers.insert(0 if report.analysis.step_times else 1, _claim(format_step_time(report)))
    yield f"{warnings}**{answers[0]}** {' '.join(answers[1:])}".rstrip()
    yield ""
    yield from _findings(report.asked_findings, report)
    for section, make_table, limit, note in _TABLES:
        if section in report.sections:
            yield from _section(make_table(report).shortened(limit), note=note)
    yield from _notes(_certainty(report) + all_notes(report))
    if report.manifest:
        yield _provenance(report)


def _title(report: Report) -> str:
    return report.manifest.run_id if report.manifest else ", ".join(report.sources) or "speedprof"


def _findings(findings: tuple[Finding, ...], report: Report) -> Iterator[str]:
    if not findings:
        return
    yield "## Findings, costliest first"
    yield ""
    for finding, advice in with_advice_once(findings[:_MAX_FINDINGS]):
        cost = escape_markdown(format_cost(report, finding) or finding.severity.value)
        place = escape_markdown(f"({finding.slug}, {format_place(finding)})")
        tried = f" *Try:* {_claim(advice)}" if advice else ""
        yield f"- **{cost}** {_claim(finding.claim)}{tried} {place}"
    if len(findings) > _MAX_FINDINGS:
        yield f"- {format_count(len(findings) - _MAX_FINDINGS, 'smaller finding')} in report.json"
    yield ""


def _claim(sentence: str) -> str:
    return escape_markdown(sentence, limit=MOST_OF_A_CLAIM)


def _section(table: TextTable, *, note: str = "") -> Iterator[str]:
    if not table.rows:
        return
    yield f"## {table.title}"
    yield ""
    yield _row(table.columns)
    yield "|" + "|".join("---" if i < table.num_labels else "--:" for i in range(len(table.columns))) + "|"
    yield from (_row(row) for row in table.rows)
    yield ""
    if table.remark or note:
        yield escape_markdown(f"{table.remark} {note}".strip(), limit=2_000)
        yield ""


def _certainty(report: Report) -> tuple[str, ...]:
    sentence = format_certainty(report) if Section.CERTAINTY in report.sections else ""
    return (sentence,) if sentence else ()


def _notes(notes: tuple[str, ...]) -> Iterator[str]:
    if notes:
        yield "## Notes"
        yield ""
        yield from (f"- {escape_markdown(note)}" for note in notes[:_MAX_NOTES])
        if len(notes) > _MAX_NOTES:
            yield f"- {format_count(len(notes) - _MAX_NOTES, 'more note')} in report.json"
        yield ""


def _provenance(report: Report) -> str:
    assert report.manifest is not None
    facts = run_facts(report.manifest)
    commit = f"commit {str(facts['commit'])[:12]}{' with changes' if facts['dirty'] else ''}"
    words = [
        f"preset {facts['preset']}" if facts["preset"] else "",
        f"{facts['world_size']} x {facts['device'] or 'unknown device'}",
        commit if facts["commit"] else "no git commit",
        str(facts["created"]),
    ]
    return escape_markdown(", ".join(word for word in words if word))


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(escape_markdown(cell, limit=80) for cell in cells) + " |"
