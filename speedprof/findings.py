"""What the measurements mean: one sentence each, with its cost and its evidence.

docs/findings.md has an entry for each slug. A cost is a mean over the traced steps and over the ranks, in ns per step;
the claim names the worst rank and the evidence is that rank's worst step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from speedprof.analyses.analysis import Analysis, RankAnalysis
from speedprof.analyses.breakdown import Partition
from speedprof.trace.model import Timeline
from speedprof.units import format_ns, format_percent
from speedprof.vocabulary import Stage


class Severity(StrEnum):
    """How much of a step a finding costs: high from 5%, medium from 1%, low below; info costs nothing."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A place to look at: an interval on one rank's timeline, in ns since the Unix epoch."""

    rank: int
    step: int | None
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A claim that the data carry. `cost_ns` is per step, the most that mending it could save.

    Raises ValueError without evidence.
    """

    slug: str
    severity: Severity
    claim: str
    cost_ns: int
    evidence: tuple[Evidence, ...]
    try_next: str

    def __post_init__(self) -> None:
        if not self.evidence:
            raise ValueError(f"finding {self.slug} has no evidence")


class Slug(StrEnum):
    """The stable names of findings; each has its entry in docs/findings.md."""

    EXPOSED_REDUCE_SCATTER = "exposed-reduce-scatter"
    EXPOSED_ALL_GATHER = "exposed-all-gather"
    EXPOSED_COMMUNICATION = "exposed-communication"
    IDLE_DEVICE = "idle-device"
    IDLE_HOST = "idle-host"
    EXPOSED_COPY = "exposed-copy"
    PROFILER_OVERHEAD = "profiler-overhead"
    UNSTEADY_STEPS = "unsteady-steps"
    UNLINKED_WORK = "unlinked-work"


# The cut-offs; docs/findings.md says them too.
SMALLEST_COST_RATIO = 0.002  # of a traced step: what a comparison of two runs can just tell apart
MEDIUM_COST_RATIO = 0.01
HIGH_COST_RATIO = 0.05
SMALLEST_OVERHEAD_RATIO = 0.02
SMALLEST_OUTLIER_RATIO = 0.10  # over the median
SMALLEST_OUTLIER_DEVIATIONS = 5
DEVIATIONS_PER_MAD = 1.4826  # of a normal sample
SMALLEST_UNLINKED_RATIO = 0.01

_STAGES_OF: dict[Slug, tuple[Stage, ...]] = {
    Slug.EXPOSED_REDUCE_SCATTER: (Stage.REDUCE_SCATTER, Stage.REDUCE_SCATTER_WAIT),
    Slug.EXPOSED_ALL_GATHER: (Stage.ALL_GATHER, Stage.ALL_GATHER_WAIT),
}

_TRY_NEXT = {
    Slug.EXPOSED_REDUCE_SCATTER: "Launch it as soon as its gradients are ready and wait for it later, so that "
    "backward work or another group's update runs beside it; or move this group later in the work order.",
    Slug.EXPOSED_ALL_GATHER: "Launch it right after the group's update and wait for it only where the next step first "
    "reads the parameters; or update this group earlier.",
    Slug.EXPOSED_COMMUNICATION: "Look at the collectives of the step outside the optimizer's stages, and at groups "
    "that are small enough to be sent together.",
    Slug.IDLE_DEVICE: "Look at the host beside these gaps: late launches, a blocking read such as .item(), the data "
    "loader, garbage collection. CUDA graphs or torch.compile cut launch time.",
    Slug.IDLE_HOST: "Look at the Python between operators: data loading, logging, garbage collection, and the "
    "optimizer's own loop.",
    Slug.EXPOSED_COPY: "Copy from pinned memory with non_blocking=True on a stream of its own, one step ahead, or "
    "write the result where it is needed instead of copying it.",
    Slug.PROFILER_OVERHEAD: "Read step times from the clean steps; take the traced steps for where time goes, not for "
    "how much there is.",
    Slug.UNSTEADY_STEPS: "Compare this step with its neighbours: a recompile, garbage collection, the data loader or "
    "another program on the machine.",
    Slug.UNLINKED_WORK: "Capture again, and treat the stage times of this trace with care.",
}


def find_all(analysis: Analysis, *, ranks_share_cores: bool | None = None) -> tuple[Finding, ...]:
    """Every finding, costliest first.

    `ranks_share_cores` says whether CPU ranks have fewer cores than threads, None where that is not known. Only where
    it is False does a host timeline carry a claim about overlap. It does not matter to device timelines.
    """
    can_tell_overlap = ranks_share_cores is False or not _has_host_timeline(analysis)
    rules = (
        _exposed_communication if can_tell_overlap else _communication_that_may_overlap,
        _idle_time,
        _exposed_copies,
        _profiler_overhead,
        _unsteady_steps,
        _unlinked_work,
    )
    return tuple(sorted((finding for rule in rules for finding in rule(analysis)), key=lambda found: -found.cost_ns))


def mean_step_ns(analysis: Analysis) -> int | None:
    """How long a traced step is: the mean over steps and ranks; None where no step was traced."""
    ranks = _traced(analysis)
    return _mean_per_step(ranks, lambda step: step.window_ns) if ranks else None


def _exposed_communication(analysis: Analysis) -> Iterator[Finding]:
    """Exposed collectives by stage and group; what no such finding explains is one more.

    Two stages may be exposed at the same instant, so their sum can exceed the exposed time: it is then shared out
    in proportion, and the costs together never exceed what is exposed.
    """
    ranks = _traced(analysis)
    exposed_ns = _mean_per_step(ranks, _exposed_ns)
    costs = _stage_costs(ranks)
    scale = max(exposed_ns, sum(costs.values()))
    explained_ns = 0
    for (slug, group), cost_ns in costs.items():
        shared_ns = cost_ns * exposed_ns // scale if scale else 0
        if _is_worth_telling(analysis, shared_ns):
            explained_ns += shared_ns
            yield _stage_finding(analysis, slug, group, shared_ns)
    rest_ns = exposed_ns - explained_ns
    if _is_worth_telling(analysis, rest_ns):
        subject = "Communication beyond the findings by group" if explained_ns else "Communication"
        claim = f"{subject} runs with no compute beside it for"
        yield _step_finding(analysis, Slug.EXPOSED_COMMUNICATION, claim, _exposed_ns, cost_ns=rest_ns)


def _communication_that_may_overlap(analysis: Analysis) -> Iterator[Finding]:
    """Says that nothing can be said: on shared cores the scheduler decides what runs beside what."""
    ranks = _traced(analysis)
    exposed_ns = _mean_per_step(ranks, _exposed_ns)
    if _is_worth_telling(analysis, exposed_ns):
        yield Finding(
            slug=Slug.EXPOSED_COMMUNICATION,
            severity=Severity.INFO,
            claim=f"Cannot tell what communication costs: {format_ns(exposed_ns)} per step of it runs with no operator "
            "beside it, but the ranks share CPU cores (or it is not known that they do not), so one rank's wait may be "
            "another's work.",
            cost_ns=0,
            evidence=(_worst_step(_worst_rank(ranks, _exposed_ns), _exposed_ns),),
            try_next="Give each rank cores of its own, at least as many as it has threads, or capture on GPUs.",
        )


def _idle_time(analysis: Analysis) -> Iterator[Finding]:
    on_host = _has_host_timeline(analysis)
    slug = Slug.IDLE_HOST if on_host else Slug.IDLE_DEVICE
    claim = "No operator and no collective runs on the host for" if on_host else "The device has nothing to do for"
    cost_ns = _mean_per_step(_traced(analysis), _idle_ns)
    if _is_worth_telling(analysis, cost_ns):
        yield _step_finding(
            analysis, slug, claim, _idle_ns, cost_ns=cost_ns, remark=_profiler_remark(analysis, cost_ns)
        )


def _exposed_copies(analysis: Analysis) -> Iterator[Finding]:
    cost_ns = _mean_per_step(_traced(analysis), _copy_ns)
    if _is_worth_telling(analysis, cost_ns):
        claim = "Copies run with neither compute nor communication beside them for"
        yield _step_finding(analysis, Slug.EXPOSED_COPY, claim, _copy_ns, cost_ns=cost_ns)


def _profiler_overhead(analysis: Analysis) -> Iterator[Finding]:
    profiled = [one for one in analysis.step_times if one.profiled_median_ns is not None]
    worst = max(profiled, key=lambda one: one.profiler_overhead_ratio or 0, default=None)
    ratio = worst.profiler_overhead_ratio if worst else None
    if worst is None or ratio is None or ratio < SMALLEST_OVERHEAD_RATIO:
        return
    yield Finding(
        slug=Slug.PROFILER_OVERHEAD,
        severity=Severity.INFO,
        claim=f"Under the profiler a step of rank {worst.rank} takes {format_ns(worst.profiled_median_ns or 0)} "
        f"instead of {format_ns(worst.median_ns)} ({format_percent(ratio)} more), so costs found in traced steps can "
        "be too high by that much.",
        cost_ns=0,
        evidence=(_captured(analysis, worst.rank) or _slowest_step(analysis, worst.rank),),
        try_next=_TRY_NEXT[Slug.PROFILER_OVERHEAD],
    )


def _unsteady_steps(analysis: Analysis) -> Iterator[Finding]:
    worst = max(analysis.step_times, key=lambda one: one.slowest_ns / one.median_ns, default=None)
    if worst is None:
        return
    excess_ns = worst.slowest_ns - worst.median_ns
    noise_ns = SMALLEST_OUTLIER_DEVIATIONS * DEVIATIONS_PER_MAD * worst.mad_ns
    if excess_ns <= max(SMALLEST_OUTLIER_RATIO * worst.median_ns, noise_ns):
        return
    yield Finding(
        slug=Slug.UNSTEADY_STEPS,
        severity=Severity.INFO,
        claim=f"Step {worst.slowest_step} of rank {worst.rank} took {format_ns(worst.slowest_ns)}, "
        f"{worst.slowest_ns / worst.median_ns:.2f} times the median of {format_ns(worst.median_ns)}, in a run whose "
        f"steps typically differ from it by {format_ns(worst.mad_ns)}.",
        cost_ns=0,
        evidence=(_slowest_step(analysis, worst.rank),),
        try_next=_TRY_NEXT[Slug.UNSTEADY_STEPS],
    )


def _unlinked_work(analysis: Analysis) -> Iterator[Finding]:
    with_device = [rank for rank in analysis.ranks if rank.error_budget.device_events]
    worst = max(with_device, key=_unlinked_ratio, default=None)
    if worst is None or _unlinked_ratio(worst) < SMALLEST_UNLINKED_RATIO or not worst.breakdown.segments:
        return
    budget = worst.error_budget
    whole = worst.breakdown.segments
    yield Finding(
        slug=Slug.UNLINKED_WORK,
        severity=Severity.INFO,
        claim=f"{budget.unlinked - budget.cut} of {budget.device_events} device events of rank {worst.rank} "
        f"({format_percent(_unlinked_ratio(worst))}) have no recorded launch, though they began while launches were "
        "recorded, so no stage can be charged with them.",
        cost_ns=0,
        evidence=(Evidence(rank=worst.rank, step=None, start_ns=whole[0].start_ns, end_ns=whole[-1].end_ns),),
        try_next=_TRY_NEXT[Slug.UNLINKED_WORK],
    )


def _stage_finding(analysis: Analysis, slug: Slug, group: str, cost_ns: int) -> Finding:
    def stage_ns(rank: RankAnalysis) -> int:
        return _stage_exposed_ns(rank, slug, group) // len(rank.breakdown.steps)

    ranks = _traced(analysis)
    worst = max(ranks, key=stage_ns)
    name = "Reduce-scatter" if slug is Slug.EXPOSED_REDUCE_SCATTER else "All-gather"
    return Finding(
        slug=slug,
        severity=_severity(analysis, cost_ns),
        claim=f"{name} of {group} runs with no compute beside it for {_per_step(analysis, cost_ns)}"
        f"{_worst_remark(ranks, worst, stage_ns(worst))}.",
        cost_ns=cost_ns,
        evidence=(_worst_step(worst, _exposed_ns),),
        try_next=_TRY_NEXT[slug],
    )


def _step_finding(
    analysis: Analysis, slug: Slug, claim: str, measure: Callable[[Partition], int], *, cost_ns: int, remark: str = ""
) -> Finding:
    """A finding whose cost is, or is part of, one share of every step's partition."""
    ranks = _traced(analysis)
    worst = _worst_rank(ranks, measure)
    is_whole = cost_ns == _mean_per_step(ranks, measure)
    where = _worst_remark(ranks, worst, _rank_per_step(worst, measure)) if is_whole else ""
    return Finding(
        slug=slug,
        severity=_severity(analysis, cost_ns),
        claim=f"{claim} {_per_step(analysis, cost_ns)}{where}{remark}.",
        cost_ns=cost_ns,
        evidence=(_worst_step(worst, measure),),
        try_next=_TRY_NEXT[slug],
    )


