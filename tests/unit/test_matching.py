"""Which kernels are one collective, drawn by hand and on real captures."""

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from builders import build_trace
from builders_ranks import build_timelines, timeline_of
from simulated_ranks import MS, Part, make_timeline_of

from speedprof.analyses.matching import match_collectives
from speedprof.trace.read_kineto import read_kineto

KINETO = Path(__file__).parents[3] / "shared" / "data" / "kineto"
SAMPLES = Path(__file__).parents[2] / "traces" / "samples"
needs_captures = pytest.mark.skipif(not KINETO.is_dir(), reason="the folder of real captures is not beside this one")


def match(rows, **options):
    return match_collectives(build_timelines(rows, **options))


def rows_of(found):
    """The rows of each instance in its ranks' tables, by rank, in order of the instances."""
    instances: dict[int, dict[int, int]] = {}
    for number, rank, row in found.instances.select("collective", "rank", "row").iter_rows():
        instances.setdefault(number, {})[rank] = row
    assert list(instances) == list(range(len(instances)))
    return list(instances.values())


def test_parts_that_overlap_and_end_together_are_one_collective():
    found = match("""
        0 | stream 23 | ncclDevKernel_AllGather() | 10 | 40 |
        1 | stream 37 | ncclDevKernel_AllGather() | 20 | 41 |
        2 | stream 23 | ncclDevKernel_AllGather() | 30 | 39 |
        0 | stream 23 | ncclDevKernel_AllGather() | 40 | 60 |
        1 | stream 37 | ncclDevKernel_AllGather() | 55 | 61 |
        2 | stream 23 | ncclDevKernel_AllGather() | 55 | 60 |
    """)
    assert found.instances.rows() == [
        (0, 0, 0, 10, 40, 30, 2, True),
        (0, 1, 0, 20, 41, 30, 2, True),
        (0, 2, 0, 30, 39, 30, 2, True),
        (1, 0, 1, 40, 60, 55, 1, True),
        (1, 1, 1, 55, 61, 55, 1, True),
        (1, 2, 1, 55, 60, 55, 1, True),
    ]
    assert found.instances.columns == [
        *("collective", "rank", "row", "start_ns", "end_ns", "last_start_ns", "last_rank", "is_complete")
    ]
    assert (found.num_matched, found.num_matchable, found.certainty, found.refused_because) == (2, 2, 1.0, None)
    # Ends from the lower median of the others' two: 1 and 0 for rank 0, 2 and 1 for rank 1, 1 and 0 for rank 2.
    clocks = [(clock.rank, clock.offset_ns, clock.residual_ns, clock.num_collectives) for clock in found.clocks]
    assert clocks == [(0, 0, 0, 2), (1, 0, 1, 2), (2, 0, 0, 2)]


LATE_CAPTURE = """
    0 | stream 23 | ncclDevKernel_AllReduce() |  10 |  20 |
    0 | stream 23 | ncclDevKernel_AllReduce() |  30 |  40 |
    0 | stream 23 | ncclDevKernel_AllReduce() |  50 |  60 |
    0 | stream 23 | ncclDevKernel_AllReduce() |  70 |  80 |
    1 | stream 7  | gemm                      |  45 |  52 |
    1 | stream 23 | ncclDevKernel_AllReduce() |  52 |  60 |
    1 | stream 23 | ncclDevKernel_AllReduce() |  74 |  80 |
"""


def test_a_rank_whose_capture_begins_later_holds_only_the_last_ones():
    # By count from the start, the collective that ends at 20 would be the one that ends at 60.
    found = match(LATE_CAPTURE)
    assert rows_of(found) == [{0: 2, 1: 0}, {0: 3, 1: 1}]
    assert (found.num_matched, found.num_matchable) == (2, 2)


def test_what_a_profiler_dropped_costs_one_match_and_no_more():
    found = match("""
        0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |
        0 | stream 23 | ncclDevKernel_AllReduce() | 20 | 30 |
        0 | stream 23 | ncclDevKernel_AllReduce() | 30 | 40 |
        0 | stream 23 | ncclDevKernel_AllReduce() | 40 | 50 |
        1 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |
        1 | stream 23 | ncclDevKernel_AllReduce() | 32 | 40 |
        1 | stream 23 | ncclDevKernel_AllReduce() | 42 | 50 |
    """)
    assert rows_of(found) == [{0: 0, 1: 0}, {0: 2, 1: 1}, {0: 3, 1: 2}]
    assert (found.num_matched, found.num_matchable, found.certainty) == (3, 4, 1.0)


