from __future__ import annotations

import math

import numpy as np
import pytest

from speedprof.stats import interval_of_median, median, median_absolute_deviation


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
