from __future__ import annotations

import math

import numpy as np
import pytest

from speedprof.stats import (
    Alternation,
    chance_of_count,
    chance_of_sum,
    find_alternation,
    interval_of_mean,
    interval_of_median,
    means_of_pairs,
    median,
    median_absolute_deviation,
)


def test_median_of_an_even_sample_is_the_mean_of_the_middle_two() -> None:
    assert median(np.array([4, 1, 3, 2])) == 2.5


def test_median_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        median(np.array([], dtype=np.int64))


def test_median_absolute_deviation_ignores_one_outlier() -> None:
    assert median_absolute_deviation(np.array([10, 11, 12, 13, 1_000_000])) == 1


def test_five_values_cannot_give_95_percent_and_six_can() -> None:
    assert interval_of_median(np.arange(5)) is None
    assert interval_of_median(np.arange(6)) == (0, 5)
    assert interval_of_median(np.array([], dtype=np.int64)) is None


# Tables of the sign test: the rank of the lower end, counted from 1.
@pytest.mark.parametrize(("size", "low"), [(8, 1), (9, 2), (20, 6), (25, 8), (50, 18), (100, 40)])
def test_interval_reaches_between_the_tabled_ranks(size: int, low: int) -> None:
    assert interval_of_median(np.arange(1, size + 1)[::-1]) == (low, size + 1 - low)


@pytest.mark.parametrize("size", [6, 7, 50, 51, 333, 1_000])
def test_interval_is_the_narrowest_that_holds_the_confidence(size: int) -> None:
    found = interval_of_median(np.arange(1, size + 1))
    assert found is not None
    tails = [
        2 * sum(math.comb(size, i) for i in range(below)) / 2**size for below in (int(found[0]), int(found[0]) + 1)
    ]
    assert tails[0] <= 0.05 < tails[1]


def test_interval_holds_the_median_as_often_as_it_says() -> None:
    random = np.random.default_rng(7)
    samples = random.exponential(size=(4_000, 50))
    held = sum(low <= math.log(2) <= high for low, high in filter(None, map(interval_of_median, samples)))
    assert held >= 0.945 * len(samples)


def test_a_hundred_thousand_values_take_no_big_numbers() -> None:
    low, high = interval_of_median(np.arange(100_000)) or (0, 0)
    assert low == pytest.approx(50_000 - 1.96 * math.sqrt(100_000) / 2, abs=2)
    assert low + high == 99_999


@pytest.mark.parametrize("num_outliers", [0, 1])
@pytest.mark.parametrize("size", [20, 21, 50])
@pytest.mark.parametrize("levels", [(100, 110), (270, 145)])
def test_a_series_that_alternates_is_seen_to_despite_an_outlier(
    size: int, levels: tuple[int, int], num_outliers: int
) -> None:
    places = np.arange(7, 7 + size)
    sample = np.where(places % 2 == 0, *levels) + np.random.default_rng(3).normal(size=size)
    sample[3 : 3 + num_outliers] *= 10
    found = find_alternation(places, sample)
    assert found is not None
    assert (found.even, found.odd) == (pytest.approx(levels[0], abs=2), pytest.approx(levels[1], abs=2))


_OTHER_SERIES = {
    "normal": lambda random, size: 100 + 20 * random.normal(size=size),
    "with a long tail": lambda random, size: random.exponential(size=size),
    "with wild outliers": lambda random, size: 1_000 + 100 * random.standard_cauchy(size=size),
    "of two levels in no order": lambda random, size: np.where(random.random(size) < 0.5, 100, 200),
    "of two levels, one of them seldom": lambda random, size: np.where(random.random(size) < 0.25, 200, 100),
    "that drifts": lambda random, size: 100 + 5 * np.arange(size) + random.normal(size=size),
    "of slow waves": lambda random, size: 100 + np.cumsum(random.normal(size=size)),
    "with every third value high": lambda random, size: (
        100 + 50 * (np.arange(size) % 3 == 0) + random.normal(size=size)
    ),
    "that is constant": lambda _, size: np.full(size, 100),
}


@pytest.mark.parametrize("size", [12, 13, 20, 50])
@pytest.mark.parametrize("kind", _OTHER_SERIES)
def test_other_series_are_seldom_seen_to_alternate(kind: str, size: int) -> None:
    random = np.random.default_rng(5)
    places = np.arange(size)
    alarms = sum(find_alternation(places, _OTHER_SERIES[kind](random, size)) is not None for _ in range(2_000))
    assert alarms <= 8


def test_too_few_or_too_little_apart_is_no_alternation() -> None:
    assert find_alternation(np.arange(11), np.array([100, 200] * 5 + [100])) is None
    assert find_alternation(np.arange(12), np.array([100, 104] * 6)) is None
    assert find_alternation(np.arange(12), np.array([100, 105] * 6)) == Alternation(even=100, odd=105)


def test_pairs_are_of_neighbours_and_none_is_used_twice() -> None:
    places = np.array([1, 2, 3, 5, 6, 9])
    assert means_of_pairs(places, np.array([10, 20, 99, 30, 50, 99])).tolist() == [15, 40]
    assert means_of_pairs(places[:1], np.array([10])).tolist() == []


def test_interval_of_the_mean_is_students() -> None:
    # t of 5 degrees of freedom is 2.5706 at 97.5%; the deviation of 1 to 6 is the root of 3.5.
    half = 2.570582 * math.sqrt(3.5 / 6)
    assert interval_of_mean(np.arange(1, 7)) == pytest.approx((3.5 - half, 3.5 + half))
    assert interval_of_mean(np.arange(5)) is None


def test_an_interval_of_three_values_where_asked_for() -> None:
    # Student's factor for 2 degrees of freedom is 4.303, the standard error 1 / sqrt(3).
    sample = np.array([9.0, 10.0, 11.0])
    assert interval_of_mean(sample) is None
    assert interval_of_mean(sample, fewest=3) == pytest.approx(
        (10 - 4.303 / math.sqrt(3), 10 + 4.303 / math.sqrt(3)), 1e-3
    )
    assert interval_of_mean(sample[:2], fewest=3) is None


def test_the_chance_of_a_count_is_the_tail_of_the_binomial_distribution() -> None:
    assert chance_of_count(2, size=2, ratio=0.5) == pytest.approx(1 / 4)
    assert chance_of_count(1, size=2, ratio=0.5) == pytest.approx(3 / 4)
    assert chance_of_count(0, size=2, ratio=0.5) == 1
    assert chance_of_count(0, size=0, ratio=1.0) == 1


def test_the_chance_of_a_sum_counts_the_ways_to_draw_it() -> None:
    choices = np.array([[1.0, 0.0, 0.0], [2.0, 1.0, 0.0]])
    # 1 + 2 alone reaches 3; 1 + 2, 1 + 1 and twice 0 + 2 reach 2.
    assert chance_of_sum(choices, least=3) == pytest.approx(1 / 9)
    assert chance_of_sum(choices, least=2) == pytest.approx(4 / 9)
    assert chance_of_sum(np.zeros((0, 3)), least=0) == 1


def test_the_chance_of_a_sum_of_many_rows_is_drawn_the_same_each_time_and_never_0() -> None:
    coins = np.tile([1.0, 0.0], (40, 1))
    assert chance_of_sum(coins, least=40) == pytest.approx(1e-5, rel=0.01)
    # P(Binomial(40, 1/2) >= 25) = 0.0769.
    assert chance_of_sum(coins, least=25) == pytest.approx(0.0769, abs=0.004)
    assert chance_of_sum(coins, least=25) == chance_of_sum(coins, least=25)