def test_a_collective_that_only_some_ranks_hold_is_matched_among_them_and_not_complete():
    found = match("""
        0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |
        0 | stream 23 | ncclDevKernel_AllReduce() | 20 | 30 |
        1 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |
        1 | stream 23 | ncclDevKernel_AllReduce() | 25 | 30 |
        2 | stream 7  | gemm                      | 20 | 27 |
        2 | stream 23 | ncclDevKernel_AllReduce() | 27 | 30 |
    """)
    assert rows_of(found) == [{0: 0, 1: 0}, {0: 1, 1: 1, 2: 0}]
    assert found.instances["is_complete"].to_list() == [False, False, True, True, True]
    assert found.instances["last_rank"].to_list() == [0, 0, 2, 2, 2]
    # The first ended before the capture of rank 2 began, so it could not be matched.
    assert (found.num_matched, found.num_matchable) == (1, 1)


def test_names_types_and_sizes_keep_apart_what_overlaps():
    found = match("""
        0 | stream 23 | ncclDevKernel_AllGather()     | 10 | 40 |  | dtype BFloat16; in 8; out 16
        0 | stream 24 | ncclDevKernel_AllGather()     | 10 | 41 |  | dtype Float; in 8; out 16
        0 | stream 25 | ncclDevKernel_AllGather()     | 10 | 42 |  | dtype Float; in 9; out 18
        0 | stream 26 | ncclDevKernel_ReduceScatter() | 10 | 43 |
        1 | stream 23 | ncclDevKernel_ReduceScatter() | 10 | 40 |
        1 | stream 24 | ncclDevKernel_AllGather()     | 10 | 41 |  | dtype Float; in 9; out 18
        1 | stream 25 | ncclDevKernel_AllGather()     | 10 | 42 |  | dtype Float; in 8; out 16
        1 | stream 26 | ncclDevKernel_AllGather()     | 10 | 43 |  | dtype BFloat16; in 8; out 16
    """)
    assert sorted((one[0], one[1]) for one in rows_of(found)) == [(0, 3), (1, 2), (2, 1), (3, 0)]


def test_what_a_file_does_not_say_fits_anything():
    found = match("""
        0 | stream 23 | ncclDevKernel_AllGather() | 10 | 40 |  | dtype BFloat16; in 8; out 16
        1 | stream 23 | ncclDevKernel_AllGather() | 10 | 40 |
        2 | stream 23 | ncclDevKernel_AllGather() | 10 | 40 |  | dtype BFloat16
        3 | stream 23 | ncclDevKernel_AllGather() | 10 | 40 |  | dtype Float
    """)
    assert rows_of(found) == []
    # Of the rest, ranks 0 to 2 fit, but the group is of four.
    assert (found.num_matched, found.num_matchable, found.refused_because is None) == (0, 1, False)


def test_an_exchange_of_other_amounts_on_each_rank_is_one():
    found = match("""
        0 | stream 23 | ncclDevKernel_SendRecv() | 10 | 40 |  | called all_to_allv; in 8; out 2
        1 | stream 23 | ncclDevKernel_SendRecv() | 10 | 40 |  | called all_to_allv; in 1; out 7
        2 | stream 23 | ncclDevKernel_SendRecv() | 10 | 35 |  | called all_to_allv; in 4; out 4
    """)
    assert rows_of(found) == [{0: 0, 1: 0, 2: 0}]


def test_sequence_numbers_decide_even_against_time_which_then_bears_nothing_out():
    found = match("""
        0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |  | group dp; ranks [0, 1]; seq 5
        0 | stream 23 | ncclDevKernel_AllReduce() | 30 | 40 |  | group dp; ranks [0, 1]; seq 6
        0 | stream 23 | ncclDevKernel_AllReduce() | 50 | 60 |  | group dp; ranks [0, 1]; seq 7
        1 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |  | group dp; ranks [0, 1]; seq 5
        1 | stream 23 | ncclDevKernel_AllReduce() | 21 | 25 |  | group dp; ranks [0, 1]; seq 6
        1 | stream 23 | ncclDevKernel_AllReduce() | 55 | 60 |  | group dp; ranks [0, 1]; seq 7
    """)
    assert rows_of(found) == [{0: 0, 1: 0}, {0: 1, 1: 1}, {0: 2, 1: 2}]
    assert found.certainty == 2 / 3


