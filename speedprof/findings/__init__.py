"""What the measurements mean: one sentence each, with its cost and its evidence.

docs/findings.md has an entry for each slug. A claim names the worst rank, and the evidence is that rank's worst step.
"""

from __future__ import annotations

from speedprof.analyses.analysis import Analysis
from speedprof.findings.communication import find_exposed, find_what_cannot_be_told
from speedprof.findings.copies import find_exposed_copies
from speedprof.findings.costs import (
    SMALLEST_COST_RATIO,
    has_steps,
    mean_step_ns,
    mean_window_ns,
    sound_ranks,
)
from speedprof.findings.finding import Evidence, Finding, Severity, Slug
from speedprof.findings.idle import find_idle_time
from speedprof.findings.stragglers import find_clock_offsets, find_unmatched, find_waiting_for_stragglers
from speedprof.findings.trust import find_profiler_overhead, find_unlinked_work, find_unsteady_steps

__all__ = [
    "SMALLEST_COST_RATIO",
    "Evidence",
    "Finding",
    "Severity",
    "Slug",
    "find_all",
    "has_steps",
    "mean_step_ns",
    "mean_window_ns",
    "sound_ranks",
]


def find_all(analysis: Analysis) -> tuple[Finding, ...]:
    """Every finding, costliest first."""
    about_overlap = (find_exposed, find_waiting_for_stragglers, find_unmatched)
    rules = (
        *(about_overlap if analysis.can_tell_overlap else (find_what_cannot_be_told,)),
        find_idle_time,
        find_exposed_copies,
        find_profiler_overhead,
        find_unsteady_steps,
        find_unlinked_work,
        find_clock_offsets,
    )
    return tuple(sorted((finding for rule in rules for finding in rule(analysis)), key=lambda found: -found.cost_ns))
