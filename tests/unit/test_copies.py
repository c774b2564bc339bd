from __future__ import annotations

from builders import build_trace

from speedprof.analyses.breakdown import measure_breakdown
from speedprof.analyses.copies import CopyTime, measure_copies


def test_exposed_copies_by_direction_longest_first() -> None:
    trace = build_trace("""
        rank | track     | name                            | start | end | launched at
        0    | main      | speedprof.step/1                | 0     | 100 |
        0    | stream 7  | gemm                            | 10    | 40  | main 6
        0    | stream 9  | Memcpy HtoD (Pinned -> Device)  | 35    | 45  | main 7
        0    | stream 23 | ncclDevKernel_AllGather_RING_LL | 50    | 60  | main 8
        0    | stream 7  | Memcpy DtoD (Device -> Device)  | 55    | 70  | main 9
        0    | stream 9  | Memcpy DtoD (Device -> Device)  | 65    | 75  | main 10
        0    | stream 9  | Memcpy DtoH (Device -> Pinned)  | 20    | 30  | main 11
    """)
    found = measure_copies(trace, measure_breakdown(trace))
    # DtoD: 60 to 75 as one union; HtoD: 40 to 45; DtoH runs beside the gemm.
    assert found == (CopyTime(direction="DtoD", exposed_ns=15), CopyTime(direction="HtoD", exposed_ns=5))


def test_a_trace_without_steps_or_without_a_device_has_none() -> None:
    assert _measure("0 | stream 7 | Memcpy DtoD (Device -> Device) | 0 | 10 | main 6") == ()
    assert _measure("0 | main | aten::copy_ | 0 | 10 |") == ()


def _measure(row: str) -> tuple[CopyTime, ...]:
    trace = build_trace(f"rank | track | name | start | end | launched at\n{row}")
    return measure_copies(trace, measure_breakdown(trace))
