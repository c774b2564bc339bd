"""Idle gaps: where they are and how they add up. Times are ns; a launch of the builder takes 1 ns."""

import json
from functools import cache
from pathlib import Path

import pytest
from builders import build_trace, read_events

from speedprof.analyses.breakdown import measure_breakdown
from speedprof.analyses.idle_gaps import GapCause, GapGroup, measure_idle_gaps
from speedprof.trace.read_kineto import read_kineto

KINETO = Path(__file__).parents[3] / "shared" / "data" / "kineto"
needs_captures = pytest.mark.skipif(not KINETO.is_dir(), reason="the folder of real captures is not beside this one")


def rows_of(trace, *columns):
    return measure_idle_gaps(trace).table.select(columns).rows()


def causes_of(rows):
    """Start, end and cause of each row of the table."""
    return rows_of(build_trace(rows), "start_ns", "end_ns", "cause")


def test_the_host_is_late_up_to_the_launch_and_the_work_queued_from_there_on():
    # stream 7   [unlinked 0..100]                        [b 180..200]
    # main                         [aten::mul  ^160     ]
    trace = build_trace("""
        0 | main     | speedprof.range/forward | 120000 | 190000 |
        0 | main     | aten::mul               | 150000 | 170000 |
        0 | stream 7 | a                       |      0 | 100000 |
        0 | stream 7 | b                       | 180000 | 200000 | main 160000
    """)
    around = ("speedprof.range/forward", "aten::mul", "cudaLaunchKernel", "b")
    assert measure_idle_gaps(trace).table.rows() == [
        (100_000, 160_000, "late_launch", None, *around),
        (160_000, 180_000, "queued", None, *around),
    ]


def test_what_was_launched_before_the_gap_is_queued_unless_the_gap_is_as_short_as_launches():
    assert causes_of("""
        0 | stream 7 | a | 10000 | 20000 | main 0
        0 | stream 7 | b | 25000 | 30000 | main 1
        0 | stream 7 | c | 35001 | 40000 | main 2
        0 | stream 7 | d | 90000 | 99000 |
    """) == [
        (20_000, 25_000, "below_launch_resolution"),
        (30_000, 35_001, "queued"),
        (40_000, 90_000, "unlinked"),
    ]


def test_a_launch_at_the_very_start_of_a_gap_is_in_time_and_one_after_its_end_late_throughout():
    """By its clocks work may begin before its launch."""
    assert causes_of("""
        0 | stream 7 | a |      0 |  10000 |
        0 | stream 7 | b |  40000 |  50000 | main 10000
        0 | stream 7 | c |  90000 | 100000 | main 90500
    """) == [(10_000, 40_000, "queued"), (50_000, 90_000, "late_launch")]


def test_of_work_that_begins_together_the_linked_one_tells_the_cause():
    trace = build_trace("""
        0 | stream 7 | a        |     0 | 10000 |
        0 | stream 3 | unlinked | 50000 | 90000 |
        0 | stream 9 | nothing  | 50000 | 50000 | main 5
        0 | stream 7 | linked   | 50000 | 60000 | main 40000
    """)
    assert rows_of(trace, "start_ns", "end_ns", "cause", "kernel") == [
        (10_000, 40_000, "late_launch", "linked"),
        (40_000, 50_000, "queued", "linked"),
    ]


