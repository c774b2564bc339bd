"""What one rank's part of the Perfetto file shows, group of tracks by group, from the top down.

steps on the device          [ step 10          ][ step 11        ]
stages on the device           [reduce_scatter/muon.attn]
ranges on the device         [ forward  ]
idle                                     [late_launch]
stream 7                     [k][k][k]   ...
stream 7, overlapping          [k]
thread 4242                [ops, ranges and launches]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl

from speedprof.analyses.analysis import RankAnalysis
from speedprof.analyses.matching import CollectiveMatch
from speedprof.report.perfetto_projection import project_ranges
from speedprof.report.perfetto_text import arguments, label, list_arguments, quote_column
from speedprof.trace.model import Timeline, Trace
from speedprof.trace.ranges import RangeKind
from speedprof.trace.schema import to_numpy
from speedprof.trace.steps import find_host_steps
from speedprof.vocabulary import RANGE_PREFIX, STAGE_PREFIX

SLICE_SCHEMA = {
    "track": pl.Int64(),
    "start_ns": pl.Int64(),
    "end_ns": pl.Int64(),
    "label": pl.String(),
    "more": pl.String(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackGroup:
    """Tracks of one sort and what is drawn on them.

    `slices` has the columns `track` (place in `names`), `start_ns` and `end_ns` (on the rank's own clock), `label` (the
    members name and cat as JSON) and `more` (further members, or nothing). With `may_nest` a slice within another is
    drawn under it, otherwise on a track of its own.
    """

    names: tuple[str, ...]
    slices: pl.DataFrame
    may_nest: bool


def make_tracks(
    trace: Trace, analysis: RankAnalysis | None, match: CollectiveMatch | None, first_flow: int
) -> Iterator[TrackGroup]:
    """The groups of one rank, made when asked for.

    `first_flow` numbers the arrows from launches to device work: those of a rank take as many as it has launches.
    """
    yield _steps(trace)
    yield from _projections(trace)
    if analysis is not None:
        yield _idle(analysis.idle.table)
    collectives = _collective_arguments(trace, match)
    yield _streams(trace, collectives, first_flow)
    yield _threads(trace, collectives, first_flow)


def make_slices(
    track: pl.Series, times: pl.DataFrame, labels: pl.Series, more: pl.Series | None = None
) -> pl.DataFrame:
    """The table of slices from the columns `start_ns` and `end_ns` of `times` and what is written of each row."""
    further = pl.lit("") if more is None else more.alias("more")
    return times.select("start_ns", "end_ns").select(
        track.cast(pl.Int64).alias("track"), "start_ns", "end_ns", labels.alias("label"), further.alias("more")
    )


def _only_track(num_rows: int) -> pl.Series:
    return pl.Series("track", np.zeros(num_rows, dtype=np.int64))


def _steps(trace: Trace) -> TrackGroup:
    steps = trace.steps.filter(pl.col("start_ns").is_not_null())
    is_validation = pl.col("kind").cast(pl.String).eq_missing("validation")
    names = steps.select(
        pl.format("{} {}", pl.when(is_validation).then(pl.lit("validation")).otherwise(pl.lit("step")), "step")
    ).to_series()
    more = steps.select(_args(step=pl.col("step"), host_ns=pl.col("host_end_ns") - pl.col("host_start_ns")))
    name = "steps on the device" if trace.timeline is Timeline.DEVICE else "steps"
    slices = make_slices(_only_track(len(steps)), steps, label(names, "step"), more.to_series())
    return TrackGroup(names=(name,), slices=slices, may_nest=False)


def _projections(trace: Trace) -> Iterator[TrackGroup]:
    """Optimizer stages, and all other ranges, where the work that they launched ran."""
    projected = project_ranges(trace)
    ranges = trace.ranges[to_numpy(projected["range_row"])]
    short = ranges["name"].cast(pl.String).str.strip_prefix(STAGE_PREFIX).str.strip_prefix(RANGE_PREFIX)
    is_stage = ranges["kind"] == RangeKind.STAGE.value
    labels = label(short, ranges["kind"])
    more = projected.select(
        _args(device_events=pl.col("num_events"), host_ns=pl.lit(ranges["end_ns"] - ranges["start_ns"]))
    ).to_series()
    slices = make_slices(_only_track(len(projected)), projected, labels, more)
    yield TrackGroup(names=("stages on the device",), slices=slices.filter(is_stage), may_nest=True)
    yield TrackGroup(names=("ranges on the device",), slices=slices.filter(~is_stage), may_nest=True)


def _idle(gaps: pl.DataFrame) -> TrackGroup:
    names = gaps.select(pl.format("idle: {}", pl.col("cause").cast(pl.String))).to_series()
    quoted = {name: pl.lit(quote_column(gaps[name])) for name in ("range", "op", "call", "kernel")}
    more = gaps.select(_args(step=pl.col("step"), **quoted)).to_series()
    slices = make_slices(_only_track(len(gaps)), gaps, label(names, "idle"), more)
    return TrackGroup(names=("idle",), slices=slices, may_nest=False)


def _collective_arguments(trace: Trace, match: CollectiveMatch | None) -> pl.Series:
    """The arguments that each of the trace's collectives has beside those of its kernel.

    `waited_ns` is the part of its time before the last rank began it, `transfer_ns` the rest; `unsplit_ns` is that
    rest where the parts of some ranks are not known.
    """
    table = trace.collectives.with_columns(row=pl.int_range(pl.len(), dtype=pl.Int64))
    quoted = {
        name: pl.lit(quote_column(table[name]))
        for name in ("name", "declared_name", "process_group", "dtype", "group_ranks")
    }
    table = table.join(_matched_parts(trace, match), on="row", how="left", maintain_order="left")
    listed = list_arguments(
        collective=quoted["name"],
        declared_as=quoted["declared_name"],
        process_group=quoted["process_group"],
        ranks=quoted["group_ranks"],
        dtype=quoted["dtype"],
        **{name: pl.col(name) for name in ("in_elements", "out_elements", "seq", *_MATCHED)},
    )
    return table.select(listed.alias("args")).to_series()


_MATCHED = ("matched_as", "last_rank", "waited_ns", "transfer_ns", "unsplit_ns")


def _matched_parts(trace: Trace, match: CollectiveMatch | None) -> pl.DataFrame:
    """What matching says of this rank's collectives: `row` and the columns of _MATCHED."""
    if match is None or match.instances.is_empty():
        return pl.DataFrame(schema=dict.fromkeys(("row", *_MATCHED), pl.Int64))
    waited = (pl.min_horizontal("last_start_ns", "end_ns") - pl.col("start_ns")).clip(lower_bound=0)
    rest = pl.col("end_ns") - pl.col("start_ns") - waited
    return match.instances.filter(pl.col("rank") == trace.rank).select(
        "row",
        pl.col("collective").alias("matched_as"),
        "last_rank",
        waited.alias("waited_ns"),
        pl.when("is_complete").then(rest).alias("transfer_ns"),
        pl.when(~pl.col("is_complete")).then(rest).alias("unsplit_ns"),
    )


