"""The file format of the step log: append-only records of a fixed size, each with its checksum.

A file is one or more segments; a segment is a header and its records:

    magic (8 bytes) | header length (u4) | header (JSON, UTF-8) | CRC-32 of the header (u4) | record | record | ...

A record is a packed little-endian struct with the header's fields, then the CRC-32 of those bytes (u4). When a
program shows a stage or metric for the first time, the fields change and a new segment begins. A reader stops at
the first record that is short or does not match its checksum: what was written before a kill is never lost.

numpy and the standard library only, so that it works inside any training process.
"""

from __future__ import annotations

import itertools
import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from speedprof.errors import UnreadableError

MAGIC = b"SPEEDPR1"

# What a field holds in a record of a step that has no such value. Readers turn it into null.
ABSENT_INT = int(np.iinfo(np.int64).min)

Row = Mapping[str, int | float]


class Mark(StrEnum):
    """What may be concluded from a step. Step time, stutter and comparisons use clean steps only."""

    WARMUP = "warmup"
    CLEAN = "clean"
    TRANSITION = "transition"  # the profiler is starting or stopping
    PROFILED = "profiled"


# The numbers that stand for marks and kinds in the records; never renumber, only append.
MARKS = (Mark.WARMUP, Mark.CLEAN, Mark.TRANSITION, Mark.PROFILED)
KINDS = ("train", "validation")

