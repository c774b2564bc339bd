"""The kernels that cost most, by hand."""

from builders import build_trace

from speedprof.analyses.top_kernels import KernelTime, measure_kernels


def row(name, count, total, alone, kind="compute", stage=None, group=None):
    return KernelTime(name=name, kind=kind, stage=stage, group=group, count=count, total_ns=total, alone_ns=alone)


def test_durations_are_summed_and_time_alone_is_without_any_other_work():
    # a      0..10       30..40
    # a                    35..45     on another stream: alone from 30 to 45 all the same
    # b         5..20
    # copy                                60..70
    # set                                      69..72
    trace = build_trace("""
        0 | stream 7 | a                      |  0 | 10 |
        0 | stream 7 | a                      | 30 | 40 |
        0 | stream 9 | a                      | 35 | 45 |
        0 | stream 9 | b                      |  5 | 20 |
        0 | stream 9 | b                      | 50 | 50 |
        0 | stream 3 | Memcpy DtoH            | 60 | 70 |
        0 | stream 7 | Memset (Device)        | 69 | 72 |
    """)
    assert measure_kernels(trace) == (
        row("a", 3, 30, 20),
        row("b", 2, 15, 10),
        row("Memcpy DtoH", 1, 10, 9, kind="copy"),
        row("Memset (Device)", 1, 3, 2, kind="memset"),
    )


def test_a_kernel_has_a_row_for_each_stage_and_group_that_launches_it():
    trace = build_trace("""
        0 | main     | speedprof.stage/newton_schulz/muon.attn |   0 |  20 |
        0 | main     | speedprof.stage/newton_schulz/muon.mlp  |  20 |  40 |
        0 | main     | speedprof.stage/update/muon.mlp         |  40 |  60 |
        0 | stream 7 | gemm                                    | 100 | 110 | main 5
        0 | stream 7 | gemm                                    | 110 | 130 | main 25
        0 | stream 7 | gemm                                    | 130 | 160 | main 45
        0 | stream 7 | gemm                                    | 160 | 200 | main 26
        0 | stream 7 | gemm                                    | 200 | 205 | main 70
        0 | stream 7 | gemm                                    | 205 | 208 |
    """)
    assert measure_kernels(trace) == (
        row("gemm", 2, 60, 60, stage="newton_schulz", group="muon.mlp"),
        row("gemm", 1, 30, 30, stage="update", group="muon.mlp"),
        row("gemm", 1, 10, 10, stage="newton_schulz", group="muon.attn"),
        row("gemm", 2, 8, 8),
    )


def test_only_what_begins_in_windows_of_training_counts_but_all_work_is_beside_it():
    # stream 7          50..60              90..110          the window of step 1: 50..105
    #                                          105......145  that of the validation pass
    # stream 9  10.......55                         130..150
    trace = build_trace("""
        0 | main     | speedprof.step/1            |   0 |  40 |
        0 | main     | speedprof.step/2/validation |  40 |  80 |
        0 | stream 9 | gemm                        |  10 |  55 |
        0 | stream 7 | gemm                        |  50 |  60 | main 20
        0 | stream 7 | gemm                        |  90 | 110 | main 30
        0 | stream 7 | gemm                        | 105 | 145 | main 50
        0 | stream 9 | gemm                        | 130 | 150 |
    """)
    assert measure_kernels(trace) == (row("gemm", 2, 30, 20),)


def test_no_kernels_no_rows():
    assert measure_kernels(build_trace("0 | main | aten::mm | 0 | 10 |")) == ()
