"""Communication that no compute hides: by stage and group, and the rest."""

from __future__ import annotations

from collections.abc import Iterator

from speedprof.analyses.analysis import Analysis, RankAnalysis
from speedprof.analyses.breakdown import Partition
from speedprof.findings.costs import (
    SMALLEST_COST_RATIO,
    ByRank,
    format_times,
    is_worth_telling,
    mean,
    mean_step_ns,
    measure_by_rank,
    rate,
    sound_ranks,
    worst_rank,
    worst_step,
)
from speedprof.findings.finding import Finding, Severity, Slug
from speedprof.units import format_ns
from speedprof.vocabulary import Stage

# Where the rank with most has so many times what the rank with least has, it may be waiting for that rank.
SMALLEST_WAITING_FACTOR = 2

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
}

_LONGEST_NAME = 80


def find_exposed(analysis: Analysis) -> Iterator[Finding]:
    """Exposed collectives by stage and group; what no such finding explains is one more.

    Two stages may be exposed at the same instant, so on a rank their sum can exceed the exposed time: it is then
    shared out in proportion, and the costs together never exceed what is exposed. A claim tells what was measured.
    """
    ranks = sound_ranks(analysis)
    rest = dict(measure_by_rank(ranks, _exposed_ns))
    for (slug, group), measured, charged in _stage_times(ranks):
        if is_worth_telling(analysis, mean(charged)):
            rest = {rank: rest[rank] - charged[rank] for rank in rest}
            name = "Reduce-scatter" if slug is Slug.EXPOSED_REDUCE_SCATTER else "All-gather"
            yield _finding(analysis, slug, f"{name} of {_shorten(group)}", measured, cost_ns=mean(charged))
    if is_worth_telling(analysis, mean(rest)):
        is_whole = rest == measure_by_rank(ranks, _exposed_ns)
        subject = "Communication" if is_whole else "Communication beyond the findings by group"
        yield _finding(analysis, Slug.EXPOSED_COMMUNICATION, subject, rest, cost_ns=mean(rest))


def find_what_cannot_be_told(analysis: Analysis) -> Iterator[Finding]:
    """Says that nothing can be said: on shared cores the scheduler decides what runs beside what."""
    ranks = sound_ranks(analysis)
    exposed = measure_by_rank(ranks, _exposed_ns)
    if is_worth_telling(analysis, mean(exposed)):
        yield Finding(
            slug=Slug.EXPOSED_COMMUNICATION,
            severity=Severity.INFO,
            claim=f"Cannot tell what communication costs: {format_ns(mean(exposed))} per step of it runs with no "
            "operator beside it, but the ranks share CPU cores (or it is not known that they do not), so one rank's "
            "wait may be another's work.",
            cost_ns=0,
            evidence=(worst_step(ranks, exposed, _exposed_ns),),
            try_next="Give each rank cores of its own, at least as many as it has threads, or capture on GPUs.",
        )


def _finding(analysis: Analysis, slug: Slug, subject: str, times: ByRank, *, cost_ns: int) -> Finding:
    is_share = format_ns(cost_ns) != format_ns(mean(times))
    charged = f"; {format_ns(cost_ns)} of it is charged here, since others are exposed at the same time"
    late = _rank_waited_for(analysis, times)
    return Finding(
        slug=slug,
        severity=rate(analysis, cost_ns),
        claim=f"{subject} runs with no compute beside it for {format_times(analysis, times)}"
        f"{charged if is_share else ''}{_waiting_remark(times, late)}.",
        cost_ns=cost_ns,
        evidence=(worst_step(sound_ranks(analysis), times, _exposed_ns),),
        try_next=_advice(slug, late),
    )


def _stage_times(ranks: list[RankAnalysis]) -> list[tuple[tuple[Slug, str], ByRank, ByRank]]:
    """The exposed time of each collective stage and group as measured and as charged, costliest first."""
    groups = dict.fromkeys(stage.group for rank in ranks for stage in rank.stages)
    found = []
    for slug in _STAGES_OF:
        for group in groups:
            measured = {one.rank: _stage_ns(one, slug, group) // len(one.breakdown.steps) for one in ranks}
            charged = {one.rank: _share_ns(one, _stage_ns(one, slug, group)) for one in ranks}
            found.append(((slug, group), measured, charged))
    return sorted(found, key=lambda one: -mean(one[2]))


def _share_ns(rank: RankAnalysis, stage_ns: int) -> int:
    """What of a stage's exposed time on this rank is charged to it, per step."""
    together_ns = sum(
        _stage_ns(rank, slug, group) for slug in _STAGES_OF for group in {one.group for one in rank.stages}
    )
    exposed_ns = sum(step.partition.exposed_communication_ns for step in rank.breakdown.steps)
    scale = max(exposed_ns, together_ns)
    return stage_ns * exposed_ns // scale // len(rank.breakdown.steps) if scale else 0


def _stage_ns(rank: RankAnalysis, slug: Slug, group: str) -> int:
    return sum(stage.exposed_ns for stage in rank.stages if stage.stage in _STAGES_OF[slug] and stage.group == group)


def _exposed_ns(step: Partition) -> int:
    return step.exposed_communication_ns


def _rank_waited_for(analysis: Analysis, times: ByRank) -> int | None:
    """The rank that the others may be waiting for, the one with least exposed time; None where ranks are alike.

    Who comes last to a collective waits least. Only matched collectives can prove it.
    """
    least = min(times, key=lambda rank: times[rank])
    most_ns, least_ns = times[worst_rank(times)], times[least]
    is_apart = most_ns - least_ns >= SMALLEST_COST_RATIO * (mean_step_ns(analysis) or 0)
    return least if is_apart and most_ns > 0 and most_ns >= SMALLEST_WAITING_FACTOR * least_ns else None


def _waiting_remark(times: ByRank, late: int | None) -> str:
    if late is None:
        return ""
    has = f"has only {format_ns(times[late])}" if times[late] else "has none"
    return f"; it may be waiting for another rank (rank {late} {has})"


def _advice(slug: Slug, late: int | None) -> str:
    advice = _TRY_NEXT[slug]
    if late is None:
        return advice
    return (
        f"Find out what rank {late} does just before, since the others may be waiting for it. If it is not late: "
        f"{advice[0].lower()}{advice[1:]}"
    )


def _shorten(name: str) -> str:
    """A name that leaves room for the numbers of its sentence."""
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[-half + 1 :]}"
