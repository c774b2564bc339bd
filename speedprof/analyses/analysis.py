"""Everything that was measured of one run or one set of traces."""

from __future__ import annotations

from dataclasses import dataclass

from speedprof.analyses.breakdown import Breakdown
from speedprof.analyses.copies import CopyTime
from speedprof.analyses.stages import StageTime
from speedprof.analyses.step_time import StepTime
from speedprof.trace.model import ErrorBudget


@dataclass(frozen=True, slots=True, kw_only=True)
class RankAnalysis:
    """What the trace of one rank says.

    `is_damaged`: part of the file is lost, so gaps in it prove nothing. `copies` is empty where none was exposed and
    where directions were not measured.
    """

    rank: int
    breakdown: Breakdown
    stages: tuple[StageTime, ...]
    error_budget: ErrorBudget
    is_damaged: bool = False
    copies: tuple[CopyTime, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Analysis:
    """`ranks` comes from traces and `step_times` from a step log; either may be empty.

    `notes` are sentences that a reader must know before trusting the numbers: files that were skipped,
    a trace that was cut, ranks that share cores.
    """

    ranks: tuple[RankAnalysis, ...]
    step_times: tuple[StepTime, ...]
    notes: tuple[str, ...]
