"""Events of a file gathered into numpy columns, sorted so that their order in the file does not matter."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import IntEnum

import numpy as np

from speedprof.trace.events import ABSENT, MAX_US, Args, Event, to_ns
from speedprof.trace.intervals import Bools, Int64s
from speedprof.units import NS_PER_US


class Source(IntEnum):
    """Which table an event belongs to."""

    OP = 0
    ANNOTATION = 1
    LAUNCH = 2
    DEVICE = 3
    SPAN = 4


# Categories as torch 1.8 to 2.13 write them, on CUDA, ROCm, XPU and MTIA. Not here and so not read: flows, GPU-side
# annotations (gpu_user_annotation covers only what its range launched itself), cuda_sync, python_function, overhead.
CATEGORIES = {
    "cpu_op": Source.OP,
    "Operator": Source.OP,
    "user_annotation": Source.ANNOTATION,
    "cuda_runtime": Source.LAUNCH,
    "cuda_driver": Source.LAUNCH,
    "Runtime": Source.LAUNCH,
    "runtime": Source.LAUNCH,
    "hip_runtime": Source.LAUNCH,
    "hip_driver": Source.LAUNCH,
    "xpu_runtime": Source.LAUNCH,
    "xpu_driver": Source.LAUNCH,
    "mtia_runtime": Source.LAUNCH,
    "privateuse1_runtime": Source.LAUNCH,
    "privateuse1_driver": Source.LAUNCH,
    "kernel": Source.DEVICE,
    "Kernel": Source.DEVICE,
    "concurrent_kernel": Source.DEVICE,
    "mtia_ccp_events": Source.DEVICE,
    "gpu_memcpy": Source.DEVICE,
    "Memcpy": Source.DEVICE,
    "gpu_memset": Source.DEVICE,
    "Memset": Source.DEVICE,
    "Trace": Source.SPAN,
}


class NameTable(dict[str, int]):
    """Text to a small number, given out at first sight."""

    def __missing__(self, name: str) -> int:
        self[name] = len(self)
        return self[name]


class _Tracks(dict[object, int]):
    """Ids of threads, streams and devices as numbers: `7`, `"7"`, `"stream 7"` are 7; other text gets its checksum."""

    def __missing__(self, track: object) -> int:
        text = str(track).removeprefix("stream").strip()
        number = int(text) if text.isdecimal() and len(text) < 19 else zlib.crc32(text.encode("utf-8", "replace"))
        if isinstance(track, int) and not -(2**63) < track < 2**63:
            number = zlib.crc32(text.encode())
        self[track] = number
        return number


@dataclass(frozen=True, slots=True, kw_only=True)
class RawEvents:
    """Columns of the events of one source, sorted by start; times in ns after the base time.

    `name` and `category` number into lists of texts. `track` is a host thread or a device's stream.
    """

    name: Int64s
    category: Int64s
    track: Int64s
    device: Int64s
    start: Int64s
    end: Int64s
    correlation: Int64s
    external_id: Int64s
    collective_args: dict[int, Args]

    def __len__(self) -> int:
        return len(self.start)

    def take(self, rows: Int64s | Bools) -> RawEvents:
        """These rows, in this order. Collective arguments follow their rows."""
        if rows.dtype == np.bool_ and rows.all():
            return self
        picked = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows.astype(np.int64, copy=False)
        return replace(
            self,
            **{name: getattr(self, name)[picked] for name in _ARRAYS},
            collective_args=self._collective_args_of(picked) if self.collective_args else {},
        )

    def _collective_args_of(self, picked: Int64s) -> dict[int, Args]:
        place = np.full(len(self), -1, dtype=np.int64)
        place[picked] = np.arange(len(picked))
        places = place[np.fromiter(self.collective_args, dtype=np.int64)].tolist()
        return {at: args for at, args in zip(places, self.collective_args.values(), strict=True) if at >= 0}

    def joined(self, other: RawEvents) -> RawEvents:
        """These rows and then the other's."""
        later = {len(self) + row: args for row, args in other.collective_args.items()}
        return replace(
            self,
            **{name: np.concatenate((getattr(self, name), getattr(other, name))) for name in _ARRAYS},
            collective_args=self.collective_args | later,
        )


_ARRAYS = ("name", "category", "track", "device", "start", "end", "correlation", "external_id")


