"""Sets of half-open intervals [start, end) of int64 instants, as sorted arrays. Knows nothing of events.

a            ####    ######
b              ####    ##
union        ######  ######
intersect      ##      ##
subtract     ##      ##  ##
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Sorted intervals that are not empty and neither overlap nor touch."""

    start: Int64s
    end: Int64s

    def __len__(self) -> int:
        return len(self.start)

    @property
    def length(self) -> int:
        """How many instants are covered."""
        return int((self.end - self.start).sum())


def union(start: Int64s, end: Int64s) -> Intervals:
    """What at least one of the intervals covers; they may come in any order, overlap, touch or be empty."""
    keep = end > start
    start, end = start[keep], end[keep]
    if not len(start):
        return Intervals(start=start, end=end)
    order = np.argsort(start, kind="stable")
    start, reach = start[order], np.maximum.accumulate(end[order])
    opens = np.concatenate(([True], start[1:] > reach[:-1]))
    closes = np.concatenate((opens[1:], [True]))
    return Intervals(start=start[opens], end=reach[closes])


def join(*sets: Intervals) -> Intervals:
    """What any of the sets covers."""
    return union(np.concatenate([s.start for s in sets]), np.concatenate([s.end for s in sets]))


def intersect(a: Intervals, b: Intervals) -> Intervals:
    """What both cover."""
    return _combine(a, b, lambda in_a, in_b: in_a & in_b)


def subtract(a: Intervals, b: Intervals) -> Intervals:
    """What `a` covers and `b` does not."""
    return _combine(a, b, lambda in_a, in_b: in_a & ~in_b)


def clip(a: Intervals, start: int, end: int) -> Intervals:
    """The part of `a` within [start, end)."""
    return union(np.clip(a.start, start, end), np.clip(a.end, start, end))


def covered_before(a: Intervals, times: Int64s) -> Int64s:
    """For each time, how many instants before it `a` covers: a window's share is the difference at its two ends."""
    if not len(a):
        return np.zeros(len(times), dtype=np.int64)
    total = np.concatenate(([0], np.cumsum(a.end - a.start)))
    index = np.searchsorted(a.start, times, side="right")
    # The last interval that began may still be open: take back what lies after the time.
    overshoot = np.maximum(a.end[np.maximum(index - 1, 0)] - times, 0)
    return np.asarray(total[index] - np.where(index > 0, overshoot, 0), dtype=np.int64)


def overlap(a: Intervals, b: Intervals) -> int:
    """How many instants both cover; cheap where `a` is small, whatever the size of `b`."""
    return int((covered_before(b, a.end) - covered_before(b, a.start)).sum())


def innermost(start: Int64s, end: Int64s, times: Int64s) -> Int64s:
    """For each time, the index of the interval around it that began last, or -1 where none is open.

    Intervals may nest. Of two with the same start, the shorter counts as the later one.

        interval 0   ##########
        interval 1     ####
        times        .  .    .  .
        innermost    0  1    0  -1
    """
    borders, owners = _paint(start, end)
    index = np.searchsorted(borders, times, side="right") - 1
    return owners[index] if len(borders) else np.full(len(times), -1, dtype=np.int64)


def busiest(owner: Int64s, length: Int64s) -> int | None:
    """The owner with the greatest sum of lengths, the lowest of equals; None where there are none."""
    owners, index = np.unique(owner, return_inverse=True)
    if not len(owners):
        return None
    busy = np.zeros(len(owners), dtype=np.int64)
    np.add.at(busy, index, length)
    return int(owners[np.argmax(busy)])


def rows_of_each(values: Int64s) -> dict[int, Int64s]:
    """The rows of each distinct value, in their order. Takes no longer where as many values as rows are distinct."""
    distinct = np.unique(values)
    if len(distinct) <= _FEW_VALUES:
        return {value: np.flatnonzero(values == value) for value in distinct.tolist()}
    order = np.argsort(values, kind="stable")
    borders = [*np.searchsorted(values[order], distinct).tolist(), len(order)]
    return {value: order[borders[at] : borders[at + 1]] for at, value in enumerate(distinct.tolist())}


# Up to so many values a look at all rows for each takes less time than sorting the rows.
_FEW_VALUES = 16


def _paint(start: Int64s, end: Int64s) -> tuple[Int64s, Int64s]:
    """Instants at which the innermost interval changes, led by the smallest int64, and the owner from each on."""
    borders, owners = [np.iinfo(np.int64).min], [-1]
    open_rows: list[tuple[int, int]] = []

    def close_until(time: int) -> None:
        while open_rows and open_rows[-1][0] <= time:
            closed, _ = open_rows.pop()
            # An interval that outlasts its parent has hidden the parent's end: skip the parents that are over.
            while open_rows and open_rows[-1][0] <= closed:
                open_rows.pop()
            borders.append(closed)
            owners.append(open_rows[-1][1] if open_rows else -1)

    for row in np.lexsort((-end, start)).tolist():
        close_until(int(start[row]))
        if end[row] > start[row]:
            open_rows.append((int(end[row]), row))
            borders.append(int(start[row]))
            owners.append(row)
    close_until(np.iinfo(np.int64).max)
    return np.array(borders, dtype=np.int64), np.array(owners, dtype=np.int64)


def _combine(a: Intervals, b: Intervals, keep: Callable[[Bools, Bools], Bools]) -> Intervals:
    # A stable sort merges the four sorted runs; np.unique would hash every border, several times slower.
    borders = np.sort(np.concatenate((a.start, a.end, b.start, b.end)), kind="stable")
    borders = borders[np.concatenate((borders[1:] > borders[:-1], [True]))] if len(borders) else borders
    left = borders[:-1]
    kept = keep(_covers(a, left), _covers(b, left))
    return union(left[kept], borders[1:][kept])


def _covers(a: Intervals, times: Int64s) -> Bools:
    return np.searchsorted(a.start, times, side="right") > np.searchsorted(a.end, times, side="right")
