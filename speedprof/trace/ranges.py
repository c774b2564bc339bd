"""Named ranges of host time: what their names say, and which operators stand alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import polars as pl

from speedprof.trace.events import ABSENT
from speedprof.trace.intervals import Bools, Int64s, rows_of_each
from speedprof.trace.raw_columns import RawEvents
from speedprof.trace.schema import int_column, make_table, text_column
from speedprof.vocabulary import RANGE_PREFIX, STAGE_PREFIX, STEP_PREFIX, VALIDATION_SUFFIX, StepKind


class RangeKind(StrEnum):
    """Who made a range and for what."""

    STEP = "step"
    STAGE = "stage"
    RANGE = "range"
    PROFILER_STEP = "profiler_step"
    COMPILED = "compiled"
    ANNOTATION = "annotation"


@dataclass(frozen=True, slots=True, kw_only=True)
class RangeName:
    """What the name of a range says."""

    kind: RangeKind
    step: int | None = None
    step_kind: StepKind | None = None
    stage: str | None = None
    group: str | None = None


_STEP = re.compile(rf"{re.escape(STEP_PREFIX)}(\d{{1,18}})({re.escape(VALIDATION_SUFFIX)})?")
_PROFILER_STEP = re.compile(r"ProfilerStep\s*#(\d{1,18})")


def parse_range_name(name: str) -> RangeName:
    """What `name` says; a name that only resembles one of ours is an annotation like any other."""
    if step := _STEP.fullmatch(name):
        return RangeName(kind=RangeKind.STEP, step=int(step[1]), step_kind="validation" if step[2] else "train")
    if step := _PROFILER_STEP.fullmatch(name):
        return RangeName(kind=RangeKind.PROFILER_STEP, step=int(step[1]), step_kind="train")
    if name.startswith(STAGE_PREFIX):
        stage, _, group = name.removeprefix(STAGE_PREFIX).partition("/")
        return RangeName(kind=RangeKind.STAGE, stage=stage, group=group)
    if name.startswith(RANGE_PREFIX):
        return RangeName(kind=RangeKind.RANGE)
    return RangeName(kind=RangeKind.COMPILED if name.startswith("## Call CompiledFxGraph") else RangeKind.ANNOTATION)


def is_range_among_ops(name: str) -> bool:
    """Whether an event that the file calls an operator is a range.

    Our ranges come from torch's fast record function, which files them under cpu_op; old Kineto files all there.
    """
    return name.startswith(("speedprof.", "ProfilerStep#", "## Call CompiledFxGraph"))


def make_ranges(raw: RawEvents, texts: Sequence[str]) -> pl.DataFrame:
    """The table of ranges; `texts` are the names that `raw.name` numbers into."""
    used = np.unique(raw.name)
    place = np.searchsorted(used, raw.name)
    parsed = [parse_range_name(texts[name]) for name in used.tolist()]
    step = np.array([ABSENT if name.step is None else name.step for name in parsed], dtype=np.int64)[place]
    return make_table(
        "ranges",
        {
            "name": text_column([texts[name] for name in used.tolist()], place),
            "kind": text_column([name.kind.value for name in parsed], place),
            "step": int_column(step, step == ABSENT),
            "step_kind": text_column([name.step_kind for name in parsed], place),
            "stage": text_column([name.stage for name in parsed], place),
            "group": text_column([name.group for name in parsed], place),
            "thread": int_column(raw.track),
            "start_ns": int_column(raw.start),
            "end_ns": int_column(raw.end),
        },
    )


def find_top_level(thread: Int64s, start: Int64s, end: Int64s) -> Bools:
    """Which intervals begin when no earlier one of their thread is open; rows sorted by start, the longer first."""
    top_level = np.zeros(len(start), dtype=np.bool_)
    for rows in rows_of_each(thread).values():
        reach = np.maximum.accumulate(end[rows])
        top_level[rows] = np.concatenate(([True], start[rows][1:] >= reach[:-1]))
    return top_level
