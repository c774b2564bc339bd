"""A file may hold work of several devices; a trace is of the one that computes most."""

from builders import build_trace, read_events, rows_to_events

from speedprof.analyses.breakdown import Partition, measure_breakdown


def test_compute_on_one_device_hides_nothing_on_another():
    trace = build_trace("""
        0 | stream 7 of 0  | gemm                           |  0 | 30 |
        0 | stream 7 of 1  | gemm                           |  0 | 80 |
        0 | stream 23 of 1 | ncclDevKernel_AllGather_RING() | 80 | 95 |
        0 | stream 23 of 0 | ncclDevKernel_AllGather_RING() | 10 | 90 |
        0 | stream 9 of 4  | Memcpy DtoD (Device -> Device) | 10 | 99 |
    """)
    assert trace.kernels["device"].to_list() == [1, 1]
    assert trace.notes == (
        "3 of 5 device events ran on devices 0, 4 and are left out: the numbers are those of device 1, "
        "which computes most",
    )
    assert measure_breakdown(trace).partition == Partition(
        compute_ns=80, exposed_communication_ns=15, exposed_copy_ns=0, idle_ns=0
    )


def test_steps_begin_on_the_main_stream_of_the_main_device():
    trace = build_trace("""
        0 | main          | speedprof.step/1 |  0 | 50 |
        0 | stream 7 of 1 | elsewhere        |  5 | 20 | main 1
        0 | stream 7 of 0 | gemm             | 10 | 40 | main 2
    """)
    assert trace.steps["start_ns"].to_list() == [10]
    assert trace.notes[0].startswith("1 of 2 device events ran on device 1 and are left out")


def test_work_that_does_not_name_its_device_is_kept():
    (events,) = rows_to_events("0 | stream 7 of 2 | gemm | 0 | 30 |\n0 | stream 8 of 2 | Memset | 30 | 31 |").values()
    del events[1]["args"]["device"]
    trace = read_events(events)
    assert trace.kernels["device"].to_list() == [2, None]
    assert trace.notes == ()
