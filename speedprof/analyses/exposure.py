"""Is exposed communication waiting or transfer, and who is waited for, and what does that rank do meanwhile?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from speedprof.analyses.idle_gaps import GapCause
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.timeline import RankTimeline


@dataclass(frozen=True, slots=True, kw_only=True)
class ExposedSplit:
    """Exposed communication cut without remainder, in ns: before the last rank has begun the collective (wait), after
    that (transfer), and where the other ranks' parts are not known (unsplit)."""

    wait_ns: int
    transfer_ns: int
    unsplit_ns: int

    @property
    def exposed_ns(self) -> int:
        return self.wait_ns + self.transfer_ns + self.unsplit_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """The exposed time that a rank waits for one other rank, and what that rank did in that time, in ns.

    `ns` is the sum of `compute_ns`, `communication_ns` (other collectives), `copy_ns` and `idle_ns`; the last is the
    sum of `idle_by_cause`, which is empty on a host timeline.
    """

    rank: int
    ns: int
    compute_ns: int
    communication_ns: int
    copy_ns: int
    idle_ns: int
    idle_by_cause: Mapping[GapCause, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveTime:
    """Collectives of one kind on one rank, summed over the traced steps: by name, stage and group, dtype and sizes.

    `time_ns` is the union of their time, `hidden_ns` the part with compute beside it, and `split` cuts the rest. None
    stands for what the file does not say. `longest_start_ns` and `longest_end_ns` show the one most exposed.
    """

    name: str
    stage: str | None
    group: str | None
    dtype: str | None
    in_elements: int | None
    out_elements: int | None
    count: int
    time_ns: int
    hidden_ns: int
    split: ExposedSplit
    longest_start_ns: int
    longest_end_ns: int
    longest_step: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RankExposure:
    """The exposed communication of one rank.

    `split` covers the whole capture and sums to the partition's exposed communication; `steps` has the split of each
    traced step's window, in their order; `waits` (most first), `stages` (by stage and group) and `collectives`
    (most exposed first) cover the traced steps, or the whole capture where there are none. `contention_ns` is an
    estimate inside transfer: by how much the exposed transfers took longer than the fastest equal collective seen on
    any rank. None where no collective has its equal; `contention_basis` says what it rests on.
    """

    rank: int
    split: ExposedSplit
    steps: tuple[ExposedSplit, ...]
    waits: tuple[Wait, ...]
    stages: Mapping[tuple[str, str], ExposedSplit]
    collectives: tuple[CollectiveTime, ...]
    contention_ns: int | None
    contention_basis: str | None


def measure_exposure(ranks: Sequence[RankTimeline], match: CollectiveMatch) -> tuple[RankExposure, ...]:
    raise NotImplementedError