def _stage_costs(ranks: list[RankAnalysis]) -> dict[tuple[Slug, str], int]:
    """Mean exposed ns per step of each collective stage and group, costliest first."""
    groups = dict.fromkeys(stage.group for rank in ranks for stage in rank.stages)
    costs = {
        (slug, group): sum(_stage_exposed_ns(rank, slug, group) // len(rank.breakdown.steps) for rank in ranks)
        // len(ranks)
        for slug in _STAGES_OF
        for group in groups
    }
    return dict(sorted(costs.items(), key=lambda item: -item[1]))


def _stage_exposed_ns(rank: RankAnalysis, slug: Slug, group: str) -> int:
    return sum(stage.exposed_ns for stage in rank.stages if stage.stage in _STAGES_OF[slug] and stage.group == group)


def _exposed_ns(step: Partition) -> int:
    return step.exposed_communication_ns


def _copy_ns(step: Partition) -> int:
    return step.exposed_copy_ns


def _idle_ns(step: Partition) -> int:
    return step.idle_ns


def _unlinked_ratio(rank: RankAnalysis) -> float:
    """The share of device work whose launch should be in the trace and is not; what was launched before the capture
    began (cut) is not charged to any step, so it puts nothing in doubt."""
    budget = rank.error_budget
    return max(0, budget.unlinked - budget.cut) / budget.device_events


def _traced(analysis: Analysis) -> list[RankAnalysis]:
    return [rank for rank in analysis.ranks if rank.breakdown.steps]


def _has_host_timeline(analysis: Analysis) -> bool:
    return any(rank.breakdown.timeline is Timeline.HOST for rank in analysis.ranks)


def _rank_per_step(rank: RankAnalysis, measure: Callable[[Partition], int]) -> int:
    return sum(measure(step.partition) for step in rank.breakdown.steps) // len(rank.breakdown.steps)


def _mean_per_step(ranks: list[RankAnalysis], measure: Callable[[Partition], int]) -> int:
    return sum(_rank_per_step(rank, measure) for rank in ranks) // len(ranks) if ranks else 0


def _worst_rank(ranks: list[RankAnalysis], measure: Callable[[Partition], int]) -> RankAnalysis:
    return max(ranks, key=lambda rank: _rank_per_step(rank, measure))


def _worst_step(rank: RankAnalysis, measure: Callable[[Partition], int]) -> Evidence:
    step = max(rank.breakdown.steps, key=lambda one: measure(one.partition))
    return Evidence(rank=rank.rank, step=step.step, start_ns=step.start_ns, end_ns=step.end_ns)


def _captured(analysis: Analysis, rank: int) -> Evidence | None:
    """The traced steps of a rank; None where it has no trace."""
    for one in _traced(analysis):
        if one.rank == rank:
            steps = one.breakdown.steps
            return Evidence(rank=rank, step=None, start_ns=steps[0].start_ns, end_ns=steps[-1].end_ns)
    return None


def _slowest_step(analysis: Analysis, rank: int) -> Evidence:
    one = next(one for one in analysis.step_times if one.rank == rank)
    end_ns = one.slowest_start_ns + one.slowest_ns
    return Evidence(rank=rank, step=one.slowest_step, start_ns=one.slowest_start_ns, end_ns=end_ns)


def _is_worth_telling(analysis: Analysis, cost_ns: int) -> bool:
    return cost_ns > 0 and cost_ns >= SMALLEST_COST_RATIO * (mean_step_ns(analysis) or 0)


def _severity(analysis: Analysis, cost_ns: int) -> Severity:
    ratio = cost_ns / (mean_step_ns(analysis) or cost_ns)
    if ratio >= HIGH_COST_RATIO:
        return Severity.HIGH
    return Severity.MEDIUM if ratio >= MEDIUM_COST_RATIO else Severity.LOW


def _per_step(analysis: Analysis, cost_ns: int) -> str:
    return f"{format_ns(cost_ns)} per step ({format_percent(cost_ns / (mean_step_ns(analysis) or cost_ns))} of it)"


def _worst_remark(ranks: list[RankAnalysis], worst: RankAnalysis, worst_ns: int) -> str:
    return f", most on rank {worst.rank}: {format_ns(worst_ns)}" if len(ranks) > 1 else ""


def _profiler_remark(analysis: Analysis, cost_ns: int) -> str:
    """How much of a host-bound cost may be the profiler's own doing, in words."""
    overheads = [one.profiled_median_ns - one.median_ns for one in analysis.step_times if one.profiled_median_ns]
    overhead_ns = max(overheads, default=0)
    if overhead_ns <= 0 or overhead_ns < SMALLEST_OVERHEAD_RATIO * (mean_step_ns(analysis) or 0):
        return ""
    share = "all" if overhead_ns >= cost_ns else f"up to {format_ns(overhead_ns)}"
    return f"; the profiler may cause {share} of it"
