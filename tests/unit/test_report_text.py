"""The console and Markdown reports of values set by hand, no profiler and no trace."""

from __future__ import annotations

import io
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hand_made import (
    HOSTILE_NAMES,
    alternating_log,
    analysis,
    breakdown,
    damaged_report,
    empty_report,
    idle_gaps,
    manifest,
    partition,
    rank_analysis,
    run_log,
    small_report,
    stage,
    two_ranks,
)
from hand_made_results import full_analysis, full_report, hostile_report, kernel, match, straggler, two_full_ranks
from rich.console import Console
from syrupy.assertion import SnapshotAssertion

from speedprof.analyses.idle_gaps import GapCause
from speedprof.findings import Evidence, Finding, Severity, find_all
from speedprof.report.answers import split_findings
from speedprof.report.console import TABLES, print_report
from speedprof.report.document import Report
from speedprof.report.markdown import format_markdown, write_markdown
from speedprof.report.sections import SECTIONS_OF, Section
from speedprof.report.tables import partition_table, step_time_table
from speedprof.report.text import escape_markdown, make_plain, make_printable
from speedprof.run_dir import RunStatus
from speedprof.trace.model import Timeline


def printed(report: Report, *, terminal: bool = False) -> str:
    out = io.StringIO()
    color_system = "truecolor" if terminal else None
    print_report(report, Console(file=out, width=100, force_terminal=terminal, color_system=color_system))
    return out.getvalue()


def failed_report() -> Report:
    run = manifest(status=RunStatus.FAILED, failure="rank 1 ended with exit code 9")
    return replace(small_report(), manifest=run)


def large_report() -> Report:
    """Sixteen ranks with everything that can be told, and more of each than any report shows."""
    stages = tuple(stage(name, f"muon.{k}", 300) for k in range(12) for name in ("reduce_scatter", "all_gather"))
    full = two_full_ranks()[0]
    assert full.exposure is not None
    ranks = tuple(
        replace(
            full,
            rank=rank,
            stages=stages,
            breakdown=breakdown(rank, [partition(8_000, 1_500, 100, 400)] * 2),
            exposure=replace(full.exposure, rank=rank, collectives=full.exposure.collectives * 9),
            idle=idle_gaps(dict.fromkeys(GapCause, 400000), full.idle.groups * 9),
            kernels=tuple(kernel(f"kernel {k}", k) for k in range(90)),
        )
        for rank in range(16)
    )
    log = run_log(16)
    notes = tuple(f"note {k}" for k in range(9))
    measured = analysis(ranks, log, notes, match=match(offset_ns=9_000), stragglers=(straggler(),) * 5)
    run = manifest(num_ranks=16, status=RunStatus.INTERRUPTED)
    found = find_all(measured)
    return Report(analysis=measured, findings=found + found, manifest=run, step_log=log, sources=("x",))


def test_console(snapshot: SnapshotAssertion) -> None:
    assert printed(full_report(full_analysis(offset_ns=7_000))) == snapshot


def test_markdown(snapshot: SnapshotAssertion) -> None:
    assert format_markdown(full_report(full_analysis(offset_ns=7_000))) == snapshot


def test_first_line_is_the_costliest_finding_or_that_there_is_none() -> None:
    assert printed(small_report()).startswith("The device runs dry because the host has not launched the next work yet")
    assert printed(empty_report()).startswith("Where the time of a step goes is not known: there is no trace.\n")
    steady = analysis((rank_analysis(0, [partition(10_000, 0, 0, 0)]),))
    nothing = replace(empty_report(), analysis=steady)
    assert printed(nothing).startswith("Nothing is known to cost 0.2% of a traced step (10.0 ms) or more.\n")
    without_steps = replace(empty_report(), analysis=analysis((rank_analysis(0, []),)))
    assert printed(without_steps).startswith("Nothing is known to cost 0.2% of the capture (1.00 ms) or more.\n")
    only = replace(small_report(), sections=frozenset({Section.LAUNCHES, Section.KERNELS}), findings=())
    assert " ".join(printed(only).split()).startswith(
        "Nothing in what was asked for (launches, kernels) is known to cost 0.2% of a traced step (10.0 ms) or more."
    )


def test_a_failed_run_says_so_everywhere() -> None:
    sentence = "This run failed: rank 1 ended with exit code 9. Its ranks began steps up to 70."
    assert sentence in " ".join(printed(failed_report()).split())
    assert sentence in format_markdown(failed_report())


REPORTS = [small_report(), full_report(), failed_report(), large_report(), empty_report(), hostile_report("x" * 300)]


@pytest.mark.parametrize("report", REPORTS)
def test_the_console_keeps_to_100_columns(report: Report) -> None:
    assert max(len(line) for line in printed(report).splitlines()) <= 100


