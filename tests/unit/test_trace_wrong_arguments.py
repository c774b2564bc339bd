"""An argument of a wrong type costs itself, never the time of its event."""

from __future__ import annotations

import json
from typing import Any

import pytest
from builders import kineto_text, read_text, rows_to_events

from speedprof.trace.model import Timeline

ROWS = """
0 | main      | speedprof.step/1                | 0  | 100 |
0 | stream 7  | gemm                            | 10 | 40  | main 6
0 | stream 23 | ncclDevKernel_AllGather_RING_LL | 30 | 60  | main 8
"""


def with_argument(name: str, value: Any) -> str:
    """The trace of ROWS whose all-gather declares itself, one argument set to `value`."""
    (events,) = rows_to_events(ROWS).values()
    declared = {"Collective name": "_allgather_base", "Process Group Name": "0", "Process Group Ranks": "[0, 1]"}
    events[-1]["args"] |= {**declared, name: value}
    return kineto_text(events)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Process Group Ranks", [0, 1]),
        ("Seq", "x"),
        ("dtype", 5),
        ("External id", "x"),
        ("External id", 2**70),
        ("In msg nelems", 1e300),
        ("Group size", None),
        ("device", []),
        ("Process Group Name", {"a": 1}),
    ],
)
def test_the_event_is_kept(name: str, value: Any) -> None:
    trace = read_text(with_argument(name, value))
    assert trace.kernels.select("start_ns", "end_ns").rows() == [(10, 40), (30, 60)]
    (collective,) = trace.collectives.iter_rows(named=True)
    assert collective["declared_name"] == "_allgather_base"
    assert (trace.notes, trace.is_damaged) == ((), False)


def test_a_list_of_ranks_is_read_like_its_text() -> None:
    (collective,) = read_text(with_argument("Process Group Ranks", [0, 1])).collectives.iter_rows(named=True)
    assert collective["group_ranks"] == "[0, 1]"


def test_numbers_as_text_still_link() -> None:
    (events,) = rows_to_events(ROWS).values()
    for event in events:
        if "correlation" in event.get("args", {}):
            event["args"]["correlation"] = str(event["args"]["correlation"])
    trace = read_text(kineto_text(events))
    assert trace.timeline is Timeline.DEVICE
    assert trace.kernels["linked"].to_list() == [True, True]


def test_arguments_that_are_none_at_all_leave_the_event_its_time() -> None:
    (events,) = rows_to_events(ROWS).values()
    events[-1]["args"] = [1, 2]
    text = kineto_text(events)
    assert json.loads(text)["traceEvents"][-1]["args"] == [1, 2]
    assert read_text(text).kernels.height == 2
