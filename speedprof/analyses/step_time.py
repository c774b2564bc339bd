"""How long is a step, how steady is it, and what does the profiler add to it."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from speedprof.stats import interval_of_median, median, median_absolute_deviation
from speedprof.step_log import StepLog
from speedprof.step_records import Mark
from speedprof.trace.model import Timeline


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """The clean training steps of one rank, and the profiled ones beside them.

    `timeline` says whose clock all of them were read from. `slowest_start_ns` counts from the Unix epoch.

    `mean_ns` is what a run is made of where steps alternate (an optimizer that steps every second time): the median
    then falls on one side or between the two.

    `interval_ns` is a 95% interval of the median of the clean steps. It says how well these steps pin down the
    median of this very run. It takes steps for independent, and steps of one run are not quite; and it says nothing
    of another start of the same program, which differs by more. Comparing runs by it is a mistake.
    """

    rank: int
    timeline: Timeline
    num_clean: int
    mean_ns: int
    median_ns: int
    interval_ns: tuple[int, int] | None
    mad_ns: int
    slowest_step: int
    slowest_start_ns: int
    slowest_ns: int
    num_profiled: int
    profiled_median_ns: int | None

    @property
    def profiler_overhead_ratio(self) -> float | None:
        """How much longer a profiled step is than a clean one; None where no step was profiled."""
        return None if self.profiled_median_ns is None else self.profiled_median_ns / self.median_ns - 1


def measure_step_time(log: StepLog) -> tuple[StepTime, ...]:
    """The step time of each rank that has clean training steps, in the order of ranks.

    A rank's steps are read from the device clock if any of them has it, else from the host's; the two are never
    mixed. Rows that stand for many folded steps are left out.
    """
    whole = log.steps.filter((pl.col("kind") == "train") & (pl.col("num_steps") == 1)).sort("step")
    measured = (_measure_rank(rank, whole.filter(pl.col("rank") == rank)) for rank in log.ranks)
    return tuple(step_time for step_time in measured if step_time is not None)


def _measure_rank(rank: int, steps: pl.DataFrame) -> StepTime | None:
    timeline = Timeline.HOST if steps["device_ns"].null_count() == steps.height else Timeline.DEVICE
    timed = steps.with_columns(time_ns=pl.col(f"{timeline.value}_ns")).filter(pl.col("time_ns") > 0)
    clean = timed.filter(pl.col("mark") == Mark.CLEAN)
    if clean.is_empty():
        return None
    clean_ns = clean["time_ns"].to_numpy()
    interval = interval_of_median(clean_ns)
    slowest = clean.row(int(clean_ns.argmax()), named=True)
    profiled_ns = timed.filter(pl.col("mark") == Mark.PROFILED)["time_ns"].to_numpy()
    return StepTime(
        rank=rank,
        timeline=timeline,
        num_clean=len(clean_ns),
        mean_ns=round(float(clean_ns.mean())),
        median_ns=round(median(clean_ns)),
        interval_ns=(int(interval[0]), int(interval[1])) if interval else None,
        mad_ns=round(median_absolute_deviation(clean_ns)),
        slowest_step=slowest["step"],
        slowest_start_ns=slowest["host_start_ns"],
        slowest_ns=slowest["time_ns"],
        num_profiled=len(profiled_ns),
        profiled_median_ns=round(median(profiled_ns)) if len(profiled_ns) else None,
    )