def _streams(trace: Trace, collective_args: pl.Series, first_flow: int) -> TrackGroup:
    """Every kernel, copy and set. Of two that overlap on a stream, the later one goes to another track."""
    kernels = trace.kernels
    streams, track = np.unique(to_numpy(kernels["stream"]), return_inverse=True)
    arrow = _arrow("flow_in", pl.col("launch_row") + first_flow)
    more = kernels.select(pl.concat_str(arguments(_kernel_arguments(trace, collective_args)), arrow)).to_series()
    slices = make_slices(pl.Series(track), kernels, label(kernels["name"], kernels["kind"]), more)
    return TrackGroup(names=tuple(f"stream {one}" for one in streams.tolist()), slices=slices, may_nest=False)


def _kernel_arguments(trace: Trace, collective_args: pl.Series) -> pl.Expr:
    """The arguments of each device event, as an expression over the table of kernels."""
    kernels = trace.kernels
    names = quote_column(_short_names(trace.ranges))
    is_stage = kernels["range_row"].eq_missing(kernels["stage_row"])
    why = pl.when("cut").then(pl.lit('"before the capture"')).otherwise(pl.lit('"not recorded"'))
    known = pl.DataFrame([trace.collectives["kernel_row"], collective_args.alias("args")])
    every = kernels.select(kernel_row=pl.int_range(pl.len(), dtype=pl.Int64))
    further = every.join(known, on="kernel_row", how="left", maintain_order="left")["args"].fill_null("")
    own = list_arguments(
        step=pl.col("host_step"),
        stage=pl.lit(names.gather(kernels["stage_row"])),
        range=pl.when(~pl.lit(is_stage)).then(pl.lit(names.gather(kernels["range_row"]))),
        launch=pl.when(~pl.col("linked")).then(why),
        correlation=pl.col("correlation"),
    )
    return pl.concat_str(own, pl.lit(further))


