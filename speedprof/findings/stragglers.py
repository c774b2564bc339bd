"""The rank that the others wait for, and what keeps matched collectives from being told apart."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from speedprof.analyses.analysis import Analysis, RankAnalysis
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
from speedprof.units import format_ns, format_percent

_WHY = {
    StragglerCause.LATE_LAUNCH: "Its host launches late: its device idles {excess} more than the others' {unit}, since "
    "the next work was not launched yet",
    StragglerCause.INPUT: "It waits for its input: its device idles {excess} more than the others' {unit} while the "
    "host loads data",
    StragglerCause.SYNC: "Its host blocks: its device idles {excess} more than the others' {unit} around calls that "
    "synchronise",
    StragglerCause.SLOW_KERNEL: "Its kernels are slower: it computes {excess} more than the others {unit}{kernels}",
    StragglerCause.UNEXPLAINED: "Nothing in the trace explains why it is late",
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

SMALLEST_OUTSIDE_SHARE = 0.1  # of a straggler's cost: waiting outside its capture is told from here
_MOST_KERNELS = 2
_LONGEST_NAME = 60


def find_waiting_for_stragglers(analysis: Analysis) -> Iterator[Finding]:
    """One for each straggler. Its cost is what the others wait for it, the mean over them."""
    sound = {rank.rank for rank in sound_ranks(analysis)}
    for one in analysis.stragglers:
        evidence = _longest_wait(analysis, one.rank)
        if one.rank not in sound or not evidence or not is_worth_telling(analysis, one.cost_ns):
            continue
        yield Finding(
            slug=Slug.STRAGGLER,
            severity=rate(analysis, one.cost_ns),
            claim=f"{_who_waits(analysis, one)} for rank {one.rank} with nothing to compute for "
            f"{format_cost_of(analysis, one.cost_ns)}, {format_percent(one.share)} of all waiting for other ranks. "
            f"{_why(analysis, one)}.{_outside_remark(analysis, one)}",
            cost_ns=one.cost_ns,
            evidence=evidence,
            try_next=_TRY_NEXT[one.cause],
        )


def waited_for_stragglers(analysis: Analysis, rank: RankAnalysis) -> int:
    """How long this rank waits for stragglers, in ns over its windows: what their findings are charged with."""
    late = {one.rank for one in analysis.stragglers if is_worth_telling(analysis, one.cost_ns)}
    return sum(wait.ns for wait in rank.exposure.waits if wait.rank in late) if rank.exposure else 0


def find_unmatched(analysis: Analysis) -> Iterator[Finding]:
    """Says that waiting and transfer cannot be told apart, and why."""
    ranks = sound_ranks(analysis)
    exposed = measure_by_rank(ranks, lambda step: step.exposed_communication_ns)
    match = analysis.match
    if match is None or match.refused_because is None or not is_worth_telling(analysis, mean(exposed)):
        return
    yield Finding(
        slug=Slug.UNMATCHED_COLLECTIVES,
        severity=Severity.INFO,
        claim=f"Cannot tell how much of the exposed communication ({format_cost_of(analysis, mean(exposed))}) is "
        f"waiting for other ranks: {match.refused_because}.",
        cost_ns=0,
        evidence=(worst_step(ranks, exposed, lambda step: step.exposed_communication_ns),),
        try_next="Give the traces of all ranks of one run, captured over the same steps.",
    )


def find_clock_offsets(analysis: Analysis) -> Iterator[Finding]:
    """Says that ranks were brought onto one clock, by how much, and how well."""
    moved = [one for one in analysis.match.clocks if one.offset_ns] if analysis.match else []
    if not moved:
        return
    furthest = max(moved, key=lambda one: abs(one.offset_ns))
    window = windows_of(next(rank for rank in analysis.ranks if rank.rank == furthest.rank))
    residual_ns = max(one.residual_ns for one in moved)
    yield Finding(
        slug=Slug.CLOCK_OFFSET,
        severity=Severity.INFO,
        claim=f"The clocks of {len(moved)} of {len(analysis.ranks)} ranks differ from that of rank "
        f"{analysis.match.clocks[0].rank if analysis.match else 0}, most on rank {furthest.rank}: "
        f"{format_ns(furthest.offset_ns)}. They were aligned by the ends of {furthest.num_collectives} collectives, "
        f"and what is said across ranks is uncertain by {format_ns(residual_ns)}.",
        cost_ns=0,
        evidence=(Evidence(rank=furthest.rank, step=None, start_ns=window[0].start_ns, end_ns=window[-1].end_ns),),
        try_next="Nothing needs mending. For finer comparisons synchronise the hosts' clocks (PTP rather than NTP).",
    )


def _who_waits(analysis: Analysis, late: Straggler) -> str:
    others = [rank.rank for rank in sound_ranks(analysis) if rank.rank != late.rank]
    return f"Rank {others[0]} waits" if len(others) == 1 else "The other ranks wait"


def _outside_remark(analysis: Analysis, late: Straggler) -> str:
    """A part of the waiting may be due to a profiler that began later on the late rank: how much at most."""
    others = [rank for rank in sound_ranks(analysis) if rank.rank != late.rank and rank.exposure]
    outside_ns = mean(
        {
            rank.rank: per_window(rank, sum(one.outside_ns for one in rank.exposure.waits if one.rank == late.rank))
            for rank in others
            if rank.exposure
        }
    )
    if outside_ns < SMALLEST_OUTSIDE_SHARE * late.cost_ns:
        return ""
    return (
        f" For {format_ns(outside_ns)} of the waiting its capture had not begun or was over: starting the profiler may "
        "be what kept it."
    )


def _why(analysis: Analysis, one: Straggler) -> str:
    slow = [
        f"{kernel.name[:_LONGEST_NAME]} by {format_ns(kernel.own_ns - kernel.others_ns)}" for kernel in one.slow_kernels
    ]
    return _WHY[one.cause].format(
        excess=format_ns(sum(one.excess_ns.get(name, 0) for name in EXCESS_OF_CAUSE.get(one.cause, ()))),
        unit="per step" if has_steps(analysis) else "in the capture",
        kernels=f", most in {' and '.join(slow[:_MOST_KERNELS])}" if slow else "",
    )


def _longest_wait(analysis: Analysis, late: int) -> tuple[Evidence, ...]:
    """Where a rank waits longest for the late one: the wait on that rank, and the same time on the late one."""
    if analysis.match is None:
        return ()
    waiting = (
        analysis.match.instances.filter((pl.col("last_rank") == late) & (pl.col("rank") != late))
        .with_columns(wait_ns=pl.col("last_start_ns") - pl.col("start_ns"))
        .sort("wait_ns", "collective", "rank", descending=[True, False, False])
    )
    if waiting.is_empty():
        return ()
    first = waiting.row(0, named=True)
    return tuple(
        _at(analysis, rank, first["start_ns"], min(first["end_ns"], first["last_start_ns"]))
        for rank in (first["rank"], late)
    )


def _at(analysis: Analysis, rank: int, start_ns: int, end_ns: int) -> Evidence:
    """An interval of the common clock on a rank's own, with the step that it begins in."""
    clocks = analysis.match.clocks if analysis.match else ()
    offset_ns = next((clock.offset_ns for clock in clocks if clock.rank == rank), 0)
    start_ns, end_ns = start_ns - offset_ns, end_ns - offset_ns
    segments = next((one.breakdown.segments for one in analysis.ranks if one.rank == rank), ())
    step = next((one.step for one in segments if one.start_ns <= start_ns < one.end_ns), None)
    return Evidence(rank=rank, step=step, start_ns=start_ns, end_ns=end_ns)
