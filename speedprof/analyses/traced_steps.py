"""Which instants belong to the traced training steps, on the host and on the device."""

from __future__ import annotations

import numpy as np
import polars as pl

from speedprof.trace.intervals import Bools, Int64s
from speedprof.trace.model import Trace
from speedprof.trace.schema import to_numpy


def in_traced_host_steps(trace: Trace, times: Int64s) -> Bools:
    """Whether each time on the host lies in a training step that has a window; all do where there is no such step."""
    return _in_training(trace, times, "host_start_ns", "host_end_ns")


def in_traced_windows(trace: Trace, times: Int64s) -> Bools:
    """Whether each time on the trace's timeline lies in the window of a training step; all do where there is none."""
    return _in_training(trace, times, "start_ns", "end_ns")


def _in_training(trace: Trace, times: Int64s, start: str, end: str) -> Bools:
    steps = trace.steps.filter((pl.col("kind") == "train") & pl.col("start_ns").is_not_null())
    if steps.is_empty():
        return np.ones(len(times), dtype=np.bool_)
    begins, ends = to_numpy(steps[start]), to_numpy(steps[end])
    at = np.searchsorted(begins, times, side="right") - 1
    return (at >= 0) & (times < ends[np.maximum(at, 0)])
