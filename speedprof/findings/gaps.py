"""Time in which a rank neither computes nor communicates: idle, or copying."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from speedprof.analyses.analysis import Analysis
from speedprof.analyses.breakdown import Partition
from speedprof.findings.costs import (
    format_times,
    has_host_timeline,
    is_worth_telling,
    mean,
    measure_by_rank,
    rate,
    sound_ranks,
    worst_step,
)
from speedprof.findings.finding import Finding, Severity, Slug
from speedprof.units import format_ns, format_percent

SMALLEST_PROFILER_SHARE = 0.1  # of a cost: what the profiler adds to a step is told beside it from here
SMALLEST_DIRECTION_SHARE = 0.5  # of the exposed copies: advice is for one direction from here

_TRY_NEXT = {
    Slug.IDLE_DEVICE: "See in the timeline how long the gaps are. Gaps of microseconds between kernels: fewer and "
    "larger kernels, or CUDA graphs. Gaps of a millisecond or more: look at what the host does there, such as a "
    "blocking read or the data loader.",
    Slug.IDLE_HOST: "Look at the Python between operators: data loading, logging, garbage collection, and the "
    "optimizer's own loop.",
    Slug.EXPOSED_COPY: "See in the timeline which copies these are. Copies from device to device come from clone(), "
    "contiguous(), concatenation and the filling of buffers; copies from and to the host from the input and from "
    "results that are read back.",
}

_DIRECTIONS = {"DtoD": "from device to device", "HtoD": "from host to device", "DtoH": "from device to host"}

_TRY_NEXT_BY_DIRECTION = {
    "DtoD": "See in the timeline which operators make these copies: clone(), contiguous(), concatenation or the "
    "filling of buffers. Write a result where it is needed instead of copying it there.",
    "HtoD": "Copy from pinned memory with non_blocking=True on a stream of its own, one step ahead.",
    "DtoH": "Read results back less often, and into pinned memory with non_blocking=True; .item() and .cpu() are such "
    "copies.",
}


def find_idle_time(analysis: Analysis) -> Iterator[Finding]:
    """Idle time. Where the profiler may cause all of it, it is told, but costs nothing that is known."""
    on_host = has_host_timeline(analysis)
    claim = "No operator and no collective runs on the host for" if on_host else "The device has nothing to do for"
    slug = Slug.IDLE_HOST if on_host else Slug.IDLE_DEVICE
    ranks = sound_ranks(analysis)
    idle = measure_by_rank(ranks, _idle_ns)
    cost_ns = mean(idle)
    if not is_worth_telling(analysis, cost_ns):
        return
    overheads = (one.profiler_overhead_ns for one in analysis.step_times)
    profiler_ns = max((one for one in overheads if one is not None), default=0)
    may_be_profiler = profiler_ns >= cost_ns
    yield Finding(
        slug=slug,
        severity=Severity.INFO if may_be_profiler else rate(analysis, cost_ns),
        claim=f"{claim} {format_times(analysis, idle)}{_profiler_remark(profiler_ns, cost_ns)}.",
        cost_ns=0 if may_be_profiler else cost_ns,
        evidence=(worst_step(ranks, idle, _idle_ns),),
        try_next=_TRY_NEXT[slug],
    )


def find_exposed_copies(analysis: Analysis) -> Iterator[Finding]:
    ranks = sound_ranks(analysis)
    copies = measure_by_rank(ranks, _copy_ns)
    if not is_worth_telling(analysis, mean(copies)):
        return
    direction, share = _main_direction(analysis)
    remark = f"; {format_percent(share)} of it {_DIRECTIONS[direction]}" if direction else ""
    yield Finding(
        slug=Slug.EXPOSED_COPY,
        severity=rate(analysis, mean(copies)),
        claim="Copies run with neither compute nor communication beside them for "
        f"{format_times(analysis, copies)}{remark}.",
        cost_ns=mean(copies),
        evidence=(worst_step(ranks, copies, _copy_ns),),
        try_next=_TRY_NEXT_BY_DIRECTION[direction] if direction else _TRY_NEXT[Slug.EXPOSED_COPY],
    )


def _main_direction(analysis: Analysis) -> tuple[str | None, float]:
    """The direction of most exposed copies and its share; None where none has half, or directions are not known."""
    totals: Counter[str] = Counter()
    for rank in sound_ranks(analysis):
        for copy in rank.copies:
            totals[copy.direction] += copy.exposed_ns
    if not totals:
        return None, 0.0
    direction, direction_ns = totals.most_common(1)[0]
    share = direction_ns / totals.total()
    return (direction if direction in _DIRECTIONS and share >= SMALLEST_DIRECTION_SHARE else None), share


def _profiler_remark(profiler_ns: int, cost_ns: int) -> str:
    """How much of a cost may be the profiler's own doing, in words."""
    if profiler_ns <= 0 or profiler_ns < SMALLEST_PROFILER_SHARE * cost_ns:
        return ""
    share = "all" if profiler_ns >= cost_ns else f"up to {format_ns(profiler_ns)}"
    return f"; the profiler may cause {share} of it"


def _copy_ns(step: Partition) -> int:
    return step.exposed_copy_ns


def _idle_ns(step: Partition) -> int:
    return step.idle_ns
