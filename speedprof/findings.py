"""What the measurements mean: one sentence each, with its cost and its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Severity(StrEnum):
    """How much of a step a finding costs: high from 5%, medium from 1%, low below; info costs nothing."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    INFO = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A place to look at: an interval on one rank's timeline, in ns since the epoch of the trace."""

    rank: int
    step: int | None
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A claim that the data carry. `cost_ns` is per step, the most that mending it could save.

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
