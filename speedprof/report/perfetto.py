"""perfetto.json.gz: all ranks on one clock, for ui.perfetto.dev and chrome://tracing.

    findings            exposed-all-gather, 1.23 ms a step        [exposed-all-gather: rank 3, step 11]
    rank 0              the tracks of speedprof.report.perfetto_tracks
    rank 1              ...

It is Chrome's JSON rather than Perfetto's own format: both viewers open it, and so do scripts that read Kineto's files.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from isal import isal_zlib

from speedprof import __version__
from speedprof.analyses.analysis import Analysis
from speedprof.findings import Finding
from speedprof.report.perfetto_clock import FileClock, find_clock
from speedprof.report.perfetto_findings import make_findings_track
from speedprof.report.perfetto_lanes import DEEPEST_NEST, find_lanes
from speedprof.report.perfetto_text import format_metadata, format_slices
from speedprof.report.perfetto_tracks import TrackGroup, make_tracks
from speedprof.report.text import make_plain
from speedprof.trace.model import Trace
from speedprof.trace.schema import to_numpy
from speedprof.units import NS_PER_S

# Perfetto lists a thread first that has its process's number, so processes are numbered beyond all tracks.
_FINDINGS_PID = 10_000
_FIRST_RANK_PID = 10_001
# Perfetto drops what begins before time 0. Of ranks that are not read yet it is known when their device began, and
# their hosts began before that: the file's time begins so long before the first device. Viewers count from the first
# event in the file.
_MOST_BEFORE_NS = 3_600 * NS_PER_S
_GZIP_LEVEL = 1


def write_perfetto(traces: Iterable[Trace], analysis: Analysis, findings: Sequence[Finding], path: Path) -> None:
    """Write the timelines of all ranks and the findings to `path`, whole or not at all.

    `traces` gives one rank at a time, and none is kept. Their clocks are brought together by the offsets of
    `analysis.match`, where there is one. A rank that `analysis` does not know is drawn without its idle gaps. Raises
    what `traces` raises, and OSError where the file cannot be written; nothing is left behind then.
    """
    ranks, clock = {rank.rank: rank for rank in analysis.ranks}, find_clock(analysis)
    marked = make_findings_track(findings, clock)
    base_ns = _find_base(marked, clock)
    pids: set[int] = set()
    num_arrows = 0
    with _open_atomically(path) as packed:
        file = _EventFile(packed)
        if base_ns is not None:
            _write_process(file, "findings", _FINDINGS_PID, [marked], -base_ns)
        for trace in traces:
            if base_ns is None:
                base_ns = _first_recorded(trace) - _MOST_BEFORE_NS
            # A number for each, also where two traces claim the same rank.
            pid = next(pid for pid in itertools.count(_FIRST_RANK_PID + trace.rank) if pid not in pids)
            pids.add(pid)
            name = f"rank {trace.rank}" + (" (clock not aligned)" if trace.rank in clock.unaligned else "")
            groups = make_tracks(trace, ranks.get(trace.rank), analysis.match, num_arrows)
            _write_process(file, name, pid, groups, clock.offset_ns(trace.rank) - base_ns)
            num_arrows += len(trace.launches)
            # Lest this rank is kept while the next one is read.
            del trace, groups
        file.close(
            {
                "speedprof": __version__,
                "base_time_ns": base_ns or 0,
                "clock_offset_ns_of_rank": {str(rank): clock.offset_ns(rank) for rank in sorted(clock.offsets_ns)},
            }
        )


def _find_base(marked: TrackGroup, clock: FileClock) -> int | None:
    """The instant at which the file's time begins; None where neither traces nor findings tell one."""
    starts = to_numpy(marked.slices["start_ns"]).tolist() + list(clock.span or ())
    return min(starts) - _MOST_BEFORE_NS if starts else None


def _first_recorded(trace: Trace) -> int:
    """The first instant of any table; 0 where all are empty."""
    tables = (trace.kernels, trace.launches, trace.ops, trace.ranges, trace.collectives)
    return min((int(to_numpy(table["start_ns"]).min()) for table in tables if len(table)), default=0)


def _write_process(file: _EventFile, name: str, pid: int, groups: Iterable[TrackGroup], shift_ns: int) -> None:
    """Write a process: its name, its place among the others by its number, and its tracks from the top down."""
    file.write(format_metadata("process_name", pid, None, {"name": name}))
    file.write(format_metadata("process_sort_index", pid, None, {"sort_index": pid}))
    tids = itertools.count(1)
    for group in groups:
        if not group.slices.is_empty():
            _write_group(file, group, pid, tids, shift_ns)


def _write_group(file: _EventFile, group: TrackGroup, pid: int, tids: Iterator[int], shift_ns: int) -> None:
    """Write a group's slices, lane by lane where they would cross.

    Viewers draw the tracks of a process in the order of their numbers, so lanes are numbered behind their track.
    """
    slices = group.slices.sort(
        "track", "start_ns", "end_ns", descending=[False, False, group.may_nest], maintain_order=True
    )
    track, start, end = (to_numpy(slices[name]) for name in ("track", "start_ns", "end_ns"))
    lane = find_lanes(track, start, end, deepest=DEEPEST_NEST if group.may_nest else 1)
    drawn, place = np.unique(track * (int(lane.max()) + 1) + lane, return_inverse=True)
    numbers = np.array(list(itertools.islice(tids, len(drawn))), dtype=np.int64)
    for key, tid in zip(drawn.tolist(), numbers.tolist(), strict=True):
        name = _name_lane(group.names, *divmod(key, int(lane.max()) + 1))
        file.write(format_metadata("thread_name", pid, tid, {"name": name}))
        file.write(format_metadata("thread_sort_index", pid, tid, {"sort_index": tid}))
    for text in format_slices(slices, numbers[place], pid, shift_ns):
        file.write(text)


def _name_lane(names: Sequence[str], track: int, lane: int) -> str:
    return make_plain(names[track]) + ("" if lane == 0 else ", overlapping" if lane == 1 else f", overlapping {lane}")


class _EventFile:
    """A JSON document under construction; each event's text begins with a comma, which the first one loses."""

    def __init__(self, packed: _Packed) -> None:
        self._packed = packed
        self._is_empty = True
        packed.write(b'{"displayTimeUnit":"ns","traceEvents":[')

    def write(self, events: bytes) -> None:
        self._packed.write(events[1:] if self._is_empty else events)
        self._is_empty = False

    def close(self, facts: dict[str, Any]) -> None:
        self._packed.write(b'\n],"otherData":' + json.dumps(facts).encode() + b"}\n")


class _Packed:
    """A gzip file; what is written is packed at once."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._packer = isal_zlib.compressobj(level=_GZIP_LEVEL, wbits=31)

    def write(self, data: bytes) -> None:
        self._file.write(self._packer.compress(data))

    def finish(self) -> None:
        self._file.write(self._packer.flush())


@contextlib.contextmanager
def _open_atomically(path: Path) -> Iterator[_Packed]:
    """A gzip file that takes the name `path` once it is whole, and is gone if that does not come to pass."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            packed = _Packed(file)
            yield packed
            packed.finish()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
