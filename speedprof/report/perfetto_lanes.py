"""Lanes: on which of several tracks under one another each slice is drawn, so that viewers keep every one.

Perfetto draws the slices of a track as a stack: one that begins inside another must end inside it, or it is dropped.
"""

from __future__ import annotations

import numpy as np

from speedprof.trace.intervals import Int64s

# Perfetto drops slices deeper than 512.
DEEPEST_NEST = 400
# Slices that are made into Python's numbers at a time; those take ten times the room.
_BLOCK_ROWS = 1 << 16
# Lanes that are tried before a new one is begun: traces have a few, and thousands would take a time squared.
_MOST_TRIED = 64
_FOREVER = int(np.iinfo(np.int64).max)


def find_lanes(track: Int64s, start: Int64s, end: Int64s, *, deepest: int = DEEPEST_NEST) -> Int64s:
    """The lane of each slice, from 0 up on each track: the first one where it crosses no earlier slice.

        track 7     [   a   ][ c ]         lane 0   [   a   ][ c ]
                        [  b   ]           lane 1       [  b   ]

    Rows must be sorted by track, then by start; of equal starts, the longer first where slices may nest, else the
    shorter. A lane is nested at most `deepest` deep; with 1 no two slices of a lane overlap. A slice of zero length
    disturbs none that ends or begins at its instant.
    """
    lanes = np.zeros(len(start), dtype=np.int64)
    if not len(start):
        return lanes
    # Doubled, so that an instant at t ends after the slices that end at t and before those that begin there.
    origin = int(start.min())
    is_instant = (end <= start).astype(np.int64)
    opens = 2 * (start - origin) + (1 - is_instant)
    closes = 2 * (np.maximum(end, start) - origin) + is_instant
    for first, last in _clusters(track, opens, closes):
        lanes[first:last] = _stack_up(opens[first:last], closes[first:last], deepest)
    return lanes


def _clusters(track: Int64s, opens: Int64s, closes: Int64s) -> list[tuple[int, int]]:
    """The runs of two rows or more on one track that hang together by overlaps: the rest is alone, and fits lane 0."""
    borders = np.concatenate(([0], np.flatnonzero(np.diff(track)) + 1, [len(track)]))
    begins = np.zeros(len(track) + 1, dtype=np.bool_)
    begins[borders] = True
    for first, last in zip(borders[:-1].tolist(), borders[1:].tolist(), strict=True):
        reach = np.maximum.accumulate(closes[first:last])
        begins[first + 1 : last] |= opens[first + 1 : last] >= reach[:-1]
    starts = np.flatnonzero(begins)
    long = np.flatnonzero(np.diff(starts) > 1)
    return list(zip(starts[long].tolist(), starts[long + 1].tolist(), strict=True))


def _stack_up(opens: Int64s, closes: Int64s, deepest: int) -> Int64s:
    """The lane of each slice of a cluster. A lane is the stack of the ends of its open slices, innermost last."""
    lanes = np.zeros(len(opens), dtype=np.int64)
    first_lane = [_FOREVER]
    stacks = [first_lane]
    for at in range(0, len(opens), _BLOCK_ROWS):
        block = slice(at, at + _BLOCK_ROWS)
        for row, (begin, end) in enumerate(zip(opens[block].tolist(), closes[block].tolist(), strict=True), at):
            while first_lane[-1] <= begin:
                first_lane.pop()
            if end <= first_lane[-1] and len(first_lane) <= deepest:
                first_lane.append(end)
            else:
                lanes[row] = _next_lane(stacks, begin, end, deepest)
    return lanes


def _next_lane(stacks: list[list[int]], begin: int, end: int, deepest: int) -> int:
    for lane, stack in enumerate(stacks[1:_MOST_TRIED], start=1):
        while stack[-1] <= begin:
            stack.pop()
        if end <= stack[-1] and len(stack) <= deepest:
            stack.append(end)
            return lane
    stacks.append([_FOREVER, end])
    return len(stacks) - 1
