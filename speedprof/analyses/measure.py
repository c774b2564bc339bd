"""From traces to an analysis in two moves: each rank by itself, wherever it was read, then the ranks together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from speedprof.analyses.analysis import Analysis, RankAnalysis
from speedprof.analyses.bandwidth import measure_bandwidth
from speedprof.analyses.breakdown import measure_breakdown
from speedprof.analyses.certainty import measure_certainty
from speedprof.analyses.copies import measure_copies
from speedprof.analyses.exposure import measure_exposure
from speedprof.analyses.idle_gaps import measure_idle_gaps
from speedprof.analyses.launches import measure_launches
from speedprof.analyses.matching import CollectiveMatch, match_collectives
from speedprof.analyses.stages import measure_stages
from speedprof.analyses.step_time import StepTime
from speedprof.analyses.stragglers import find_stragglers
from speedprof.analyses.timeline import RankTimeline, make_timeline
from speedprof.analyses.top_kernels import measure_kernels
from speedprof.trace.model import Timeline, Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMeasurement:
    """What one rank's trace gives by itself. It is all that the process that read the trace sends on."""

    analysis: RankAnalysis
    timeline: RankTimeline
    notes: tuple[str, ...]


def measure_rank(trace: Trace) -> RankMeasurement:
    breakdown, idle = measure_breakdown(trace), measure_idle_gaps(trace)
    return RankMeasurement(
        analysis=RankAnalysis(
            rank=trace.rank,
            breakdown=breakdown,
            stages=measure_stages(trace),
            idle=idle,
            launches=measure_launches(trace),
            kernels=measure_kernels(trace),
            copies=measure_copies(trace, breakdown),
            error_budget=trace.error_budget,
            certainty=measure_certainty(trace),
            is_damaged=trace.is_damaged,
        ),
        timeline=make_timeline(trace, breakdown, idle),
        notes=tuple(f"rank {trace.rank}: {note}" for note in trace.notes),
    )


def compare_ranks(
    measurements: Sequence[RankMeasurement],
    *,
    step_times: tuple[StepTime, ...] = (),
    notes: Sequence[str] = (),
    ranks_share_cores: bool | None = None,
) -> Analysis:
    """Everything about these ranks of one run, in the order of their numbers. Damaged ranks are compared with none.

    `ranks_share_cores` says whether CPU ranks have fewer cores than threads, None where that is not known. Only where
    it is False does a host timeline carry a claim about overlap. It does not matter to device timelines.
    """
    ordered = sorted(measurements, key=lambda one: one.analysis.rank)
    whole = [one.timeline for one in ordered if not one.timeline.is_damaged]
    match = match_collectives(whole) if any(len(rank.collectives) for rank in whole) else None
    exposures = measure_exposure(whole, match) if match else ()
    on_host = any(one.timeline.timeline is Timeline.HOST for one in ordered)
    can_tell_overlap = ranks_share_cores is False or not on_host
    exposure_of = {one.rank: one for one in exposures}
    return Analysis(
        ranks=tuple(replace(one.analysis, exposure=exposure_of.get(one.analysis.rank)) for one in ordered),
        match=match,
        bandwidths=measure_bandwidth(whole, match) if match else (),
        stragglers=find_stragglers(whole, match) if match and can_tell_overlap else (),
        step_times=step_times,
        notes=(*notes, *_note_assumption(match, len(whole)), *(note for one in ordered for note in one.notes)),
        can_tell_overlap=can_tell_overlap,
    )


def _note_assumption(match: CollectiveMatch | None, num_ranks: int) -> tuple[str, ...]:
    if match is None or not match.assumes_complete:
        return ()
    return (f"the files do not say how many ranks the run had: it is taken to have had these {num_ranks} alone",)