@dataclass(slots=True)
class ColumnGatherer:
    """Takes lists of events and gives columns. `num_broken` counts events whose times are not sound."""

    names: NameTable = field(default_factory=NameTable)
    categories: NameTable = field(default_factory=NameTable)
    num_broken: int = 0
    _tracks: _Tracks = field(default_factory=_Tracks)
    _parts: dict[Source, list[RawEvents]] = field(default_factory=lambda: {source: [] for source in Source})

    def add(self, events: Iterable[Event]) -> None:
        """Keep what belongs to a table. Only complete events (`X`) carry time; flows and marks are left."""
        buckets: defaultdict[str | None, list[Event]] = defaultdict(list)
        for event in events:
            if event.ph == "X":
                buckets[event.cat].append(event)
        for category, bucket in buckets.items():
            if category in CATEGORIES:
                self._parts[CATEGORIES[category]].append(self._columns(category, bucket))

    def gathered(self, source: Source, base_ns: int) -> RawEvents:
        """All events of a source, in an order that does not depend on the file's; times gain the base time."""
        parts = self._parts[source]
        if not parts:
            parts = [self._columns("", [])]
        offsets = np.cumsum([0, *(len(part) for part in parts)]).tolist()
        whole = RawEvents(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS},
            collective_args={
                offset + row: args
                for offset, part in zip(offsets, parts, strict=False)
                for row, args in part.collective_args.items()
            },
        )
        parts.clear()
        for times in (whole.start, whole.end):
            times += base_ns  # in place: these arrays are the largest that there are, and nobody else holds them
        return whole.take(self._file_free_order(whole))

    def _columns(self, category: str, events: list[Event]) -> RawEvents:
        start, start_is_sound = to_ns([event.ts for event in events])
        # An event without a duration is one of zero length; a duration that is not a time spoils the event.
        length, length_is_sound = to_ns([0 if event.dur is None else event.dur for event in events])
        args = [event.args for event in events]
        track, device = self._places(category, events, args)
        columns = RawEvents(
            name=_ints([self.names[event.name] for event in events]),
            category=np.full(len(events), self.categories[category], dtype=np.int64),
            track=track,
            device=device,
            start=start,
            end=start + length,
            correlation=_ints([a.correlation for a in args]),
            external_id=_ints([a.external_id for a in args]),
            collective_args={row: a for row, a in enumerate(args) if a.collective is not None},
        )
        sound = start_is_sound & length_is_sound & (start + length <= MAX_US * NS_PER_US)
        if sound.all():
            return columns
        self.num_broken += int((~sound).sum())
        return columns.take(sound)

    def _places(self, category: str, events: list[Event], args: list[Args]) -> tuple[Int64s, Int64s]:
        """The track and the device of each event."""
        tracks = self._tracks
        # Inductor gives CPU ops a stream argument too: only a device event's stream is its track.
        if CATEGORIES.get(category) is not Source.DEVICE:
            return _ints([tracks[event.tid] for event in events]), np.full(len(events), ABSENT, dtype=np.int64)
        streams = [event.tid if event.args.stream is None else event.args.stream for event in events]
        devices = [ABSENT if a.device is None else tracks[a.device] for a in args]
        return _ints([tracks[stream] for stream in streams]), _ints(devices)

    def _file_free_order(self, events: RawEvents) -> Int64s:
        """By start, the longer first; what is equal in that by track, correlation and name."""
        alphabetical = _ranks(list(self.names))
        keys = (alphabetical[events.name], events.external_id, events.correlation, events.track, -events.end)
        order = np.argsort(events.start, kind="stable")
        start = events.start[order]
        tied = np.concatenate((start[1:] == start[:-1], [False])) if len(start) else np.zeros(0, dtype=np.bool_)
        tied |= np.concatenate(([False], tied[:-1]))
        rows = order[tied]
        order[tied] = rows[np.lexsort((*(key[rows] for key in keys), events.start[rows]))]
        return order


def _ints(values: list[int]) -> Int64s:
    return np.array(values, dtype=np.int64)


def _ranks(texts: list[str]) -> Int64s:
    ranks = np.empty(len(texts), dtype=np.int64)
    ranks[sorted(range(len(texts)), key=texts.__getitem__)] = np.arange(len(texts))
    return ranks
