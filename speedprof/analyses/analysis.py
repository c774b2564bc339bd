"""Everything that was measured of one run or one set of traces."""

from __future__ import annotations

from dataclasses import dataclass

from speedprof.analyses.bandwidth import CollectiveBandwidth
from speedprof.analyses.breakdown import Breakdown
from speedprof.analyses.certainty import PartitionWithout
from speedprof.analyses.copies import CopyTime
from speedprof.analyses.exposure import RankExposure
from speedprof.analyses.idle_gaps import IdleGaps
from speedprof.analyses.launches import LaunchOverhead
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.stages import StageTime
from speedprof.analyses.step_time import StepTime
from speedprof.analyses.stragglers import Straggler
from speedprof.analyses.top_kernels import KernelTime
from speedprof.trace.model import ErrorBudget


@dataclass(frozen=True, slots=True, kw_only=True)
class RankAnalysis:
    """What the trace of one rank says, and beside the traces of the others.

    `is_damaged`: part of the file is lost, so gaps in it prove nothing. `copies` is empty where none was exposed and
    where directions were not measured. `exposure` is None for a damaged rank.
    """

    rank: int
    breakdown: Breakdown
    stages: tuple[StageTime, ...]
    idle: IdleGaps
    launches: LaunchOverhead
    kernels: tuple[KernelTime, ...]
    error_budget: ErrorBudget
    certainty: tuple[PartitionWithout, ...]
    exposure: RankExposure | None = None
    is_damaged: bool = False
    copies: tuple[CopyTime, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """`ranks` comes from traces and `step_times` from a step log; either may be empty.

    `match` puts the ranks' collectives together; None where no trace has any. `can_tell_overlap`: what runs beside what
    is the program's doing. It is not on CPU ranks that share cores, or of which nobody knows; then no straggler is
    named. `notes` are sentences that a reader must
    know before trusting the numbers: files that were skipped, a trace that was cut, ranks that share cores.
    """

    ranks: tuple[RankAnalysis, ...]
    match: CollectiveMatch | None
    bandwidths: tuple[CollectiveBandwidth, ...]
    stragglers: tuple[Straggler, ...]
    step_times: tuple[StepTime, ...]
    notes: tuple[str, ...]
    can_tell_overlap: bool = True
