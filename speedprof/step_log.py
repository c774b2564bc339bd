"""Every step of every rank as columns: how long it took, on the host and on the device, and its stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from speedprof.errors import UnreadableError
from speedprof.step_records import (
    ABSENT_INT,
    KINDS,
    MARKS,
    METRIC_PREFIX,
    STAGE_HOST_PREFIX,
    STAGE_STREAM_PREFIX,
    Segment,
    read_records,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLog:
    """All ranks of a run. Times are ns; `host_start_ns` counts from the epoch.

    steps    rank, step, kind, mark, phase, num_steps (over 1 for a folded row), host_start_ns, host_ns,
             device_ns (null on CPU ranks)
    stages   rank, step, stage, group, host_ns, stream_ns (null on CPU ranks): the time that the current stream
             spends between entering and leaving the stage; a collective's own time comes from a trace only
    metrics  rank, step, name, value
    """

    steps: pl.DataFrame
    stages: pl.DataFrame
    metrics: pl.DataFrame
    notes: tuple[str, ...]

    @property
    def ranks(self) -> list[int]:
        return sorted(self.steps["rank"].unique().to_list())


def read_step_log(paths: Sequence[Path]) -> StepLog:
    """Read the step logs of a run, one file a rank.

    A file that breaks off is read up to there, and a note says so. Raises UnreadableError for a file that is none.
    """
    parts: list[tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]] = []
    notes: list[str] = []
    for path in paths:
        segments, num_unread = read_records(path)
        if num_unread:
            notes.append(f"{path.name} breaks off: its last {num_unread} bytes could not be read")
        try:
            parts += [_tables(segment) for segment in segments]
        except (KeyError, IndexError, pl.exceptions.PolarsError) as error:
            raise UnreadableError(
                f"{path}: lacks what a step log must hold ({error})", next_step="capture the run again"
            ) from error
    steps, stages, metrics = (pl.concat([part[i] for part in [_EMPTY, *parts]]) for i in range(3))
    return StepLog(steps=steps, stages=stages, metrics=metrics, notes=tuple(notes))


_STEPS_SCHEMA = {
    "rank": pl.Int32,
    "step": pl.Int64,
    "kind": pl.String,
    "mark": pl.String,
    "phase": pl.String,
    "num_steps": pl.Int64,
    "host_start_ns": pl.Int64,
    "host_ns": pl.Int64,
    "device_ns": pl.Int64,
}
_STAGES_SCHEMA = {
    "rank": pl.Int32,
    "step": pl.Int64,
    "stage": pl.String,
    "group": pl.String,
    "host_ns": pl.Int64,
    "stream_ns": pl.Int64,
}
_METRICS_SCHEMA = {"rank": pl.Int32, "step": pl.Int64, "name": pl.String, "value": pl.Float64}
_EMPTY = (pl.DataFrame(schema=_STEPS_SCHEMA), pl.DataFrame(schema=_STAGES_SCHEMA), pl.DataFrame(schema=_METRICS_SCHEMA))


def _tables(segment: Segment) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    columns = {name: segment.rows[name] for name in segment.rows.dtype.names or ()}
    wide = pl.DataFrame(columns).with_columns(
        pl.lit(segment.header["rank"], dtype=pl.Int32).alias("rank"),
        pl.col(pl.Int64).replace(ABSENT_INT, None),
        pl.col(pl.Float64).fill_nan(None),
    )
    return _steps(wide, segment.header["phases"]), _stages(wide), _metrics(wide)


def _steps(wide: pl.DataFrame, phases: list[str]) -> pl.DataFrame:
    optional = [
        pl.lit(None, dtype=pl.Int64).alias(name) for name in ("device_ns", "num_steps") if name not in wide.columns
    ]
    return wide.with_columns(
        pl.col("kind").map_elements(KINDS.__getitem__, return_dtype=pl.String),
        pl.col("mark").map_elements(lambda code: MARKS[code].value, return_dtype=pl.String),
        pl.col("phase").map_elements(phases.__getitem__, return_dtype=pl.String),
        *optional,
    ).select(
        pl.col(name).fill_null(1) if name == "num_steps" else pl.col(name).cast(kind)
        for name, kind in _STEPS_SCHEMA.items()
    )


def _stages(wide: pl.DataFrame) -> pl.DataFrame:
    host = _unpivot(wide, STAGE_HOST_PREFIX, "host_ns", pl.Int64)
    stream = _unpivot(wide, STAGE_STREAM_PREFIX, "stream_ns", pl.Int64)
    parts = pl.col("name").str.split_exact("/", 1).struct
    return (
        host.join(stream, on=["rank", "step", "name"], how="left")
        .with_columns(parts.field("field_0").alias("stage"), parts.field("field_1").alias("group"))
        .select(*_STAGES_SCHEMA)
        .cast(_STAGES_SCHEMA)  # type: ignore[arg-type]
    )


def _metrics(wide: pl.DataFrame) -> pl.DataFrame:
    return _unpivot(wide, METRIC_PREFIX, "value", pl.Float64).select(*_METRICS_SCHEMA)


def _unpivot(wide: pl.DataFrame, prefix: str, value: str, kind: type[pl.DataType]) -> pl.DataFrame:
    """The columns that start with `prefix`, as rows (rank, step, name without prefix, value), nulls left out."""
    chosen = wide.select("rank", "step", pl.col(f"^{prefix}.*$").name.map(lambda name: name.removeprefix(prefix)))
    if chosen.width == 2:
        return pl.DataFrame(schema={"rank": pl.Int32, "step": pl.Int64, "name": pl.String, value: kind})
    return chosen.unpivot(index=["rank", "step"], variable_name="name", value_name=value).drop_nulls(value)
