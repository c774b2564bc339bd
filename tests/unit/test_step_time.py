from __future__ import annotations

import polars as pl
from hand_made import EPOCH_NS, MS, run_log, step_log, step_rows

from speedprof.analyses.step_time import measure_step_time
from speedprof.step_log import StepLog
from speedprof.trace.model import Timeline


def test_clean_and_profiled_steps_of_each_rank() -> None:
    first, second = measure_step_time(run_log())
    assert (first.rank, second.rank) == (0, 1)
    assert (first.num_clean, first.num_profiled) == (50, 10)
    assert first.timeline is Timeline.DEVICE
    assert first.mean_ns == 9_245_000
    assert first.median_ns == 9_245_000
    assert first.interval_ns == (9_170_000, 9_320_000)
    assert first.mad_ns == 125_000
    assert (first.slowest_step, first.slowest_ns) == (57, 9_490_000)
    assert first.slowest_start_ns == EPOCH_NS + 57 * 10 * MS
    assert first.profiled_median_ns == 10_045_000
    assert second.median_ns == 9_345_000


def test_a_rank_without_a_device_is_timed_by_its_host() -> None:
    (one,) = measure_step_time(step_log(step_rows(0, "clean", 0, [MS] * 6, on_device=False)))
    assert one.timeline is Timeline.HOST
    assert one.median_ns == MS + 7
    assert one.interval_ns == (MS + 7, MS + 7)
    assert one.profiled_median_ns is None
    assert one.profiler_overhead_ratio is None


def test_clocks_are_never_mixed() -> None:
    rows = step_rows(0, "clean", 0, [2 * MS] * 3) + step_rows(0, "clean", 3, [9 * MS], on_device=False)
    (one,) = measure_step_time(step_log(rows))
    assert (one.num_clean, one.slowest_ns) == (3, 2 * MS)
    assert one.interval_ns is None


def test_folded_and_validation_rows_are_left_out() -> None:
    rows = step_rows(0, "clean", 0, [MS, 3 * MS, 50 * MS, 70 * MS])
    rows[2]["kind"] = "validation"
    rows[3]["num_steps"] = 100
    (one,) = measure_step_time(step_log(rows))
    assert (one.num_clean, one.median_ns) == (2, 2 * MS)


def test_a_rank_without_a_clean_step_has_no_step_time() -> None:
    assert measure_step_time(step_log(step_rows(0, "warmup", 0, [MS]))) == ()
    empty = step_log([])
    assert isinstance(empty, StepLog)
    assert isinstance(empty.steps, pl.DataFrame)
    assert measure_step_time(empty) == ()
