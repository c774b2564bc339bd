"""A written Perfetto file as its slices, and Perfetto's own rule of which of them it draws."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A slice by the names of its process and track; times are exact ns on the file's clock."""

    process: str
    track: str
    name: str
    start_ns: int
    end_ns: int
    cat: str = ""
    args: dict[str, Any] = field(default_factory=dict)
    event: dict[str, Any] = field(default_factory=dict)


def read_document(path: Path) -> dict[str, Any]:
    """The JSON document; it must be what any JSON reader takes, and its numbers keep all their digits."""
    text = gzip.decompress(path.read_bytes()).decode()
    assert json.loads(text)
    return json.loads(text, parse_float=Decimal, parse_constant=_refuse)


def read_slices(path: Path) -> list[Slice]:
    """Every slice in the order of the file, its times since the epoch or whatever the traces count from."""
    document = read_document(path)
    base_ns = document["otherData"]["base_time_ns"]
    names = {
        (event["pid"], event.get("tid")): event["args"]["name"]
        for event in document["traceEvents"]
        if event["ph"] == "M" and event["name"] in ("process_name", "thread_name")
    }
    return [
        Slice(
            process=names[event["pid"], None],
            track=names[event["pid"], event["tid"]],
            name=event["name"],
            start_ns=base_ns + _exact_ns(event["ts"]),
            end_ns=base_ns + _exact_ns(event["ts"]) + _exact_ns(event["dur"]),
            cat=event.get("cat", ""),
            args=event.get("args", {}),
            event=event,
        )
        for event in document["traceEvents"]
        if event["ph"] == "X"
    ]


def find_dropped(slices: list[Slice]) -> list[Slice]:
    """The slices that Perfetto would drop: those that begin inside another one of their track and outlast it.

    It sorts all slices by start, and of equal starts takes the longer first. Slices that have ended are closed; of two
    at one instant, one without length is only closed by one with length.
    """
    open_on: dict[tuple[int, int], list[Slice]] = {}
    dropped = []
    for one in sorted(slices, key=lambda one: (one.start_ns, one.start_ns - one.end_ns)):
        stack = open_on.setdefault((one.event["pid"], one.event["tid"]), [])
        while stack and _is_over(stack[-1], one):
            stack.pop()
        if any(one.start_ns < other.end_ns < one.end_ns for other in stack):
            dropped.append(one)
        else:
            stack.append(one)
    return dropped


def _is_over(earlier: Slice, now: Slice) -> bool:
    are_instants = earlier.start_ns == earlier.end_ns and now.start_ns == now.end_ns
    return earlier.end_ns < now.start_ns or (earlier.end_ns == now.start_ns and not are_instants)


def _exact_ns(us: Decimal | int) -> int:
    """ns from µs that must have three decimals."""
    assert isinstance(us, Decimal)
    assert us.as_tuple().exponent == -3
    return int(us * 1000)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
