"""What comparing ranks needs of each, from the rows of tests/builders.py.

A kernel's row may have a seventh cell: what the file says of the collective, as `<key> <value>` between semicolons.

    rank | track     | name                      | start | end | launched at | said of it
    0    | stream 23 | ncclDevKernel_AllGather() | 30    | 60  | main 8      | dtype BFloat16; in 8; out 64; seq 5
    1    | stream 23 | ncclDevKernel_AllGather() | 40    | 60  |             | group dp; ranks [0, 1]; size 2

What PyTorch called it is what the kernel's name says, or `called`. A capture runs from its rank's first device event to
the end of its last, as that of a real trace does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl
from builders import kineto_text, read_text, rows_to_events

from speedprof.analyses.breakdown import measure_breakdown
from speedprof.analyses.idle_gaps import IdleGaps
from speedprof.analyses.timeline import RankTimeline, make_timeline
from speedprof.trace.kernels import name_collective
from speedprof.trace.model import Trace

NO_GAPS = IdleGaps(
    table=pl.DataFrame(
        schema={
            "start_ns": pl.Int64,
            "end_ns": pl.Int64,
            "cause": pl.String,
            "step": pl.Int64,
            "range": pl.String,
            "op": pl.String,
            "call": pl.String,
            "kernel": pl.String,
        }
    ),
    groups=(),
    by_cause={},
)

_KEYS = {
    "called": "Collective name",
    "dtype": "dtype",
    "in": "In msg nelems",
    "out": "Out msg nelems",
    "size": "Group size",
    "group": "Process Group Name",
    "ranks": "Process Group Ranks",
    "seq": "Seq",
}
_NUMBERS = frozenset({"in", "out", "size", "seq"})


def build_timelines(rows: str, *, world_size: int | None = None, gaps: IdleGaps = NO_GAPS) -> list[RankTimeline]:
    """The timeline of each rank that `rows` speak of, lowest first, each with `gaps`.

    The run had as many ranks as there are rows of, or `world_size`.
    """
    return [make_timeline(trace, measure_breakdown(trace), gaps) for trace in _read(rows, world_size)]


def timeline_of(trace: Trace) -> RankTimeline:
    """The timeline of a trace that was read elsewhere, without idle gaps."""
    return make_timeline(trace, measure_breakdown(trace), NO_GAPS)


def _read(rows: str, world_size: int | None) -> list[Trace]:
    events, said = rows_to_events(rows), _said_of(rows)
    traces = []
    for rank in sorted(events):
        for event in events[rank]:
            if event["cat"] == "kernel":
                event["args"].update(said.get(event["args"]["correlation"], {}))
        run = {"backend": "nccl", "rank": rank, "world_size": world_size or len(events)}
        traces.append(read_text(kineto_text(events[rank], rank=rank, distributedInfo=run)))
    return traces


def _said_of(rows: str) -> Mapping[int, dict[str, Any]]:
    """The arguments of each kernel by the number of its row, which is its correlation too."""
    said: dict[int, dict[str, Any]] = {}
    for number, line in enumerate(rows.splitlines(), start=1):
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 6 and cells[6] and cells[0] != "rank":
            pairs = [pair.strip().split(" ", 1) for pair in cells[6].split(";")]
            called = {"Collective name": name_collective(cells[2])}
            said[number] = called | {_KEYS[key]: int(value) if key in _NUMBERS else value for key, value in pairs}
    return said
