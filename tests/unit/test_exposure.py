"""Exposed communication cut into wait, transfer and unsplit, on ranks drawn by hand."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from builders_ranks import build_timelines, timeline_of
from hand_match import match_by_hand, match_in_order, refuse

from speedprof.analyses.breakdown import measure_breakdown
from speedprof.analyses.exposure import ExposedSplit, Wait, measure_exposure
from speedprof.analyses.idle_gaps import GapCause
from speedprof.analyses.stages import measure_stages
from speedprof.trace.read_kineto import read_kineto

SAMPLES = Path(__file__).parents[2] / "traces" / "samples"


def split(wait: int, transfer: int, unsplit: int = 0) -> ExposedSplit:
    return ExposedSplit(wait_ns=wait, transfer_ns=transfer, unsplit_ns=unsplit)


def with_gaps(rank, *gaps: tuple[int, int, GapCause]):
    starts, ends, causes = zip(*gaps, strict=True)
    return replace(rank, gaps=pl.DataFrame({"start_ns": starts, "end_ns": ends, "cause": causes}))


def test_before_the_last_rank_begins_it_is_wait_and_after_that_transfer():
    #            0    10   20   30   40   50   60
    # rank 0     CCCCC|wait-----|transfer-|
    # rank 1     CCCCCCCCCC|    |---------|CCCC     what it did in the wait: 10 compute, 5 copy, 5 idle
    late, idle = GapCause.LATE_LAUNCH, (25, 30)
    ranks = build_timelines("""
        0 | stream 7 | gemm                      |  0 | 10 |
        0 | stream 2 | ncclDevKernel_AllGather() | 10 | 50 |
        1 | stream 7 | gemm                      |  0 | 20 |
        1 | stream 9 | Memcpy HtoD (x)           | 15 | 25 |
        1 | stream 2 | ncclDevKernel_AllGather() | 30 | 50 |
        1 | stream 7 | gemm                      | 50 | 60 |
    """)
    ranks[1] = with_gaps(ranks[1], (*idle, late))
    first, last = measure_exposure(ranks, match_in_order(ranks))
    assert (first.rank, first.split, first.steps) == (0, split(20, 20), ())
    assert first.waits == (
        Wait(
            rank=1,
            ns=20,
            compute_ns=10,
            communication_ns=0,
            copy_ns=5,
            idle_ns=5,
            idle_by_cause={late: 5},
            longest_start_ns=10,
            longest_end_ns=30,
            longest_step=None,
        ),
    )
    assert (last.split, last.waits) == (split(0, 20), ())


def test_compute_beside_it_hides_wait_and_transfer_alike():
    ranks = build_timelines("""
        0 | stream 7 | gemm                      | 15 | 25 |
        0 | stream 7 | gemm                      | 40 | 45 |
        0 | stream 2 | ncclDevKernel_AllGather() | 10 | 50 |
        1 | stream 2 | ncclDevKernel_AllGather() | 30 | 50 |
    """)
    first, _ = measure_exposure(ranks, match_in_order(ranks))
    # Hidden: 15..25 of the wait 10..30, 40..45 of the transfer 30..50. Rank 1's capture begins at 30 only.
    assert first.split == split(10, 15)
    (wait,) = first.waits
    assert (wait.ns, wait.outside_ns, wait.idle_ns, wait.compute_ns) == (10, 10, 0, 0)


def test_a_collective_that_ends_before_the_last_rank_begins_only_waits():
    ranks = build_timelines("""
        0 | stream 2 | ncclDevKernel_Broadcast() |  0 | 20 |
        1 | stream 7 | gemm                      |  0 | 30 |
        1 | stream 2 | ncclDevKernel_Broadcast() | 30 | 40 |
    """)
    assert [one.split for one in measure_exposure(ranks, match_in_order(ranks))] == [split(20, 0), split(0, 10)]


def test_without_every_rank_of_its_group_it_is_unsplit_once_the_known_ones_have_begun():
    ranks = build_timelines("""
        0 | stream 2 | ncclDevKernel_AllGather() | 10 | 50 |
        0 | stream 2 | ncclDevKernel_AllGather() | 60 | 70 |
        1 | stream 2 | ncclDevKernel_AllGather() | 30 | 50 |
    """)
    match = match_by_hand(ranks, [{0: 0, 1: 0}], incomplete=[0])
    first, last = measure_exposure(ranks, match)
    # The second one of rank 0 has no match at all.
    assert (first.split, last.split) == (split(20, 0, 20 + 10), split(0, 0, 20))


def test_where_nothing_was_matched_all_is_unsplit():
    ranks = build_timelines("""
        0 | stream 7 | gemm                      | 15 | 25 |
        0 | stream 2 | ncclDevKernel_AllGather() | 10 | 50 |
        1 | stream 2 | ncclDevKernel_AllGather() | 30 | 50 |
    """)
    first, last = measure_exposure(ranks, refuse(ranks))
    assert (first.split, first.waits, last.split) == (split(0, 0, 30), (), split(0, 0, 20))
    (kind,) = first.collectives
    assert (kind.name, kind.count, kind.time_ns, kind.hidden_ns, kind.split) == (
        "all_gather",
        1,
        40,
        10,
        split(0, 0, 30),
    )
    assert (first.contention_ns, first.contention_basis) == (None, None)


def test_transfer_wins_over_wait_and_wait_over_unsplit():
    #               0    10   20   30   40   50   60   70
    # all-gather         wait-|transfer-|                    rank 1 begins at 20
    # reduce-sc.              wait----------------|          rank 1 begins at 60
    # unmatched     ------------------------------------
    ranks = build_timelines("""
        0 | stream 1 | ncclDevKernel_AllReduce()     |  0 | 70 |
        0 | stream 2 | ncclDevKernel_AllGather()     | 10 | 40 |
        0 | stream 3 | ncclDevKernel_ReduceScatter() | 20 | 60 |
        1 | stream 7 | gemm                          |  0 | 20 |
        1 | stream 2 | ncclDevKernel_AllGather()     | 20 | 40 |
        1 | stream 3 | ncclDevKernel_ReduceScatter() | 60 | 65 |
    """)
    first, _ = measure_exposure(ranks, match_by_hand(ranks, [{0: 1, 1: 0}, {0: 2, 1: 1}]))
    assert first.split == split(10 + 20, 20, 10 + 10)
    # Each kind by itself follows the same rules.
    assert {one.name: one.split for one in first.collectives} == {
        "all_reduce": split(0, 0, 70),
        "all_gather": split(10, 20),
        "reduce_scatter": split(40, 0),
    }


def test_waiting_on_several_belongs_to_the_collective_whose_wait_began_first():
    ranks = build_timelines("""
        0 | stream 1 | ncclDevKernel_AllGather()     | 10 | 40 |
        0 | stream 2 | ncclDevKernel_ReduceScatter() | 20 | 60 |
        1 | stream 7 | gemm                          |  0 | 30 |
        1 | stream 1 | ncclDevKernel_AllGather()     | 40 | 41 |
        2 | stream 7 | gemm                          |  0 | 60 |
        2 | stream 1 | ncclDevKernel_ReduceScatter() | 60 | 61 |
    """)
    first, *_ = measure_exposure(ranks, match_by_hand(ranks, [{0: 0, 1: 0}, {0: 1, 2: 0}]))
    assert first.split == split(50, 0)
    assert [(wait.rank, wait.ns, wait.compute_ns, wait.idle_ns) for wait in first.waits] == [
        (1, 30, 20, 10),
        (2, 20, 20, 0),
    ]


STEPS = """
    0 | main     | speedprof.step/1                      |   0 |  50 |
    0 | main     | speedprof.stage/all_gather/adam.a     |   2 |   4 |
    0 | main     | speedprof.step/2/validation           |  50 | 100 |
    0 | main     | speedprof.step/3                      | 100 | 150 |
    0 | main     | speedprof.stage/all_gather/adam.a     | 102 | 104 |
    0 | main     | speedprof.stage/all_gather/adam.b     | 106 | 108 |
    0 | stream 2 | ncclDevKernel_AllGather()             |   0 |   8 |
    0 | stream 7 | gemm                                  |  10 |  20 | main 1
    0 | stream 2 | ncclDevKernel_AllGather()             |  15 |  45 | main 3
    0 | stream 7 | gemm                                  |  60 |  70 | main 51
    0 | stream 2 | ncclDevKernel_AllGather()             |  70 |  90 | main 55
    0 | stream 7 | gemm                                  | 110 | 120 | main 101
    0 | stream 2 | ncclDevKernel_AllGather()             | 115 | 145 | main 103
    0 | stream 3 | ncclDevKernel_AllGather()             | 130 | 150 | main 107
    1 | stream 7 | gemm                                  |   0 |  30 |
    1 | stream 2 | ncclDevKernel_AllGather()             |   5 |   8 |
    1 | stream 2 | ncclDevKernel_AllGather()             |  30 |  45 |
    1 | stream 2 | ncclDevKernel_AllGather()             |  80 |  90 |
    1 | stream 2 | ncclDevKernel_AllGather()             | 125 | 145 |
    1 | stream 3 | ncclDevKernel_AllGather()             | 140 | 150 |
