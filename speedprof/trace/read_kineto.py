"""Read a file that torch.profiler wrote (Kineto's JSON, plain or gzip) into a Trace."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from speedprof.errors import UnreadableError
from speedprof.trace.assemble import RawTrace, assemble
from speedprof.trace.event_stream import EventStream
from speedprof.trace.events import sound_text
from speedprof.trace.kernels import COLLECTIVE_PATTERNS, CollectivePattern
from speedprof.trace.model import Trace
from speedprof.trace.ranges import is_range_among_ops
from speedprof.trace.raw_columns import ColumnGatherer, RawEvents, Source
from speedprof.trace.read_log import ReadLog
from speedprof.trace.unpack import ReadLimits, read_blocks
from speedprof.units import NS_PER_S

_RANK_IN_NAME = re.compile(r"(?:rank|worker)[_-]?(\d{1,9})", re.IGNORECASE)
# Year 2096: with the largest time after it, still far from the end of int64.
_MAX_BASE_NS = 4_000_000_000_000_000_000
_DAY_NS = 86_400 * NS_PER_S


def read_kineto(
    path: Path | str,
    *,
    limits: ReadLimits | None = None,
    patterns: Sequence[CollectivePattern] = COLLECTIVE_PATTERNS,
) -> Trace:
    """The trace of one rank. Times are exact to the ns where the file has µs with decimals, to the µs in old files.

    A damaged file gives what can be read of it, `is_damaged`, and `notes` that say what is missing.
    Raises UnreadableError for what holds no event of a Kineto trace.
    """
    path = Path(path)
    log = ReadLog()
    stream = EventStream(path=path, blocks=read_blocks(path, limits or ReadLimits(), log), log=log)
    gatherer = ColumnGatherer()
    for events in stream:
        gatherer.add(events)
    log.count_broken(gatherer.num_broken)
    raw = _gather(gatherer, path, stream.metadata, log)
    if not (len(raw.ops) or len(raw.ranges) or len(raw.device) or len(raw.launches)):
        raise _without_events(path, log)
    return assemble(replace(raw, notes=(*log.notes, *_note_long_span(raw))), patterns)


def _without_events(path: Path, log: ReadLog) -> UnreadableError:
    why = f": {log.lost or 'its events are damaged'}" if log.is_damaged else ""
    return UnreadableError(
        f"{path} holds no operator, range or kernel of a Kineto trace{why}",
        next_step="capture again" if log.is_damaged else "name a file of torch.profiler",
    )


def _gather(gatherer: ColumnGatherer, path: Path, metadata: dict[str, Any], log: ReadLog) -> RawTrace:
    rank, base_ns = _find_rank(path, metadata, log), _find_base_ns(metadata, log)
    operators = gatherer.gathered(Source.OP, base_ns)
    annotations = gatherer.gathered(Source.ANNOTATION, base_ns)
    texts = [sound_text(name) for name in gatherer.names]
    is_range = np.array([is_range_among_ops(text) for text in texts], dtype=np.bool_)
    is_gloo = np.array([text.startswith("gloo:") for text in texts], dtype=np.bool_)
    range_op, gloo_op, gloo = is_range[operators.name], is_gloo[operators.name], is_gloo[annotations.name]
    return RawTrace(
        rank=rank,
        world_size=_find_world_size(metadata),
        notes=tuple(log.notes),
        is_damaged=log.is_damaged,
        names_device=bool(metadata.get("deviceProperties")),
        texts=texts,
        categories=list(gatherer.categories),
        ops=operators.take(~range_op & ~gloo_op),
        ranges=_merge(operators.take(range_op), annotations.take(~gloo)),
        gloo=_merge(operators.take(gloo_op), annotations.take(gloo)),
        launches=gatherer.gathered(Source.LAUNCH, base_ns),
        device=gatherer.gathered(Source.DEVICE, base_ns),
        span=_find_span(gatherer.gathered(Source.SPAN, base_ns)),
    )


def _merge(a: RawEvents, b: RawEvents) -> RawEvents:
    both = a.joined(b)
    return both.take(np.lexsort((both.external_id, both.track, -both.end, both.start)))


def _find_span(spans: RawEvents) -> tuple[int, int] | None:
    """From when to when the profiler says that it recorded."""
    return (int(spans.start.min()), int(spans.end.max())) if len(spans) else None


def _note_long_span(raw: RawTrace) -> tuple[str, ...]:
    """A profiler that runs for days fills disks; a trace that spans them holds a time that is wrong."""
    tables = [table for table in (raw.ops, raw.ranges, raw.gloo, raw.launches, raw.device) if len(table)]
    days = (max(int(table.end.max()) for table in tables) - min(int(table.start[0]) for table in tables)) / _DAY_NS
    return (f"its events span {days:,.1f} days: some of their times are wrong",) if days > 1 else ()


def _find_rank(path: Path, metadata: dict[str, Any], log: ReadLog) -> int:
    said = metadata.get("distributedInfo")
    rank = said.get("rank") if isinstance(said, dict) else None
    if type(rank) is int and 0 <= rank < 2**31:
        return rank
    named = _RANK_IN_NAME.search(path.name)
    if named is None:
        log.note("neither the file nor its name says its rank: taken as rank 0")
    return 0 if named is None else int(named[1])


def _find_world_size(metadata: dict[str, Any]) -> int | None:
    said = metadata.get("distributedInfo")
    size = said.get("world_size") if isinstance(said, dict) else None
    return size if type(size) is int and 0 < size < 2**31 else None


def _find_base_ns(metadata: dict[str, Any], log: ReadLog) -> int:
    base = metadata.get("baseTimeNanoseconds", 0)
    if type(base) is int and 0 <= base <= _MAX_BASE_NS:
        return base
    log.note("the base time is not a time: times count from 0")
    return 0