# Fields of a record beside its fixed ones, as <prefix><name>.
STAGE_STREAM_PREFIX = "stage_stream_ns:"
STAGE_HOST_PREFIX = "stage_host_ns:"
METRIC_PREFIX = "metric:"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Records that share their fields. `rows` is a structured array without the checksums."""

    header: dict[str, Any]
    rows: npt.NDArray[np.void]


class RecordWriter:
    """Appends rows to a file; a row is a mapping of field name to number, an int for `i8` and a float for `f8`.

    Rows are held until `flush`. A field that earlier rows lacked begins a new segment; a field that a row lacks is
    written as absent (ABSENT_INT or NaN).
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        self._path = path
        self._header = dict(header)
        self._file: BinaryIO = open(path, "ab")  # noqa: SIM115 - closed by close()
        self._fields: dict[str, str] = {}
        self._begun = False
        self._pending: list[Row] = []

    @property
    def header(self) -> dict[str, Any]:
        return dict(self._header)

    def set_header(self, key: str, value: Any) -> None:
        """Change a value of the header; what is appended from now on stands in a new segment."""
        self.flush()
        self._header[key] = value
        self._begun = False

    def append(self, row: Row) -> None:
        self._pending.append(row)

    def flush(self) -> None:
        """Hand every pending row to the operating system."""
        if not self._pending:
            return
        fields = self._fields | {name: _type_of(value) for row in self._pending for name, value in row.items()}
        if fields != self._fields or not self._begun:
            self._fields = fields
            self._begun = True
            self._file.write(_encode_header({**self._header, "fields": list(fields.items())}))
        self._file.write(_encode_rows(self._pending, self._fields))
        self._file.flush()
        self._pending.clear()

    def num_bytes(self) -> int:
        """How large the file is, without what is pending."""
        return os.fstat(self._file.fileno()).st_size

    def fold(self, *, keep_last: int = 1_000) -> None:
        """Bound the file: rewrite it with all but its last rows folded (see `fold`)."""
        self.close()
        segments, _ = read_records(self._path)
        rows = [row for segment in segments for row in _rows_of(segment)]
        temporary = self._path.with_name(f".{self._path.name}.tmp")
        temporary.unlink(missing_ok=True)
        with RecordWriter(temporary, self._header) as folded:
            for row in fold(rows[:-keep_last], level="host_ns") + rows[-keep_last:]:
                folded.append(row)
        temporary.replace(self._path)
        self._file = open(self._path, "ab")  # noqa: SIM115 - closed by close()
        self._begun = False

    def close(self) -> None:
        self.flush()
        self._file.close()

    def __enter__(self) -> RecordWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def read_records(path: Path) -> tuple[list[Segment], int]:
    """The segments of a file, and how many bytes at its end could not be read (0 for a whole file).

    Raises UnreadableError where the file is missing or is not a step log at all.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read ({error.strerror})", next_step="name a run directory") from error
    if data and not data.startswith(MAGIC[: len(data)]):
        raise UnreadableError(f"{path}: not a speedprof step log", next_step="name a file under steps/ of a run")
    segments: list[Segment] = []
    offset = 0
    while offset < len(data):
        header, start = _decode_header(data, offset)
        if header is None:
            break
        try:
            record = _struct_of(dict(header["fields"]))
        except (KeyError, TypeError, ValueError) as error:
            raise UnreadableError(
                f"{path}: its header does not say its fields ({error})", next_step="capture the run again"
            ) from error
        rows, offset = _decode_rows(data, start, record)
        segments.append(Segment(header=header, rows=rows))
        if data[offset : offset + len(MAGIC)] != MAGIC:
            break
    return segments, len(data) - offset


def _rows_of(segment: Segment) -> list[Row]:
    names = segment.rows.dtype.names or ()
    return [
        {name: value for name, value in zip(names, row, strict=True) if value != ABSENT_INT and value == value}
        for row in segment.rows.tolist()
    ]


def fold(rows: Sequence[Row], *, level: str, size: int = 100, outlier_ratio: float = 1.5) -> list[Row]:
    """Fold up to `size` successive rows of one kind, mark and phase into one, to bound a log.

    Each field becomes its mean, but step and start are those of the first; `num_steps` counts. A row that is folded
    already, or whose `level` field is over `outlier_ratio` times the median of those beside it, stays whole, in its
    place.
    """
    folded: list[Row] = []
    for _, alike in itertools.groupby(rows, key=lambda row: (row["kind"], row["mark"], row["phase"])):
        for block in _blocks(list(alike), size):
            limit = outlier_ratio * float(np.median([row[level] for row in block]))
            kept = [row for row in block if row[level] > limit or row.get("num_steps", 1) > 1]
            ordinary = [row for row in block if row not in kept]
            mean = [_mean_row(ordinary)] if ordinary else []
            folded += sorted(mean + kept, key=lambda row: row["step"])
    return folded


def _blocks(rows: list[Row], size: int) -> list[list[Row]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _mean_row(rows: Sequence[Row]) -> Row:
    mean: dict[str, int | float] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row[name] for row in rows if name in row]
        whole = isinstance(values[0], int)
        mean[name] = round(sum(values) / len(values)) if whole else sum(values) / len(values)
    starts = {name: value for name, value in rows[0].items() if name == "step" or name.endswith("_start_ns")}
    return {**mean, **starts, "num_steps": len(rows)}


def _type_of(value: int | float) -> str:
    return "<i8" if isinstance(value, int) else "<f8"


def _struct_of(fields: Mapping[str, str]) -> np.dtype[np.void]:
    if not set(fields.values()) <= {"<i8", "<f8"}:
        raise ValueError(f"types {sorted(set(fields.values()))}")
    return np.dtype([(name, kind) for name, kind in fields.items()] + [("crc", "<u4")])


def _encode_header(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    return MAGIC + struct.pack("<I", len(text)) + text + struct.pack("<I", zlib.crc32(text))


def _encode_rows(rows: Iterable[Row], fields: Mapping[str, str]) -> bytes:
    absent = {name: ABSENT_INT if kind == "<i8" else float("nan") for name, kind in fields.items()}
    body = struct.Struct("<" + "".join("q" if kind == "<i8" else "d" for kind in fields.values()))
    encoded = bytearray()
    for row in rows:
        payload = body.pack(*(row.get(name, absent[name]) for name in fields))
        encoded += payload + struct.pack("<I", zlib.crc32(payload))
    return bytes(encoded)


def _decode_header(data: bytes, offset: int) -> tuple[dict[str, Any] | None, int]:
    start = offset + len(MAGIC) + 4
    if len(data) < start:
        return None, offset
    (length,) = struct.unpack_from("<I", data, offset + len(MAGIC))
    text = data[start : start + length]
    if len(data) < start + length + 4 or zlib.crc32(text) != struct.unpack_from("<I", data, start + length)[0]:
        return None, offset
    header: dict[str, Any] = json.loads(text)
    return header, start + length + 4


def _decode_rows(data: bytes, start: int, record: np.dtype[np.void]) -> tuple[npt.NDArray[np.void], int]:
    body = record.itemsize - 4
    end = start
    while end + record.itemsize <= len(data):
        if data[end : end + len(MAGIC)] == MAGIC and body >= len(MAGIC):
            break
        if zlib.crc32(data[end : end + body]) != struct.unpack_from("<I", data, end + body)[0]:
            break
        end += record.itemsize
    rows = np.frombuffer(data[start:end], dtype=record)
    return rows[[name for name in record.names or () if name != "crc"]], end
