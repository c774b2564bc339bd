"""Which offsets may two clocks have, if their times alone do not tell?"""

from __future__ import annotations

import numpy as np

from speedprof.analyses.clock_fit import RankPair
from speedprof.analyses.collective_parts import Parts
from speedprof.trace.intervals import Int64s
from speedprof.units import NS_PER_US

# Pieces of the first rank's sequence that are looked for in the second's: how long each is at most, in collectives, how
# many there are of each length, and how many of the likest places are kept of each. In a long piece the lengths of
# steps count, which differ more than what lies in a step; a short one is less likely to be spoilt by what was dropped.
_LONGEST_PIECES = (32, 512)
_NUM_PIECES = 8
_NUM_LIKEST = 3
_MOST_COMPARED = 32
# Offsets that lie closer than this come from the scatter of the ends of one and the same pairs.
_SAME_OFFSET_NS = 10 * NS_PER_US


def find_candidates(pair: RankPair) -> list[int]:
    """Offsets, in ns, that bring pieces of the two ranks' sequences of collectives together, each once.

    Whatever a clock shows, the times between the ends of one collective and the next are the same on all ranks:

        rank 0, ends       |  | |     |   |  | |     |
        rank 1, ends    |  | |     |   |  | |     |          the same an hour later, from one collective further on

    Pieces are sought in the longest sequence of one group that both have, since a group's collectives keep their order.
    """
    first, second = _longest_sequences(pair)
    shorter = min(len(first), len(second))
    if shorter < 2:
        return []
    offsets = [
        offset
        for width in {min(longest, max(2, shorter // 2)) for longest in _LONGEST_PIECES}
        for begin in np.unique(np.linspace(0, len(first) - width, _NUM_PIECES).astype(np.int64)).tolist()
        for offset in _likest_offsets(first.take(np.arange(begin, begin + width)), second)
    ]
    ordered = np.sort(np.array(offsets, dtype=np.int64))
    is_new = np.diff(ordered, prepend=ordered[0] - _SAME_OFFSET_NS) >= _SAME_OFFSET_NS
    return [int(offset) for offset in ordered[is_new]]


def _longest_sequences(pair: RankPair) -> tuple[Parts, Parts]:
    num_groups = len(pair.first.groups)
    counts = [np.bincount(one.group, minlength=num_groups) for one in (pair.first, pair.second)]
    longest = int(np.argmax(np.minimum(*counts)))
    first, second = (one.take(one.group == longest) for one in (pair.first, pair.second))
    return first.take(np.argsort(first.end, kind="stable")), second.take(np.argsort(second.end, kind="stable"))


def _likest_offsets(piece: Parts, sequence: Parts) -> list[int]:
    """The offsets that bring the piece where the sequence's times from one end to one half a piece later are likest.

    A time counts as wrong by no more than the piece's mean time from end to end, so that one dropped collective does
    not outweigh all others. A wrong name counts as much.
    """
    lag, num_places = len(piece) // 2, len(sequence) - len(piece) + 1
    most = max(1, int(np.diff(piece.end).mean()))
    wrong = np.zeros(num_places, dtype=np.int64)
    for at in np.unique(np.linspace(0, len(piece) - lag - 1, _MOST_COMPARED).astype(np.int64)).tolist():
        lasts = sequence.end[at + lag :][:num_places] - sequence.end[at:][:num_places]
        wrong += np.minimum(np.abs(lasts - (piece.end[at + lag] - piece.end[at])), most)
        wrong += most * (sequence.name[at:][:num_places] != piece.name[at])
    likest: Int64s = np.argsort(wrong, kind="stable")[:_NUM_LIKEST]
    return [-int(np.median(sequence.end[at : at + len(piece)] - piece.end)) for at in likest.tolist()]
