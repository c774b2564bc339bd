"""What time costs, by rank and by step, and how a claim says it. docs/findings.md says the cut-offs too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from speedprof.analyses.analysis import Analysis, RankAnalysis
from speedprof.analyses.breakdown import Partition, Segment
from speedprof.findings.finding import Evidence, Severity
from speedprof.trace.model import Timeline
from speedprof.units import format_ns, format_percent

SMALLEST_COST_RATIO = 0.002  # of a traced step: what a comparison of two runs can just tell apart
MEDIUM_COST_RATIO = 0.01
HIGH_COST_RATIO = 0.05

# Time per step in ns, by rank.
ByRank = Mapping[int, int]


def sound_ranks(analysis: Analysis) -> list[RankAnalysis]:
    """The ranks whose traces are whole and have steps: in a damaged trace a gap may be what was lost.

    Where no trace has steps, the whole ones count with their captures.
    """
    whole = [rank for rank in analysis.ranks if not rank.is_damaged and rank.breakdown.window_ns]
    return [rank for rank in whole if rank.breakdown.steps] or whole


def has_steps(analysis: Analysis) -> bool:
    """Whether costs are per step; else they are of the whole capture."""
    return any(rank.breakdown.steps for rank in sound_ranks(analysis))


def windows_of(rank: RankAnalysis) -> tuple[Segment, ...]:
    """What costs are means over: the traced steps, or the whole capture where there are none."""
    steps, segments = rank.breakdown.steps, rank.breakdown.segments
    if steps:
        return steps
    start_ns, end_ns = segments[0].start_ns, segments[-1].end_ns
    return (Segment(step=None, kind=None, start_ns=start_ns, end_ns=end_ns, partition=rank.breakdown.partition),)


def mean_step_ns(analysis: Analysis) -> int | None:
    """How long a traced step is: the mean over steps and sound ranks; None where there is none."""
    return mean_window_ns(analysis) if has_steps(analysis) else None


def mean_window_ns(analysis: Analysis) -> int | None:
    """How long a traced step is, or the capture where there are no steps; None where there is neither."""
    ranks = sound_ranks(analysis)
    return mean(measure_by_rank(ranks, lambda step: step.window_ns)) if ranks else None


def has_host_timeline(analysis: Analysis) -> bool:
    return any(rank.breakdown.timeline is Timeline.HOST for rank in analysis.ranks)


def measure_by_rank(ranks: Sequence[RankAnalysis], measure: Callable[[Partition], int]) -> ByRank:
    """A share of the partition of each rank's mean traced step."""
    return {rank.rank: per_window(rank, sum(measure(one.partition) for one in windows_of(rank))) for rank in ranks}


def per_window(rank: RankAnalysis, total_ns: int) -> int:
    """A total over a rank's windows as time per window."""
    return total_ns // len(windows_of(rank))


def mean(times: ByRank) -> int:
    return sum(times.values()) // len(times) if times else 0


def worst_rank(times: ByRank) -> int:
    return max(times, key=lambda rank: times[rank])


def worst_step(ranks: Sequence[RankAnalysis], times: ByRank, measure: Callable[[Partition], int]) -> Evidence:
    """The step with most of `measure`, of the rank with the longest time."""
    worst = worst_rank(times)
    windows = next(windows_of(rank) for rank in ranks if rank.rank == worst)
    step = max(windows, key=lambda one: measure(one.partition))
    return Evidence(rank=worst, step=step.step, start_ns=step.start_ns, end_ns=step.end_ns)


def is_worth_telling(analysis: Analysis, cost_ns: int) -> bool:
    return cost_ns > 0 and cost_ns >= SMALLEST_COST_RATIO * (mean_window_ns(analysis) or 0)


def rate(analysis: Analysis, cost_ns: int) -> Severity:
    """How severe a cost is."""
    ratio = cost_ns / (mean_window_ns(analysis) or cost_ns)
    if ratio >= HIGH_COST_RATIO:
        return Severity.HIGH
    return Severity.MEDIUM if ratio >= MEDIUM_COST_RATIO else Severity.LOW


def format_times(analysis: Analysis, times: ByRank, parts: str = "") -> str:
    """`21.5 ms per step (6.1% of it), most on rank 1: 37.0 ms`; `parts` says what the mean is made of."""
    worst = worst_rank(times)
    most = f"most on rank {worst}: {format_ns(times[worst])}" if len(times) > 1 else ""
    joint = "; " if parts and most else ", " if most else ""
    return f"{format_cost_of(analysis, mean(times))}{parts}{joint}{most}"


def format_cost_of(analysis: Analysis, cost_ns: int) -> str:
    """`21.5 ms per step (6.1% of it)`, or `21.5 ms of the capture (6.1% of it)`."""
    share = format_percent(cost_ns / (mean_window_ns(analysis) or cost_ns or 1))
    return f"{format_ns(cost_ns)} {'per step' if has_steps(analysis) else 'of the capture'} ({share} of it)"
