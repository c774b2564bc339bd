"""What did a rank do at given times?"""

from __future__ import annotations

import numpy as np
import polars as pl

from speedprof.analyses.idle_gaps import GapCause
from speedprof.analyses.timeline import RankTimeline
from speedprof.trace.intervals import Int64s, clip, covered_before, join, union
from speedprof.trace.schema import to_numpy

ACTIVITIES = ("compute_ns", "communication_ns", "copy_ns", "idle_ns", "outside_ns")


def measure_activity(rank: RankTimeline, start: Int64s, end: Int64s) -> pl.DataFrame:
    """What the rank did in each span [start, end): a row of ns for each. Spans may come in any order and overlap.

    `compute_ns`, `communication_ns`, `copy_ns` and `idle_ns` are what its partition has there; `outside_ns` lies
    outside its capture, and nothing is known of it. These five (`ACTIVITIES`) sum to the span. A column for each cause
    of its idle gaps, named by the cause's text, cuts `idle_ns`; a host timeline has none of these.
    """
    busy = rank.occupied
    layers = (
        busy.compute,
        join(busy.compute, busy.communication),
        join(busy.compute, busy.communication, busy.copy),
        union(np.array([rank.start_ns], dtype=np.int64), np.array([rank.end_ns], dtype=np.int64)),
    )
    # Each layer holds the one before it, so what a layer adds is the difference of what the two cover.
    covered = [
        covered_before(layer, end) - covered_before(layer, start)
        for layer in (clip(layer, rank.start_ns, rank.end_ns) for layer in layers)
    ]
    parts = np.diff([*covered, end - start], axis=0, prepend=0)
    columns = dict(zip(ACTIVITIES, parts, strict=True)) | _idle_by_cause(rank, start, end)
    return pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.Int64()))


def _idle_by_cause(rank: RankTimeline, start: Int64s, end: Int64s) -> dict[str, Int64s]:
    if rank.gaps.is_empty():
        return {}
    found = {}
    for cause in GapCause:
        rows = rank.gaps.filter(pl.col("cause").cast(pl.String) == cause.value)
        if len(rows):
            gaps = union(to_numpy(rows["start_ns"]), to_numpy(rows["end_ns"]))
            found[cause.value] = covered_before(gaps, end) - covered_before(gaps, start)
    return found
