"""Who launched what: steps, windows, stages, unlinked work and the error budget, on traces drawn by hand."""

import pytest
from builders import build_trace, build_traces, read_events, rows_to_events

from speedprof.trace.model import ErrorBudget, Timeline

TWO_STEPS = """
    0 | main      | speedprof.step/3                                   | 100 | 190 |
    0 | main      | speedprof.stage/reduce_scatter/muon.attn           | 110 | 130 |
    0 | main      | speedprof.step/4                                   | 200 | 290 |
    0 | autograd  | speedprof.stage/reduce_scatter/adam.embed          | 140 | 150 |
    0 | stream 7  | queued before the capture                          |  90 | 120 |
    0 | stream 7  | gemm a                                             | 150 | 250 | main 105
    0 | stream 23 | ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL()     | 140 | 180 | main 115
    0 | stream 23 | ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL()     | 180 | 220 | autograd 145
    0 | stream 7  | gemm b                                             | 250 | 300 | autograd 120
    0 | stream 7  | lost launch                                        | 300 | 310 |
    0 | stream 7  | gemm c                                             | 310 | 400 | main 195
    0 | stream 7  | gemm d                                             | 400 | 480 | main 210
    0 | stream 7  | gemm e                                             | 480 | 500 | main 295
"""


def kernels_of(trace):
    return {row["name"]: row for row in trace.kernels.iter_rows(named=True)}


def test_work_belongs_to_the_step_of_its_launch_whatever_the_thread():
    steps = {name: row["host_step"] for name, row in kernels_of(build_trace(TWO_STEPS)).items()}
    assert steps["gemm a"] == 3
    assert steps["gemm b"] == 3  # launched by autograd while step 3 runs on the main thread
    assert steps["gemm c"] == 3  # launched between the ranges of step 3 and 4: step 3 lasts until mark 4
    assert steps["gemm d"] == 4
    assert steps["gemm e"] is None  # after the last step's end


def test_unlinked_work_takes_the_step_before_it_on_its_stream_and_none_at_the_head():
    rows = kernels_of(build_trace(TWO_STEPS))
    assert (rows["lost launch"]["host_step"], rows["lost launch"]["placed_by"]) == (3, "stream_order")
    assert not rows["lost launch"]["cut"]
    head = rows["queued before the capture"]
    assert (head["host_step"], head["placed_by"], head["cut"], head["linked"]) == (None, None, True, False)
    assert (rows["gemm a"]["placed_by"], rows["gemm a"]["launch_start_ns"]) == ("launch", 105)


def test_stages_reach_only_launches_on_their_own_thread():
    trace = build_trace(TWO_STEPS)
    assert trace.collectives["group"].to_list() == ["muon.attn", "adam.embed"]
    assert trace.collectives["name"].to_list() == ["reduce_scatter", "reduce_scatter"]
    assert trace.collectives["launch_start_ns"].to_list() == [115, 145]
    # gemm b was launched by autograd while the main thread was in a stage: it is not that stage's work.
    assert kernels_of(trace)["gemm b"]["stage_row"] is None


def test_device_windows_begin_with_the_first_launched_work_on_the_main_stream():
    assert build_trace(TWO_STEPS).steps.rows() == [(3, "train", 100, 200, 150, 400), (4, "train", 200, 290, 400, 500)]


def test_error_budget_counts_each_flaw():
    trace = build_trace(TWO_STEPS)
    assert trace.error_budget == ErrorBudget(device_events=9, unlinked=2, cut=1, crossing=0, zero_length=0)
    assert trace.timeline is Timeline.DEVICE


def test_crossing_is_overlap_without_nesting_on_one_stream():
    trace = build_trace("""
        0 | stream 7 | a         |  0 | 10 | main 0
        0 | stream 7 | crosses   |  5 | 15 | main 1
        0 | stream 7 | nested    |  6 |  8 | main 2
        0 | stream 8 | elsewhere |  6 | 20 | main 3
        0 | stream 7 | touches   | 15 | 16 | main 4
        0 | stream 7 | empty     | 16 | 16 | main 5
    """)
    assert trace.kernels.filter(trace.kernels["crossing"])["name"].to_list() == ["crosses"]
    assert (trace.error_budget.crossing, trace.error_budget.zero_length) == (1, 1)


