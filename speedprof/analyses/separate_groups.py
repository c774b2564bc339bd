"""Are what was put together as collectives of some ranks really those of several smaller groups, side by side?"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl

from speedprof.trace.intervals import Int64s
from speedprof.trace.schema import to_numpy
from speedprof.units import NS_PER_US

# Fewer collectives than this may show a split by chance; more than the other add nothing but work.
_FEWEST = 8
_MOST = 256
_FEWEST_RANKS = 4
# Between sets ends vary more than within them by this factor. Within, a microsecond is as good as nothing.
_LEAST_CONTRAST = 2
_LEAST_SPREAD_NS = NS_PER_US
# A change between two sets is told from noise where it is larger by this factor than ends vary within a set. That share
# of the changes must be, and most of these must be the changes of the last starts, give or take a half: where ends have
# nothing to do with starts, at most one in six is.
_LEAST_OF_SPREAD = 2
_LEAST_SHARE_OF_CHANGES = 1 / 4
_LEAST_SHARE_THAT_FOLLOWS = 2 / 3

# The columns of `parts` below that tell apart what follows one another within one group, if it is one.
_SEQUENCE = ("group", "name", "first_stream")

Sets = tuple[tuple[int, ...], ...]
Floats = np.ndarray[Any, np.dtype[np.float64]]


def find_separate_groups(parts: pl.DataFrame) -> dict[int, Sets]:
    """By group the sets of ranks that are groups of their own, for those groups that are found to be several.

    `parts` has a row for each part of the collectives that were found on all ranks of their group and end together,
    with `collective`, `group`, `rank`, `name`, `stream`, `start_ns` and `end_ns`.
    """
    first = pl.col("stream").get(pl.col("rank").arg_min()).over("collective").alias("first_stream")
    last = pl.col("start_ns").max().over("collective").alias("last_start_ns")
    ordered = parts.with_columns(first, last).sort(*_SEQUENCE, "last_start_ns", "collective", "rank")
    found: dict[int, Sets] = {}
    for (group, *_), sequence in ordered.group_by(*_SEQUENCE, maintain_order=True):
        ranks = sequence["rank"].unique().sort().to_list()
        start, end = (to_numpy(sequence[name]).reshape(-1, len(ranks)) for name in ("start_ns", "end_ns"))
        if sets := find_sets(start, end):
            found.setdefault(int(group), tuple(tuple(ranks[place] for place in one) for one in sets))
    return found


def find_sets(start: Int64s, end: Int64s) -> Sets:
    """The sets of columns, two or more in each, that are groups of their own; () where nothing says that they are.

    `start` and `end`, in ns, have a row for each collective, in order of time, and a column for each rank. All parts of
    one collective end together whenever each began. So ranks whose ends keep together are of one group; and where the
    ends of two such sets come apart, by just as much as their last starts do, each waits for its own ranks alone:

        rank 0    ######----            # waits for the last of its group
        rank 1        ##----            - transfers
        rank 2    ########----
        rank 3          ##----          ends 2 later, for its group's last start is 2 later

    Only changes from one collective to the next count, so clocks may differ and drift.
    """
    if end.shape[0] < _FEWEST or end.shape[1] < _FEWEST_RANKS:
        return ()
    start, end = start[:_MOST] - end[0, 0], end[:_MOST] - end[0, 0]
    sets, spread_ns = _keep_together(np.diff(end, axis=0))
    if len(sets) < 2:
        return ()
    ends = np.stack([np.median(end[:, list(one)], axis=1) for one in sets], axis=1)
    starts = np.stack([start[:, list(one)].max(axis=1).astype(np.float64) for one in sets], axis=1)
    return sets if _ends_follow(_changes(starts), _changes(ends), spread_ns) else ()


def _changes(times: Floats) -> Floats:
    """By how much each set's lead on the next changes from one collective to the next."""
    return np.asarray(np.diff(np.diff(times, axis=0), axis=1).ravel(), dtype=np.float64)


def _ends_follow(starts: Floats, ends: Floats, spread_ns: float) -> bool:
    is_telling = np.abs(ends) > _LEAST_OF_SPREAD * spread_ns
    follows = np.abs(ends - starts)[is_telling] <= np.abs(ends)[is_telling] / 2
    return bool(
        is_telling.sum() >= max(_FEWEST / 2, _LEAST_SHARE_OF_CHANGES * len(ends))
        and follows.mean() >= _LEAST_SHARE_THAT_FOLLOWS
    )


def _keep_together(steps: Int64s) -> tuple[Sets, float]:
    """Sets of columns whose values keep together, and how far they lie apart in these; no sets where none stand out.

    The shortest links that join all columns, in order of length: where they grow most, the sets end.
    """
    label = np.arange(steps.shape[1])
    best: tuple[float, Sets, float] = (_LEAST_CONTRAST, (), 0.0)
    links = _shortest_links(steps)
    for (length_ns, one, other), (next_ns, _, _) in pairwise(links):
        label[label == label[other]] = label[one]
        within_ns = max(length_ns, float(_LEAST_SPREAD_NS))
        contrast = next_ns / within_ns
        if contrast >= best[0] and np.unique(label, return_counts=True)[1].min() > 1:
            sets = tuple(tuple(np.flatnonzero(label == of).tolist()) for of in dict.fromkeys(label.tolist()))
            best = (contrast, sets, within_ns)
    return best[1], best[2]


def _shortest_links(steps: Int64s) -> list[tuple[float, int, int]]:
    """The length of each link of a shortest tree over all columns, and the two that it joins; shortest first."""
    count = steps.shape[1]
    nearest, length = np.zeros(count, dtype=np.int64), np.full(count, np.inf)
    outside = np.ones(count, dtype=np.bool_)
    at, links = 0, []
    for _ in range(count - 1):
        outside[at] = False
        distance = np.median(np.abs(steps - steps[:, [at]]), axis=0)
        closer = outside & (distance < length)
        nearest[closer], length[closer] = at, distance[closer]
        at = int(np.argmin(np.where(outside, length, np.inf)))
        links.append((float(length[at]), int(nearest[at]), at))
    return sorted(links)
