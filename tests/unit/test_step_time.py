from __future__ import annotations

import polars as pl
import pytest
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


def test_steps_that_alternate_have_two_levels_and_means_of_whole_pairs() -> None:
    clean = [100 * MS, 200 * MS] * 10 + [103 * MS]
    profiled = [260 * MS, 160 * MS, 280 * MS]
    (one,) = measure_step_time(step_log(step_rows(0, "clean", 10, clean) + step_rows(0, "profiled", 31, profiled)))
    assert one.levels_ns == (100 * MS, 200 * MS)
    assert one.mean_ns == one.typical_ns == 150 * MS
    assert one.interval_ns == (150 * MS, 150 * MS)
    assert one.median_ns == 103 * MS
    assert one.mad_ns == 0
    assert (one.slowest_step, one.slowest_ns, one.slowest_usual_ns) == (11, 200 * MS, 200 * MS)
    # The third profiled step has no partner.
    assert (one.profiled_mean_ns, one.profiled_ns) == (210 * MS, 210 * MS)
    assert one.profiler_overhead_ns == 60 * MS
    assert one.profiler_overhead_ratio == pytest.approx(0.4)


def test_one_profiled_step_of_two_levels_tells_no_overhead() -> None:
    rows = step_rows(0, "clean", 0, [100 * MS, 200 * MS] * 6) + step_rows(0, "profiled", 12, [500 * MS])
    (one,) = measure_step_time(step_log(rows))
    assert one.profiled_ns is one.profiler_overhead_ns is one.profiler_overhead_ratio is None


def test_a_validation_pass_between_does_not_turn_even_into_odd() -> None:
    times = [100 * MS, 200 * MS] * 6 + [900 * MS] + [100 * MS, 200 * MS] * 6
    rows = step_rows(0, "clean", 0, times)
    rows[12]["kind"] = "validation"
    (one,) = measure_step_time(step_log(rows))
    assert one.levels_ns == (100 * MS, 200 * MS)
    assert one.num_clean == 24


def test_steady_steps_have_no_levels() -> None:
    first, _ = measure_step_time(run_log())
    assert first.levels_ns is None
    assert first.typical_ns == first.slowest_usual_ns == first.median_ns
    assert first.profiled_ns == first.profiled_median_ns
