"""What a handful of runs shows: mean and deviation, and the tests with which the speedrun judges losses and times."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

SIGNIFICANCE = 0.01
"""The speedrun's rule: the mean loss lies under the target with p < 0.01."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """Of one sample. deviation: the sample's, over n - 1 as torch.std has it; None for a single value."""

    values: tuple[float, ...]
    mean: float
    deviation: float | None


def summarise(values: Sequence[float]) -> Summary:
    """Raises ValueError for an empty sample."""
    if not values:
        raise ValueError("an empty sample has no mean")
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Summary(values=tuple(values), mean=statistics.fmean(values), deviation=deviation)


def p_of_mean_below(values: Sequence[float], target: float) -> float | None:
    """How likely a mean so low, or lower, would be if the true mean were `target`: Student's one-sided t-test.

    It takes the values for independent and about normal. None where it cannot be said: a single value, or values that
    are all the target. Raises ImportError without scipy.
    """
    summary = summarise(values)
    if summary.deviation is None or (summary.deviation == 0 and summary.mean == target):
        return None
    if summary.deviation == 0:
        return float(summary.mean > target)
    from scipy.special import stdtr  # scipy.stats would take half a second more to import

    t = (summary.mean - target) / (summary.deviation / math.sqrt(len(values)))
    return float(stdtr(len(values) - 1, t))


def p_of_equal_means(first: Sequence[float], second: Sequence[float]) -> float | None:
    """How likely means so far apart would be if the true means were equal: Welch's two-sided test.

    Welch, "The generalization of Student's problem", Biometrika 34 (1947). None where either sample has one value,
    or neither varies. Raises ImportError without scipy.
    """
    summaries = summarise(first), summarise(second)
    if any(summary.deviation is None for summary in summaries):
        return None
    shares = [(summary.deviation or 0.0) ** 2 / len(summary.values) for summary in summaries]
    variance = sum(shares)
    if variance == 0:
        return None
    from scipy.special import stdtr

    freedom = variance**2 / sum(share**2 / (len(s.values) - 1) for share, s in zip(shares, summaries, strict=True))
    t = abs(summaries[0].mean - summaries[1].mean) / math.sqrt(variance)
    return float(2 * stdtr(freedom, -t))
