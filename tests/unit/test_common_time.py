"""Which windows all ranks share, and who waits for whom in them, on ranks drawn by hand."""

from builders_ranks import build_timelines
from hand_match import match_in_order

from speedprof.analyses.common_time import CommonTime, find_common_time
from speedprof.analyses.exposed_parts import cut_exposed
from speedprof.analyses.waiting import find_waiting


def windows_of(common: CommonTime) -> dict[int, list[tuple[int, int]]]:
    return {
        rank: list(zip(common.start[rank].tolist(), common.end[rank].tolist(), strict=True)) for rank in common.start
    }


STEPS = """
    0 | main     | speedprof.step/1 |   0 | 100 |
    0 | main     | speedprof.step/2 | 100 | 200 |
    0 | main     | speedprof.step/3 | 200 | 300 |
    0 | stream 7 | gemm             |   0 | 100 | main 1
    0 | stream 7 | gemm             | 100 | 200 | main 101
    0 | stream 7 | gemm             | 200 | 300 | main 201
    1 | main     | speedprof.step/2 | 110 | 210 |
    1 | main     | speedprof.step/3 | 210 | {end} |
    1 | stream 7 | gemm             | 110 | 210 | main 111
    1 | stream 7 | gemm             | 210 | {end} | main 211
"""


def test_steps_that_all_ranks_have_are_common() -> None:
    common = find_common_time(build_timelines(STEPS.format(end=310)))
    assert common.steps == (2, 3)
    assert windows_of(common) == {0: [(100, 200), (200, 300)], 1: [(110, 210), (210, 310)]}
    assert (common.num_windows, common.step_ns, common.per_step) == (2, 100.0, 0.5)


def test_a_step_of_which_one_capture_has_little_is_not_common() -> None:
    # Rank 1's capture ends at 230: most of rank 0's step 3 is not in it.
    assert find_common_time(build_timelines(STEPS.format(end=230))).steps == (2,)


def test_without_common_steps_the_common_capture_counts_as_a_part_of_a_step() -> None:
    rank_0, rank_1 = build_timelines("""
        0 | main     | speedprof.step/1 |   0 | 100 |
        0 | main     | speedprof.step/2 | 100 | 200 |
        0 | stream 7 | gemm             |   0 | 100 | main 1
        0 | stream 7 | gemm             | 100 | 200 | main 101
        1 | stream 7 | gemm             | 150 | 300 |
    """)
    common = find_common_time([rank_0, rank_1])
    assert (common.steps, windows_of(common)) == ((), {0: [(150, 200)], 1: [(150, 200)]})
    # Half a step is shared: twice what happens in it happens in a step.
    assert (common.num_windows, common.step_ns, common.per_step) == (1, 100.0, 2.0)
    alone = find_common_time([rank_1])
    assert (alone.step_ns, alone.per_step) == (150.0, 1.0)


def test_captures_that_do_not_meet_have_no_common_time() -> None:
    common = find_common_time(build_timelines("0 | stream 7 | gemm | 0 | 10 |\n1 | stream 7 | gemm | 20 | 30 |"))
    assert (common.num_windows, common.step_ns, common.per_step) == (0, 0.0, 0.0)


def test_waiting_is_cut_at_steps_and_at_the_start_of_the_second_last_rank() -> None:
    ranks = build_timelines("""
        0 | main     | speedprof.step/1          |   0 | 100 |
        0 | main     | speedprof.step/2          | 100 | 200 |
        0 | stream 7 | gemm                      |   0 |  50 | main 1
        0 | stream 2 | ncclDevKernel_AllGather() |  50 | 160 | main 2
        0 | stream 7 | gemm                      | 100 | 110 | main 101
        0 | stream 7 | gemm                      | 160 | 200 | main 102
        1 | main     | speedprof.step/1          |   0 | 100 |
        1 | main     | speedprof.step/2          | 100 | 200 |
        1 | stream 7 | gemm                      |   0 |  80 | main 1
        1 | stream 2 | ncclDevKernel_AllGather() |  80 | 160 | main 2
        1 | stream 7 | gemm                      | 100 | 105 | main 101
        1 | stream 7 | gemm                      | 160 | 200 | main 102
        2 | main     | speedprof.step/1          |   0 | 100 |
        2 | main     | speedprof.step/2          | 100 | 200 |
        2 | stream 7 | gemm                      |   0 | 100 | main 1
        2 | stream 7 | gemm                      | 100 | 150 | main 101
        2 | stream 2 | ncclDevKernel_AllGather() | 150 | 160 | main 102
        2 | stream 7 | gemm                      | 160 | 200 | main 102
    """)
    match = match_in_order(ranks)
    waiting = find_waiting([cut_exposed(rank, match) for rank in ranks], match, find_common_time(ranks))
    # Rank 0 waits 50..150 but for the compute of 100..110, rank 1 80..150 but for 100..105. Rank 1 is second last.
    assert set(waiting.select("last_rank", "collective").iter_rows()) == {(2, 0)}
    assert waiting.select("rank", "window", "ns", "gain_ns").rows() == [
        (0, 0, 50, 20),
        (0, 1, 40, 40),
        (1, 0, 20, 20),
        (1, 1, 45, 45),
    ]