@pytest.mark.parametrize("report", REPORTS)
def test_markdown_has_under_140_lines(report: Report) -> None:
    assert len(format_markdown(report).splitlines()) < 140


LONG_STEPS = analysis((rank_analysis(0, [partition(95_000_000, 2_000_000, 1_000_000, 2_000_000)]),), run_log())


@pytest.mark.parametrize(
    "report", [small_report(), full_report(), large_report(), replace(empty_report(), analysis=LONG_STEPS)]
)
def test_no_header_breaks_within_a_word(report: Report) -> None:
    words = {word for line in printed(report).splitlines() for word in line.split()}
    tables = (make_table(report).shortened(limit) for _, make_table, limit in TABLES)
    assert {word for table in tables if table.rows for name in table.columns for word in name.split()} <= words


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
@pytest.mark.parametrize("name", ["Ünïcode 日本", "long " * 100])
def test_the_console_keeps_to_the_characters_of_its_encoding(encoding: str, name: str) -> None:
    out = io.BytesIO()
    with io.TextIOWrapper(out, encoding=encoding, errors="strict") as file:
        print_report(hostile_report(name), Console(file=file, width=100))
        print_report(small_report(), Console(file=file, width=100))
        file.flush()
        text = out.getvalue().decode(encoding)
    assert "9.170-9.320" in text
    assert make_printable("Ünïcode … \N{EN DASH}", "ascii") == "\\xdcn\\xefcode ... -"


def test_a_damaged_trace_is_said_first() -> None:
    sentence = "The trace of rank 1 is damaged: part of what happened is lost"
    assert printed(damaged_report()).startswith(sentence)
    assert sentence in format_markdown(damaged_report()).splitlines()[2]
    assert "| 1 | damaged | - | - | - | - | - | - |" in format_markdown(damaged_report())
    # The stages are those of rank 0, whose 0.6 ms of all-gather in two steps were 0.375 ms a step over both ranks.
    assert "| muon.attn | all_gather | 1 | 0.900 | 0.600 | 0.300 |" in format_markdown(damaged_report())


def test_where_every_trace_is_damaged_nothing_is_known() -> None:
    ranks = tuple(replace(rank, is_damaged=True) for rank in two_ranks())
    report = replace(empty_report(), analysis=analysis(ranks), findings=find_all(analysis(ranks)))
    first, second, third, *_ = printed(report).splitlines()
    assert first.startswith("The traces of ranks 0, 1 are damaged")
    assert "no trace that is whole holds a traced step" in f"{first} {second} {third}"


def test_steps_that_alternate_lead_with_their_mean_and_both_levels() -> None:
    report = replace(empty_report(), step_log=alternating_log(2), analysis=analysis((), alternating_log(2)))
    sentence = (
        "A step takes 150 ms on average: 100 ms and 200 ms in turn (mean of whole pairs of 20 clean steps on rank 0, "
        "the slowest of 2; 95% interval of that mean 150.000 to 150.000 ms)."
    )
    text = " ".join(printed(report).split())
    assert sentence in text
    assert sentence in format_markdown(report)
    assert "rank 0 100.000 and 200.000, rank 1 100.000 and 200.000 in turn" in text
    (row, _) = step_time_table(report).rows
    assert row == (
        "0",
        "device",
        "20",
        "150.000",
        "-",
        "150.000-150.000",
        "0.000",
        "200.000",
        "11",
        "220.000",
        "+46.7%",
    )


def test_what_the_profiler_may_have_caused_never_leads() -> None:
    measured = analysis((rank_analysis(0, [partition(9_500, 0, 50, 450)]),), run_log())
    report = replace(empty_report(), analysis=measured, findings=find_all(measured))
    assert printed(report).startswith("Copies run with neither")
    alone = analysis((rank_analysis(0, [partition(9_550, 0, 0, 450)]),), run_log())
    report = replace(empty_report(), analysis=alone, findings=find_all(alone))
    assert printed(report).startswith("Nothing is known to cost 0.2% of a traced step (10.0 ms) or more.")


def test_a_long_name_leaves_the_numbers_of_its_sentence() -> None:
    report = hostile_report("a_kernel_of_many_templates<" * 80)
    for text in (" ".join(printed(report).split()), format_markdown(report)):
        assert "runs with no compute beside it for 375 us per step" in text
        assert "most on rank 1: 450 us" in text


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.search(r"\x1b\[[0-9;]*3\d", printed(small_report(), terminal=True))
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3\d", printed(small_report(), terminal=True))


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_name_acts_on_a_terminal(name: str) -> None:
    out = printed(hostile_report(name))
    assert not [character for character in out if character != "\n" and unicodedata.category(character)[0] == "C"]
    out.encode()


