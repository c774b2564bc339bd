"""How long is a step, how steady is it, and what does the profiler add to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from speedprof.stats import (
    Alternation,
    find_alternation,
    interval_of_mean,
    interval_of_median,
    means_of_pairs,
    median,
    median_absolute_deviation,
)
from speedprof.step_log import StepLog
from speedprof.step_records import Mark
from speedprof.trace.model import Timeline

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """The clean training steps of one rank, and the profiled ones beside them.

    `timeline` says whose clock all of them were read from. `slowest_start_ns` counts from the Unix epoch.

    Some programs alternate: an optimizer that steps every second time makes every second step longer. Then
    `levels_ns` holds the medians of the short and of the long steps, both means are of whole pairs (a short and a
    long step that follow each other), `interval_ns` is of the mean of pairs, `mad_ns` is the median distance of a
    step from its own level, and `slowest_usual_ns` is the level of the slowest step. `median_ns` is still the median
    of all, which lies near no step. Otherwise `levels_ns` is None, the means are of all steps, `interval_ns` is of
    the median, and `slowest_usual_ns` is the median.

    The interval is one of 95%. It says how well these steps pin down the typical step of this very run. It takes steps
    for independent, and steps of one run are not quite; and it says nothing of another start of the same program,
    which differs by more. Comparing runs by it is a mistake.
    """

    rank: int
    timeline: Timeline
    num_clean: int
    mean_ns: int
    median_ns: int
    levels_ns: tuple[int, int] | None
    interval_ns: tuple[int, int] | None
    mad_ns: int
    slowest_step: int
    slowest_start_ns: int
    slowest_ns: int
    slowest_usual_ns: int
    num_profiled: int
    profiled_mean_ns: int | None
    profiled_median_ns: int | None

    @property
    def typical_ns(self) -> int:
        """How long a step takes: the median, or where steps alternate the mean of pairs."""
        return self.mean_ns if self.levels_ns else self.median_ns

    @property
    def profiled_ns(self) -> int | None:
        """The same of the profiled steps; None where there is none, or of steps that alternate no whole pair."""
        return self.profiled_mean_ns if self.levels_ns else self.profiled_median_ns

    @property
    def profiler_overhead_ns(self) -> int | None:
        return None if self.profiled_ns is None else self.profiled_ns - self.typical_ns

    @property
    def profiler_overhead_ratio(self) -> float | None:
        """How much longer a profiled step is than a clean one; None where that is not known."""
        return None if self.profiled_ns is None else self.profiled_ns / self.typical_ns - 1


def measure_step_time(log: StepLog) -> tuple[StepTime, ...]:
    """The step time of each rank that has clean training steps, in the order of ranks.

    A rank's steps are read from the device clock if any of them has it, else from the host's; the two are never
    mixed. Rows that stand for many folded steps are left out.
    """
    # Counted over training steps alone: marks count validation passes too, which would turn even into odd.
    place = (pl.col("num_steps").cum_sum() - pl.col("num_steps")).over("rank")
    train = log.steps.filter(pl.col("kind") == "train").sort("step").with_columns(place=place)
    whole = train.filter(pl.col("num_steps") == 1)
    measured = (_measure_rank(rank, whole.filter(pl.col("rank") == rank)) for rank in log.ranks)
    return tuple(step_time for step_time in measured if step_time is not None)


def _measure_rank(rank: int, steps: pl.DataFrame) -> StepTime | None:
    timeline = Timeline.HOST if steps["device_ns"].null_count() == steps.height else Timeline.DEVICE
    timed = steps.with_columns(time_ns=pl.col(f"{timeline.value}_ns")).filter(pl.col("time_ns") > 0)
    clean, profiled = (timed.filter(pl.col("mark") == mark) for mark in (Mark.CLEAN, Mark.PROFILED))
    if clean.is_empty():
        return None
    clean_ns, profiled_ns = clean["time_ns"].to_numpy(), profiled["time_ns"].to_numpy()
    pairs_ns = means_of_pairs(_places(clean), clean_ns)
    alternation = find_alternation(_places(clean), clean_ns) if len(pairs_ns) else None
    averaged_ns, profiled_averaged_ns = clean_ns, profiled_ns
    if alternation:
        averaged_ns, profiled_averaged_ns = pairs_ns, means_of_pairs(_places(profiled), profiled_ns)
    interval = interval_of_mean(averaged_ns) if alternation else interval_of_median(clean_ns)
    usual_ns = _usual(alternation, _places(clean), clean_ns)
    at = int(clean_ns.argmax())
    return StepTime(
        rank=rank,
        timeline=timeline,
        num_clean=len(clean_ns),
        mean_ns=round(float(averaged_ns.mean())),
        median_ns=round(median(clean_ns)),
        levels_ns=_levels(alternation),
        interval_ns=(round(interval[0]), round(interval[1])) if interval else None,
        mad_ns=round(median(np.abs(clean_ns - usual_ns)) if alternation else median_absolute_deviation(clean_ns)),
        slowest_step=clean["step"][at],
        slowest_start_ns=clean["host_start_ns"][at],
        slowest_ns=int(clean_ns[at]),
        slowest_usual_ns=round(float(usual_ns[at])),
        num_profiled=len(profiled_ns),
        profiled_mean_ns=round(float(profiled_averaged_ns.mean())) if len(profiled_averaged_ns) else None,
        profiled_median_ns=round(median(profiled_ns)) if len(profiled_ns) else None,
    )


def _places(steps: pl.DataFrame) -> Int64s:
    return steps["place"].to_numpy().astype(np.int64)


def _levels(alternation: Alternation | None) -> tuple[int, int] | None:
    if alternation is None:
        return None
    low, high = sorted((alternation.even, alternation.odd))
    return round(low), round(high)


def _usual(alternation: Alternation | None, places: Int64s, times_ns: Int64s) -> npt.NDArray[np.float64]:
    """How long a step in each of these places usually takes."""
    if alternation is None:
        return np.full(len(times_ns), median(times_ns))
    return np.where(places % 2 == 0, alternation.even, alternation.odd)
