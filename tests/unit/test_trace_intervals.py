"""Interval arithmetic on cases small enough to count by hand."""

import numpy as np
import pytest

from speedprof.trace.intervals import (
    Intervals,
    clip,
    covered_before,
    innermost,
    intersect,
    join,
    overlap,
    rows_of_each,
    subtract,
    union,
)


def make(*pairs: tuple[int, int]) -> Intervals:
    return union(*np.array(pairs, dtype=np.int64).reshape(-1, 2).T)


def pairs(intervals: Intervals) -> list[tuple[int, int]]:
    return list(zip(intervals.start.tolist(), intervals.end.tolist(), strict=True))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], []),
        ([(5, 5)], []),
        ([(0, 2), (2, 4)], [(0, 4)]),
        ([(6, 8), (0, 5), (1, 2)], [(0, 5), (6, 8)]),
        ([(0, 3), (1, 9), (2, 4)], [(0, 9)]),
    ],
)
def test_union_merges_what_overlaps_or_touches_and_drops_what_is_empty(given, expected):
    assert pairs(make(*given)) == expected


def test_sets_combine():
    a, b = make((4, 8), (12, 18)), make((6, 10), (14, 16))
    assert pairs(join(a, b)) == [(4, 10), (12, 18)]
    assert pairs(intersect(a, b)) == [(6, 8), (14, 16)]
    assert pairs(subtract(a, b)) == [(4, 6), (12, 14), (16, 18)]
    assert pairs(clip(a, 5, 13)) == [(5, 8), (12, 13)]
    assert overlap(a, b) == 4
    assert a.length == 10


def test_covered_before_counts_instants_before_each_time():
    times = np.array([0, 4, 5, 8, 10, 12, 13, 99], dtype=np.int64)
    assert covered_before(make((4, 8), (12, 18)), times).tolist() == [0, 0, 1, 4, 4, 4, 5, 10]
    assert covered_before(make(), times).tolist() == [0] * 8


def test_innermost_is_the_open_interval_that_began_last():
    start, end = np.array([0, 2, 4, 20], dtype=np.int64), np.array([10, 8, 6, 30], dtype=np.int64)
    times = np.array([-1, 0, 2, 5, 6, 8, 10, 20, 30], dtype=np.int64)
    assert innermost(start, end, times).tolist() == [-1, 0, 1, 2, 1, 0, -1, 3, -1]


def test_innermost_takes_the_shorter_of_two_that_begin_together():
    start, end = np.array([0, 0], dtype=np.int64), np.array([4, 9], dtype=np.int64)
    assert innermost(start, end, np.array([1, 5], dtype=np.int64)).tolist() == [0, 1]


def test_innermost_survives_intervals_that_cross():
    start, end = np.array([0, 5], dtype=np.int64), np.array([10, 15], dtype=np.int64)
    assert innermost(start, end, np.array([4, 9, 12, 15], dtype=np.int64)).tolist() == [0, 1, 1, -1]


@pytest.mark.parametrize("num_values", [1, 5, 100])
def test_the_rows_of_each_value_are_all_rows_in_their_order(num_values):
    values = np.random.default_rng(7).integers(-num_values, num_values, size=1_000)
    found = rows_of_each(values)
    assert list(found) == sorted(set(values.tolist()))
    assert {value: rows.tolist() for value, rows in found.items()} == {
        value: [row for row, one in enumerate(values.tolist()) if one == value] for value in found
    }
    assert rows_of_each(values[:0]) == {}
