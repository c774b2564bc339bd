"""Robust statistics of one sample, each with its reference. Nothing here knows what the numbers mean."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

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


def _num_outside(size: int, tail: float) -> int:
    """The largest k with P(Binomial(size, 1/2) < k) <= tail."""
    heads = np.arange(size // 2 + 1)
    # log P(heads + 1) = log P(heads) + log((size - heads) / (heads + 1)): no overflow, whatever the size.
    growth = np.log((size - heads[:-1]) / (heads[:-1] + 1))
    log_probability = np.concatenate(([0.0], np.cumsum(growth))) - size * math.log(2)
    return int(np.searchsorted(np.cumsum(np.exp(log_probability)), tail, side="right"))