def test_kernels_of_one_sequence_number_are_told_apart_by_their_order():
    found = match("""
        0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |  | group dp; ranks [0, 1]; seq 5
        0 | stream 23 | ncclDevKernel_AllReduce() | 20 | 30 |  | group dp; ranks [0, 1]; seq 5
        1 | stream 23 | ncclDevKernel_AllReduce() | 11 | 20 |  | group dp; ranks [0, 1]; seq 5
        1 | stream 23 | ncclDevKernel_AllReduce() | 20 | 30 |  | group dp; ranks [0, 1]; seq 5
    """)
    assert rows_of(found) == [{0: 0, 1: 0}, {0: 1, 1: 1}]
    assert found.certainty == 1.0


def test_groups_of_one_name_on_other_ranks_are_others():
    found = match("""
        0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |  | group tp; ranks [0, 1]; seq 1
        1 | stream 23 | ncclDevKernel_AllReduce() | 20 | 40 |  | group tp; ranks [0, 1]; seq 1
        2 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |  | group tp; ranks [2, 3]; seq 1
        3 | stream 23 | ncclDevKernel_AllReduce() | 30 | 40 |  | group tp; ranks [2, 3]; seq 1
        0 | stream 24 | ncclDevKernel_AllReduce() | 50 | 80 |  | group dp; ranks [0, 2]
        1 | stream 24 | ncclDevKernel_AllReduce() | 51 | 80 |  | group dp; ranks [1, 3]
        2 | stream 24 | ncclDevKernel_AllReduce() | 60 | 80 |  | group dp; ranks [0, 2]
        3 | stream 24 | ncclDevKernel_AllReduce() | 70 | 80 |  | group dp; ranks [1, 3]
    """)
    assert rows_of(found) == [{0: 0, 1: 0}, {2: 0, 3: 0}, {0: 1, 2: 1}, {1: 1, 3: 1}]
    assert found.instances["is_complete"].all()
    assert (found.num_matched, found.num_matchable, found.certainty) == (4, 4, 1.0)


def test_two_groups_of_the_same_ranks_each_count_by_themselves():
    found = match("""
        0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |  | group one; ranks [0, 1]; seq 1
        0 | stream 24 | ncclDevKernel_AllReduce() | 10 | 41 |  | group two; ranks [0, 1]; seq 1
        1 | stream 23 | ncclDevKernel_AllReduce() | 11 | 40 |  | group two; ranks [0, 1]; seq 1
        1 | stream 24 | ncclDevKernel_AllReduce() | 11 | 41 |  | group one; ranks [0, 1]; seq 1
    """)
    assert sorted((one[0], one[1]) for one in rows_of(found)) == [(0, 1), (1, 0)]


def test_ranks_may_number_one_group_differently():
    found = match("""
        0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |  | group 1; ranks [0, 1]
        1 | stream 23 | ncclDevKernel_AllReduce() | 20 | 40 |  | group 2; ranks [0, 1]
    """)
    assert rows_of(found) == [{0: 0, 1: 0}]


def test_a_kernel_without_a_group_takes_that_of_its_stream():
    # What was launched before the capture says nothing. All four overlap, and rank 2's ends nearest to rank 0's.
    found = match("""
        0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |
        0 | stream 23 | ncclDevKernel_AllReduce() | 50 | 60 |  | group tp; ranks [0, 1]
        1 | stream 23 | ncclDevKernel_AllReduce() | 10 | 42 |
        1 | stream 23 | ncclDevKernel_AllReduce() | 50 | 60 |  | group tp; ranks [0, 1]
        2 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |
        2 | stream 23 | ncclDevKernel_AllReduce() | 50 | 60 |  | group tp; ranks [2, 3]
        3 | stream 23 | ncclDevKernel_AllReduce() | 10 | 42 |
        3 | stream 23 | ncclDevKernel_AllReduce() | 50 | 60 |  | group tp; ranks [2, 3]
    """)
    assert rows_of(found)[:2] == [{0: 0, 1: 0}, {2: 0, 3: 0}]
    assert (found.num_matched, found.num_matchable) == (4, 4)


