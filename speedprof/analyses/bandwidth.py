"""How fast do collectives of each size move their bytes?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.timeline import RankTimeline
from speedprof.units import NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveBandwidth:
    """Collectives of one name, size and number of ranks.

    `num_bytes` is the size as nccl-tests counts it: of the larger of a rank's input and output. The time of each runs
    from the start of the last rank's kernel to the end of the last one. `median_ns` and `fastest_ns` are over the
    `count` matched ones; bus bandwidth is bytes times the collective's factor over that time (nccl-tests'
    PERFORMANCE.md), None for a collective that has no such factor.
    """

    name: str
    dtype: str
    num_bytes: int
    group_size: int
    count: int
    median_ns: int
    fastest_ns: int
    bus_factor: float | None

    @property
    def bus_bytes_per_s(self) -> float | None:
        """At the median time."""
        if self.bus_factor is None or not self.median_ns:
            return None
        return self.bus_factor * self.num_bytes * NS_PER_S / self.median_ns


def measure_bandwidth(ranks: Sequence[RankTimeline], match: CollectiveMatch) -> tuple[CollectiveBandwidth, ...]:
    """Smallest first within each name; empty where sizes are not known or nothing was matched."""
    raise NotImplementedError
