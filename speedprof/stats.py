"""Robust statistics of one sample, each with its reference. Nothing here knows what the numbers mean."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_FEWEST_FOR_MEAN = 6
_FEWEST_OF_A_LEVEL = 6
_SMALLEST_ALTERNATION_RATIO = 0.05
_MOST_ASTRAY = 0.1
_MOST_WAYS = 1_000_000
_NUM_DRAWS = 100_000

Sample = npt.NDArray[np.integer[Any]] | npt.NDArray[np.floating[Any]]


def median(sample: Sample) -> float:
    """The middle value, or the mean of the two middle ones. Raises ValueError for an empty sample."""
    if not len(sample):
        raise ValueError("an empty sample has no median")
    return float(np.median(sample))


def median_absolute_deviation(sample: Sample) -> float:
    """The median distance from the median, not scaled: times 1.4826 it estimates a normal sample's deviation.

    Hampel, "The influence curve and its role in robust estimation", JASA 69 (1974).
    """
    return median(np.abs(np.asarray(sample, dtype=np.float64) - median(sample)))


def interval_of_median(sample: Sample, *, confidence: float = 0.95) -> tuple[float, float] | None:
    """An interval of the median from two values of the sample itself, whatever the distribution.

    It reaches from the k-th smallest to the k-th largest value, with the largest k for which
    P(k-th smallest <= median <= k-th largest) = 1 - 2 P(Binomial(n, 1/2) < k) >= confidence.
    David and Nagaraja, "Order Statistics", 3rd edition (2003), section 7.1.

    None where even the smallest and largest value do not reach the confidence (for 95%: under 6 values).
    It takes the values for independent; where they follow each other slowly, it is too narrow.
    """
    num_below = _num_outside(len(sample), (1 - confidence) / 2)
    if num_below == 0:
        return None
    ordered = np.sort(sample)
    return float(ordered[num_below - 1]), float(ordered[-num_below])


def interval_of_mean(
    sample: Sample, *, confidence: float = 0.95, fewest: int = _FEWEST_FOR_MEAN
) -> tuple[float, float] | None:
    """Student's interval of the mean; None for fewer than 6 values, as with `interval_of_median`, or than `fewest`.

    It takes the values for independent and about normal.
    """
    if len(sample) < max(fewest, 2):
        return None
    # The quantile of Student's distribution; scipy.stats has it too, but takes half a second to import.
    from scipy.special import stdtrit

    values = np.asarray(sample, dtype=np.float64)
    half = float(stdtrit(len(values) - 1, (1 + confidence) / 2) * values.std(ddof=1) / math.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half


def chance_of_count(count: int, *, size: int, ratio: float) -> float:
    """How likely `count` or more of `size` independent draws hit by chance alone, each with the chance `ratio`."""
    if count <= 0:
        return 1.0
    from scipy.special import bdtrc

    return float(bdtrc(count - 1, size, ratio))


def chance_of_sum(choices: npt.NDArray[np.float64], *, least: float) -> float:
    """How likely a sum of at least `least` is where one value of each row of `choices` is drawn, each as likely.

    Exact where there are few ways to draw; else from 100,000 draws, the same ones each time, with the observed sum
    counted as one of them, so that it is never 0 (Phipson and Smyth, "Permutation p-values should never be zero",
    Statistical Applications in Genetics and Molecular Biology 9 (2010)).
    """
    rounding = 1e-9 * float(np.abs(choices).sum())
    # A row whose values are all the same only adds to every sum.
    is_open = (choices != choices[:, :1]).any(axis=1)
    least, choices = least - float(choices[~is_open, :1].sum()), choices[is_open]
    sums = np.zeros(1)
    if choices.shape[1] ** choices.shape[0] <= _MOST_WAYS:
        for row in choices:
            sums = np.add.outer(sums, row).ravel()
        return float((sums >= least - rounding).mean())
    source = np.random.default_rng(0)
    sums = np.zeros(_NUM_DRAWS)
    for row in choices:
        sums += row[source.integers(len(row), size=_NUM_DRAWS)]
    return (int((sums >= least - rounding).sum()) + 1) / (_NUM_DRAWS + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternation:
    """The two levels between which a series goes to and fro: the medians of its even and of its odd places."""

    even: float
    odd: float


def find_alternation(places: npt.NDArray[np.integer[Any]], sample: Sample) -> Alternation | None:
    """Whether the values at even places form one level and those at odd places another; None where they do not.

    The rule: 6 values or more on either side; the two medians differ by 5% or more of the lower one; and at most a
    tenth of the values of each side lie beyond the middle between the medians, on the other side's half. So the
    levels lie further apart than the values of either spread, whatever their distribution, and a few outliers do no
    harm. Independent values pass it by chance in 2 of 1,000 series of 12, whatever their distribution, and more seldom
    in longer ones. A series that drifts by more than the levels differ is not seen to alternate; one in which each long
    value makes the next one short may pass where it is short.
    """
    values = np.asarray(sample, dtype=np.float64)
    even, odd = values[places % 2 == 0], values[places % 2 == 1]
    if min(len(even), len(odd)) < _FEWEST_OF_A_LEVEL:
        return None
    found = Alternation(even=median(even), odd=median(odd))
    lower, upper = (even, odd) if found.even < found.odd else (odd, even)
    if abs(found.odd - found.even) < _SMALLEST_ALTERNATION_RATIO * min(found.even, found.odd):
        return None
    middle = (found.even + found.odd) / 2
    is_apart = (lower > middle).mean() <= _MOST_ASTRAY and (upper < middle).mean() <= _MOST_ASTRAY
    return found if is_apart else None


def means_of_pairs(places: npt.NDArray[np.integer[Any]], sample: Sample) -> npt.NDArray[np.float64]:
    """The mean of each two values at neighbouring places, none used twice; `places` grow. A lone value is left out."""
    pairs = []
    at = 0
    while at + 1 < len(places):
        if places[at + 1] == places[at] + 1:
            pairs.append((float(sample[at]) + float(sample[at + 1])) / 2)
            at += 1
        at += 1
    return np.array(pairs, dtype=np.float64)


def _num_outside(size: int, tail: float) -> int:
    """The largest k with P(Binomial(size, 1/2) < k) <= tail."""
    heads = np.arange(size // 2 + 1)
    # log P(heads + 1) = log P(heads) + log((size - heads) / (heads + 1)): no overflow, whatever the size.
    growth = np.log((size - heads[:-1]) / (heads[:-1] + 1))
    log_probability = np.concatenate(([0.0], np.cumsum(growth))) - size * math.log(2)
    return int(np.searchsorted(np.cumsum(np.exp(log_probability)), tail, side="right"))