def test_rich_markup_is_shown_not_obeyed() -> None:
    assert "[red]markup[/red]" in printed(hostile_report(HOSTILE_NAMES[2]))


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_no_name_acts_in_markdown(name: str, tmp_path: Path) -> None:
    write_markdown(hostile_report(name), tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    bare = re.sub(r"\\.", "", text)
    assert "<" not in bare
    assert "`" not in bare
    assert "](" not in bare
    assert "://" not in bare
    assert "@" not in bare
    tables = [line for line in bare.splitlines() if line.startswith("|")]
    assert {line.count("|") - 1 for line in tables} <= {4, 6, 7, 8, 11}


def test_plain_text_shows_what_would_act_and_shortens_in_the_middle() -> None:
    assert make_plain("a\x1b[31m\u202eb\x00\nc") == "a\\x1b[31m\\u202eb\\x00 c"
    assert make_plain("\ud800 \U000e0001") == "\\ud800 \\U000e0001"
    assert make_plain("Ünïcode 日本 ok") == "Ünïcode 日本 ok"
    assert make_plain("a" * 50 + "b" * 50, limit=11) == "aaaaa…bbbbb"
    assert len(make_plain("\u202e" * 1_000, limit=100)) <= 100


def test_names_with_underscores_stay_readable_in_markdown() -> None:
    assert escape_markdown("reduce_scatter of muon.attn: 1.2 ms") == "reduce_scatter of muon.attn: 1.2 ms"
    assert escape_markdown("_a_ *b* a|b http://x") == r"\_a\_ \*b\* a\|b http\://x"


def test_the_worst_rank_is_named() -> None:
    report = replace(empty_report(), analysis=analysis(two_ranks()), findings=find_all(analysis(two_ranks())))
    assert "most on rank 1: 1.00 ms" in printed(report)


def test_many_small_findings_are_told_as_one_line() -> None:
    large, small = (
        Finding(
            slug=slug,
            severity=severity,
            claim=f"{slug} costs",
            cost_ns=cost_ns,
            evidence=(Evidence(rank=0, step=1, start_ns=0, end_ns=1),),
            try_next="look",
        )
        for slug, severity, cost_ns in (("big", Severity.HIGH, 900_000), ("little", Severity.LOW, 10_000))
    )
    report = replace(small_report(), findings=(large, *[small] * 9))
    shown, smaller = split_findings(report)
    assert shown == (large, small, small, small)
    assert smaller == (small,) * 6
    assert "6 smaller findings, 0.060 ms together" in printed(report)


TITLES = {
    Section.STEP_TIME: {"Step time in ms"},
    Section.PARTITION: {"Where a traced step goes, ms per step"},
    Section.OVERLAP: {
        "Exposed communication, ms per traced step",
        "Collectives, ms per traced step, mean over ranks",
        "Optimizer stages, ms per traced step, mean over ranks",
        "Bandwidth of collectives by size",
    },
    Section.STRAGGLERS: {"Stragglers, ms per traced step"},
    Section.IDLE: {
        "Idle time of the device by cause, ms per traced step",
        "Idle time by what the host was at, ms per traced step, mean over ranks",
    },
    Section.LAUNCHES: {"Launches, per traced step"},
    Section.KERNELS: {"Kernels that cost most, ms per traced step, mean over ranks"},
    Section.CERTAINTY: {"Device events by what is known of them", "Clocks of the ranks in us"},
}


@pytest.mark.parametrize("section", list(Section))
def test_the_console_and_markdown_show_what_was_asked_for_alone(section: Section) -> None:
    report = replace(full_report(full_analysis(offset_ns=7_000)), sections=frozenset({section}))
    titles = {title for told in TITLES.values() for title in told}
    text = printed(report)
    assert {title for title in titles if f"\n{title}\n" in text} == TITLES[section]
    assert {title for title in titles if f"## {title}\n" in format_markdown(report)} <= TITLES[section]
    slugs = set(re.findall(r"\[([a-z-]+), rank", " ".join(text.split())))
    assert slugs == {finding.slug for finding in report.findings if section in SECTIONS_OF[finding.slug]}
    assert ("A step takes" in text) == (section is Section.STEP_TIME)


def test_with_all_sections_every_table_is_printed() -> None:
    text = printed(full_report(full_analysis(offset_ns=7_000)))
    assert all(f"\n{title}\n" in text for told in TITLES.values() for title in told)


@pytest.mark.parametrize("is_told", [True, False])
def test_overlap_is_told_only_where_ranks_have_cores_of_their_own(is_told: bool) -> None:
    steps = [partition(8_000, 1_000, 0, 1_000)]
    ranks = (replace(rank_analysis(0, steps), breakdown=breakdown(0, steps, timeline=Timeline.HOST)),)
    report = replace(small_report(), analysis=replace(analysis(ranks), can_tell_overlap=is_told))
    table = partition_table(report)
    assert (table.rows[0][-1] != "-") is is_told
    assert ("not told of ranks that share cores" in table.remark) is not is_told
