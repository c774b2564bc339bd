"""How far the other numbers can be trusted. These findings cost nothing in themselves."""

from __future__ import annotations

from collections.abc import Iterator

from speedprof.analyses.analysis import Analysis, RankAnalysis
from speedprof.analyses.step_time import StepTime
from speedprof.findings.finding import Evidence, Finding, Severity, Slug
from speedprof.units import format_ns, format_percent

SMALLEST_OVERHEAD_RATIO = 0.02
SMALLEST_OUTLIER_RATIO = 0.10  # over what such a step usually takes
SMALLEST_OUTLIER_DEVIATIONS = 5
DEVIATIONS_PER_MAD = 1.4826  # of a normal sample
SMALLEST_UNLINKED_RATIO = 0.01


def find_profiler_overhead(analysis: Analysis) -> Iterator[Finding]:
    worst = max(analysis.step_times, key=lambda one: one.profiler_overhead_ratio or 0, default=None)
    ratio = worst.profiler_overhead_ratio if worst else None
    if worst is None or worst.profiled_ns is None or ratio is None or ratio < SMALLEST_OVERHEAD_RATIO:
        return
    yield Finding(
        slug=Slug.PROFILER_OVERHEAD,
        severity=Severity.INFO,
        claim=f"Under the profiler a step of rank {worst.rank} takes {format_ns(worst.profiled_ns)} "
        f"instead of {format_ns(worst.typical_ns)}{' on average' if worst.levels_ns else ''} "
        f"({format_percent(ratio)} more), so costs found in traced steps can be too high by that much.",
        cost_ns=0,
        evidence=(_captured(analysis, worst.rank) or _slowest_step(worst),),
        try_next="Read step times from the clean steps; take the traced steps for where time goes, not for how much "
        "there is.",
    )


def find_unsteady_steps(analysis: Analysis) -> Iterator[Finding]:
    worst = max(analysis.step_times, key=lambda one: one.slowest_ns / one.slowest_usual_ns, default=None)
    if worst is None:
        return
    usual_ns = worst.slowest_usual_ns
    noise_ns = SMALLEST_OUTLIER_DEVIATIONS * DEVIATIONS_PER_MAD * worst.mad_ns
    if worst.slowest_ns - usual_ns <= max(SMALLEST_OUTLIER_RATIO * usual_ns, noise_ns):
        return
    usual = (
        f"the {format_ns(usual_ns)} usual in its turn" if worst.levels_ns else f"the median of {format_ns(usual_ns)}"
    )
    yield Finding(
        slug=Slug.UNSTEADY_STEPS,
        severity=Severity.INFO,
        claim=f"Step {worst.slowest_step} of rank {worst.rank} took {format_ns(worst.slowest_ns)}, "
        f"{worst.slowest_ns / usual_ns:.2f} times {usual}, in a run whose steps typically differ from it by "
        f"{format_ns(worst.mad_ns)}.",
        cost_ns=0,
        evidence=(_slowest_step(worst),),
        try_next="Compare this step with its neighbours: a recompile, garbage collection, the data loader or another "
        "program on the machine.",
    )


def find_unlinked_work(analysis: Analysis) -> Iterator[Finding]:
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
        try_next="Capture again, and treat the stage times of this trace with care.",
    )


def _unlinked_ratio(rank: RankAnalysis) -> float:
    """The share of device work whose launch should be in the trace and is not; what was launched before the capture
    began (cut) is not charged to any step, so it puts nothing in doubt."""
    budget = rank.error_budget
    return max(0, budget.unlinked - budget.cut) / budget.device_events


def _captured(analysis: Analysis, rank: int) -> Evidence | None:
    """The traced steps of a rank; None where it has no trace."""
    for one in analysis.ranks:
        if one.rank == rank and one.breakdown.steps:
            steps = one.breakdown.steps
            return Evidence(rank=rank, step=None, start_ns=steps[0].start_ns, end_ns=steps[-1].end_ns)
    return None


def _slowest_step(one: StepTime) -> Evidence:
    end_ns = one.slowest_start_ns + one.slowest_ns
    return Evidence(rank=one.rank, step=one.slowest_step, start_ns=one.slowest_start_ns, end_ns=end_ns)
