"""Every table of a trace and every column: type, unit, meaning, and when it is null.

Times are int64 ns since the Unix epoch on the clock that the file uses (Kineto: the host's clock), so ranks of one
host share them. Rows are sorted by start. A row index into another table is named `<table's noun>_row`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from polars.datatypes import DataTypeClass

from speedprof.trace.intervals import Bools, Int64s

NAME = pl.Categorical()
INT = pl.Int64()
FLAG = pl.Boolean()


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """`null_when` is None where the column is never null."""

    dtype: pl.DataType | DataTypeClass
    meaning: str
    unit: str | None = None
    null_when: str | None = None


_START = Column(dtype=INT, unit="ns", meaning="start")
_END = Column(dtype=INT, unit="ns", meaning="end; equal to the start for an event of zero length")
_THREAD = Column(dtype=INT, meaning="host thread, the id of the operating system where the file has it")

KERNELS: Mapping[str, Column] = {
    "name": Column(dtype=NAME, meaning="the device's name for it, control characters included"),
    "kind": Column(dtype=NAME, meaning="compute, communication, copy or memset"),
    "device": Column(dtype=INT, meaning="device number on the host", null_when="the file does not say"),
    "stream": Column(dtype=INT, meaning="stream number on the device"),
    "start_ns": _START,
    "end_ns": _END,
    "correlation": Column(dtype=INT, meaning="id shared with the launch", null_when="the file does not say"),
    "linked": Column(dtype=FLAG, meaning="whether its launch was recorded"),
    "launch_row": Column(dtype=INT, meaning="row in launches", null_when="not linked"),
    "launch_start_ns": Column(dtype=INT, unit="ns", meaning="start of its launch", null_when="not linked"),
    "launch_thread": Column(dtype=INT, meaning="host thread of its launch", null_when="not linked"),
    "placed_by": Column(
        dtype=NAME,
        meaning="launch, or stream_order for unlinked work that takes the step of the linked work before it",
        null_when="unlinked work that no linked work precedes on its stream",
    ),
    "host_step": Column(
        dtype=INT,
        meaning="step on the host in which it was launched",
        null_when="launched outside every step, or not placed",
    ),
    "range_row": Column(
        dtype=INT,
        meaning="row in ranges of the innermost range that launched it, on the launching thread",
        null_when="not linked, or launched outside every range",
    ),
    "stage_row": Column(
        dtype=INT,
        meaning="row in ranges of the innermost optimizer stage that launched it, on the launching thread",
        null_when="not linked, or launched outside every stage",
    ),
    "cut": Column(dtype=FLAG, meaning="the border of the capture cuts it from its launch, or from its start or end"),
    "crossing": Column(dtype=FLAG, meaning="begins inside an earlier event of its stream and outlasts it"),
}

LAUNCHES: Mapping[str, Column] = {
    "name": Column(dtype=NAME, meaning="the runtime's or driver's function"),
    "thread": _THREAD,
    "start_ns": _START,
    "end_ns": _END,
    "correlation": Column(dtype=INT, meaning="id shared with the device work", null_when="the file does not say"),
}

OPS: Mapping[str, Column] = {
    "name": Column(dtype=NAME, meaning="PyTorch operator"),
    "thread": _THREAD,
    "start_ns": _START,
    "end_ns": _END,
    "top_level": Column(dtype=FLAG, meaning="no other operator of its thread is around it; ranges do not count"),
    "external_id": Column(dtype=INT, meaning="the profiler's id of the call", null_when="the file does not say"),
}

RANGES: Mapping[str, Column] = {
    "name": Column(dtype=NAME, meaning="full name of the range"),
    "kind": Column(
        dtype=NAME,
        meaning="step, stage or range (speedprof's own), profiler_step, compiled (a compiled graph's call), annotation",
    ),
    "step": Column(dtype=INT, meaning="number in the name", null_when="kind is neither step nor profiler_step"),
    "step_kind": Column(dtype=NAME, meaning="train or validation", null_when="step is null"),
    "stage": Column(dtype=NAME, meaning="optimizer stage", null_when="kind is not stage"),
    "group": Column(dtype=NAME, meaning="parameter group, <optimizer>.<group>", null_when="kind is not stage"),
    "thread": _THREAD,
    "start_ns": _START,
    "end_ns": _END,
}

COLLECTIVES: Mapping[str, Column] = {
    "name": Column(dtype=NAME, meaning="collective by the name of its kernel: all_gather, reduce_scatter, …, other"),
    "declared_name": Column(dtype=NAME, meaning="collective as PyTorch called it", null_when="the file does not say"),
    "process_group": Column(dtype=NAME, meaning="name of the process group", null_when="the file does not say"),
    "seq": Column(dtype=INT, meaning="sequence number in its process group", null_when="the file does not say"),
    "dtype": Column(dtype=NAME, meaning="element type as PyTorch writes it", null_when="the file does not say"),
    "in_elements": Column(dtype=INT, meaning="elements that this rank gives", null_when="the file does not say"),
    "out_elements": Column(dtype=INT, meaning="elements that this rank gets", null_when="the file does not say"),
    "group_size": Column(dtype=INT, meaning="ranks that take part", null_when="the file does not say"),
    "group_ranks": Column(
        dtype=NAME, meaning="ranks that take part as the file lists them", null_when="the file does not say"
    ),
    "start_ns": _START,
    "end_ns": _END,
    "stream": Column(dtype=INT, meaning="stream on the device", null_when="it runs on the host"),
    "thread": Column(dtype=INT, meaning="host thread that carries it out", null_when="it runs on the device"),
    "kernel_row": Column(dtype=INT, meaning="row in kernels", null_when="it runs on the host"),
    "launch_start_ns": Column(
        dtype=INT, unit="ns", meaning="start of its launch, or of the host op that began it", null_when="unlinked"
    ),
    "host_step": Column(dtype=INT, meaning="as in kernels", null_when="as in kernels"),
    "stage_row": Column(
        dtype=INT, meaning="row in ranges of the stage that launched it", null_when="launched outside every stage"
    ),
    "stage": Column(dtype=NAME, meaning="optimizer stage that launched it", null_when="launched outside every stage"),
    "group": Column(dtype=NAME, meaning="parameter group of that stage", null_when="launched outside every stage"),
}

STEPS: Mapping[str, Column] = {
    "step": Column(dtype=INT, meaning="number of the step"),
    "kind": Column(
        dtype=NAME,
        meaning="train or validation",
        null_when="the file is damaged: no step is known to be whole, and none counts in a mean",
    ),
    "host_start_ns": Column(dtype=INT, unit="ns", meaning="its mark on the host"),
    "host_end_ns": Column(dtype=INT, unit="ns", meaning="the next mark, or for the last step its own end"),
    "start_ns": Column(
        dtype=INT,
        unit="ns",
        meaning="start of its window on the trace's timeline",
        null_when="nothing that it launched on the main stream was recorded",
    ),
    "end_ns": Column(dtype=INT, unit="ns", meaning="end of that window", null_when="start_ns is null"),
}

TABLES: Mapping[str, Mapping[str, Column]] = {
    "kernels": KERNELS,
    "launches": LAUNCHES,
    "ops": OPS,
    "ranges": RANGES,
    "collectives": COLLECTIVES,
    "steps": STEPS,
}


def make_table(table: str, columns: Mapping[str, pl.Series]) -> pl.DataFrame:
    """The named table from its columns, each of which must be there and of the type that the schema says.

    Raises ValueError where the columns are not the schema's, or a column is null that must not be.
    """
    schema = TABLES[table]
    if columns.keys() != schema.keys():
        raise ValueError(f"{table}: columns {sorted(columns.keys() ^ schema.keys())} differ from the schema")
    for name, column in schema.items():
        if columns[name].dtype != column.dtype:
            raise ValueError(f"{table}.{name} is {columns[name].dtype}, not {column.dtype}")
        if column.null_when is None and columns[name].null_count():
            raise ValueError(f"{table}.{name} holds nulls")
    return pl.DataFrame([columns[name].alias(name) for name in schema])


def text_column(texts: Sequence[str | None], index: Int64s) -> pl.Series:
    """The text (or null) that each index points to; every distinct text is stored once."""
    return pl.Series("", texts, dtype=NAME).gather(index)


def int_column(values: Int64s, is_null: Bools | None = None) -> pl.Series:
    """Numbers, null where `is_null`."""
    column = pl.Series("", values, dtype=INT)
    return column if is_null is None or not is_null.any() else column.set(pl.Series("", is_null), None)


def row_column(rows: Int64s) -> pl.Series:
    """Row indices, null where negative: what a search of numpy gives for nothing found."""
    return int_column(rows, rows < 0)


def flag_column(flags: Bools) -> pl.Series:
    return pl.Series("", flags, dtype=FLAG)


def to_numpy(column: pl.Series) -> Int64s:
    """A column of whole numbers without nulls as an array."""
    return np.asarray(column.to_numpy(), dtype=np.int64)