def test_what_the_profilers_span_does_not_hold_is_cut():
    trace = build_trace("""
        0 | span     | PyTorch Profiler (0) | 10 | 50 |
        0 | stream 7 | early                |  9 | 12 | main 8
        0 | stream 7 | inside               | 12 | 50 | main 9
        0 | stream 7 | late                 | 50 | 51 | main 40
    """)
    assert trace.kernels.filter(trace.kernels["cut"])["name"].to_list() == ["early", "late"]


def test_kernels_of_one_graph_launch_share_its_launch():
    (events,) = rows_to_events("""
        0 | main     | speedprof.step/0 |  0 | 30 |
        0 | stream 7 | first            | 10 | 20 | main 5
    """).values()
    trace = read_events([*events, {**events[-1], "ts": 20, "name": "second"}])
    assert trace.kernels["launch_row"].to_list() == [0, 0]
    assert trace.kernels["host_step"].to_list() == [0, 0]


def test_profiler_steps_serve_where_the_program_marks_none():
    trace = build_trace("""
        0 | main     | ProfilerStep#7 |   0 | 100 |
        0 | main     | ProfilerStep#8 | 101 | 200 |
        0 | stream 7 | a              |  50 |  60 | main 10
        0 | stream 7 | b              | 170 | 180 | main 100
        0 | stream 7 | c              | 180 | 190 | main 110
    """)
    assert trace.steps.rows() == [(7, "train", 0, 101, 50, 180), (8, "train", 101, 200, 180, 190)]
    assert trace.kernels["host_step"].to_list() == [7, 7, 8]


def test_a_step_without_work_on_the_main_stream_has_no_window():
    trace = build_trace("""
        0 | main     | speedprof.step/1 |   0 | 100 |
        0 | main     | speedprof.step/2 | 100 | 200 |
        0 | main     | speedprof.step/3 | 200 | 300 |
        0 | stream 7 | a                |  50 |  60 | main 10
        0 | stream 7 | c                | 280 | 290 | main 210
    """)
    assert trace.steps.drop("kind").rows() == [
        (1, 0, 100, 50, 280),
        (2, 100, 200, None, None),
        (3, 200, 300, 280, 290),
    ]


def test_a_validation_pass_is_a_step_of_its_own_kind():
    trace = build_trace("""
        0 | main     | speedprof.step/1              |   0 | 100 |
        0 | main     | speedprof.step/2/validation   | 100 | 200 |
        0 | main     | speedprof.step/3              | 200 | 300 |
        0 | main     | speedprof.step/4/evaluation   | 300 | 400 |
        0 | main     | ProfilerStep#4/validation     | 300 | 400 |
        0 | stream 7 | a                             |  50 |  60 | main 10
        0 | stream 7 | b                             | 170 | 180 | main 110
        0 | stream 7 | c                             | 280 | 290 | main 210
    """)
    assert trace.steps.rows() == [
        (1, "train", 0, 100, 50, 170),
        (2, "validation", 100, 200, 170, 280),
        (3, "train", 200, 300, 280, 290),
    ]
    assert trace.ranges["kind"].to_list() == ["step", "step", "step", "annotation", "annotation"]
    assert trace.ranges["step_kind"].to_list() == ["train", "validation", "train", None, None]


@pytest.mark.parametrize("name", ["gpu_user_annotation", "cuda_sync", "overhead", "python_function"])
def test_marks_and_waits_on_the_device_are_not_work(name):
    args = {"stream": 7, "device": 0, "correlation": 1}
    mark = {"ph": "X", "cat": name, "name": "ProfilerStep#3", "tid": 7, "ts": 0, "dur": 10, "args": args}
    # Inductor gives its CPU ops a stream.
    op = {"ph": "X", "cat": "cpu_op", "name": "triton_poi_fused_0", "tid": 1, "ts": 0, "dur": 10, "args": args}
    trace = read_events([mark, op])
    assert (len(trace.kernels), len(trace.ops), len(trace.ranges)) == (0, 1, 0)
    assert trace.timeline is Timeline.HOST


def test_each_rank_has_its_own_trace():
    traces = build_traces("""
        3 | stream 7 | a | 0 | 10 |
        5 | stream 7 | b | 0 | 10 |
    """)
    assert {rank: trace.rank for rank, trace in traces.items()} == {3: 3, 5: 5}