"""


def test_steps_stages_and_waits_count_traced_training_steps_alone():
    ranks = build_timelines(STEPS)
    first, last = measure_exposure(ranks, match_in_order(ranks))
    # Exposed: 0..8 before the first step, 20..45 in step 1, 70..90 in the validation pass, 120..150 in step 3.
    assert first.split == split(5 + 10 + 10 + 5, 3 + 15 + 10 + 25)
    assert first.steps == (split(10, 15), split(5, 25))
    assert [(wait.rank, wait.ns) for wait in first.waits] == [(1, 15)]
    # Of step 1, 20..30: the first of the longest.
    (wait,) = first.waits
    assert (wait.longest_start_ns, wait.longest_end_ns, wait.longest_step) == (20, 30, 1)
    assert first.stages == {
        ("all_gather", "adam.a"): split(10 + 5, 15 + 20),
        ("all_gather", "adam.b"): split(10, 10),
    }
    assert [(one.stage, one.group, one.count, one.time_ns, one.hidden_ns, one.split) for one in first.collectives] == [
        ("all_gather", "adam.a", 2, 60, 10, split(15, 35)),
        ("all_gather", "adam.b", 1, 20, 0, split(10, 10)),
    ]
    # Of two equally exposed ones the first is shown.
    assert [(one.longest_start_ns, one.longest_end_ns, one.longest_step) for one in first.collectives] == [
        (15, 45, 1),
        (130, 150, 3),
    ]
    # Rank 1 has no steps: all of its capture counts, and no collective is left out.
    assert (last.steps, [one.count for one in last.collectives]) == ((), [5])


def test_ranks_are_compared_on_the_common_clock_and_reported_on_their_own():
    ranks = build_timelines("""
        0 | stream 2 | ncclDevKernel_AllGather() |   10 |   50 |
        1 | stream 7 | gemm                      | 1005 | 1020 |
        1 | stream 2 | ncclDevKernel_AllGather() | 1030 | 1050 |
    """)
    match = match_by_hand(ranks, [{0: 0, 1: 0}], offsets={1: -1000})
    first, last = measure_exposure(ranks, match)
    assert (first.split, last.split) == (split(20, 20), split(0, 20))
    (wait,) = first.waits
    assert (wait.compute_ns, wait.idle_ns) == (10, 10)
    assert (wait.longest_start_ns, wait.longest_end_ns, wait.longest_step) == (10, 30, None)
    assert [(one.longest_start_ns, one.longest_end_ns) for one in last.collectives] == [(1030, 1050)]


def test_the_longest_wait_is_the_longest_that_nothing_hides_on_the_clock_of_the_one_that_waits():
    ranks = build_timelines("""
        0 | main     | speedprof.step/1          |  900 | 1000 |
        0 | main     | speedprof.step/2          | 1000 | 1100 |
        0 | stream 7 | gemm                      |  900 |  910 | main 901
        0 | stream 2 | ncclDevKernel_AllGather() |  910 |  990 | main 902
        0 | stream 7 | gemm                      |  911 |  980 | main 903
        0 | stream 7 | gemm                      | 1000 | 1010 | main 1001
        0 | stream 2 | ncclDevKernel_AllGather() | 1010 | 1050 | main 1002
        1 | stream 7 | gemm                      |    0 |   85 |
        1 | stream 2 | ncclDevKernel_AllGather() |   85 |   90 |
        1 | stream 2 | ncclDevKernel_AllGather() |  130 |  150 |
    """)
    # 75 of waiting in step 1, all but 910..911 and 980..985 beside compute; 20 in step 2, all of it exposed.
    first, _ = measure_exposure(ranks, match_by_hand(ranks, [{0: 0, 1: 0}, {0: 1, 1: 1}], offsets={0: -900}))
    (wait,) = first.waits
    assert (wait.rank, wait.ns) == (1, 1 + 5 + 20)
    assert (wait.longest_start_ns, wait.longest_end_ns, wait.longest_step) == (1010, 1030, 2)


def test_contention_is_what_exposed_transfers_took_beyond_the_fastest_equal_one():
    size = "dtype Float; in 8; out 16"
    ranks = build_timelines(f"""
        0 | stream 2 | ncclDevKernel_AllGather() |   0 |  10 | | {size}
        0 | stream 2 | ncclDevKernel_AllGather() |  20 |  45 | | {size}
        0 | stream 7 | gemm                      |  60 |  75 | | {size}
        0 | stream 2 | ncclDevKernel_AllGather() |  60 |  80 | | {size}
        0 | stream 2 | ncclDevKernel_AllGather() | 100 | 199 | | dtype Float; in 9; out 18
        1 | stream 2 | ncclDevKernel_AllGather() |   0 |  10 | | {size}
        1 | stream 2 | ncclDevKernel_AllGather() |  20 |  40 | | {size}
        1 | stream 2 | ncclDevKernel_AllGather() |  65 |  80 | | {size}
        1 | stream 2 | ncclDevKernel_AllGather() | 100 | 199 | | dtype Float; in 9; out 18
    """)
    first, last = measure_exposure(ranks, match_in_order(ranks))
    # The fastest takes 10. Rank 0: 25 took 15 too long; 15 took 5 too long, all 5 exposed. Rank 1: 20 and 15.
    assert (first.contention_ns, last.contention_ns) == (15 + 5, 10 + 5)
    assert first.contention_basis == "the fastest of 3 equal collectives at the median"


def test_contention_is_at_most_what_is_exposed_of_the_transfer():
    size = "dtype Float; in 8; out 16"
    ranks = build_timelines(f"""
        0 | stream 2 | ncclDevKernel_AllGather() |   0 |  10 | | {size}
        0 | stream 2 | ncclDevKernel_AllGather() |  10 |  20 | | {size}
        0 | stream 2 | ncclDevKernel_AllGather() |  20 |  60 | | {size}
        0 | stream 7 | gemm                      |  20 |  53 |
    """)
    (one,) = measure_exposure(ranks, match_in_order(ranks))
    assert one.contention_ns == 7


@pytest.mark.parametrize("said", ["", "dtype Float; in 8", "in 8; out 16"])
def test_collectives_of_unknown_size_have_no_equal(said):
    row = f"0 | stream 2 | ncclDevKernel_AllGather() | {{}} | {{}} | | {said}\n"
    ranks = build_timelines("".join(row.format(10 * k, 10 * k + 5) for k in range(5)))
    (one,) = measure_exposure(ranks, match_in_order(ranks))
    assert (one.split.transfer_ns, one.contention_ns, one.contention_basis) == (25, None, None)


def test_two_equal_collectives_are_too_few_for_an_estimate():
    row = "0 | stream 2 | ncclDevKernel_AllGather() | {} | {} | | dtype Float; in 8; out 16\n"
    ranks = build_timelines(row.format(0, 10) + row.format(20, 99))
    (one,) = measure_exposure(ranks, match_in_order(ranks))
    assert one.contention_ns is None


def test_ranks_without_any_collective():
    ranks = build_timelines("0 | stream 7 | gemm | 0 | 10 |")
    (one,) = measure_exposure(ranks, refuse(ranks))
    assert (one.split, one.waits, one.stages, one.collectives) == (split(0, 0), (), {}, ())
    assert measure_exposure([], refuse([])) == ()


def test_collectives_of_no_length():
    ranks = build_timelines("""
        0 | stream 2 | ncclDevKernel_AllGather() | 10 | 10 |
        0 | stream 2 | ncclDevKernel_AllGather() | 20 | 30 |
        1 | stream 2 | ncclDevKernel_AllGather() | 15 | 15 |
        1 | stream 2 | ncclDevKernel_AllGather() | 30 | 30 |
    """)
    first, last = measure_exposure(ranks, match_in_order(ranks))
    assert (first.split, last.split) == (split(10, 0), split(0, 0))


@pytest.mark.parametrize("sample", ["h200-2ranks", "cpu-2ranks"])
def test_splits_sum_to_what_partitions_and_stages_by_themselves_say(sample):
    traces = [read_kineto(path) for path in sorted((SAMPLES / sample / "kineto").glob("*.json.gz"))]
    ranks = [timeline_of(trace) for trace in traces]
    for trace, one in zip(traces, measure_exposure(ranks, match_in_order(ranks)), strict=True):
        breakdown = measure_breakdown(trace)
        assert one.split.exposed_ns == breakdown.partition.exposed_communication_ns > 0
        exposed = [step.partition.exposed_communication_ns for step in breakdown.steps]
        assert [cut.exposed_ns for cut in one.steps] == exposed
        assert sum(wait.ns for wait in one.waits) == sum(cut.wait_ns for cut in one.steps) > 0
        stages = {(stage.stage, stage.group): stage.exposed_ns for stage in measure_stages(trace) if stage.exposed_ns}
        assert {key: cut.exposed_ns for key, cut in one.stages.items() if cut.exposed_ns} == stages
        assert stages
