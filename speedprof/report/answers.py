"""The sentences that every report opens with: how long is a step, and where is its time lost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from speedprof.analyses.analysis import Analysis
from speedprof.analyses.step_time import StepTime
from speedprof.findings import (
    SMALLEST_COST_RATIO,
    Finding,
    Severity,
    has_steps,
    mean_step_ns,
    mean_window_ns,
    sound_ranks,
)
from speedprof.report.document import Report
from speedprof.report.sections import Section
from speedprof.run_dir import RunStatus
from speedprof.units import format_ms, format_ns, format_percent

INTERVAL_MEANING = (
    "The 95% interval says how well these steps pin down the typical step of this run. Steps of one run are not quite "
    "independent, and another start of the same program may differ by more: do not compare runs by it."
)

# A finding of low severity is shown at once only where fewer than so many stand before it.
_MOST_SHOWN = 4
_FEWEST_HIDDEN = 3

_ENDINGS = {
    RunStatus.RUNNING: "is still running",
    RunStatus.PARTIAL: "ended before its plan was fulfilled",
    RunStatus.FAILED: "failed",
    RunStatus.INTERRUPTED: "was interrupted",
}


def format_headline(report: Report) -> str:
    """The costliest finding, or plainly that there is none and why. What the measuring may have caused never leads."""
    costly = costly_findings(report)
    if costly:
        return costly[0].claim
    window_ns = mean_window_ns(report.analysis)
    if not window_ns:
        return f"Where the time of a step goes is not known: {_what_is_missing(report.analysis)}."
    window = "a traced step" if has_steps(report.analysis) else "the capture"
    return (
        f"{_what_was_asked(report)} is known to cost {format_percent(SMALLEST_COST_RATIO)} of {window} "
        f"({format_ns(window_ns)}) or more."
    )


def _what_is_missing(analysis: Analysis) -> str:
    if any(rank.is_damaged for rank in analysis.ranks):
        return "no trace that is whole holds a traced step"
    return "no traced step was found" if analysis.ranks else "there is no trace"


def _what_was_asked(report: Report) -> str:
    """The subject of a sentence that says there is nothing: of the parts asked for, where those are not all."""
    if report.sections >= frozenset(Section):
        return "Nothing"
    asked = ", ".join(section.value for section in Section if section in report.sections)
    return f"Nothing in what was asked for ({asked})"


def costly_findings(report: Report) -> tuple[Finding, ...]:
    return tuple(finding for finding in report.asked_findings if finding.severity is not Severity.INFO)


def slowest_step_time(report: Report) -> StepTime | None:
    """The step time of the rank whose typical step is longest: the run's own, since ranks wait for one another."""
    return max(report.analysis.step_times, key=lambda one: one.typical_ns, default=None)


def format_step_time(report: Report) -> str:
    """How long a clean step is, with its interval and what it rests on; else how long a traced one is."""
    one = slowest_step_time(report)
    if one is None:
        traced_ns = mean_step_ns(report.analysis)
        if traced_ns is None:
            return "How long a step takes is not known: none was clocked or traced."
        return f"A traced step takes {format_ns(traced_ns)} ({format_traced_basis(report)})."
    basis = f"{format_basis(report, one)}; {format_interval(one)}"
    if one.levels_ns:
        return f"A step takes {format_ns(one.mean_ns)} on average: {format_levels(one)} ({basis})."
    return f"A step takes {format_ns(one.median_ns)} ({basis}; mean {format_ns(one.mean_ns)})."


def format_basis(report: Report, one: StepTime) -> str:
    """What a step time rests on: `median of 50 clean steps on rank 1, the slowest of 2`."""
    slowest = f", the slowest of {len(report.analysis.step_times)}" if len(report.analysis.step_times) > 1 else ""
    of_what = "mean of whole pairs" if one.levels_ns else "median"
    return f"{of_what} of {format_count(one.num_clean, 'clean step')} on rank {one.rank}{slowest}"


def format_traced_basis(report: Report) -> str:
    """What the time of a traced step rests on, where no step was clocked."""
    ranks = sound_ranks(report.analysis)
    num_steps = sum(len(rank.breakdown.steps) for rank in ranks)
    return (
        f"mean of {format_count(num_steps, 'step')} on {format_count(len(ranks), 'rank')}, under the profiler: "
        "no step was clocked without it"
    )


