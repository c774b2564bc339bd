"""Why the host is late in an idle gap, and what it was at. Times are ns; a launch of the builder takes 1 ns."""

import pytest
from builders import build_trace, read_events, rows_to_events

from speedprof.analyses.idle_gaps import GapCause, measure_idle_gaps


def rows_of(trace, *columns):
    return measure_idle_gaps(trace).table.select(columns).rows()


def causes_of(rows):
    """Start, end and cause of each row of the table."""
    return rows_of(build_trace(rows), "start_ns", "end_ns", "cause")


HOST_AT_WORK = """
    0 | stream 7 | a |      0 | 100000 |
    0 | stream 7 | b | 210000 | 250000 | main 200000
"""


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", "input"),
        ("[pl][profile][_TrainingEpochLoop].train_dataloader_next", "input"),
        ("## data_load ##", "input"),
        ("speedprof.range/data", "input"),
        ("speedprof.range/database", "late_launch"),
        ("_compile.compile_inner (dynamo_timed)", "recompile"),
        ("TorchDynamo Cache Lookup", "late_launch"),
        ("Torch-Compiled Region: 0/0", "late_launch"),
        ("gc.collect", "gc"),
        ("cudaMalloc", "allocator"),
        ("cudaFreeHost", "allocator"),
        ("cudaHostAlloc", "allocator"),
        ("cudaMemsetAsync", "late_launch"),
        ("cudaMemGetInfo", "late_launch"),
        ("cudaStreamSynchronize", "sync"),
        ("cudaEventSynchronize", "sync"),
        ("cudaEventQuery", "late_launch"),
        ("aten::stack", "late_launch"),
    ],
)
def test_time_before_the_launch_has_the_cause_that_covers_it_and_the_rest_none(name, cause):
    taken = f"0 | main | {name} | 120000 | 170000 |"
    late, queued = "late_launch", (200_000, 210_000, "queued")
    parts = [(100_000, 120_000, late), (120_000, 170_000, cause), (170_000, 200_000, late), queued]
    assert causes_of(HOST_AT_WORK + taken) == ([(100_000, 200_000, late), queued] if cause == late else parts)


@pytest.mark.parametrize("name", ["hipMalloc", "hipHostMalloc", "cuMemCreate", "cuMemUnmap", "cuMemFree_v2"])
@pytest.mark.parametrize("category", ["cuda_runtime", "cuda_driver", "hip_runtime"])
def test_allocators_of_every_runtime(name, category):
    (events,) = rows_to_events(HOST_AT_WORK).values()
    call = {"ph": "X", "cat": category, "name": name, "pid": 1, "tid": 1, "ts": 100_000, "dur": 80_000, "args": {}}
    found = rows_of(read_events([*events, call]), "end_ns", "cause", "call")
    assert found[0] == (180_000, "allocator", name)
    assert found[1] == (200_000, "late_launch", "cudaLaunchKernel")


def test_a_cause_is_named_by_itself_and_what_is_around_it():
    # Within the loader's operator there is an allocation: that is the cause for its time, the loader where it is.
    trace = build_trace(
        HOST_AT_WORK
        + """
        0 | main | speedprof.range/epoch | 100000 | 199000 |
        0 | main | DataLoader.next       | 110000 | 198000 |
        0 | main | cudaMalloc            | 120000 | 190000 |
        0 | main | aten::mm              | 199000 | 201000 |
    """
    )
    epoch, late = "speedprof.range/epoch", (None, "aten::mm", "cudaLaunchKernel")
    assert rows_of(trace, "start_ns", "end_ns", "cause", "range", "op", "call") == [
        (100_000, 110_000, "late_launch", *late),
        (110_000, 120_000, "input", epoch, "DataLoader.next", None),
        (120_000, 190_000, "allocator", epoch, "DataLoader.next", "cudaMalloc"),
        (190_000, 198_000, "input", epoch, "DataLoader.next", None),
        (198_000, 200_000, "late_launch", *late),
        (200_000, 210_000, "queued", *late),
    ]


