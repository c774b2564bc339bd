"""What every table of a report rests on: which ranks count, and how totals become time per step."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from speedprof.analyses.analysis import Analysis, RankAnalysis
from speedprof.analyses.exposure import ExposedSplit
from speedprof.trace.model import Timeline

Key = TypeVar("Key", bound=Hashable)


def whole_ranks(analysis: Analysis) -> tuple[RankAnalysis, ...]:
    """The ranks over which means are taken: those whose traces are whole and have steps, else the whole ones, else
    all."""
    whole = tuple(rank for rank in analysis.ranks if not rank.is_damaged)
    return tuple(rank for rank in whole if rank.breakdown.steps) or whole or analysis.ranks


def device_ranks(analysis: Analysis) -> tuple[RankAnalysis, ...]:
    """The whole ranks that have work on a device."""
    return tuple(
        rank
        for rank in analysis.ranks
        if not rank.is_damaged and rank.breakdown.timeline is Timeline.DEVICE and rank.breakdown.window_ns
    )


def num_windows(rank: RankAnalysis) -> int:
    """Over how many windows a rank's totals are taken: its traced steps, or the one of its whole capture."""
    return max(1, len(rank.breakdown.steps))


def per_what(ranks: Iterable[RankAnalysis]) -> str:
    """Of what the times of these ranks are: `per traced step`, or of the capture where there are no steps."""
    return "per traced step" if any(rank.breakdown.steps for rank in ranks) else "in the whole capture"


def traced_split(rank: RankAnalysis) -> ExposedSplit:
    """The exposed communication of a rank's traced steps, or of its whole capture where there are none."""
    if not rank.breakdown.steps:
        return capture_split(rank)
    if rank.exposure is None:
        return not_split(sum(step.partition.exposed_communication_ns for step in rank.breakdown.steps))
    return add_splits(rank.exposure.steps)


def capture_split(rank: RankAnalysis) -> ExposedSplit:
    """The exposed communication of a rank's whole capture; unsplit where the rank was compared with no other."""
    return rank.exposure.split if rank.exposure else not_split(rank.breakdown.partition.exposed_communication_ns)


def stage_split(rank: RankAnalysis, stage: str, group: str, exposed_ns: int) -> ExposedSplit:
    """The split of the `exposed_ns` of one stage and group on a rank."""
    stages = rank.exposure.stages if rank.exposure else {}
    return stages.get((stage, group)) or not_split(exposed_ns)


def not_split(exposed_ns: int) -> ExposedSplit:
    """Exposed time of which nothing more is known."""
    return ExposedSplit(wait_ns=0, transfer_ns=0, unsplit_ns=exposed_ns)


def add_splits(splits: Iterable[ExposedSplit]) -> ExposedSplit:
    found = list(splits)
    return ExposedSplit(
        wait_ns=sum(one.wait_ns for one in found),
        transfer_ns=sum(one.transfer_ns for one in found),
        unsplit_ns=sum(one.unsplit_ns for one in found),
    )


def mean_over_ranks(
    ranks: Sequence[RankAnalysis], totals: Callable[[RankAnalysis], Iterable[tuple[Key, tuple[int, ...]]]]
) -> dict[Key, list[float]]:
    """The totals of each key, added up on each rank, per window and as the mean over the ranks."""
    means: dict[Key, list[float]] = {}
    for rank in ranks:
        scale = 1 / (num_windows(rank) * len(ranks))
        for key, numbers in totals(rank):
            sums = means.setdefault(key, [0.0] * len(numbers))
            for position, number in enumerate(numbers):
                sums[position] += number * scale
    return means
