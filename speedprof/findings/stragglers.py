"""The rank that the others wait for, and what keeps matched collectives from being told apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from speedprof.analyses.analysis import Analysis, RankAnalysis
from speedprof.analyses.exposure import Wait
from speedprof.analyses.stragglers import EXCESS_OF_CAUSE, Straggler, StragglerCause
from speedprof.findings.costs import (
    format_cost_of,
    has_steps,
    is_worth_telling,
    mean,
    measure_by_rank,
    per_window,
    rate,
    sound_ranks,
    windows_of,
    worst_step,
)
from speedprof.findings.finding import Evidence, Finding, Severity, Slug
from speedprof.units import format_ms, format_ns, format_percent

_WHY = {
    StragglerCause.LATE_LAUNCH: "Its host is late: its device idles {excess} more than that of the ranks that wait, "
    "{unit}, most for {what}",
    StragglerCause.INPUT: "It waits for its input: its device idles {excess} more than that of the ranks that wait, "
    "{unit}, while the host loads data",
    StragglerCause.SYNC: "Its host blocks: its device idles {excess} more than that of the ranks that wait, {unit}, "
    "around calls that synchronise",
    StragglerCause.SLOW_KERNEL: "It computes {excess} more than the ranks that wait, {unit}{kernels}",
    StragglerCause.UNEXPLAINED: "No one cause explains it; compared with the ranks that wait it spends most more "
    "on {what}",
}

_WORDS = {
    "late_launch": "launches that come late",
    "allocator": "allocating device memory",
    "recompile": "compiling",
    "gc": "collecting garbage",
    "compute": "compute",
    "copy": "copies",
    "queued": "work that waits in its queue",
}

_TRY_NEXT = {
    StragglerCause.LATE_LAUNCH: "Look at what this rank's host does that the others' do not: logging, checkpoints, "
    "another program on its cores, the cores and memory node that it is bound to. A host that runs further ahead of "
    "its device hides such delays.",
    StragglerCause.INPUT: "Look at this rank's data loader and shard: load ahead, on a thread of its own.",
    StragglerCause.SYNC: "Find the call that reads a result back on this rank alone, such as .item() or printing, "
    "and do it later or less often.",
    StragglerCause.SLOW_KERNEL: "See whether this rank has more work than the others (longer documents, a larger "
    "shard) or a slower device: compare its clocks, power and temperature.",
    StragglerCause.UNEXPLAINED: "Look at this rank's timeline just before the collectives that the others wait in.",
}

SMALLEST_MATCHED_SHARE = 0.9  # of the collectives that could be matched: fewer are told
SMALLEST_OUTSIDE_SHARE = 0.1  # of a straggler's cost: waiting outside its capture is told from here
_MOST_KERNELS = 2
_LONGEST_NAME = 60


def find_waiting_for_stragglers(analysis: Analysis) -> Iterator[Finding]:
    """One for each straggler. Its cost is what is waited for it, the mean over all ranks, as of every other cost."""
    for one in analysis.stragglers:
        cost_ns, evidence = _charged_ns(analysis, one.rank), _longest_wait(analysis, one.rank)
        if not evidence or not is_worth_telling(analysis, cost_ns):
            continue
        yield Finding(
            slug=Slug.STRAGGLER,
            severity=rate(analysis, cost_ns),
            claim=f"{_who_waits(analysis, one)} for rank {one.rank} with nothing to compute for "
            f"{format_cost_of(analysis, one.cost_ns)}{_interval_remark(one)}, {format_percent(one.share)} of all "
            f"waiting for other ranks. {_why(analysis, one)}.{_gain_remark(one)}{_outside_remark(analysis, one)}",
            cost_ns=cost_ns,
            evidence=evidence,
            try_next=_TRY_NEXT[one.cause],
        )


def waited_for_stragglers(analysis: Analysis, rank: RankAnalysis) -> int:
    """How long this rank waits for stragglers, in ns over its windows: what their findings are charged with."""
    late = {one.rank for one in analysis.stragglers if is_worth_telling(analysis, _charged_ns(analysis, one.rank))}
    return sum(wait.ns for wait in rank.exposure.waits if wait.rank in late) if rank.exposure else 0


def _charged_ns(analysis: Analysis, late: int) -> int:
    """What is waited for a rank, per step, the mean over all ranks."""
    return mean(
        {
            rank.rank: per_window(rank, sum(wait.ns for wait in waits_of(rank) if wait.rank == late))
            for rank in sound_ranks(analysis)
        }
    )


def waits_of(rank: RankAnalysis) -> tuple[Wait, ...]:
    return rank.exposure.waits if rank.exposure else ()


def find_unmatched(analysis: Analysis) -> Iterator[Finding]:
    """Says that waiting and transfer cannot be told apart, or for how much of the collectives, and why."""
    ranks = sound_ranks(analysis)
    exposed = measure_by_rank(ranks, lambda step: step.exposed_communication_ns)
    match = analysis.match
    if match is None or not is_worth_telling(analysis, mean(exposed)):
        return
    if match.refused_because is None and match.num_matched >= SMALLEST_MATCHED_SHARE * match.num_matchable:
        return
    found = f"only {match.num_matched:,} of {match.num_matchable:,} collectives were found on all ranks of their group"
    yield Finding(
        slug=Slug.UNMATCHED_COLLECTIVES,
        severity=Severity.INFO,
        claim=f"Cannot tell how much of the exposed communication ({format_cost_of(analysis, mean(exposed))}) is "
        f"waiting for other ranks: {match.refused_because or found}.",
        cost_ns=0,
        evidence=(worst_step(ranks, exposed, lambda step: step.exposed_communication_ns),),
        try_next="Give the traces of all ranks of one run, captured over the same steps.",
    )


def find_clock_offsets(analysis: Analysis) -> Iterator[Finding]:
    """Says that ranks were brought onto one clock, by how much, and how well."""
    if analysis.match is None:
        return
    moved = [one for one in analysis.match.clocks if one.offset_ns]
    if not moved:
        return
    furthest = max(moved, key=lambda one: abs(one.offset_ns))
    # What is added to bring a clock that is ahead onto the common one is negative.
    how = "ahead" if furthest.offset_ns < 0 else "behind"
    window = windows_of(next(rank for rank in analysis.ranks if rank.rank == furthest.rank))
    residual_ns, first = max(one.residual_ns for one in moved), analysis.match.clocks[0].rank
    yield Finding(
        slug=Slug.CLOCK_OFFSET,
        severity=Severity.INFO,
        claim=f"The clocks of {len(moved)} of {len(analysis.ranks)} ranks differ from that of rank {first}, most on "
        f"rank {furthest.rank}: {format_ns(abs(furthest.offset_ns))} {how}. They were aligned by the ends of "
        f"{furthest.num_collectives} collectives, and what is said across ranks is uncertain by "
        f"{format_ns(residual_ns)}.",
        cost_ns=0,
        evidence=(Evidence(rank=furthest.rank, step=None, start_ns=window[0].start_ns, end_ns=window[-1].end_ns),),
        try_next="Nothing needs mending. For finer comparisons synchronise the hosts' clocks (PTP rather than NTP).",
    )


def _who_waits(analysis: Analysis, late: Straggler) -> str:
    others = [rank.rank for rank in sound_ranks(analysis) if rank.rank != late.rank]
    return f"Rank {others[0]} waits" if len(others) == 1 else "The other ranks wait"


def _interval_remark(late: Straggler) -> str:
    if late.cost_interval_ns is None:
        return ""
    low_ns, high_ns = late.cost_interval_ns
    return f", 95% interval {format_ms(low_ns)} to {format_ms(high_ns)} ms"


def _gain_remark(late: Straggler) -> str:
    """Where others are as late, mending one alone gains little."""
    if not late.as_late:
        return ""
    ranks = ", ".join(map(str, late.as_late))
    who = f"Rank {ranks} comes" if len(late.as_late) == 1 else f"Ranks {ranks} come"
    return f" {who} almost as late: mending rank {late.rank} alone would gain {format_ns(late.gain_ns)}."


def _outside_remark(analysis: Analysis, late: Straggler) -> str:
    """A part of the waiting may be due to a profiler that began later on the late rank: how much at most."""
    others = [rank for rank in sound_ranks(analysis) if rank.rank != late.rank]
    outside_ns = mean(
        {
            rank.rank: per_window(rank, sum(wait.outside_ns for wait in waits_of(rank) if wait.rank == late.rank))
            for rank in others
        }
    )
    if outside_ns < SMALLEST_OUTSIDE_SHARE * late.cost_ns:
        return ""
    return (
        f" For {format_ns(outside_ns)} of the waiting its capture had not begun or was over: starting the profiler may "
        "be what kept it."
    )


def _why(analysis: Analysis, one: Straggler) -> str:
    causes = EXCESS_OF_CAUSE.get(one.cause, ())
    slow = [
        f"{kernel.name[:_LONGEST_NAME]} by {format_ns(kernel.own_ns - kernel.others_ns)}" for kernel in one.slow_kernels
    ]
    return _WHY[one.cause].format(
        excess=format_ns(sum(one.excess_ns.get(name, 0) for name in causes)),
        unit="per step" if has_steps(analysis) else "in the capture",
        kernels=f", most in {' and '.join(slow[:_MOST_KERNELS])}" if slow else ", in more or in other kernels",
        what=_largest_excess(one, causes or one.excess_ns),
    )


def _largest_excess(one: Straggler, names: Iterable[str]) -> str:
    """What a late rank has most more of, in words; of time spent communicating it has less."""
    longest_ns, name = max((one.excess_ns.get(name, 0), name) for name in names)
    if longest_ns <= 0:
        return "nothing that the trace shows"
    return f"{_WORDS.get(name, name.replace('_', ' '))} ({format_ns(longest_ns)})"


def _longest_wait(analysis: Analysis, late: int) -> tuple[Evidence, ...]:
    """Where a rank is longest kept waiting by the late one: that time on the late rank, then on the one that waits."""
    waits = [(wait, rank.rank) for rank in sound_ranks(analysis) for wait in waits_of(rank) if wait.rank == late]
    if not waits:
        return ()
    wait, waiting = max(waits, key=lambda one: one[0].longest_end_ns - one[0].longest_start_ns)
    ahead_ns = _offset(analysis, waiting) - _offset(analysis, late)
    start_ns, end_ns = wait.longest_start_ns, wait.longest_end_ns
    return (
        _at(analysis, late, start_ns + ahead_ns, end_ns + ahead_ns),
        Evidence(rank=waiting, step=wait.longest_step, start_ns=start_ns, end_ns=end_ns),
    )


def _offset(analysis: Analysis, rank: int) -> int:
    """What is added to a rank's times to bring them onto the common clock."""
    clocks = analysis.match.clocks if analysis.match else ()
    return next((clock.offset_ns for clock in clocks if clock.rank == rank), 0)


def _at(analysis: Analysis, rank: int, start_ns: int, end_ns: int) -> Evidence:
    """An interval on a rank's own clock, with the step that it begins in."""
    segments = next((one.breakdown.segments for one in analysis.ranks if one.rank == rank), ())
    step = next((one.step for one in segments if one.start_ns <= start_ns < one.end_ns), None)
    return Evidence(rank=rank, step=step, start_ns=start_ns, end_ns=end_ns)