def test_a_kernel_of_a_stream_with_several_groups_joins_the_collective_that_lacks_its_rank():
    found = match("""
        0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |
        0 | stream 23 | ncclDevKernel_AllReduce() | 50 | 60 |  | group tp; ranks [0, 1]
        0 | stream 23 | ncclDevKernel_AllReduce() | 70 | 80 |  | group dp; ranks [0, 2]
        1 | stream 23 | ncclDevKernel_AllReduce() | 20 | 40 |  | group tp; ranks [0, 1]
        1 | stream 23 | ncclDevKernel_AllReduce() | 50 | 60 |  | group tp; ranks [0, 1]
        2 | stream 23 | ncclDevKernel_AllReduce() | 70 | 80 |  | group dp; ranks [0, 2]
    """)
    assert rows_of(found) == [{0: 0, 1: 0}, {0: 1, 1: 1}, {0: 2, 2: 0}]
    assert found.instances["is_complete"].all()


def test_ranks_that_were_not_traced_leave_a_collective_incomplete_though_matched():
    found = match(
        """
        0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |
        1 | stream 23 | ncclDevKernel_AllReduce() | 20 | 40 |
        """,
        world_size=8,
    )
    assert (found.num_matched, found.num_matchable, found.certainty) == (1, 1, 1.0)
    assert found.instances["is_complete"].to_list() == [False, False]


def test_groups_of_which_one_rank_was_traced_do_not_count():
    found = match("""
        0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |  | group tp; ranks [0, 1]
        0 | stream 24 | ncclDevKernel_AllReduce() | 50 | 60 |  | group dp; ranks [0, 8]
        1 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |  | group tp; ranks [0, 1]
        1 | stream 24 | ncclDevKernel_AllReduce() | 50 | 60 |  | group dp; ranks [1, 9]
    """)
    assert (found.num_matched, found.num_matchable) == (1, 1)


def test_a_list_of_ranks_that_is_cut_off_still_tells_groups_apart():
    found = match("""
        0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |  | ranks [0, 1, ...]; size 64
        1 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |  | ranks [0, 1, ...]; size 64
        2 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |  | ranks [2, 3, ...]; size 64
        3 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |  | ranks [2, 3, ...]; size 64
    """)
    assert rows_of(found) == [{0: 0, 1: 0}, {2: 0, 3: 0}]
    assert not found.instances["is_complete"].any()


@pytest.mark.parametrize("said", ["size 2", "group tp; size 2"])
def test_where_nobody_says_which_ranks_a_group_has_nothing_is_guessed(said):
    found = match(f"""
        0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |  | {said}
        1 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |  | {said}
        2 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |  | {said}
        3 | stream 23 | ncclDevKernel_AllReduce() | 10 | 40 |  | {said}
    """)
    assert found.instances.is_empty()
    assert found.refused_because == "no two of the traced ranks are known to take part in one collective"


PIPELINE = """
    0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |
    1 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |
    2 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |
    3 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |
    0 | stream 24 | ncclDevKernel_SendRecv()  | 20 | 40 |  | SAID
    1 | stream 24 | ncclDevKernel_SendRecv()  | 25 | 40 |  | SAID
    1 | stream 24 | ncclDevKernel_SendRecv()  | 40 | 60 |  | SAID
    2 | stream 24 | ncclDevKernel_SendRecv()  | 45 | 60 |  | SAID
    2 | stream 24 | ncclDevKernel_SendRecv()  | 60 | 80 |  | SAID
    3 | stream 24 | ncclDevKernel_SendRecv()  | 65 | 80 |  | SAID
    0 | stream 23 | ncclDevKernel_AllReduce() | 80 | 90 |
    1 | stream 23 | ncclDevKernel_AllReduce() | 80 | 90 |
    2 | stream 23 | ncclDevKernel_AllReduce() | 80 | 90 |
    3 | stream 23 | ncclDevKernel_AllReduce() | 80 | 90 |
"""


@pytest.mark.parametrize("said", ["", "called send; ranks [0, 1, 2, 3]; seq 3"])
def test_messages_along_a_pipeline_are_not_taken_for_exchanges_among_all(said):
    found = match(PIPELINE.replace("SAID", said))
    assert [len(one) for one in rows_of(found)] == [4, 4]
    assert (found.num_matched, found.num_matchable) == (2, 2)


def test_a_message_in_a_group_of_two_passes_between_them():
    found = match("""
        0 | stream 23 | ncclDevKernel_SendRecv() | 10 | 40 |  | called send; ranks [0, 1]; seq 4; in 8; out 8
        1 | stream 23 | ncclDevKernel_SendRecv() | 20 | 40 |  | called recv; ranks [0, 1]; seq 9; in 8; out 8
    """)
    assert rows_of(found) == [{0: 0, 1: 0}]


