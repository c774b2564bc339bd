"""TensorBoard's own files: scalars for every step. The tags are the same in every run."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import polars as pl

from speedprof.report.text import make_plain
from speedprof.run_dir import write_atomically
from speedprof.step_log import StepLog
from speedprof.units import NS_PER_MS, NS_PER_S

_FILE_VERSION = "brain.Event:2"  # the version of TensorBoard's file format that all current ones read and write


def write_scalars(step_log: StepLog, folder: Path) -> Path:
    """Write every step of the log as scalars into `folder`, and return the file.

        step_time_ms/rank<r>           training steps of every rank; device time where the rank has it, else host time
        stage_ms/<stage>/<group>       of the lowest rank; time on its stream, on CPU ranks of its host
        <metric>                       of the lowest rank: loss, learning rate, lambdas

    The wall time of each point is the start of its step.
    """
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    points = _points(step_log)
    events = [
        Event(
            wall_time=wall_ns / NS_PER_S,
            step=step,
            summary=Summary(value=[Summary.Value(tag=make_plain(tag), simple_value=value) for *_, tag, value in rows]),
        )
        for (wall_ns, step), rows in itertools.groupby(points.iter_rows(), key=lambda row: (row[0], row[1]))
    ]
    return _write_events(events, folder, _started_ns(step_log), "scalars")


def _points(log: StepLog) -> pl.DataFrame:
    """Rows (wall_ns, step, tag, value) in the order of time."""
    starts = log.steps.select("rank", "step", pl.col("host_start_ns").alias("wall_ns"))
    lowest = pl.col("rank") == (log.ranks[0] if log.ranks else 0)
    step_times = log.steps.filter(pl.col("kind") == "train").select(
        *("rank", "step"),
        pl.format("step_time_ms/rank{}", "rank").alias("tag"),
        (pl.coalesce("device_ns", "host_ns") / NS_PER_MS).alias("value"),
    )
    stages = log.stages.filter(lowest).select(
        *("rank", "step"),
        pl.format("stage_ms/{}/{}", "stage", "group").alias("tag"),
        (pl.coalesce("stream_ns", "host_ns") / NS_PER_MS).alias("value"),
    )
    metrics = log.metrics.filter(lowest).select("rank", "step", pl.col("name").alias("tag"), "value")
    return (
        pl.concat([step_times, stages, metrics])
        .join(starts, on=["rank", "step"])
        .select("wall_ns", "step", "tag", "value")
        .sort("wall_ns", "step", maintain_order=True)
    )


def _started_ns(log: StepLog) -> int:
    """When the first step began; 0 for an empty log."""
    started = log.steps["host_start_ns"].min()
    return started if isinstance(started, int) else 0


def _write_events(events: Iterable[Any], folder: Path, wall_ns: int, name: str) -> Path:
    """Write a whole file at once: TensorBoard's own writer does it from a thread and names the host in it."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    header = Event(wall_time=wall_ns / NS_PER_S, file_version=_FILE_VERSION)
    for event in itertools.chain([header], events):
        writer.write(event.SerializeToString())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"events.out.tfevents.{wall_ns // NS_PER_S:010d}.speedprof.{name}"
    write_atomically(path, buffer.getvalue(), durable=False)
    return path
