"""Do the ranks' clocks agree, and if not, by how much do they differ?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from speedprof.analyses.clock_fit import CLOCK_NOISE_NS, Fit, RankPair, make_pair, measure_fit
from speedprof.analyses.clock_search import find_candidates
from speedprof.analyses.collective_parts import Parts
from speedprof.analyses.timeline import RankTimeline
from speedprof.trace.intervals import Int64s
from speedprof.units import NS_PER_US, format_ns

# The clocks that devices of one host show agree to microseconds (medians of 0.2 to 3 us on H100, H200 and V100); the
# ends of gloo's collectives on one host scatter by hundreds, but about 0. Where collectives fit without an offset, less
# than this is never shifted away.
LEAST_OFFSET_NS = 100 * NS_PER_US
# An offset is believed only where it stands out from the scatter of the ends by this factor.
_LEAST_SIGNIFICANCE = 4
# An offset that was searched for must explain this many collectives, and half of the shorter trace: a few always fit.
_FEWEST_FOR_OFFSET = 4
# The true offset leaves a residual smaller by this factor than any other: than none, or than one wrong by a step, since
# steps differ in length by far more than the ends of a collective lie apart. Else nobody can tell which is true.
_LEAST_ADVANTAGE = 3
# Collectives that fit well without an offset may still be a step apart, where steps are nearly alike. Ends then lie
# farther apart than on clocks of one host, a step's collectives have no mates, and the true offset explains more. It is
# looked for with this many collectives, and no farther away than this many times the time that they take.
_MOST_AGAINST_CLOSE = 256
_FARTHEST_AGAINST_CLOSE = 4
# Residuals below this are as good as none: clocks are read to a microsecond.
_LEAST_RESIDUAL_NS = NS_PER_US
# On other clocks, parts of a collective may seem to miss each other by as much as this many residuals.
_SLACK_OF_RESIDUAL = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RankClock:
    """How one rank's clock stands to that of the first rank.

    `offset_ns` is what is added to its times to bring them onto the common clock: 0 where the clocks agree within what
    collectives can tell. `residual_ns` is the median distance of its ends of matched collectives from the others'
    after that, the uncertainty of every comparison across ranks. `num_collectives` is what both rest on; where it is 0
    nothing is known of this clock, and both are 0 too.

    The offset is constant. What clocks drift apart within a capture, some microseconds a second, is in the residual.
    """

    rank: int
    offset_ns: int
    residual_ns: int
    num_collectives: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonClock:
    """What each rank's times gain, by its place among the ranks, to be on the clock of the first.

    `slack_ns` is by how much times may be wrong after that, 0 where the clocks are one. `misfits` are the ranks, by
    their places, whose collectives do not fit those of the others, each with the reason as a clause.
    """

    offset_ns: Int64s
    slack_ns: int
    misfits: dict[int, str]


def find_common_clock(ranks: Sequence[RankTimeline], parts: Parts) -> CommonClock:
    """Bring the ranks onto the clock of the first, each by way of the rank that it shares most collectives with.

    Ranks that share collectives with none before them, directly or by way of others, keep their own clock.
    """
    shared = _count_shared(parts, len(ranks))
    offsets = np.zeros(len(ranks), dtype=np.int64)
    slack, misfits = 0, {}
    placed, waiting = [0], list(range(1, len(ranks)))
    while waiting:
        counts = shared[np.ix_(placed, waiting)]
        if not counts.any():
            placed.append(waiting.pop(0))
            continue
        at_placed, at_waiting = np.unravel_index(int(np.argmax(counts)), counts.shape)
        known, place = placed[at_placed], waiting.pop(at_waiting)
        found = _settle(make_pair(ranks, parts, known, place), ranks[known].rank, ranks[place].rank)
        if isinstance(found, str):
            misfits[place] = found
            continue
        offset = offsets[known] + found.offset_ns
        # Ranks of one host have one clock, whichever rank each was compared with.
        nearest = offsets[placed][np.argmin(np.abs(offsets[placed] - offset))]
        is_one = abs(nearest - offset) <= max(CLOCK_NOISE_NS, found.residual_ns)
        offsets[place] = nearest if is_one else offset
        placed.append(place)
        slack = max(slack, _slack_of(found))
    return CommonClock(offset_ns=offsets, slack_ns=slack, misfits=misfits)


def _count_shared(parts: Parts, num_ranks: int) -> Int64s:
    """How many collectives each two ranks can share at most, by group and name."""
    kinds, kind = np.unique(parts.kind, return_inverse=True)
    counts = np.zeros((num_ranks, len(kinds)), dtype=np.int64)
    np.add.at(counts, (parts.rank, kind), 1)
    shared = np.zeros((num_ranks, num_ranks), dtype=np.int64)
    for column in counts.T:
        shared += np.minimum(column[:, None], column[None, :])
    return shared


def _settle(pair: RankPair, rank: int, other: int) -> Fit | str:
    """The fit of two ranks on one clock, without an offset unless one is clearly better; or why there is none."""
    plain = measure_fit(pair, 0)
    fits = plain.is_close and not _is_shifted(plain)
    if fits and not _may_be_steps_apart(pair, plain):
        return plain
    piece = pair.shortened()
    if fits:
        piece = pair.shortened(_MOST_AGAINST_CLOSE).nearby(_FARTHEST_AGAINST_CLOSE)
    found = [_refine(piece, offset) for offset in _candidates(pair, plain, piece)]
    least = LEAST_OFFSET_NS if plain.is_sound else 0
    fewest = measure_fit(piece, 0).num_pairs + 1 if fits else 0
    found = [
        fit for fit in found if abs(fit.offset_ns) > least and fit.num_pairs >= fewest and _explains_enough(fit, piece)
    ]
    found.sort(key=lambda fit: (fit.residual_ns, abs(fit.offset_ns), fit.offset_ns))
    if plain.is_sound and not (found and _beats(found[0], plain)):
        return plain
    if not found:
        return _why_not(pair, plain, rank, other)
    rivals = [fit for fit in found[1:] if not _is_same(found[0], fit) and not _beats(found[0], fit)]
    if rivals:
        apart = format_ns(abs(found[0].offset_ns - rivals[0].offset_ns))
        return (
            f"the clocks of ranks {rank} and {other} differ, and their collectives repeat so evenly that two offsets, "
            f"{apart} apart, fit them about as well"
        )
    return _refine(pair, found[0].offset_ns)


def _candidates(pair: RankPair, plain: Fit, piece: RankPair) -> set[int]:
    by_ends = {-plain.difference_ns} if plain.num_pairs else set()
    return by_ends if pair.is_numbered else by_ends | set(find_candidates(piece))


def _refine(pair: RankPair, offset_ns: int) -> Fit:
    """The fit at the offset that brings the median of what fits at this one to 0."""
    fit = measure_fit(pair, offset_ns)
    return measure_fit(pair, offset_ns - fit.difference_ns) if fit.difference_ns else fit


def _slack_of(fit: Fit) -> int:
    """By how much parts of one collective may seem to miss each other; 0 on one clock."""
    if fit.offset_ns or abs(fit.difference_ns) > max(CLOCK_NOISE_NS, fit.residual_ns):
        return abs(fit.difference_ns) + _SLACK_OF_RESIDUAL * fit.residual_ns
    return 0


def _is_shifted(fit: Fit) -> bool:
    """Whether all ends differ by about the same, and by more than on clocks of one host."""
    return abs(fit.difference_ns) > max(LEAST_OFFSET_NS, _LEAST_SIGNIFICANCE * fit.residual_ns)


def _may_be_steps_apart(pair: RankPair, close: Fit) -> bool:
    """Whether collectives that fit without an offset may be those of other steps: too far apart, and some alone."""
    is_apart = max(close.residual_ns, abs(close.difference_ns)) > CLOCK_NOISE_NS
    return is_apart and close.num_pairs < pair.num_shorter and not pair.is_numbered


def _explains_enough(fit: Fit, pair: RankPair) -> bool:
    return fit.is_close and fit.num_pairs >= max(_FEWEST_FOR_OFFSET, pair.num_shorter / 2)


def _beats(fit: Fit, other: Fit) -> bool:
    left = max(other.residual_ns, abs(other.difference_ns))
    return _LEAST_ADVANTAGE * max(fit.residual_ns, _LEAST_RESIDUAL_NS) <= left


def _is_same(fit: Fit, other: Fit) -> bool:
    """Whether two offsets put the same collectives together, or differ by no more than the scatter of the ends."""
    scatter = max(fit.residual_ns, other.residual_ns, _LEAST_RESIDUAL_NS)
    return fit.lead == other.lead or abs(fit.offset_ns - other.offset_ns) <= _LEAST_SIGNIFICANCE * scatter


def _why_not(pair: RankPair, plain: Fit, rank: int, other: int) -> str:
    if pair.are_apart(0):
        return f"the captures of ranks {rank} and {other} have no time in common, and no clock offset fits both"
    if plain.is_dense and plain.ratio is not None:
        return (
            f"the collectives of ranks {rank} and {other} overlap, but their ends lie too far apart for parts of one: "
            f"in the median by {plain.ratio:.0%} of the shorter part"
        )
    return (
        f"only {plain.num_overlapping} of {plain.num_expected} collectives of ranks {rank} and {other} overlap in time "
        "as parts of one do, and no clock offset fits the rest"
    )
