"""Communication that no compute hides: by stage and group, and the rest."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from speedprof.analyses.analysis import Analysis, RankAnalysis
from speedprof.analyses.breakdown import Partition
from speedprof.analyses.exposure import ExposedSplit
from speedprof.findings.costs import (
    ByRank,
    format_times,
    is_worth_telling,
    mean,
    measure_by_rank,
    per_window,
    rate,
    sound_ranks,
    windows_of,
    worst_step,
)
from speedprof.findings.finding import Finding, Severity, Slug
from speedprof.findings.stragglers import waited_for_stragglers
from speedprof.units import format_ns
from speedprof.vocabulary import Stage

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Exposed:
    """Exposed time per step and rank: as measured, what of it is charged to this finding, and how it is split."""

    measured: ByRank
    charged: ByRank
    split: ExposedSplit | None = None


def find_exposed(analysis: Analysis) -> Iterator[Finding]:
    """Exposed collectives by stage and group; what no such finding explains is one more.

    What a rank waits for a straggler is the straggler's. Two stages may be exposed at the same instant, so on a rank
    their sum can exceed what is left: it is then shared out in proportion, and the costs together never exceed what is
    exposed. A claim tells what was measured.
    """
    ranks = sound_ranks(analysis)
    whole = measure_by_rank(ranks, _exposed_ns)
    waited = {rank.rank: per_window(rank, waited_for_stragglers(analysis, rank)) for rank in ranks}
    rest = {rank: whole[rank] - waited[rank] for rank in whole}
    beyond_stages = rest
    for (slug, group), exposed in _stage_times(analysis, ranks):
        if is_worth_telling(analysis, mean(exposed.charged)):
            rest = {rank: rest[rank] - exposed.charged[rank] for rank in rest}
            name = "Reduce-scatter" if slug is Slug.EXPOSED_REDUCE_SCATTER else "All-gather"
            yield _finding(analysis, slug, f"{name} of {_shorten(group)}", exposed)
    if is_worth_telling(analysis, mean(rest)):
        subject = "Communication" if rest == whole else "Communication that no other finding is charged with"
        split = _mean_split(ranks, [_split_beyond_stragglers(analysis, one) for one in ranks])
        exposed = _Exposed(measured=rest, charged=rest, split=split if rest == beyond_stages else None)
        yield _finding(analysis, Slug.EXPOSED_COMMUNICATION, subject, exposed)


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


def _finding(analysis: Analysis, slug: Slug, subject: str, exposed: _Exposed) -> Finding:
    cost_ns = mean(exposed.charged)
    is_share = format_ns(cost_ns) != format_ns(mean(exposed.measured))
    charged = f"; {format_ns(cost_ns)} of it is charged here, the rest to other findings"
    return Finding(
        slug=slug,
        severity=rate(analysis, cost_ns),
        claim=f"{subject} runs with no compute beside it for "
        f"{format_times(analysis, exposed.measured, _split_remark(exposed.split))}{charged if is_share else ''}.",
        cost_ns=cost_ns,
        evidence=(worst_step(sound_ranks(analysis), exposed.measured, _exposed_ns),),
        try_next=_TRY_NEXT[slug],
    )


def _split_remark(split: ExposedSplit | None) -> str:
    """What the time is made of; nothing where nothing of it is known."""
    if split is None or not split.wait_ns + split.transfer_ns:
        return ""
    unsplit = f" and {format_ns(split.unsplit_ns)} not known which" if split.unsplit_ns else ""
    wait, transfer = format_ns(split.wait_ns), format_ns(split.transfer_ns)
    return f": {wait} of waiting for the last rank, {transfer} of transfer{unsplit}"


def _stage_times(analysis: Analysis, ranks: list[RankAnalysis]) -> list[tuple[tuple[Slug, str], _Exposed]]:
    """The exposed time of each collective stage and group, that with the highest charge first."""
    totals = {rank.rank: _stage_totals(rank) for rank in ranks}
    charges = {rank.rank: _charges(analysis, rank, totals[rank.rank]) for rank in ranks}
    found = []
    for key in dict.fromkeys(key for rank in ranks for key in charges[rank.rank]):
        exposed = _Exposed(
            measured={one.rank: per_window(one, totals[one.rank].get(key, 0)) for one in ranks},
            charged={one.rank: per_window(one, charges[one.rank].get(key, 0)) for one in ranks},
            split=_mean_split(ranks, [_stage_split(one, key) for one in ranks]),
        )
        found.append((key, exposed))
    return sorted(found, key=lambda one: -mean(one[1].charged))


def _charges(
    analysis: Analysis, rank: RankAnalysis, totals: Mapping[tuple[Slug, str], int]
) -> dict[tuple[Slug, str], int]:
    """What of each stage's exposed time on this rank is charged to it, in ns over its windows."""
    waited_ns = waited_for_stragglers(analysis, rank)
    wait_ns = sum(wait.ns for wait in rank.exposure.waits) if rank.exposure else 0
    # Of a stage's waiting, as much is for stragglers as of the rank's.
    own = {
        key: total_ns - (_stage_split(rank, key).wait_ns * waited_ns // wait_ns if wait_ns else 0)
        for key, total_ns in totals.items()
    }
    left_ns = sum(step.partition.exposed_communication_ns for step in windows_of(rank)) - waited_ns
    scale = max(left_ns, sum(own.values()))
    return {key: ns * left_ns // scale if scale else 0 for key, ns in own.items()}


def _stage_totals(rank: RankAnalysis) -> dict[tuple[Slug, str], int]:
    """The exposed time of each collective and group, waiting stages included, in ns over the rank's windows."""
    totals: dict[tuple[Slug, str], int] = {}
    for slug, stages in _STAGES_OF.items():
        for stage in rank.stages:
            if stage.stage in stages:
                totals[slug, stage.group] = totals.get((slug, stage.group), 0) + stage.exposed_ns
    return totals


def _stage_split(rank: RankAnalysis, key: tuple[Slug, str]) -> ExposedSplit:
    slug, group = key
    stages = rank.exposure.stages if rank.exposure else {}
    return _sum([stages[stage, group] for stage in _STAGES_OF[slug] if (stage, group) in stages])


def _split_beyond_stragglers(analysis: Analysis, rank: RankAnalysis) -> ExposedSplit:
    """The split over the rank's windows, without the waiting that stragglers are charged with."""
    if rank.exposure is None:
        return _sum([])
    whole = _sum(rank.exposure.steps or [rank.exposure.split])
    return replace(whole, wait_ns=whole.wait_ns - waited_for_stragglers(analysis, rank))


def _mean_split(ranks: Sequence[RankAnalysis], totals: Sequence[ExposedSplit]) -> ExposedSplit:
    """The mean over the ranks of what each has over its windows."""
    each = [
        ExposedSplit(
            wait_ns=per_window(rank, total.wait_ns),
            transfer_ns=per_window(rank, total.transfer_ns),
            unsplit_ns=per_window(rank, total.unsplit_ns),
        )
        for rank, total in zip(ranks, totals, strict=True)
    ]
    whole = _sum(each)
    return ExposedSplit(
        wait_ns=whole.wait_ns // len(ranks),
        transfer_ns=whole.transfer_ns // len(ranks),
        unsplit_ns=whole.unsplit_ns // len(ranks),
    )


def _sum(splits: Sequence[ExposedSplit]) -> ExposedSplit:
    return ExposedSplit(
        wait_ns=sum(one.wait_ns for one in splits),
        transfer_ns=sum(one.transfer_ns for one in splits),
        unsplit_ns=sum(one.unsplit_ns for one in splits),
    )


def _exposed_ns(step: Partition) -> int:
    return step.exposed_communication_ns


def _shorten(name: str) -> str:
    """A name that leaves room for the numbers of its sentence."""
    half = _LONGEST_NAME // 2
    return name if len(name) <= _LONGEST_NAME else f"{name[:half]}…{name[-half + 1 :]}"