def test_equal_times_are_matched_in_order_and_events_without_length_too():
    found = match("""
        0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |
        0 | stream 24 | ncclDevKernel_AllReduce() | 10 | 20 |
        0 | stream 23 | ncclDevKernel_AllReduce() | 30 | 30 |
        1 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |
        1 | stream 24 | ncclDevKernel_AllReduce() | 10 | 20 |
        1 | stream 23 | ncclDevKernel_AllReduce() | 30 | 30 |
    """)
    assert rows_of(found) == [{0: 0, 1: 0}, {0: 1, 1: 1}, {0: 2, 1: 2}]
    assert found.instances["last_rank"].to_list() == [0] * 6


def test_threads_of_one_queue_keep_their_order_whichever_ends_first():
    # Two threads serve each rank's queue: the second and third collective end in another order on each rank, closer to
    # each other than to their mates.
    times = {0: [(0, 90), (10, 200), (90, 190), (200, 300)], 1: [(5, 95), (15, 191), (95, 199), (210, 301)]}
    found = match_collectives(
        [
            make_timeline_of(
                rank,
                [Part(truth=0, name="all_reduce", start_ns=start, end_ns=end, stream=None) for start, end in spans],
                2,
                on_host=True,
            )
            for rank, spans in times.items()
        ]
    )
    assert rows_of(found) == [{0: row, 1: row} for row in range(4)]


def refusal(rows):
    found = match(rows)
    assert found.instances.is_empty()
    assert (found.num_matched, found.certainty) == (0, None)
    assert [(clock.offset_ns, clock.residual_ns, clock.num_collectives) for clock in found.clocks] == [
        (0, 0, 0) for _ in found.clocks
    ]
    assert found.instances.columns == match(LATE_CAPTURE).instances.columns
    return found.refused_because


def test_why_nothing_is_matched():
    assert match_collectives([]).refused_because == "no rank's trace was given"
    assert refusal("0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |") == "only one rank's trace was given"
    assert refusal("0 | stream 7 | gemm | 10 | 20 |\n1 | stream 7 | gemm | 10 | 20 |") == "no trace has collectives"
    one = "0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |"
    assert refusal(f"{one}\n1 | stream 7 | gemm | 10 | 20 |") == "only rank 0's trace has collectives"
    two = f"{one}\n1 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |"
    assert refusal(f"{two}\n2 | stream 7 | gemm | 10 | 20 |") == "rank 2's trace has no collectives"
    assert match_collectives(build_timelines(one) * 2).refused_because == "two of the traces are of rank 0"
    assert refusal(f"{one}\n1 | stream 23 | ncclDevKernel_AllGather() | 10 | 20 |") == (
        "no two of the traced ranks are known to take part in one collective"
    )


def test_captures_that_have_no_time_in_common_are_not_matched():
    assert (
        refusal("""
        0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |
        0 | stream 23 | ncclDevKernel_AllReduce() | 30 | 40 |
        1 | stream 23 | ncclDevKernel_AllReduce() | 50 | 60 |
        1 | stream 23 | ncclDevKernel_AllReduce() | 75 | 80 |
    """)
        == "the captures of ranks 0 and 1 have no time in common, and no clock offset fits both"
    )


def test_a_sample_of_events_is_not_matched():
    found = match("""
        0 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |
        0 | stream 23 | ncclDevKernel_AllReduce() | 30 | 40 |
        0 | stream 23 | ncclDevKernel_AllReduce() | 70 | 80 |
        0 | stream 7  | gemm                      | 90 | 99 |
        1 | stream 7  | gemm                      |  1 |  2 |
        1 | stream 23 | ncclDevKernel_AllReduce() | 10 | 20 |
        1 | stream 23 | ncclDevKernel_AllReduce() | 50 | 60 |
        1 | stream 23 | ncclDevKernel_AllReduce() | 90 | 95 |
    """)
    assert found.refused_because == (
        "only 1 of 3 collectives of ranks 0 and 1 overlap in time as parts of one do, and no clock offset fits the rest"
    )
    assert (found.num_matched, found.num_matchable) == (0, 3)


