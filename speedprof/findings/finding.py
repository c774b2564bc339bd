"""What a finding is. docs/findings.md has an entry for each slug."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much of a step a finding costs: high from 5%, medium from 1%, low below. Info costs nothing, or nothing
    that can be told from the measuring itself."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A place to look at: an interval on one rank's timeline, in ns since the Unix epoch."""

    rank: int
    step: int | None
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A claim that the data carry.

    `cost_ns` is time per step, the mean over the traced steps and then over the ranks; where no trace has steps, time
    of the whole capture. No time is charged to two findings. It is not what mending would save: a rank saves at most
    its own part, and since ranks wait for one another, a step shortens by hardly more than the rank with the smallest
    part can save.

    Raises ValueError without evidence.
    """

    slug: str
    severity: Severity
    claim: str
    cost_ns: int
    evidence: tuple[Evidence, ...]
    try_next: str

    def __post_init__(self) -> None:
        if not self.evidence:
            raise ValueError(f"finding {self.slug} has no evidence")


class Slug(StrEnum):
    """The stable names of findings; each has its entry in docs/findings.md."""

    EXPOSED_REDUCE_SCATTER = "exposed-reduce-scatter"
    EXPOSED_ALL_GATHER = "exposed-all-gather"
    EXPOSED_COMMUNICATION = "exposed-communication"
    STRAGGLER = "straggler"
    IDLE_LATE_LAUNCH = "idle-late-launch"
    IDLE_SYNC = "idle-sync"
    IDLE_INPUT = "idle-input"
    IDLE_ALLOCATOR = "idle-allocator"
    IDLE_RECOMPILE = "idle-recompile"
    IDLE_GC = "idle-gc"
    IDLE_QUEUED = "idle-queued"
    IDLE_SHORT_GAPS = "idle-short-gaps"
    IDLE_DEVICE = "idle-device"
    IDLE_HOST = "idle-host"
    EXPOSED_COPY = "exposed-copy"
    PROFILER_OVERHEAD = "profiler-overhead"
    UNSTEADY_STEPS = "unsteady-steps"
    UNLINKED_WORK = "unlinked-work"
    UNMATCHED_COLLECTIVES = "unmatched-collectives"
    CLOCK_OFFSET = "clock-offset"
