"""Do the ranks' clocks agree, and if not, by how much do they differ?"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RankClock:
    """How one rank's clock stands to that of the first rank.

    `offset_ns` is what is added to its times to bring them onto the common clock: 0 where the clocks agree within what
    collectives can tell. `residual_ns` is the median distance of its ends of matched collectives from the others'
    after that, the uncertainty of every comparison across ranks. `num_collectives` is what both rest on.
    """

    rank: int
    offset_ns: int
    residual_ns: int
    num_collectives: int