def test_work_of_zero_length_ends_no_gap_but_the_last_and_cuts_one_where_its_step_begins():
    # step 1 begins at 20, step 2 at 60, where nothing runs: the gap from 30 to 90 has a part in each.
    trace = build_trace("""
        0 | main     | speedprof.step/1 |     0 |  15000 |
        0 | main     | speedprof.step/2 | 15000 | 200000 |
        0 | stream 7 | nothing          |     0 |      0 |
        0 | stream 7 | one              | 20000 |  30000 | main 10000
        0 | stream 7 | nothing          | 60000 |  60000 | main 16000
        0 | stream 7 | two              | 90000 | 100000 | main 80000
        0 | stream 7 | nothing          | 110000 | 110000 | main 85000
    """)
    assert rows_of(trace, "start_ns", "end_ns", "cause", "step", "kernel") == [
        (0, 10_000, "late_launch", None, "one"),
        (10_000, 20_000, "queued", None, "one"),
        (30_000, 60_000, "late_launch", 1, "two"),
        (60_000, 80_000, "late_launch", 2, "two"),
        (80_000, 90_000, "queued", 2, "two"),
        (100_000, 110_000, "queued", 2, "nothing"),
    ]
    steps = {one.step: one.partition.idle_ns for one in measure_breakdown(trace).segments}
    assert steps == {None: 20_000, 1: 30_000, 2: 40_000}


STEPS = """
    0 | main     | speedprof.step/1            |      0 |  50000 |
    0 | main     | speedprof.step/2/validation |  50000 | 100000 |
    0 | main     | speedprof.step/2            | 100000 | 200000 |
    0 | main     | aten::add                   |  10000 |  12000 |
    0 | main     | aten::add                   |  29000 |  32000 |
    0 | main     | aten::mm                    |  59000 |  62000 |
    0 | main     | aten::mm                    | 109000 | 112000 |
    0 | main     | aten::add                   | 159000 | 162000 |
    0 | stream 7 | before                      |      0 |   5000 |
    0 | stream 7 | one                         |  12000 |  15000 | main 11000
    0 | stream 7 | one                         |  33000 |  40000 | main 30000
    0 | stream 7 | validation                  |  61000 | 100000 | main 60000
    0 | stream 7 | two                         | 113000 | 120000 | main 110000
    0 | stream 7 | two                         | 165000 | 180000 | main 160000
"""


def test_groups_cover_the_training_steps_costliest_first():
    # Late: 5..11 (before the steps), 15..30 and 40..60 (step 1), 100..110 (validation), 120..160 (step 2).
    # Then the launch's way to the device: 11..12, 30..33, 60..61, 110..113, 160..165, all as short as launches.
    found = measure_idle_gaps(build_trace(STEPS))

    def group(cause, op, num_gaps, total, longest, at, step):
        return GapGroup(
            cause=GapCause(cause),
            range=None,
            op=op,
            call="cudaLaunchKernel",
            num_gaps=num_gaps,
            total_ns=total,
            longest_ns=longest,
            longest_start_ns=at,
            longest_step=step,
        )

    assert found.groups == (
        group("late_launch", "aten::add", 2, 55_000, 40_000, 120_000, 2),
        group("late_launch", "aten::mm", 1, 20_000, 20_000, 40_000, 1),
        group("below_launch_resolution", "aten::add", 2, 8_000, 5_000, 160_000, 2),
        group("below_launch_resolution", "aten::mm", 1, 1_000, 1_000, 60_000, 1),
    )
    assert list(found.by_cause.items()) == [(GapCause.LATE_LAUNCH, 75_000), (GapCause.BELOW_LAUNCH_RESOLUTION, 9_000)]


def test_without_steps_groups_cover_the_whole_capture():
    found = measure_idle_gaps(build_trace("\n".join(row for row in STEPS.splitlines() if ".step/" not in row)))
    assert found.by_cause == {GapCause.LATE_LAUNCH: 91_000, GapCause.BELOW_LAUNCH_RESOLUTION: 13_000}
    assert {one.longest_step for one in found.groups} == {None}


def test_nothing_to_be_idle_has_no_gaps():
    on_host = measure_idle_gaps(build_trace("0 | main | aten::mm | 0 | 10 |\n0 | main | aten::mm | 20 | 30 |"))
    without_work = measure_idle_gaps(read_events([launch_without_work()]))
    for found in (on_host, without_work, measure_idle_gaps(build_trace("0 | stream 7 | a | 0 | 10 |"))):
        assert (found.table.rows(), found.groups, found.by_cause) == ([], (), {})
        assert found.table.columns == ["start_ns", "end_ns", "cause", "step", "range", "op", "call", "kernel"]
    assert on_host.table.schema == measure_idle_gaps(build_trace(STEPS)).table.schema


