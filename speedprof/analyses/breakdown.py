"""Where does the time of a rank and of each of its steps go: compute, exposed communication, exposed copies, idle."""

from __future__ import annotations

from dataclasses import dataclass

from speedprof.trace.model import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """A window cut without remainder. An instant is compute if any compute runs in it, else communication if
    any collective runs, else a copy if one runs, else idle."""

    compute_ns: int
    exposed_communication_ns: int
    exposed_copy_ns: int
    idle_ns: int

    @property
    def window_ns(self) -> int:
        return self.compute_ns + self.exposed_communication_ns + self.exposed_copy_ns + self.idle_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One step's window on its timeline, or with `step` None what precedes the first. Segments tile the capture."""

    step: int | None
    start_ns: int
    end_ns: int
    partition: Partition


@dataclass(frozen=True, slots=True, kw_only=True)
class Breakdown:
    """The partition of one rank's whole capture and of each segment.

    `communication_ns` is the union of collective time; the part of it with compute beside it is overlapped.
    """

    rank: int
    timeline: Timeline
    partition: Partition
    communication_ns: int
    overlapped_communication_ns: int
    segments: tuple[Segment, ...]

    @property
    def window_ns(self) -> int:
        return self.partition.window_ns

    @property
    def steps(self) -> tuple[Segment, ...]:
        return tuple(segment for segment in self.segments if segment.step is not None)

    @property
    def overlap_ratio(self) -> float | None:
        """The share of communication that compute hides; None where there is no communication."""
        return self.overlapped_communication_ns / self.communication_ns if self.communication_ns else None
