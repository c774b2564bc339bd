"""Which offsets may two clocks have, if their times alone do not tell?"""

from __future__ import annotations

import numpy as np

from speedprof.analyses.clock_fit import RankPair
from speedprof.analyses.collective_parts import Parts
from speedprof.trace.intervals import Int64s

# Places of the first rank's sequence that are looked for in the second's, how many collectives long each at most, and
# how many of the likest places are kept of each. A place that a dropped collective spoils is made up for by others.
_NUM_PLACES = 8
_LONGEST_PIECE = 32
_NUM_LIKEST = 3


def find_candidates(pair: RankPair) -> list[int]:
    """Offsets, in ns, that bring pieces of the two ranks' sequences of collectives together, each once.

    Whatever a clock shows, the times between the ends of one collective and the next are the same on all ranks:

        rank 0, ends       |  | |     |   |  | |     |
        rank 1, ends    |  | |     |   |  | |     |          the same an hour later, from one collective further on

    Pieces are sought in the longest sequence of one group that both have, since a group's collectives keep their order.
    """
    first, second = _longest_sequences(pair)
    width = min(_LONGEST_PIECE, max(2, min(len(first), len(second)) // 2))
    if min(len(first), len(second)) < width:
        return []
    offsets = set()
    for begin in np.unique(np.linspace(0, len(first) - width, _NUM_PLACES).astype(np.int64)).tolist():
        piece = first.take(np.arange(begin, begin + width))
        for at in _likest_places(piece, second):
            late = second.end[at : at + width] - piece.end
            offsets.add(-int(np.median(late)))
    return sorted(offsets)


def _longest_sequences(pair: RankPair) -> tuple[Parts, Parts]:
    groups = np.arange(len(pair.first.groups))
    counts = [np.bincount(one.group, minlength=len(groups)) for one in (pair.first, pair.second)]
    longest = int(np.argmax(np.minimum(*counts)))
    first, second = (one.take(one.group == longest) for one in (pair.first, pair.second))
    return first.take(np.argsort(first.end, kind="stable")), second.take(np.argsort(second.end, kind="stable"))


def _likest_places(piece: Parts, sequence: Parts) -> list[int]:
    """Where in the sequence the times between ends, and the names, are most like those of the piece.

    A time between two ends counts as wrong by no more than the piece's mean, so that one dropped collective does not
    outweigh all others, and a wrong name as much as a time that is wrong by that.
    """
    gaps, all_gaps = np.diff(piece.end), np.diff(sequence.end)
    most = max(1, int(gaps.mean()))
    windows = np.lib.stride_tricks.sliding_window_view
    wrong = np.minimum(np.abs(windows(all_gaps, len(gaps)) - gaps), most).sum(axis=1)
    wrong += (windows(sequence.name, len(piece)) != piece.name).sum(axis=1) * most
    likest: Int64s = np.argsort(wrong, kind="stable")[:_NUM_LIKEST]
    return [int(at) for at in likest]
