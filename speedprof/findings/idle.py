"""Time in which a rank has nothing to do, by its cause."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from speedprof.analyses.analysis import Analysis, RankAnalysis
from speedprof.analyses.breakdown import Partition
from speedprof.analyses.idle_gaps import GapCause, GapGroup
from speedprof.findings.costs import (
    ByRank,
    format_times,
    has_host_timeline,
    is_worth_telling,
    mean,
    measure_by_rank,
    per_window,
    rate,
    sound_ranks,
    worst_rank,
    worst_step,
)
from speedprof.findings.finding import Evidence, Finding, Severity, Slug
from speedprof.units import format_ns

SMALLEST_PROFILER_SHARE = 0.1  # of a cost: what the profiler adds to a step is told beside it from here
_LONGEST_NAME = 60
SMALLEST_PLACE_SHARE = 0.25  # of a cause's time on the worst rank: a place on the host is named from here


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    """How idle time of some causes is told. `can_be_profiler`: a profiler that slows the host makes more of it."""

    slug: Slug
    causes: tuple[GapCause, ...]
    claim: str
    try_next: str
    can_be_profiler: bool = True


_RULES = (
    _Rule(
        slug=Slug.IDLE_LATE_LAUNCH,
        causes=(GapCause.LATE_LAUNCH,),
        claim="The device runs dry because the host has not launched the next work yet, for",
        try_next="Let the host run further ahead: fewer and larger launches (torch.compile, fused optimizers, CUDA "
        "graphs), less Python between them, nothing that reads results back in the step.",
    ),
    _Rule(
        slug=Slug.IDLE_SYNC,
        causes=(GapCause.SYNC,),
        claim="The device runs dry because the host was blocked in a call that synchronises, for",
        try_next="Read results back later or less often (.item(), .cpu(), printing a loss), copy from pinned memory "
        "with non_blocking=True, and replace torch.cuda.synchronize() by events.",
    ),
    _Rule(
        slug=Slug.IDLE_INPUT,
        causes=(GapCause.INPUT,),
        claim="The device waits for its input, for",
        try_next="Load ahead: more workers for the data loader (num_workers is 0 where the main process loads), pinned "
        "memory, and the next batch copied while this one is computed.",
        can_be_profiler=False,
    ),
    _Rule(
        slug=Slug.IDLE_ALLOCATOR,
        causes=(GapCause.ALLOCATOR,),
        claim="The device waits while the host allocates or frees device memory, for",
        try_next="Memory is taken from the driver again in the midst of training: keep shapes steady, warm up with the "
        "largest, or set PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True.",
        can_be_profiler=False,
    ),
    _Rule(
        slug=Slug.IDLE_RECOMPILE,
        causes=(GapCause.RECOMPILE,),
        claim="The device waits while the host compiles, for",
        try_next="See why it compiles again (TORCH_LOGS=recompiles): a shape, a Python number or a flag that changes.",
        can_be_profiler=False,
    ),
    _Rule(
        slug=Slug.IDLE_GC,
        causes=(GapCause.GARBAGE_COLLECTION,),
        claim="The device waits while Python collects garbage, for",
        try_next="Collect at times of your own choosing: gc.freeze() after the warm-up and gc.disable() in the loop.",
        can_be_profiler=False,
    ),
    _Rule(
        slug=Slug.IDLE_QUEUED,
        causes=(GapCause.QUEUED,),
        claim="The device has nothing to do although the next work is launched already, for",
        try_next="See what that work waits for: an event of another stream, a copy, or a kernel that takes long to "
        "start because its launch is large.",
    ),
    _Rule(
        slug=Slug.IDLE_SHORT_GAPS,
        causes=(GapCause.BELOW_LAUNCH_RESOLUTION,),
        claim="Gaps of a few microseconds before work that is launched already add up to",
        try_next="Fewer and larger kernels: fuse, or capture the step in a CUDA graph, which starts kernels faster.",
    ),
    _Rule(
        slug=Slug.IDLE_DEVICE,
        causes=(GapCause.UNLINKED,),
        claim="The device has nothing to do before work whose launch was not recorded, for",
        try_next="Capture again: for this time the trace does not tell what the host did.",
    ),
)

_IDLE_HOST = _Rule(
    slug=Slug.IDLE_HOST,
    causes=(),
    claim="No operator and no collective runs on the host for",
    try_next="Look at the Python between operators: data loading, logging, garbage collection, and the optimizer's own "
    "loop.",
)


_BY_CALL = frozenset({GapCause.SYNC, GapCause.ALLOCATOR})


def find_idle_time(analysis: Analysis) -> Iterator[Finding]:
    """Idle time by cause; on CPU ranks, where causes are not known, all of it at once.

    Where the profiler may cause all of a finding's time, it is told, but costs nothing that is known.
    """
    ranks = sound_ranks(analysis)
    if has_host_timeline(analysis):
        yield from _find(analysis, _IDLE_HOST, measure_by_rank(ranks, _idle_ns))
        return
    for rule in _RULES:
        idle = {
            rank.rank: per_window(rank, sum(rank.idle.by_cause.get(cause, 0) for cause in rule.causes))
            for rank in ranks
        }
        yield from _find(analysis, rule, idle)


def _find(analysis: Analysis, rule: _Rule, idle: ByRank) -> Iterator[Finding]:
    cost_ns = mean(idle)
    if not is_worth_telling(analysis, cost_ns):
        return
    overheads = (one.profiler_overhead_ns for one in analysis.step_times)
    profiler_ns = max((one for one in overheads if one is not None), default=0) if rule.can_be_profiler else 0
    may_be_profiler = profiler_ns >= cost_ns
    ranks = sound_ranks(analysis)
    place = _place(next(rank for rank in ranks if rank.rank == worst_rank(idle)), rule)
    yield Finding(
        slug=rule.slug,
        severity=Severity.INFO if may_be_profiler else rate(analysis, cost_ns),
        claim=f"{rule.claim} {format_times(analysis, idle)}{_place_remark(place, idle)}"
        f"{_profiler_remark(profiler_ns, cost_ns)}.",
        cost_ns=0 if may_be_profiler else cost_ns,
        evidence=_evidence(analysis, rule, idle),
        try_next=rule.try_next,
    )


def _evidence(analysis: Analysis, rule: _Rule, idle: ByRank) -> tuple[Evidence, ...]:
    """The longest gap of these causes on the worst rank; without gaps its worst step."""
    ranks = sound_ranks(analysis)
    worst = next(rank for rank in ranks if rank.rank == worst_rank(idle))
    longest = max(_groups(worst, rule), key=lambda one: one.longest_ns, default=None)
    if longest is None:
        return (worst_step(ranks, idle, _idle_ns),)
    end_ns = longest.longest_start_ns + longest.longest_ns
    return (Evidence(rank=worst.rank, step=longest.longest_step, start_ns=longest.longest_start_ns, end_ns=end_ns),)


def _groups(rank: RankAnalysis, rule: _Rule) -> list[GapGroup]:
    return [group for group in rank.idle.groups if group.cause in rule.causes]


def _place(rank: RankAnalysis, rule: _Rule) -> str | None:
    """Where on the host a good part of the time lies: the range, else the operator, else the call."""
    groups = _groups(rank, rule)
    whole_ns = sum(group.total_ns for group in groups)
    totals: dict[str, int] = {}
    for group in groups:
        # The call is a place only where it is the cause: otherwise it is but the launch that ended the gap.
        name = group.range or group.op or (group.call if group.cause in _BY_CALL else None)
        if name is not None:
            totals[name] = totals.get(name, 0) + group.total_ns
    name = max(totals, key=lambda one: totals[one], default=None)
    return name if name is not None and totals[name] >= SMALLEST_PLACE_SHARE * whole_ns else None


def _place_remark(place: str | None, idle: ByRank) -> str:
    if place is None:
        return ""
    return f", {'there mostly' if len(idle) > 1 else 'mostly'} in {place[:_LONGEST_NAME]}"


def _profiler_remark(profiler_ns: int, cost_ns: int) -> str:
    """How much of a cost may be the profiler's own doing, in words."""
    if profiler_ns <= 0 or profiler_ns < SMALLEST_PROFILER_SHARE * cost_ns:
        return ""
    share = "all" if profiler_ns >= cost_ns else f"up to {format_ns(profiler_ns)}"
    return f"; the profiler may cause {share} of it"


def _idle_ns(step: Partition) -> int:
    return step.idle_ns
