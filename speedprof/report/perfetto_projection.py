"""Ranges of the host where their work ran: on the device."""

from __future__ import annotations

import numpy as np
import polars as pl

from speedprof.trace.intervals import Int64s, busiest
from speedprof.trace.model import Trace
from speedprof.trace.ranges import RangeKind
from speedprof.trace.schema import to_numpy
from speedprof.trace.steps import find_host_steps

_STEP_KINDS = (RangeKind.STEP.value, RangeKind.PROFILER_STEP.value)


def project_ranges(trace: Trace) -> pl.DataFrame:
    """Each range that launched device work, from the first start to the last end of that work.

        host thread      [ range       [inner]  ]
        launched           a     b       c
        device                 aaaaaa    bbb   cccccc
        projection             [ range              ]
                                               [inner]

    Work belongs to every range around its launch on the launching thread. What autograd's threads launch belongs to
    the ranges around it on the main thread as well, which waits for them; but not to optimizer stages, which are
    entered where they launch. Steps are left out: they have windows.

    Columns: `range_row` (row in the trace's ranges), `start_ns`, `end_ns` and `num_events` (of the device).
    """
    ranges, work = trace.ranges, _launched_work(trace)
    kind = ranges["kind"].cast(pl.String)
    is_stage = (kind == RangeKind.STAGE.value).to_numpy()
    wanted = ~kind.is_in(_STEP_KINDS).to_numpy()
    thread = to_numpy(ranges["thread"])
    autograd = _autograd_threads(trace)
    main = _main_thread(trace, work, autograd)
    found = []
    for one in np.unique(thread[wanted]).tolist():
        here = wanted & (thread == one)
        own = (work["launch_thread"] == one).to_numpy()
        if one == main and autograd:
            found.append(_project(ranges, np.flatnonzero(here & is_stage), work.filter(own)))
            here &= ~is_stage
            own |= work["launch_thread"].is_in(autograd).to_numpy()
        found.append(_project(ranges, np.flatnonzero(here), work.filter(own)))
    schema = dict.fromkeys(("range_row", "start_ns", "end_ns", "num_events"), pl.Int64)
    return pl.concat([pl.DataFrame(schema=schema), *found])


def _launched_work(trace: Trace) -> pl.DataFrame:
    """The linked device work in the order of its launches."""
    columns = ("launch_start_ns", "launch_thread", "start_ns", "end_ns")
    return trace.kernels.filter("linked").select(columns).sort("launch_start_ns", maintain_order=True)


def _autograd_threads(trace: Trace) -> list[int]:
    names = trace.ops["name"].unique().cast(pl.String)
    nodes = names.filter(names.str.starts_with("autograd::engine::"))
    is_node = trace.ops["name"].is_in(nodes.cast(trace.ops["name"].dtype).implode())
    return trace.ops.filter(is_node)["thread"].unique().sort().to_list()


def _main_thread(trace: Trace, work: pl.DataFrame, autograd: list[int]) -> int | None:
    """The thread of the step marks; without any, the one that launches most beside autograd's."""
    marks = find_host_steps(trace.ranges).thread
    others = work.filter(~pl.col("launch_thread").is_in(autograd))
    if marks is not None:
        return marks
    return busiest(to_numpy(others["launch_thread"]), np.ones(len(others), dtype=np.int64))


def _project(ranges: pl.DataFrame, rows: Int64s, work: pl.DataFrame) -> pl.DataFrame:
    """The projections of `rows` of the ranges onto `work`, which is sorted by launch."""
    launched = to_numpy(work["launch_start_ns"])
    first = np.searchsorted(launched, to_numpy(ranges["start_ns"])[rows])
    last = np.searchsorted(launched, to_numpy(ranges["end_ns"])[rows])
    has_work = last > first
    first, last = first[has_work], last[has_work]
    return pl.DataFrame(
        {
            "range_row": rows[has_work],
            "start_ns": _extremes(np.minimum, to_numpy(work["start_ns"]), first, last),
            "end_ns": _extremes(np.maximum, to_numpy(work["end_ns"]), first, last),
            "num_events": last - first,
        },
        schema=dict.fromkeys(("range_row", "start_ns", "end_ns", "num_events"), pl.Int64),
    )


def _extremes(extreme: np.ufunc, values: Int64s, first: Int64s, last: Int64s) -> Int64s:
    """The least or greatest of values[first:last], for each pair."""
    if not len(first):
        return first
    # reduceat takes borders within the array; every second of its answers is of what lies between two pairs.
    borders = np.stack((first, last), axis=1).ravel()
    return np.asarray(extreme.reduceat(np.append(values, values[-1]), borders)[::2], dtype=np.int64)
