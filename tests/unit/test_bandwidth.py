"""How fast collectives of each size move their bytes, on ranks drawn by hand."""

import pytest
from builders_ranks import build_timelines
from hand_match import match_by_hand, match_in_order, refuse

from speedprof.analyses.bandwidth import CollectiveBandwidth, measure_bandwidth


def one_collective(kernel: str, said: str, num_ranks: int = 4):
    """The bandwidths of a collective of 100 ns on so many ranks."""
    ranks = build_timelines("\n".join(f"{n} | stream 2 | {kernel} | 0 | 100 | | {said}" for n in range(num_ranks)))
    return measure_bandwidth(ranks, match_in_order(ranks))


def test_time_runs_from_the_last_start_to_the_last_end():
    said = "dtype BFloat16; in 8; out 32"
    ranks = build_timelines(f"""
        0 | stream 2 | ncclDevKernel_AllGather() |   0 |  30 | | {said}
        0 | stream 2 | ncclDevKernel_AllGather() | 100 | 131 | | {said}
        0 | stream 2 | ncclDevKernel_AllGather() | 200 | 250 | | {said}
        0 | stream 2 | ncclDevKernel_AllGather() | 300 | 310 | | dtype BFloat16; in 4; out 16
        1 | stream 2 | ncclDevKernel_AllGather() |  10 |  26 | | {said}
        1 | stream 2 | ncclDevKernel_AllGather() | 100 | 132 | | {said}
        1 | stream 2 | ncclDevKernel_AllGather() | 210 | 251 | | {said}
        1 | stream 2 | ncclDevKernel_AllGather() | 301 | 311 | | dtype BFloat16; in 4; out 16
    """)
    small, large = measure_bandwidth(ranks, match_in_order(ranks))
    assert (small.num_bytes, small.median_ns, small.count) == (32, 10, 1)
    assert large == CollectiveBandwidth(
        name="all_gather",
        dtype="BFloat16",
        num_bytes=64,
        group_size=2,
        count=3,
        median_ns=32,  # of 20, 32 and 41
        fastest_ns=20,
        bus_factor=0.5,
    )
    assert large.bus_bytes_per_s == 1e9  # 32 bytes in 32 ns


@pytest.mark.parametrize(
    ("kernel", "said", "name", "num_bytes", "factor"),
    [
        ("ncclDevKernel_AllReduce()", "dtype Float; in 8; out 8", "all_reduce", 32, 1.5),
        ("ncclDevKernel_AllGather()", "dtype Half; in 8; out 32", "all_gather", 64, 0.75),
        ("ncclDevKernel_ReduceScatter()", "dtype Long; in 32; out 8", "reduce_scatter", 256, 0.75),
        ("ncclDevKernel_Broadcast()", "dtype Byte; in 8; out 8", "broadcast", 8, 1.0),
        ("ncclDevKernel_Reduce()", "dtype Float8_e4m3fn; in 8; out 8", "reduce", 8, 1.0),
        ("ncclDevKernel_SendRecv()", "called all_to_all; dtype Float; in 8; out 8", "all_to_all", 32, 0.75),
        ("ncclDevKernel_SendRecv()", "called send; dtype Float; in 8; out 8", "send_recv", 32, None),
        ("ncclDevKernel_Generic()", "called allreduce; dtype Float; in 8; out 8", "all_reduce", 32, 1.5),
        ("ncclDevKernel_Generic()", "called _allgather_base; dtype Float; in 8; out 32", "all_gather", 128, 0.75),
        (
            "ncclDevKernel_Generic()",
            "called _reduce_scatter_base; dtype Int; in 32; out 8",
            "reduce_scatter",
            128,
            0.75,
        ),
        ("ncclDevKernel_Generic()", "called something_new; dtype Int; in 32; out 8", "other", 128, None),
        # The kernel's own name tells: PyTorch may build one collective of another.
        ("ncclDevKernel_AllReduce()", "called barrier; dtype Int; in 1; out 1", "all_reduce", 4, 1.5),
    ],
)
def test_bytes_and_bus_factor_of_each_collective_are_those_of_nccl_tests(kernel, said, name, num_bytes, factor):
    (found,) = one_collective(kernel, said)
    assert (found.name, found.num_bytes, found.bus_factor, found.group_size) == (name, num_bytes, factor, 4)
    assert found.bus_bytes_per_s == (None if factor is None else factor * num_bytes * 10_000_000)


@pytest.mark.parametrize("said", ["", "dtype Float", "in 8; out 8", "dtype Complex9; in 8; out 8"])
def test_collectives_of_unknown_size_or_type_are_left_out(said):
    assert one_collective("ncclDevKernel_AllReduce()", said) == ()


def test_of_unequal_parts_the_largest_counts():
    ranks = build_timelines("""
        0 | stream 2 | ncclDevKernel_SendRecv() | 0 | 100 | | called all_to_allv; dtype Byte; in 8; out 12
        1 | stream 2 | ncclDevKernel_SendRecv() | 0 | 100 | | called all_to_allv; dtype Byte; in 9; out 5
    """)
    (found,) = measure_bandwidth(ranks, match_in_order(ranks))
    assert (found.name, found.num_bytes) == ("all_to_all", 12)


def test_a_part_whose_launch_was_not_recorded_takes_its_size_from_the_others():
    ranks = build_timelines("""
        0 | stream 2 | ncclDevKernel_AllReduce() | 0 | 100 |
        1 | stream 2 | ncclDevKernel_AllReduce() | 0 | 100 | | dtype Float; in 8; out 8
    """)
    (found,) = measure_bandwidth(ranks, match_in_order(ranks))
    assert (found.num_bytes, found.group_size) == (32, 2)


def test_incomplete_collectives_do_not_count():
    ranks = build_timelines("""
        0 | stream 2 | ncclDevKernel_AllReduce() | 0 | 100 | | dtype Float; in 8; out 8
        1 | stream 2 | ncclDevKernel_AllReduce() | 0 | 100 | | dtype Float; in 8; out 8
    """)
    assert measure_bandwidth(ranks, match_by_hand(ranks, [{0: 0, 1: 0}], incomplete=[0])) == ()
    assert measure_bandwidth(ranks, refuse(ranks)) == ()
    assert measure_bandwidth([], refuse([])) == ()


def test_groups_of_other_sizes_are_kept_apart_and_no_time_gives_no_bandwidth():
    ranks = build_timelines("""
        0 | stream 2 | ncclDevKernel_AllReduce() | 0 | 10 | | dtype Float; in 8; out 8
        0 | stream 2 | ncclDevKernel_AllReduce() | 20 | 20 | | dtype Float; in 8; out 8
        1 | stream 2 | ncclDevKernel_AllReduce() | 0 | 10 | | dtype Float; in 8; out 8
        1 | stream 2 | ncclDevKernel_AllReduce() | 20 | 20 | | dtype Float; in 8; out 8
        2 | stream 2 | ncclDevKernel_AllReduce() | 0 | 10 | | dtype Float; in 8; out 8
    """)
    pair, three = measure_bandwidth(ranks, match_by_hand(ranks, [{0: 0, 1: 0, 2: 0}, {0: 1, 1: 1}]))
    assert (pair.group_size, pair.median_ns, pair.bus_bytes_per_s) == (2, 0, None)
    assert (three.group_size, three.median_ns) == (3, 10)
