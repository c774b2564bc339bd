"""The parts of a report that a user can ask for by name (`--only`), and which findings belong to which."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from speedprof.findings import Slug


class Section(StrEnum):
    """A part of a report.

    step_time: how long clean steps take. partition: where a traced step goes, and what is copied. overlap: exposed
    communication, its split, its collectives and the optimizer's stages. stragglers: who waits for whom. idle: gaps of
    the device and their causes. launches: what launching costs the host. kernels: those that cost most. certainty:
    the error budget, the numbers without what is known only in part, and the clocks.
    """

    STEP_TIME = "step_time"
    PARTITION = "partition"
    OVERLAP = "overlap"
    STRAGGLERS = "stragglers"
    IDLE = "idle"
    LAUNCHES = "launches"
    KERNELS = "kernels"
    CERTAINTY = "certainty"


SECTIONS_OF: Mapping[str, frozenset[Section]] = {
    Slug.EXPOSED_REDUCE_SCATTER: frozenset({Section.OVERLAP}),
    Slug.EXPOSED_ALL_GATHER: frozenset({Section.OVERLAP}),
    Slug.EXPOSED_COMMUNICATION: frozenset({Section.OVERLAP}),
    Slug.STRAGGLER: frozenset({Section.STRAGGLERS, Section.OVERLAP}),
    Slug.IDLE_LATE_LAUNCH: frozenset({Section.IDLE, Section.LAUNCHES}),
    Slug.IDLE_SYNC: frozenset({Section.IDLE}),
    Slug.IDLE_INPUT: frozenset({Section.IDLE}),
    Slug.IDLE_ALLOCATOR: frozenset({Section.IDLE}),
    Slug.IDLE_RECOMPILE: frozenset({Section.IDLE}),
    Slug.IDLE_GC: frozenset({Section.IDLE}),
    Slug.IDLE_QUEUED: frozenset({Section.IDLE}),
    Slug.IDLE_SHORT_GAPS: frozenset({Section.IDLE, Section.LAUNCHES}),
    Slug.IDLE_DEVICE: frozenset({Section.IDLE}),
    Slug.IDLE_HOST: frozenset({Section.IDLE}),
    Slug.EXPOSED_COPY: frozenset({Section.PARTITION}),
    Slug.PROFILER_OVERHEAD: frozenset({Section.STEP_TIME, Section.CERTAINTY}),
    Slug.UNSTEADY_STEPS: frozenset({Section.STEP_TIME}),
    Slug.UNLINKED_WORK: frozenset({Section.CERTAINTY}),
    Slug.UNMATCHED_COLLECTIVES: frozenset({Section.OVERLAP, Section.STRAGGLERS, Section.CERTAINTY}),
    Slug.CLOCK_OFFSET: frozenset({Section.STRAGGLERS, Section.CERTAINTY}),
}


def is_of(slug: str, sections: frozenset[Section]) -> bool:
    """Whether a finding belongs to any of these sections; one without a section of its own belongs to all."""
    return not SECTIONS_OF.get(slug, sections).isdisjoint(sections)