def launch_without_work():
    call = {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": 1, "ts": 5, "dur": 1}
    return {**call, "args": {"correlation": 3}}


def captures():
    return sorted(str(path.relative_to(KINETO)) for path in KINETO.glob("*/*.json.gz"))


@cache
def gaps_of(name):
    trace = read_kineto(KINETO / name)
    return trace, measure_idle_gaps(trace)


def ns_by_cause(table):
    found = dict.fromkeys(GapCause, 0)
    for start, end, cause in table.select("start_ns", "end_ns", "cause").iter_rows():
        found[GapCause(cause)] += end - start
    return found


@needs_captures
@pytest.mark.parametrize("name", captures() or ["none"])
def test_real_captures_agree_with_independent_counts(name):
    """Within 0.1% of truth_idle.json (or 1 µs: it counts in µs as floats), over the whole capture.

    Its definition is ours: of each gap the time before the launch of the work that ends it is the host's, and what is
    left, or all of it where that launch came before the gap, is queued. It has one cause for the host's part where we
    look for a finer one, and calls queued also what we call below_launch_resolution. Its gaps are whole, our rows parts
    of them: two rows that meet are of one gap.
    """
    truth = json.loads((KINETO / name).with_name("truth_idle.json").read_text())[
        Path(name).name.removesuffix(".json.gz")
    ]
    trace, found = gaps_of(name)
    ns = ns_by_cause(found.table)
    queued = ns[GapCause.QUEUED] + ns[GapCause.BELOW_LAUNCH_RESOLUTION]
    host = sum(ns.values()) - queued - ns[GapCause.UNLINKED]
    for counted, key in ((host, "host_late_us"), (queued, "queued_us"), (ns[GapCause.UNLINKED], "unlinked_us")):
        assert counted / 1000 == pytest.approx(truth[key], rel=1e-3, abs=1), key
    starts, ends = found.table["start_ns"].to_list(), found.table["end_ns"].to_list()
    assert 1 + sum(a != b for a, b in zip(ends[:-1], starts[1:], strict=True)) == truth["n_gaps"]
    assert sum(ns.values()) == measure_breakdown(trace).partition.idle_ns


@needs_captures
def test_idle_time_of_the_input_bound_capture_is_the_loaders():
    """The gaps of 48 to 62 ms before the batch is copied to the device, which truth_idle.json lists."""
    _, found = gaps_of("resnet50-V100-dataloader/worker0.pt.trace.json.gz")
    first = found.groups[0]
    assert (first.cause, first.num_gaps) == (GapCause.INPUT, 5)
    assert first.op == "enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__"
    assert round(first.longest_ns / 1e6, 1) == 62.0
    assert found.by_cause[GapCause.INPUT] > 0.7 * sum(found.by_cause.values())
    rows = found.table.filter((found.table["end_ns"] - found.table["start_ns"]) > 40_000_000)
    assert set(rows["cause"].to_list()) == {"input"}
    assert set(rows["kernel"].to_list()) == {"Memcpy HtoD (Pageable -> Device)"}


@needs_captures
def test_the_late_rank_of_the_record_run_shows_no_cause_but_late_launches():
    """On rank 1 the host spends 22 of the 26 ms in operators, most of them compiled regions, 0.2 in calls of the
    runtime, and waits for nothing: it only is slow."""
    _, found = gaps_of("speedrun-8xH100/rank1.json.gz")
    host = set(GapCause) - {GapCause.QUEUED, GapCause.BELOW_LAUNCH_RESOLUTION, GapCause.UNLINKED}
    assert set(found.by_cause) & host == {GapCause.LATE_LAUNCH}
    assert found.by_cause[GapCause.LATE_LAUNCH] > 0.7 * sum(found.by_cause.values())
    _, other = gaps_of("speedrun-8xH100/rank3.json.gz")
    assert not set(other.by_cause) & host
