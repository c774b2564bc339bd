"""Tiny traces written as text, so that every expected number is an integer that the eye can check.

    rank | track     | name                                   | start | end | launched at
    0    | main      | speedprof.step/1                       | 0     | 100 |
    0    | main      | aten::mm                               | 5     | 20  |
    0    | stream 7  | gemm                                   | 10    | 40  | main 6
    0    | stream 23 | ncclDevKernel_AllGather_RING_LL        | 30    | 60  | main 8
    0    | stream 7  | Memset (Device)                        | 40    | 41  |

Times are ns. Tracks named `stream …` are the device's: a row becomes a kernel, or by its name a copy or a set; where it
says `launched at`, a launch of 1 ns is made at that time on that thread. A stream is on device 0, or as it says:
`stream 7 of 1`. All other tracks are host threads. A row whose track is `span` is the profiler's own span.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from speedprof.trace.model import Trace
from speedprof.trace.read_kineto import read_kineto

THREADS = {"main": 1, "autograd": 2, "worker": 3, "gloo 0": 4, "gloo 1": 5}


def build_trace(rows: str) -> Trace:
    """The trace of the one rank that `rows` speak of."""
    traces = build_traces(rows)
    (trace,) = traces.values()
    return trace


def build_traces(rows: str) -> dict[int, Trace]:
    """The trace of each rank that `rows` speak of."""
    return {rank: read_events(events, rank=rank) for rank, events in rows_to_events(rows).items()}


def read_events(events: list[dict[str, Any]], *, rank: int = 0) -> Trace:
    return read_text(kineto_text(events, rank=rank))


def read_text(text: str | bytes, name: str = "trace.json") -> Trace:
    """What the reader makes of a file that holds `text`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_kineto(path)


def kineto_text(events: list[dict[str, Any]], *, rank: int = 0, **metadata: Any) -> str:
    """A file as Kineto writes it; times of `events` are ns and become µs with three decimals."""
    head = {"schemaVersion": 1, "distributedInfo": {"backend": "nccl", "rank": rank, "world_size": 8}, **metadata}
    body = ",\n  ".join(event_text(event) for event in events)
    return f'{json.dumps(head, indent=2)[:-2]},\n  "traceEvents": [\n  {body}\n  ],"traceName": "t.json" }}'


def event_text(event: dict[str, Any]) -> str:
    """One event; the decimals are written from integers, since floats would lose them."""
    times = {key: event[key] for key in ("ts", "dur") if key in event}
    rest = json.dumps({key: value for key, value in event.items() if key not in times})
    written = "".join(f', "{key}": {ns // 1000}.{ns % 1000:03d}' for key, ns in times.items())
    return rest[:-1] + written + "}"


def rows_to_events(rows: str) -> dict[int, list[dict[str, Any]]]:
    """The events of each rank, in the order of the rows."""
    events: dict[int, list[dict[str, Any]]] = {}
    for number, line in enumerate(rows.splitlines(), start=1):
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) < 5 or cells[0] == "rank":
            continue
        rank, track, name, start, end = cells[:5]
        launched = cells[5] if len(cells) > 5 else ""
        mine = events.setdefault(int(rank), [])
        mine += _events_of(number, track, name, int(start), int(end), launched)
    return events


def _events_of(number: int, track: str, name: str, start: int, end: int, launched: str) -> list[dict[str, Any]]:
    times = {"ts": start, "dur": end - start}
    if track == "span":
        return [{"ph": "X", "cat": "Trace", "name": name, "pid": "Spans", "tid": "PyTorch Profiler", **times}]
    if not track.startswith("stream"):
        return [{"ph": "X", "cat": _host_category(name), "name": name, "pid": 1, "tid": THREADS[track], **times}]
    stream, _, device = track.removeprefix("stream").partition(" of ")
    args = {"device": int(device or 0), "stream": int(stream), "correlation": number}
    work = {
        "ph": "X",
        "cat": _device_category(name),
        "name": name,
        "pid": int(device or 0),
        "tid": int(stream),
        **times,
        "args": args,
    }
    if not launched:
        return [work]
    thread, _, at = launched.rpartition(" ")
    launch = {"ph": "X", "cat": "cuda_runtime", "name": "cudaLaunchKernel", "pid": 1, "tid": THREADS[thread]}
    return [{**launch, "ts": int(at), "dur": 1, "args": {"correlation": number}}, work]


def _host_category(name: str) -> str:
    if name.startswith("cuda"):
        return "cuda_runtime"
    return "user_annotation" if name.startswith(("ProfilerStep#", "##", "gloo:", "nccl:")) else "cpu_op"


def _device_category(name: str) -> str:
    return "gpu_memcpy" if name.startswith("Memcpy") else "gpu_memset" if name.startswith("Memset") else "kernel"
