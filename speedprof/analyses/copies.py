"""From where to where do the exposed copies go?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from speedprof.analyses.breakdown import Breakdown
from speedprof.trace.intervals import intersect, join, subtract, union
from speedprof.trace.kernels import KernelKind
from speedprof.trace.model import Timeline, Trace
from speedprof.trace.occupied import find_occupied
from speedprof.trace.schema import to_numpy


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyTime:
    """Copies of one direction on one rank, summed over the traced steps.

    `direction` is CUDA's: HtoD, DtoH, DtoD, PtoP (H the host, D this device, P another one), or "other".
    `exposed_ns` is the part with neither compute nor communication beside it.
    """

    direction: str
    exposed_ns: int


def measure_copies(trace: Trace, breakdown: Breakdown) -> tuple[CopyTime, ...]:
    """The exposed time of each direction, longest first; directions without any are left out.

    Two directions may be copied at once, so together they can be more than the partition's exposed copies. Empty on a
    host timeline, where nothing is a copy.
    """
    if trace.timeline is Timeline.HOST or not breakdown.steps:
        return ()
    occupied = find_occupied(trace)
    steps = union(
        np.array([step.start_ns for step in breakdown.steps], dtype=np.int64),
        np.array([step.end_ns for step in breakdown.steps], dtype=np.int64),
    )
    alone = subtract(steps, join(occupied.compute, occupied.communication))
    # Kineto names them "Memcpy DtoD (Device -> Device)".
    direction = pl.col("name").cast(pl.String).str.extract(r"\b([HDP]to[HDP])\b").fill_null("other")
    copies = trace.kernels.filter(pl.col("kind") == KernelKind.COPY.value).with_columns(direction=direction)
    found = []
    for (name,), rows in copies.group_by("direction", maintain_order=True):
        exposed = intersect(union(to_numpy(rows["start_ns"]), to_numpy(rows["end_ns"])), alone)
        if exposed.length:
            found.append(CopyTime(direction=str(name), exposed_ns=exposed.length))
    return tuple(sorted(found, key=lambda one: (-one.exposed_ns, one.direction)))