def test_a_range_or_an_operator_that_is_the_cause_is_named_and_no_call():
    ranged = build_trace(HOST_AT_WORK + "0 | main | speedprof.range/data | 100000 | 190000 |")
    assert rows_of(ranged, "cause", "range", "op", "call")[0] == ("input", "speedprof.range/data", None, None)
    operator = build_trace(
        HOST_AT_WORK
        + "0 | main | speedprof.range/epoch | 90000 | 240000 |\n"
        + "0 | main | DataLoader.next       | 100000 | 190000 |\n"
        + "0 | main | aten::stack           | 110000 | 112000 |"
    )
    found = rows_of(operator, "cause", "range", "op", "call")[0]
    assert found == ("input", "speedprof.range/epoch", "DataLoader.next", None)


def test_several_calls_and_several_gaps_keep_each_its_own_time():
    """Calls that meet and are named alike make one row; a group counts the gaps, not the rows."""
    found = measure_idle_gaps(
        build_trace("""
        0 | main     | cudaMalloc | 110000 | 120000 |
        0 | main     | cudaMalloc | 120000 | 130000 |
        0 | main     | cudaFree   | 130000 | 140000 |
        0 | main     | cudaMalloc | 150000 | 151000 |
        0 | main     | cudaMalloc | 310000 | 315000 |
        0 | stream 7 | a          |      0 | 100000 |
        0 | stream 7 | b          | 200000 | 300000 | main 200000
        0 | stream 7 | c          | 320000 | 400000 | main 320000
    """)
    )
    late, malloc = ("late_launch", "cudaLaunchKernel"), ("allocator", "cudaMalloc")
    assert found.table.select("start_ns", "end_ns", "cause", "call").rows() == [
        (100_000, 110_000, *late),
        (110_000, 130_000, *malloc),
        (130_000, 140_000, "allocator", "cudaFree"),
        (140_000, 150_000, *late),
        (150_000, 151_000, *malloc),
        (151_000, 200_000, *late),
        (300_000, 310_000, *late),
        (310_000, 315_000, *malloc),
        (315_000, 320_000, *late),
    ]
    assert [(one.call, one.num_gaps, one.total_ns, one.longest_ns) for one in found.groups] == [
        ("cudaLaunchKernel", 2, 84_000, 49_000),
        ("cudaMalloc", 2, 26_000, 20_000),
        ("cudaFree", 1, 10_000, 10_000),
    ]
    assert found.by_cause == {GapCause.LATE_LAUNCH: 84_000, GapCause.ALLOCATOR: 36_000}


# The device of HOST_AT_WORK runs dry at 100 µs, and the launch comes at 200.
@pytest.mark.parametrize(
    ("start", "end", "sync"),
    [
        (50_000, 103_000, (100_000, 153_000)),  # its own 3 µs, and as long as it had blocked the host before
        (99_000, 130_000, (100_000, 131_000)),
        (50_000, 199_000, (100_000, 200_000)),  # not beyond the launch
        (1_000, 103_000, (100_000, 200_000)),
        (50_000, 95_000, (100_000, 145_000)),  # by the clocks it returned a little earlier
        (50_000, 94_999, None),  # the device had work for 5 µs after it
        (103_000, 120_000, (103_000, 120_000)),  # the device was dry: it took nothing of the host's lead
        (100_000, 120_000, (100_000, 120_000)),
    ],
)
def test_a_call_that_blocks_the_host_is_the_cause_for_what_it_took_of_the_hosts_lead(start, end, sync):
    rows = (
        HOST_AT_WORK
        + f"""
        0 | main | aten::item            |    500 | 202000 |
        0 | main | cudaStreamSynchronize | {start} | {end} |
    """
    )
    found = rows_of(build_trace(rows), "start_ns", "end_ns", "cause", "op", "call")
    assert [row[:2] for row in found if row[2:] == ("sync", "aten::item", "cudaStreamSynchronize")] == (
        [sync] if sync else []
    )
    late = [(100_000, sync[0]), (sync[1], 200_000)] if sync else [(100_000, 200_000)]
    assert [row[:2] for row in found if row[2] == "late_launch"] == [(a, b) for a, b in late if a < b]


