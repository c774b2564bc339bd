"""Which rank do the others wait for, what does it cost them, and why is it late?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from speedprof.analyses.exposure import RankExposure
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.timeline import RankTimeline


class StragglerCause(StrEnum):
    """Why a rank comes late to collectives."""

    LATE_LAUNCH = "late_launch"
    SLOW_KERNEL = "slow_kernel"
    INPUT = "input"
    SYNC = "sync"
    UNEXPLAINED = "unexplained"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlowKernel:
    """A kernel that takes longer on a straggler than on the median of the other ranks, in ns per traced step."""

    name: str
    own_ns: int
    others_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Straggler:
    """A rank that the others wait for more than chance has it.

    `cost_ns` is the exposed wait that it causes per traced step, the mean over the other ranks. `share` is its part of
    all exposed waiting. `excess_ns` says by how much, per traced step, it spends more than the mean of the others in
    compute ("compute"), copies ("copy") and each cause of idle time: what a late rank has more of, it is late by.
    """

    rank: int
    cost_ns: int
    share: float
    cause: StragglerCause
    excess_ns: Mapping[str, int]
    slow_kernels: tuple[SlowKernel, ...]


def find_stragglers(
    ranks: Sequence[RankTimeline], match: CollectiveMatch, exposures: Sequence[RankExposure]
) -> tuple[Straggler, ...]:
    raise NotImplementedError
