"""What launches cost, by hand. Times are ns; a launch of the builder takes 1 ns."""

from dataclasses import replace
from pathlib import Path

import pytest
from builders import build_trace, read_events

from speedprof.analyses.launches import LaunchOverhead, measure_launches
from speedprof.trace.read_kineto import read_kineto

KINETO = Path(__file__).parents[3] / "shared" / "data" / "kineto"
needs_captures = pytest.mark.skipif(not KINETO.is_dir(), reason="the folder of real captures is not beside this one")

NONE = LaunchOverhead(
    num_launches=0, num_kernels=0, launch_ns=0, median_launch_ns=None, median_lead_ns=None, num_late=0, num_short=0
)


def call(correlation, start, end, name="cudaLaunchKernel", thread=1):
    times = {"ts": start, "dur": end - start}
    args = {"correlation": correlation}
    return {"ph": "X", "cat": "cuda_runtime", "name": name, "pid": 1, "tid": thread, **times, "args": args}


def work(correlation, start, end, name="gemm", category="kernel"):
    times = {"ts": start, "dur": end - start}
    args = {"correlation": correlation, "stream": 7, "device": 0}
    return {"ph": "X", "cat": category, "name": name, "pid": 0, "tid": 7, **times, "args": args}


def test_launches_leads_late_launches_and_short_kernels():
    # calls    1[0     10]  2[12  18]                  3[50 56]
    # device       [5            25][25 28]                 [54    70]
    found = measure_launches(
        read_events(
            [
                *(call(1, 0, 10), call(2, 12, 18), call(3, 50, 56), call(9, 30, 49, "cudaDeviceSynchronize")),
                *(work(1, 5, 25), work(2, 25, 28), work(3, 54, 70)),
            ]
        )
    )
    assert found == LaunchOverhead(
        num_launches=3,
        num_kernels=3,
        launch_ns=22,  # 10 + 6 + 6: the synchronizing call launches nothing
        median_launch_ns=6,
        median_lead_ns=5,  # of 5, 13 and 4
        num_late=1,  # the third; of the first it is not known what ran before
        num_short=1,  # the second
    )


def test_launches_of_two_threads_at_once_count_once():
    found = measure_launches(read_events([call(1, 0, 10), call(2, 5, 20, thread=2), work(1, 20, 30), work(2, 30, 60)]))
    assert (found.num_launches, found.launch_ns, found.median_launch_ns) == (2, 20, 12)


def test_a_graph_is_one_launch_of_many_kernels_that_share_its_cost():
    kernels = [work(1, 100, 109), work(1, 110, 120), work(1, 120, 131)]
    found = measure_launches(read_events([call(1, 0, 30, "cudaGraphLaunch"), *kernels]))
    assert (found.num_launches, found.num_kernels, found.median_lead_ns) == (1, 3, 110)
    assert found.num_short == 1  # its share is 10: the kernel of 9


def test_a_copy_that_the_host_sits_through_is_no_launch():
    name = "Memcpy HtoD (Pageable -> Device)"
    copies = [call(1, 0, 50, "cudaMemcpyAsync"), work(1, 10, 60, name, "gpu_memcpy")]
    pinned = [call(2, 100, 105, "cudaMemcpyAsync"), work(2, 104, 120, name, "gpu_memcpy")]
    found = measure_launches(read_events([*copies, *pinned]))
    assert (found.num_launches, found.num_kernels, found.launch_ns, found.median_lead_ns) == (1, 1, 5, 4)


def test_unlinked_work_keeps_a_launch_from_being_late_or_shows_that_it_is():
    running = build_trace("0 | stream 7 | cut | 0 | 60 |\n0 | stream 3 | a | 60 | 70 | main 50")
    over = build_trace("0 | stream 7 | cut | 0 | 50 |\n0 | stream 3 | a | 60 | 70 | main 50")
    queued = build_trace("0 | stream 7 | a | 90 | 99 | main 0\n0 | stream 3 | b | 60 | 70 | main 50")
    assert [measure_launches(trace).num_late for trace in (running, over, queued)] == [0, 1, 0]


def test_only_launches_of_training_steps_that_have_a_window_count():
    trace = build_trace("""
        0 | main     | speedprof.step/1            |  10 |  40 |
        0 | main     | speedprof.step/2/validation |  40 |  80 |
        0 | main     | speedprof.step/3            |  80 |  90 |
        0 | stream 7 | before                      |  20 |  30 | main 5
        0 | stream 7 | one                         |  40 |  50 | main 10
        0 | stream 7 | one                         |  50 |  60 | main 39
        0 | stream 7 | validation                  |  60 |  70 | main 40
        0 | stream 3 | beside                      | 100 | 110 | main 81
        0 | stream 7 | after                       | 120 | 130 | main 95
    """)
    found = measure_launches(trace)
    assert (found.num_launches, found.num_kernels, found.launch_ns) == (2, 2, 2)
    assert measure_launches(replace(trace, steps=trace.steps.clear())).num_launches == 6


def test_nothing_is_launched_on_the_host_or_where_all_work_is_unlinked():
    assert measure_launches(build_trace("0 | main | aten::mm | 0 | 10 |")) == NONE
    assert measure_launches(build_trace("0 | stream 7 | a | 0 | 10 |\n0 | main | cudaEventQuery | 0 | 10 |")) == NONE


@needs_captures
def test_the_late_rank_of_the_record_run_launches_late_and_another_never():
    late, early = (measure_launches(read_kineto(KINETO / f"speedrun-8xH100/rank{rank}.json.gz")) for rank in (1, 3))
    assert (late.num_launches, early.num_launches) == (late.num_kernels, early.num_kernels) == (3354, 3354)
    assert (late.num_late, early.num_late) == (410, 0)
    assert round(late.median_lead_ns / 1e6, 1) == 3.9
    assert round(early.median_lead_ns / 1e6, 1) == 40.2
