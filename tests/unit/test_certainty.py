"""The partition without the events that are known only in part."""

from pathlib import Path

import pytest
from builders import build_trace, read_events

from speedprof.analyses.breakdown import Partition, measure_breakdown
from speedprof.analyses.certainty import measure_certainty
from speedprof.trace.read_kineto import read_kineto

KINETO = Path(__file__).parents[3] / "shared" / "data" / "kineto"
needs_captures = pytest.mark.skipif(not KINETO.is_dir(), reason="the folder of real captures is not beside this one")
KINDS = ["unlinked", "cut", "crossing", "zero_length", "any"]


def summary(trace):
    return {one.kind: (one.num_events, parts(one.partition)) for one in measure_certainty(trace)}


def parts(partition: Partition):
    return (
        partition.compute_ns,
        partition.exposed_communication_ns,
        partition.exposed_copy_ns,
        partition.idle_ns,
    )


def test_what_an_event_covered_becomes_something_else_in_the_same_window():
    # cut         0..10
    # linked         10..20
    # crossing          15..30
    # nccl                 20........50
    # unlinked                  40..60 (compute), 70..80 (a copy)
    # zero                                    65
    # linked                                         90..100
    trace = build_trace("""
        0 | stream 7 | cut                            |  0 |  10 |
        0 | stream 7 | gemm                           | 10 |  20 | main 0
        0 | stream 7 | crossing                       | 15 |  30 | main 1
        0 | stream 9 | ncclDevKernel_AllReduce_Sum()  | 20 |  50 | main 2
        0 | stream 7 | unlinked                       | 40 |  60 |
        0 | stream 7 | nothing                        | 65 |  65 | main 4
        0 | stream 7 | Memcpy DtoH (Device -> Pinned) | 70 |  80 |
        0 | stream 7 | gemm                           | 90 | 100 | main 3
    """)
    assert parts(measure_breakdown(trace).partition) == (60, 10, 10, 20)
    assert summary(trace) == {
        "unlinked": (3, (30, 20, 0, 50)),
        "cut": (1, (50, 10, 10, 30)),
        "crossing": (1, (50, 20, 10, 20)),
        "zero_length": (1, (60, 10, 10, 20)),
        "any": (5, (20, 30, 0, 50)),
    }


def test_each_kind_is_there_even_without_such_events_or_without_any():
    assert summary(build_trace("0 | stream 7 | a | 0 | 10 | main 0")) == dict.fromkeys(KINDS, (0, (10, 0, 0, 0)))
    call = {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "tid": 1, "ts": 5, "dur": 1, "args": {}}
    assert list(summary(read_events([{**call, "args": {"correlation": 1}}]))) == KINDS


def test_on_the_host_nothing_is_in_doubt():
    assert measure_certainty(build_trace("0 | main | aten::mm | 0 | 10 |")) == ()


@needs_captures
@pytest.mark.parametrize("name", ["speedrun-8xH100/rank1", "resnet-rank0of8-MI300X/rank0"])
def test_real_captures_keep_their_window_and_count_as_the_error_budget_does(name):
    trace = read_kineto(KINETO / f"{name}.json.gz")
    window = measure_breakdown(trace).window_ns
    found = {one.kind: one for one in measure_certainty(trace)}
    budget = trace.error_budget
    assert {kind: found[kind].num_events for kind in KINDS[:4]} == {
        "unlinked": budget.unlinked,
        "cut": budget.cut,
        "crossing": budget.crossing,
        "zero_length": budget.zero_length,
    }
    assert {one.partition.window_ns for one in found.values()} == {window}
    assert found["any"].partition.idle_ns >= max(found[kind].partition.idle_ns for kind in KINDS[:4])