def test_what_a_call_took_of_the_lead_yields_to_other_causes():
    # The call blocked the host for 60 µs before the device ran dry: 103 to 163 is its own, but for the loader's time.
    rows = (
        HOST_AT_WORK
        + """
        0 | main | cudaStreamSynchronize |  40000 | 103000 |
        0 | main | DataLoader.next       | 120000 | 170000 |
    """
    )
    assert causes_of(rows)[:-1] == [
        (100_000, 120_000, "sync"),
        (120_000, 170_000, "input"),
        (170_000, 200_000, "late_launch"),
    ]


def test_calls_that_end_together_as_the_device_runs_dry_add_up_and_the_longest_is_to_blame():
    # 37 µs and 2 µs before 100; the second ends at 104.
    rows = (
        HOST_AT_WORK
        + """
        0 | main | cudaEventSynchronize  | 60000 |  97000 |
        0 | main | cudaStreamSynchronize | 98000 | 104000 |
    """
    )
    found = rows_of(build_trace(rows), "start_ns", "end_ns", "cause", "call")
    assert found[:3] == [
        (100_000, 104_000, "sync", "cudaStreamSynchronize"),
        (104_000, 143_000, "sync", "cudaEventSynchronize"),
        (143_000, 200_000, "late_launch", "cudaLaunchKernel"),
    ]


def test_a_long_sleep_after_a_short_wait_is_a_late_launch():
    # The call blocks the host for 1 ms until the device runs dry; then Python sleeps for 20 ms, across a step's border.
    trace = build_trace("""
        0 | main     | speedprof.step/1      |        0 |  1200000 |
        0 | main     | speedprof.step/2      |  1200000 | 30000000 |
        0 | main     | cudaDeviceSynchronize |     5000 |  1005000 |
        0 | stream 7 | a                     |     3000 |  1005000 | main 1000
        0 | stream 7 | nothing               |  1500000 |  1500000 | main 1300000
        0 | stream 7 | b                     | 21005000 | 21500000 | main 21005000
    """)
    assert rows_of(trace, "start_ns", "end_ns", "cause", "step") == [
        (1_005_000, 1_500_000, "sync", 1),
        (1_500_000, 2_005_000, "sync", 2),
        (2_005_000, 21_005_000, "late_launch", 2),
    ]


def test_a_call_that_outlasts_the_launch_did_not_hold_it_back():
    rows = (
        HOST_AT_WORK.replace("main 200000", "autograd 200000")
        + """
        0 | main     | speedprof.step/1                        |      0 | 300000 |
        0 | autograd | autograd::engine::evaluate_function: Mm | 190000 | 206000 |
    """
    )
    for start in (50_000, 120_000):
        waiting = "0 | main | cudaStreamSynchronize | {} | {} |"
        assert causes_of(rows + waiting.format(start, 200_001))[0] == (100_000, 200_000, "late_launch")
        assert "sync" in {cause for _, _, cause in causes_of(rows + waiting.format(start, 200_000))}


def copy_events(call_end):
    """A copy from 60 to 100 µs, launched by a call that begins at 50; the device then is idle to 210."""
    (events,) = rows_to_events(HOST_AT_WORK.replace("100000 |", "60000 |")).values()
    shared = {"ph": "X", "ts": 60_000, "args": {"correlation": 77, "stream": 7, "device": 0}}
    copy = {**shared, "cat": "gpu_memcpy", "name": "Memcpy DtoH (Device -> Pageable)", "tid": 7, "dur": 40_000}
    call = {
        **shared,
        "cat": "cuda_runtime",
        "name": "cudaMemcpyAsync",
        "tid": 1,
        "ts": 50_000,
        "dur": call_end - 50_000,
    }
    return read_events([*events, copy, call])


def test_a_copy_that_the_host_sits_through_waits_like_a_synchronizing_call():
    columns = ("start_ns", "end_ns", "cause", "call")
    assert rows_of(copy_events(103_000), *columns)[:2] == [
        (100_000, 153_000, "sync", "cudaMemcpyAsync"),
        (153_000, 200_000, "late_launch", "cudaLaunchKernel"),
    ]
    assert rows_of(copy_events(62_000), *columns)[0] == (100_000, 200_000, "late_launch", "cudaLaunchKernel")


