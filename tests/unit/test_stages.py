"""What each stage of the optimizer takes, on traces drawn by hand."""

from builders import build_trace

from speedprof.analyses.stages import StageTime, measure_stages

DEVICE = """
    0 | main      | speedprof.stage/update/muon.attn          |  -1 |   0 |
    0 | main      | speedprof.step/1                          |   0 | 100 |
    0 | autograd  | speedprof.stage/reduce_scatter/adam.embed |  10 |  20 |
    0 | main      | speedprof.stage/reduce_scatter/muon.attn  |  30 |  40 |
    0 | main      | speedprof.stage/reduce_scatter/muon.attn  |  40 |  50 |
    0 | main      | speedprof.stage/update/muon.attn          |  60 |  80 |
    0 | main      | speedprof.stage/reduce_scatter_wait/muon.attn | 50 | 55 |
    0 | stream 23 | ncclDevKernel_ReduceScatter_Sum_bf16()    |  20 |  50 | autograd 12
    0 | stream 23 | ncclDevKernel_ReduceScatter_Sum_bf16()    |  50 |  90 | main 32
    0 | stream 23 | ncclDevKernel_ReduceScatter_Sum_bf16()    |  90 | 120 | main 42
    0 | stream 7  | pack                                      |  45 |  52 | main 31
    0 | stream 7  | gemm                                      |  60 | 100 | main 11
    0 | stream 7  | muon update                               | 120 | 130 | main 61
    0 | stream 9  | Memcpy DtoD (Device -> Device)            | 125 | 140 | main 62
"""


def stage(name: str, group: str, calls: int, host: int, device: int, exposed: int) -> StageTime:
    return StageTime(stage=name, group=group, num_calls=calls, host_ns=host, device_ns=device, exposed_ns=exposed)


def test_stages_count_what_they_launched_wherever_it_ran():
    rows = "\n".join(DEVICE.splitlines()[2:])  # a stage before the first step has its own test
    assert measure_stages(build_trace(rows)) == (
        # compute of anyone: 45..52, 60..100, 120..130
        stage("reduce_scatter", "adam.embed", 1, 10, 30, 25),
        stage("reduce_scatter", "muon.attn", 2, 20, 75, 28),
        stage("reduce_scatter_wait", "muon.attn", 1, 5, 0, 0),
        stage("update", "muon.attn", 1, 20, 20, 0),
    )


def test_stages_outside_the_traced_steps_do_not_count():
    trace = build_trace("""
        0 | main | speedprof.stage/update/adam.a |  0 |  5 |
        0 | main | speedprof.step/1              | 10 | 20 |
        0 | main | speedprof.stage/update/adam.a | 12 | 15 |
        0 | main | speedprof.stage/update/adam.a | 30 | 39 |
    """)
    assert measure_stages(trace) == (stage("update", "adam.a", 1, 3, 0, 0),)


def test_stages_of_a_validation_pass_do_not_count():
    trace = build_trace("""
        0 | main | speedprof.stage/update/adam.a |  0 |  5 |
        0 | main | speedprof.step/1              | 10 | 20 |
        0 | main | speedprof.stage/update/adam.a | 12 | 15 |
        0 | main | speedprof.step/2/validation   | 20 | 40 |
        0 | main | speedprof.stage/update/adam.a | 20 | 39 |
        0 | main | speedprof.step/3              | 40 | 50 |
        0 | main | speedprof.stage/update/adam.a | 40 | 41 |
        0 | main | speedprof.stage/update/adam.a | 50 | 59 |
    """)
    assert measure_stages(trace) == (stage("update", "adam.a", 2, 4, 0, 0),)


def test_stages_of_a_step_without_a_window_do_not_count():
    trace = build_trace("""
        0 | main     | speedprof.step/1              |  0 | 20 |
        0 | main     | speedprof.stage/update/adam.a |  2 |  5 |
        0 | main     | speedprof.step/2              | 20 | 40 |
        0 | main     | speedprof.stage/update/adam.a | 22 | 29 |
        0 | stream 7 | gemm                          |  5 | 10 | main 1
    """)
    assert measure_stages(trace) == (stage("update", "adam.a", 1, 3, 0, 0),)


HOST = """
    0 | main   | speedprof.step/1                           |   0 | 200 |
    0 | main   | autograd::engine::evaluate_function: X     |   5 |  60 |
    0 | main   | speedprof.stage/reduce_scatter/adam.e      |  10 |  40 |
    0 | main   | aten::reshape                              |  12 |  15 |
    0 | main   | c10d::_reduce_scatter_base_                |  20 |  38 |
    0 | main   | aten::clone                                |  22 |  24 |
    0 | gloo 0 | gloo:all_reduce                            |  30 | 100 |
    0 | main   | speedprof.stage/reduce_scatter_wait/adam.e |  70 | 110 |
    0 | main   | aten::copy_                                | 102 | 106 |
    0 | main   | speedprof.stage/all_gather/adam.e          | 120 | 140 |
    0 | main   | c10d::_allgather_base_                     | 125 | 135 |
    0 | gloo 1 | gloo:all_gather                            | 130 | 180 |
    0 | main   | aten::mm                                   | 150 | 160 |
"""


def test_on_the_host_a_stage_has_its_operators_and_the_gloo_work_that_it_began():
    assert measure_stages(build_trace(HOST)) == (
        # 12..15 and gloo's 30..100; exposed beside compute 5..20 and 38..60
        stage("reduce_scatter", "adam.e", 1, 30, 73, 48),
        stage("reduce_scatter_wait", "adam.e", 1, 40, 4, 0),
        stage("all_gather", "adam.e", 1, 20, 50, 40),
    )


def test_gloo_work_is_linked_to_the_operator_that_began_it():
    trace = build_trace(HOST)
    assert trace.collectives.select("name", "declared_name", "stage", "launch_start_ns", "host_step").rows() == [
        ("all_reduce", "reduce_scatter_base", "reduce_scatter", 20, 1),
        ("all_gather", "allgather_base", "all_gather", 125, 1),
    ]
    assert trace.notes == ()


def test_gloo_work_begun_before_the_capture_is_said_and_the_rest_still_linked():
    trace = build_trace(HOST + "    0 | gloo 1 | gloo:all_gather | 2 | 9 |")
    assert [found.device_ns for found in measure_stages(trace)] == [73, 4, 50]
    assert trace.notes == ("1 gloo collectives could not be linked to what began them: stages do not include them",)


def test_gloo_work_without_a_sensible_operator_counts_for_no_stage():
    rows = HOST.replace("| 130 | 180 |", "| 121 | 124 |")  # before the operator that would have begun it
    assert [found.device_ns for found in measure_stages(build_trace(rows))] == [73, 4, 0]


def test_operators_not_carried_out_before_the_end_leave_the_others_linked():
    rows = HOST + "    0 | main | c10d::_allgather_base_ | 190 | 195 |"
    assert [found.device_ns for found in measure_stages(build_trace(rows))] == [73, 4, 50]


def test_no_stages_no_rows():
    assert measure_stages(build_trace("0 | stream 7 | gemm | 0 | 10 |")) == ()