def test_collectives_that_overlap_but_do_not_end_together_are_of_two_groups_and_not_matched():
    # Ranks 0 and 1 are one group, ranks 2 and 3 another that runs beside it: 40 us apart in ends, of 100 us.
    ends = {0: 0, 1: 1_000, 2: 40_000, 3: 41_000}
    times = [at * MS + at * at * 37_000 for at in range(1, 9)]
    spans = {
        rank: [
            Part(truth=0, name="all_reduce", start_ns=time - 100_000, end_ns=time + late * (-1) ** at)
            for at, time in enumerate(times)
        ]
        for rank, late in ends.items()
    }
    found = match_collectives([make_timeline_of(rank, parts, 4) for rank, parts in spans.items()])
    assert found.refused_because is not None
    assert "their ends lie too far apart for parts of one" in found.refused_because


def test_a_damaged_or_empty_table_crashes_nothing():
    empty = timeline_of(build_trace("0 | main | aten::mm | 0 | 5 |"))
    assert match_collectives([empty, replace(empty, rank=1)]).refused_because == "no trace has collectives"


def read_folder(folder):
    return [timeline_of(read_kineto(path)) for path in sorted(folder.glob("rank*.json.gz"))]


def skews(found):
    """The medians of how far the starts and the ends of complete collectives lie apart, in ns."""
    spread = [(pl.col(name).max() - pl.col(name).min()).alias(name) for name in ("start_ns", "end_ns")]
    complete = found.instances.filter("is_complete").group_by("collective").agg(spread)
    return complete["start_ns"].median(), complete["end_ns"].median()


@needs_captures
def test_all_76_collectives_of_the_speedrun_are_matched():
    """Its ranks hold 76, 76, 76, 76, 81, 84, 84, 84; by count from the start 0 of 76 would overlap.

    Counted from the end, which fits this capture, starts lie 28.6 us apart in the median and ends 20 us (facts on
    traces); and those that only ranks 4 to 7 hold are matched among them.
    """
    found = match_collectives(read_folder(KINETO / "speedrun-8xH100"))
    assert (found.num_matched, found.num_matchable, found.certainty) == (76, 76, 1.0)
    assert skews(found) == (28_580.5, 20_461.5)
    assert [clock.offset_ns for clock in found.clocks] == [0] * 8
    assert [clock.num_collectives for clock in found.clocks] == [76, 76, 76, 76, 81, 84, 84, 84]
    assert max(clock.residual_ns for clock in found.clocks) < 10_000
    from_end = {0: 76, 1: 76, 2: 76, 3: 76, 4: 81, 5: 84, 6: 84, 7: 84}
    for one in rows_of(found):
        assert len({row - from_end[rank] for rank, row in one.items()}) == 1


@needs_captures
def test_the_speedrun_is_matched_without_any_metadata():
    said = ("declared_name", "process_group", "dtype", "in_elements", "out_elements", "group_size", "group_ranks")
    bare = []
    for rank in read_folder(KINETO / "speedrun-8xH100"):
        nulls = [pl.Series(name, [None] * len(rank.collectives), dtype=rank.collectives[name].dtype) for name in said]
        bare.append(replace(rank, collectives=rank.collectives.with_columns(nulls)))
    found = match_collectives(bare)
    assert (found.num_matched, found.num_matchable, found.certainty) == (76, 76, 1.0)
    assert skews(found) == (28_580.5, 20_461.5)


@needs_captures
def test_all_of_dlrm_is_matched_its_exchanges_too():
    found = match_collectives(read_folder(KINETO / "dlrm-8xV100"))
    assert (found.num_matched, found.num_matchable, found.certainty) == (8, 8, 1.0)
    assert rows_of(found) == [dict.fromkeys(range(8), row) for row in range(8)]


@needs_captures
def test_two_sampled_ranks_of_128_are_refused():
    found = match_collectives(read_folder(KINETO / "sampled-2of128"))
    assert found.refused_because is not None
    assert found.refused_because.startswith("only 5 of 10 collectives of ranks 0 and 1 overlap in time")
    assert (found.num_matched, found.num_matchable, found.certainty) == (0, 10, None)
    assert found.instances.is_empty()


@pytest.mark.parametrize(("sample", "count"), [("cpu-2ranks", 56), ("h200-2ranks", 36)])
def test_the_samples_are_matched(sample, count):
    found = match_collectives(read_folder(SAMPLES / sample / "kineto"))
    assert (found.num_matched, found.num_matchable, found.certainty) == (count, count, 1.0)
    assert rows_of(found) == [{0: row, 1: row} for row in range(count)]