def format_levels(one: StepTime) -> str:
    """The two levels of steps that alternate: `146 ms and 270 ms in turn`; empty for steps that do not."""
    return " and ".join(map(format_ns, one.levels_ns)) + " in turn" if one.levels_ns else ""


def format_interval(one: StepTime) -> str:
    if one.interval_ns is None:
        return "too few steps for a 95% interval"
    low_ns, high_ns = one.interval_ns
    of_what = " of that mean" if one.levels_ns else ""
    return f"95% interval{of_what} {format_ms(low_ns)} to {format_ms(high_ns)} ms"


def format_warnings(report: Report) -> tuple[str, ...]:
    """What a reader must know before anything else: how the run ended, and whose traces are damaged."""
    status = format_status(report)
    damaged = [str(rank.rank) for rank in report.analysis.ranks if rank.is_damaged]
    warnings = [status] if status else []
    if damaged:
        whose = f"trace of rank {damaged[0]} is" if len(damaged) == 1 else f"traces of ranks {', '.join(damaged)} are"
        warnings.append(
            f"The {whose} damaged: part of what happened is lost, so the numbers from there are too low, gaps "
            "mean nothing, and no cost is taken from there."
        )
    return tuple(warnings)


def format_status(report: Report) -> str | None:
    """What went wrong with the run; None where nothing did or where there is no run."""
    manifest = report.manifest
    if manifest is None or manifest.status is RunStatus.COMPLETE:
        return None
    why = f": {str(manifest.failure).rstrip('.')}." if manifest.failure else "."
    reached = [record.last_step for record in manifest.ranks if record.last_step is not None]
    how_far = f" Its ranks began steps up to {max(reached)}." if reached else ""
    return f"This run {_ENDINGS[manifest.status]}{why}{how_far} The numbers cover what it left behind."


def format_cost(report: Report, finding: Finding) -> str:
    """What a finding costs in a step, or in the capture where there are none, in ms and as a share:
    `1.234 ms (5.0%)`; empty for one that costs nothing."""
    window_ns = mean_window_ns(report.analysis)
    if finding.severity is Severity.INFO or not window_ns:
        return ""
    return f"{format_ms(finding.cost_ns)} ms ({format_percent(finding.cost_ns / window_ns)})"


def format_place(finding: Finding) -> str:
    """Where to look: `rank 1, step 63`."""
    first = finding.evidence[0]
    return f"rank {first.rank}" + ("" if first.step is None else f", step {first.step}")


def with_advice_once(findings: Iterable[Finding]) -> Iterator[tuple[Finding, str | None]]:
    """Each finding with what to try, or None where a finding before it said the same."""
    said: set[str] = set()
    for finding in findings:
        yield finding, None if finding.try_next in said else finding.try_next
        said.add(finding.try_next)


def split_findings(report: Report) -> tuple[tuple[Finding, ...], tuple[Finding, ...]]:
    """The findings to show at once, and those that cost too little to stand beside them: all of low severity but
    the first few, where there are many."""
    shown: list[Finding] = []
    smaller: list[Finding] = []
    for finding in report.asked_findings:
        is_small = finding.severity is Severity.LOW and len(shown) >= _MOST_SHOWN
        (smaller if is_small else shown).append(finding)
    return (tuple(shown), tuple(smaller)) if len(smaller) >= _FEWEST_HIDDEN else (report.asked_findings, ())


def format_smaller(report: Report, smaller: tuple[Finding, ...]) -> str:
    """How many findings are left out, and what they cost together."""
    together_ns = sum(finding.cost_ns for finding in smaller)
    return f"{format_count(len(smaller), 'smaller finding')}, {format_ms(together_ns)} ms together"


def format_count(number: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def all_notes(report: Report) -> tuple[str, ...]:
    """Every note of the analysis and of the ranks, each once."""
    notes: list[str] = list(report.analysis.notes)
    if report.manifest:
        notes += [f"rank {record.rank}: {note}" for record in report.manifest.ranks for note in _texts(record.notes)]
    return tuple(dict.fromkeys(notes))


def _texts(notes: object) -> list[str]:
    return [str(note) for note in notes] if isinstance(notes, list) else []
