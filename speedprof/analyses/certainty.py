"""How much do the numbers change without the events that are known only in part?"""

from __future__ import annotations

from dataclasses import dataclass

from speedprof.analyses.breakdown import Partition
from speedprof.trace.model import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionWithout:
    """The partition of the whole capture where events of one kind are left out: unlinked, cut, crossing, zero_length,
    or any (all of these). The window stays that of all events, so that what an event covered becomes something else."""

    kind: str
    num_events: int
    partition: Partition


def measure_certainty(trace: Trace) -> tuple[PartitionWithout, ...]:
    """One for each kind, in the order above; empty on a host timeline."""
    raise NotImplementedError
