"""What is around given instants on a host thread, and what takes most of given stretches of its time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from speedprof.trace.intervals import Bools, Int64s, rows_of_each
from speedprof.trace.ranges import find_top_level
from speedprof.trace.schema import to_numpy

_NO_ROWS = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpans:
    """Spans of host time in ns, by start, the longer first. `track` is a thread, or several that take turns."""

    track: Int64s
    start: Int64s
    end: Int64s

    def __len__(self) -> int:
        return len(self.start)

    @staticmethod
    def of(table: pl.DataFrame) -> HostSpans:
        """Those of a trace's ops, ranges or launches."""
        thread, start, end = (to_numpy(table[name]) for name in ("thread", "start_ns", "end_ns"))
        return HostSpans(track=thread, start=start, end=end)

    def take(self, rows: Int64s | Bools) -> HostSpans:
        """These rows, which must keep the order."""
        return HostSpans(track=self.track[rows], start=self.start[rows], end=self.end[rows])

    def find_outermost(self) -> Bools:
        """Which spans no earlier one of their track is around, nor reaches into: those do not overlap."""
        return find_top_level(self.track, self.start, self.end)


def find_innermost(spans: HostSpans, track: Int64s, times: Int64s) -> Int64s:
    """For each track and time the row of the span around it that began last, the shorter of equals; -1 for none.

        row 0   ##########
        row 1     ####
        times    .  .    .  .
        found    0  1    0  -1

    As `intervals.innermost`, but without a look at each span in turn: for hundreds of thousands of them.
    """
    found = np.full(len(times), -1, dtype=np.int64)
    rows_of = rows_of_each(spans.track)
    for one, unordered in rows_of_each(track).items():
        here = unordered[np.argsort(times[unordered], kind="stable")]
        rows = rows_of.get(one, _NO_ROWS)
        first = np.searchsorted(times[here], spans.start[rows])
        last = np.searchsorted(times[here], spans.end[rows])
        around = last > first
        last_around = _last_over(first[around], last[around], len(here))
        found[here] = np.where(last_around >= 0, rows[around][last_around] if around.any() else -1, -1)
    return found


def _last_over(first: Int64s, last: Int64s, length: int) -> Int64s:
    """For each place in range(length) the highest index of a stretch [first, last) over it, -1 for none.

    A stretch is two blocks, whose length is a power of two, that may overlap. Blocks are handed down from the longest
    to the shortest: what is over a block is over both its halves.
    """
    over = np.full(length, -1, dtype=np.int64)
    index = np.arange(len(first))
    level = np.frexp((last - first).astype(np.float64))[1] - 1
    for power in range(int(level.max(initial=-1)), -1, -1):
        width = 1 << power
        # So far over[i] is what lies over [i, i + 2 * width): it lies over the half that begins at i + width too.
        halves = over.copy()
        halves[width:] = np.maximum(over[width:], over[:-width])
        over = halves
        mine = level == power
        np.maximum.at(over, first[mine], index[mine])
        np.maximum.at(over, last[mine] - width, index[mine])
    return over


def find_overlaps(spans: HostSpans, track: Int64s, start: Int64s, end: Int64s) -> tuple[Int64s, Int64s]:
    """Which spans share some time with which stretches [start, end) of their track: rows of stretches and of spans, a
    pair each. The spans of a track may not overlap."""
    stretches, found = [_NO_ROWS], [_NO_ROWS]
    rows_of = rows_of_each(spans.track)
    for one, here in rows_of_each(track).items():
        rows = rows_of.get(one, _NO_ROWS)
        first = np.searchsorted(spans.end[rows], start[here], side="right")
        last = np.searchsorted(spans.start[rows], end[here])
        count = np.maximum(last - first, 0)
        stretches.append(np.repeat(here, count))
        found.append(rows[np.arange(count.sum()) + np.repeat(first - np.cumsum(count) + count, count)])
    stretch, span = np.concatenate(stretches), np.concatenate(found)
    shared = np.minimum(spans.end[span], end[stretch]) > np.maximum(spans.start[span], start[stretch])
    return stretch[shared], span[shared]


def find_longest(spans: HostSpans, track: Int64s, start: Int64s, end: Int64s) -> Int64s:
    """For each stretch [start, end) of a track the row of the span that takes most of it, -1 where none takes any. The
    spans of a track may not overlap."""
    row = np.full(len(start), -1, dtype=np.int64)
    stretch, span = find_overlaps(spans, track, start, end)
    inside = np.minimum(spans.end[span], end[stretch]) - np.maximum(spans.start[span], start[stretch])
    # Of several assignments to one place the last one holds: the longest.
    order = np.argsort(inside, kind="stable")
    row[stretch[order]] = span[order]
    return row
