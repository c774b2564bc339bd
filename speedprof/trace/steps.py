"""Steps on the host and their windows on the device.

    host thread    |mark 7          |mark 8          |mark 9      end|
    host step       <------ 7 -----> <------ 8 -----> <----- 9 ----->
    main stream          77777777777777  8888888888888  99999999999999999
    device window        <----- 7 -----><----- 8 ------><------ 9 ------>

The device runs behind the host. A window begins where the first work that its host step launched begins on the main
stream, and ends where the next one begins, whatever else runs in it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import polars as pl

from speedprof.trace.intervals import Bools, Int64s, busiest
from speedprof.trace.ranges import RangeKind
from speedprof.trace.schema import int_column, make_table, text_column, to_numpy


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSteps:
    """Host steps in order of time, each ending where the next begins; `thread` is that of the marks.

    Validation passes are steps like those of training, so that no window of training holds their work.
    """

    step: Int64s
    is_validation: Bools
    start: Int64s
    end: Int64s
    thread: int | None

    def __len__(self) -> int:
        return len(self.step)

    def index_at(self, times: Int64s) -> Int64s:
        """For each host time the index of the step around it, or -1 for a time outside all steps."""
        index = np.searchsorted(self.start, times, side="right") - 1
        return index if not len(self) else np.where(times < self.end[-1], index, -1)


def find_host_steps(ranges: pl.DataFrame) -> HostSteps:
    """The program's own step ranges, else ProfilerStep marks, on the thread that has most of them."""
    for kind in (RangeKind.STEP, RangeKind.PROFILER_STEP):
        marks = ranges.filter(pl.col("kind") == kind.value)
        if not marks.is_empty():
            threads = Counter(marks["thread"].to_list())
            thread = max(threads, key=lambda one: (threads[one], -one))
            return _steps_of(marks.filter(pl.col("thread") == thread), thread)
    none = np.zeros(0, dtype=np.int64)
    return HostSteps(step=none, is_validation=none.astype(np.bool_), start=none, end=none, thread=None)


def _steps_of(marks: pl.DataFrame, thread: int) -> HostSteps:
    start = to_numpy(marks["start_ns"])
    last_end = max(int(start[-1]), int(to_numpy(marks["end_ns"])[-1]))
    return HostSteps(
        step=to_numpy(marks["step"]),
        is_validation=(marks["step_kind"] == "validation").to_numpy(),
        start=start,
        end=np.append(start[1:], last_end),
        thread=thread,
    )


def find_main_stream(stream: Int64s, start: Int64s, end: Int64s, is_compute: Bools) -> int | None:
    """The stream with most compute time, the lowest of equals; None where nothing computes."""
    return busiest(stream[is_compute], (end - start)[is_compute])


def host_windows(steps: HostSteps, *, is_whole: bool) -> pl.DataFrame:
    """The table of steps where there is no device: windows are the host steps themselves.

    Kineto writes thread by thread and buffer by buffer, not in order of time, so that a file that ends early may lack
    a part of every step. Without `is_whole` no step has a kind, and none counts in a mean.
    """
    no_null = np.zeros(len(steps), dtype=np.bool_)
    return _steps_table(steps, steps.start, steps.end, no_null, is_whole)


def device_windows(
    steps: HostSteps, launched_in: Int64s, start: Int64s, on_main: Bools, last_end: int, *, is_whole: bool
) -> pl.DataFrame:
    """The table of steps with device windows; `is_whole` is as above.

    `launched_in` is each kernel's index into `steps` by its recorded launch, -1 for none; `on_main` tells the kernels
    of the main stream; `last_end` is the end of the last device event.
    """
    first = np.full(len(steps), np.iinfo(np.int64).max)
    counts = on_main & (launched_in >= 0)
    np.minimum.at(first, launched_in[counts], start[counts])
    empty = first == np.iinfo(np.int64).max
    # Work of a later step that begins before an earlier step's moves that step's window with it: windows never cross.
    begin = np.minimum.accumulate(first[::-1])[::-1]
    end = np.append(begin[1:], last_end)[: len(steps)]
    end = np.where(end == np.iinfo(np.int64).max, last_end, end)
    return _steps_table(steps, begin, end, empty, is_whole)


def _steps_table(steps: HostSteps, start: Int64s, end: Int64s, is_null: Bools, is_whole: bool) -> pl.DataFrame:
    kind = steps.is_validation.astype(np.int64) if is_whole else np.full(len(steps), 2, dtype=np.int64)
    return make_table(
        "steps",
        {
            "step": int_column(steps.step),
            "kind": text_column(["train", "validation", None], kind),
            "host_start_ns": int_column(steps.start),
            "host_end_ns": int_column(steps.end),
            "start_ns": int_column(start, is_null),
            "end_ns": int_column(end, is_null),
        },
    )
