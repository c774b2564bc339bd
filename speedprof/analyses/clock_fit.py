"""How well do the collectives of two ranks fit together, if one rank's times gain an offset?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from speedprof.analyses.alignment import UNKNOWN, pair_up
from speedprof.analyses.collective_parts import Parts
from speedprof.analyses.timeline import RankTimeline
from speedprof.trace.intervals import Int64s
from speedprof.units import NS_PER_US

# Ranks whose traces belong together share nearly all collectives of their common time, less what profilers drop. In
# samples of events (2 ranks of 128: 4 of 10) and in traces of different runs most have no mate.
LEAST_SHARE = 2 / 3
# How far the ends of a collective lie apart, beside its shortest part: in the median at most 0.02 on one clock, with
# H100, H200 and V100. Spans that only happen to overlap give about 0.25: every distance up to half a span is as likely.
CLOSE_RATIO = 0.12
LOOSEST_RATIO = 0.2
# Distances below this say nothing: the clocks of two devices, as the host reads them, agree no better.
CLOCK_NOISE_NS = 5 * NS_PER_US
# Enough collectives to tell any two offsets apart.
_LONGEST_TRIED = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPair:
    """The parts of two ranks, of the groups that both belong to, and their captures' starts and ends in ns."""

    first: Parts
    second: Parts
    first_capture: tuple[int, int]
    second_capture: tuple[int, int]

    @property
    def num_shorter(self) -> int:
        return min(len(self.first), len(self.second))

    @property
    def is_numbered(self) -> bool:
        """Whether the files themselves say of both ranks' parts which belong together."""
        return bool(np.isin(self.first.tag[self.first.tag != UNKNOWN], self.second.tag).any())

    def shortened(self, longest: int = _LONGEST_TRIED) -> RankPair:
        """The same with no more of the first rank than is needed to try many offsets: the middle of its parts."""
        length = len(self.first)
        if length <= longest:
            return self
        begin = (length - longest) // 2
        first = self.first.take(np.arange(begin, begin + longest))
        return replace(self, first=first, first_capture=(int(first.start.min()), int(first.end.max())))

    def nearby(self, reach: int) -> RankPair:
        """The same without what of the second rank lies farther from the first than `reach` times what that spans."""
        start, end = int(self.first.start.min()), int(self.first.end.max())
        start, end = start - reach * (end - start), end + reach * (end - start)
        is_near = (self.second.start >= start) & (self.second.end <= end)
        capture = max(self.second_capture[0], start), min(self.second_capture[1], end)
        return replace(self, second=self.second.take(is_near), second_capture=capture)

    def are_apart(self, offset_ns: int) -> bool:
        """Whether the captures have no time in common."""
        start, end = self._common(offset_ns)
        return end <= start

    def num_in_common(self, offset_ns: int) -> int:
        """How many collectives both can have: those of the rank with fewer that lie within both captures."""
        start, end = self._common(offset_ns)
        return min(
            int(((part.start + by >= start) & (part.end + by <= end)).sum())
            for part, by in ((self.first, 0), (self.second, offset_ns))
        )

    def _common(self, offset_ns: int) -> tuple[int, int]:
        second = [time + offset_ns for time in self.second_capture]
        return max(self.first_capture[0], second[0]), min(self.first_capture[1], second[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """How two ranks fit where the second one's times gain `offset_ns`.

    `num_pairs` collectives were put together, by time or by what the file says; `num_overlapping` of them overlap as
    the parts of a collective do, of `num_expected` that lie within both captures. `difference_ns` is the median of how
    much later the second rank's ends are, `residual_ns` the median distance from that. `lead` is the median of by how
    many places a collective comes later among the second rank's parts. `ratio` is the median distance of two ends
    beside the shorter part, of collectives that end together on all ranks; None where there are none.
    """

    offset_ns: int
    num_pairs: int
    num_overlapping: int
    num_expected: int
    difference_ns: int
    residual_ns: int
    lead: int
    ratio: float | None

    @property
    def is_dense(self) -> bool:
        return self.num_overlapping >= max(1, LEAST_SHARE * self.num_expected)

    @property
    def is_sound(self) -> bool:
        """Whether the collectives overlap, and their ends lie together, by far more than chance has it."""
        return self.is_dense and (self.ratio is None or self.ratio <= LOOSEST_RATIO)

    @property
    def is_close(self) -> bool:
        """Whether they fit as well as those of one host do."""
        return self.is_dense and (self.ratio is None or self.ratio <= CLOSE_RATIO)


def make_pair(ranks: Sequence[RankTimeline], parts: Parts, first: int, second: int) -> RankPair:
    """The ranks at two places, with the parts that say most of how they fit.

    Those of known groups, if both have any; else those that are not perhaps messages between other ranks; else all.
    """
    one, other = (parts.take(parts.rank == place) for place in (first, second))
    shared = np.intersect1d(one.kind, other.kind)
    is_known, is_plain = (
        np.isin(shared, parts.kind[chosen]) for chosen in (parts.has_group & ~parts.is_exchange, ~parts.is_exchange)
    )
    shared = shared[is_known if is_known.any() else is_plain if is_plain.any() else ...]
    return RankPair(
        first=one.take(np.isin(one.kind, shared)),
        second=other.take(np.isin(other.kind, shared)),
        first_capture=(ranks[first].start_ns, ranks[first].end_ns),
        second_capture=(ranks[second].start_ns, ranks[second].end_ns),
    )


def measure_fit(pair: RankPair, offset_ns: int) -> Fit:
    one, other = pair.first.spans, pair.second.spans.shifted(offset_ns)
    rows, mates = pair_up(one, other, in_queue=pair.first.on_host)
    one, other = one.take(rows), other.take(mates)
    overlap = np.minimum(one.end, other.end) - np.maximum(one.start, other.start)
    shorter = np.minimum(one.end - one.start, other.end - other.start)
    late = other.end - one.end
    difference = int(np.median(late)) if len(late) else 0
    distance = measure_ratios(np.abs(late), shorter)[pair.first.ends_together[rows]]
    num_overlapping = int((overlap >= 0).sum())
    return Fit(
        offset_ns=offset_ns,
        num_pairs=len(rows),
        num_overlapping=num_overlapping,
        num_expected=max(num_overlapping, pair.num_in_common(offset_ns)),
        difference_ns=difference,
        residual_ns=int(np.median(np.abs(late - difference))) if len(late) else 0,
        lead=int(np.median(mates - rows)) if len(rows) else 0,
        ratio=float(np.median(distance)) if len(distance) else None,
    )


def measure_ratios(distance_ns: Int64s, shortest_ns: Int64s) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """How far ends lie apart beside the shortest part of their collective; 0 within the noise of clocks."""
    beyond = np.maximum(distance_ns - CLOCK_NOISE_NS, 0)
    return np.asarray(beyond / np.maximum(shortest_ns, 1), dtype=np.float64)