def test_main_thread_and_autograd_take_turns_but_other_threads_do_not():
    nodes = """
        0 | main     | speedprof.step/1                        |      0 | 250000 |
        0 | autograd | autograd::engine::evaluate_function: Mm | 205000 | 206000 |
    """
    loading = "0 | {} | DataLoader.next | 100000 | 190000 |"
    backward = HOST_AT_WORK.replace("main 200000", "autograd 200000")
    for waiting, at_work, cause in (
        (backward, "main", "input"),
        (HOST_AT_WORK, "autograd", "input"),
        (HOST_AT_WORK, "worker", "late_launch"),
        (HOST_AT_WORK.replace("main 200000", "worker 200000"), "main", "late_launch"),
    ):
        assert causes_of(nodes + waiting + loading.format(at_work))[0][2] == cause, (at_work, cause)


def test_of_a_launch_outside_every_operator_the_operator_or_call_that_took_most_of_the_time_is_named():
    trace = build_trace(
        HOST_AT_WORK
        + """
        0 | main   | aten::unbind        |  90000 | 140000 |
        0 | main   | aten::select        | 100000 | 140000 |
        0 | main   | cudaEventQuery      | 150000 | 185000 |
        0 | worker | aten::stack         | 100000 | 200000 |
    """
    )
    assert rows_of(trace, "cause", "op") == [("late_launch", "aten::unbind"), ("queued", None)]


def test_where_nothing_ran_on_record_nothing_is_named():
    # The host sleeps in the first gap; an operator runs in the second; only zero-length ones in the third.
    trace = build_trace("""
        0 | main     | aten::before  |  10000 |  20000 |
        0 | main     | aten::within  | 310000 | 350000 |
        0 | main     | aten::nothing | 550000 | 550000 |
        0 | main     | aten::after   | 700000 | 750000 |
        0 | stream 7 | a             |      0 | 100000 |
        0 | stream 7 | b             | 200000 | 300000 | main 200000
        0 | stream 7 | c             | 400000 | 500000 | main 400000
        0 | stream 7 | d             | 600000 | 800000 | main 600000
    """)
    assert rows_of(trace, "cause", "op") == [
        ("late_launch", None),
        ("late_launch", "aten::within"),
        ("late_launch", None),
    ]
    assert [(one.op, one.num_gaps, one.total_ns) for one in measure_idle_gaps(trace).groups] == [
        (None, 2, 200_000),
        ("aten::within", 1, 100_000),
    ]


def test_what_a_late_launch_is_named_by_ran_in_that_part_of_the_gap():
    rows = (
        HOST_AT_WORK
        + """
        0 | main | aten::stack     | 101000 | 105000 |
        0 | main | DataLoader.next | 110000 | 180000 |
        0 | main | cudaEventQuery  | 182000 | 183000 |
    """
    )
    assert rows_of(build_trace(rows), "cause", "op")[:3] == [
        ("late_launch", "aten::stack"),
        ("input", "DataLoader.next"),
        ("late_launch", "cudaEventQuery"),
    ]


@pytest.mark.parametrize(
    ("ranges", "expected"),
    [
        (["ProfilerStep#3"], None),
        (["ProfilerStep#3", "## forward ##", "nccl:all_reduce"], "## forward ##"),
        (
            ["speedprof.step/3", "speedprof.range/backward", "## Call CompiledFxGraph f00 ##"],
            "speedprof.range/backward",
        ),
        (["ProfilerStep#3", "## Call CompiledFxGraph f00 ##"], "## Call CompiledFxGraph f00 ##"),
        (["speedprof.stage/update/adam.embed", "## inner ##"], "## inner ##"),
        (["## outer ##", "speedprof.stage/update/adam.embed"], "speedprof.stage/update/adam.embed"),
    ],
)
def test_the_range_is_the_innermost_of_the_users_own(ranges, expected):
    rows = [f"0 | main | {name} | {100000 + at} | {220000 - at} |" for at, name in enumerate(ranges)]
    (late, _) = rows_of(build_trace(HOST_AT_WORK + "\n".join(rows)), "range")
    assert late == (expected,)
