"""The clock of the Perfetto file, onto which every rank's times are brought."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from speedprof.analyses.analysis import Analysis
from speedprof.units import NS_PER_S

# Captures of one run that begin further apart than this were timed by clocks that have nothing to do with each other,
# such as the times since two machines were started.
_FURTHEST_APART_NS = 86_400 * NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class FileClock:
    """`span` is from the first start to the last end of the ranks' captures on this clock, None where none has any.

    `offsets_ns` are what is added to a rank's times. Ranks in `unaligned` have no clock in common with the first one.
    """

    span: tuple[int, int] | None = None
    offsets_ns: Mapping[int, int] = field(default_factory=dict)
    unaligned: frozenset[int] = frozenset()

    def offset_ns(self, rank: int) -> int:
        return self.offsets_ns.get(rank, 0)


def find_clock(analysis: Analysis) -> FileClock:
    """The clock to which matched collectives bring the ranks, or else the one that they share.

        rank 0           |=======|                                        as its file has it
        rank 1                                    ... days ...  |=====|   by another clock, not matched
        rank 1, drawn    |=====|

    What lies days apart cannot be seen in one view: such a rank is drawn as if it had begun with the first one.
    """
    offsets = {clock.rank: clock.offset_ns for clock in analysis.match.clocks} if analysis.match else {}
    windows = {
        rank.rank: (segments[0].start_ns + offsets.get(rank.rank, 0), segments[-1].end_ns + offsets.get(rank.rank, 0))
        for rank in analysis.ranks
        if (segments := rank.breakdown.segments) and segments[-1].end_ns > segments[0].start_ns
    }
    if not windows:
        return FileClock(offsets_ns=offsets)
    first_ns = min(start for start, _ in windows.values())
    late = {rank: start - first_ns for rank, (start, _) in windows.items() if start - first_ns > _FURTHEST_APART_NS}
    ends = [end - late.get(rank, 0) for rank, (_, end) in windows.items()]
    return FileClock(
        span=(first_ns, max(ends)),
        offsets_ns={rank: offsets.get(rank, 0) - late.get(rank, 0) for rank in offsets.keys() | windows.keys()},
        unaligned=frozenset(late),
    )
