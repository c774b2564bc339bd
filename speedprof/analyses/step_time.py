"""How long is a step, how steady is it, and what does the profiler add to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """The clean training steps of one rank, and the profiled ones beside them.

    `interval_ns` is a 95% interval of the median of the clean steps; it speaks of this run alone, not of other starts.
    """

    rank: int
    num_clean: int
    median_ns: int
    interval_ns: tuple[int, int] | None
    mad_ns: int
    slowest_step: int
    slowest_ns: int
    num_profiled: int
    profiled_median_ns: int | None

    @property
    def profiler_overhead_ratio(self) -> float | None:
        """How much longer a profiled step is than a clean one; None where no step was profiled."""
        return None if self.profiled_median_ns is None else self.profiled_median_ns / self.median_ns - 1