def _threads(trace: Trace, collective_args: pl.Series, first_flow: int) -> TrackGroup:
    """The host's ranges, the operators in them, launches in those, and collectives that run on the host."""
    launches, ranges, ops = trace.launches, trace.ranges, trace.ops
    is_on_host = trace.collectives["thread"].is_not_null()
    gloo = trace.collectives.filter(is_on_host)
    row = pl.int_range(pl.len(), dtype=pl.Int64)
    has_work = row.is_in(trace.kernels["launch_row"].drop_nulls().unique().implode())
    arrow = launches.select(_arrow("flow_out", pl.when(has_work).then(row + first_flow))).to_series()
    gloo_args = pl.select(arguments(pl.lit(collective_args.filter(is_on_host)))).to_series()
    tables = (ranges, ops, launches, gloo)
    threads = _in_order(find_host_steps(ranges).thread, *(table["thread"] for table in tables))
    place = [_places(table["thread"], threads) for table in tables]
    slices = [
        make_slices(place[0], ranges, label(ranges["name"], ranges["kind"])),
        make_slices(place[1], ops, label(ops["name"], "op")),
        make_slices(place[2], launches, label(launches["name"], "launch"), arrow),
        make_slices(place[3], gloo, label(gloo["name"], "communication"), gloo_args),
    ]
    return TrackGroup(
        names=tuple(f"thread {one}" for one in threads), slices=pl.concat(slices, rechunk=False), may_nest=True
    )


def _in_order(main: int | None, *threads: pl.Series) -> list[int]:
    """All threads by number, but the main one first."""
    every = pl.concat([thread.unique() for thread in threads]).unique().to_list()
    return sorted(every, key=lambda thread: (thread != main, thread))


def _places(thread: pl.Series, threads: list[int]) -> pl.Series:
    """Where in `threads` each row's thread stands."""
    order = np.array(threads, dtype=np.int64)
    by_number = np.argsort(order)
    return pl.Series(by_number[np.searchsorted(order[by_number], to_numpy(thread))])


def _arrow(end: str, number: pl.Expr) -> pl.Expr:
    """The members that tie a slice to others with the same number, as flow_out or flow_in; nothing where it is null."""
    return pl.concat_str(pl.lit(',"bind_id":"'), number.cast(pl.String), pl.lit(f'","{end}":true')).fill_null("")


def _short_names(ranges: pl.DataFrame) -> pl.Series:
    return ranges["name"].cast(pl.String).str.strip_prefix(STAGE_PREFIX).str.strip_prefix(RANGE_PREFIX)


def _args(**columns: pl.Expr) -> pl.Expr:
    return arguments(list_arguments(**columns))
