"""The step log's file format: what was written is read back, up to the first byte that a kill or a fault took."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from speedprof.errors import UnreadableError
from speedprof.step_records import ABSENT_INT, MAGIC, MARKS, Mark, RecordWriter, Row, fold, read_records

HEADER = {"rank": 3, "phases": [""]}


def row(step: int, **more: int | float) -> dict[str, int | float]:
    """A clean step of 10 ns in the first phase."""
    fixed = {"step": step, "kind": 0, "mark": 1, "phase": 0, "host_start_ns": 1_000 + 10 * step, "host_ns": 10}
    return {**fixed, **more}


def written(path: Path, *rows: Row) -> Path:
    with RecordWriter(path, HEADER) as writer:
        for one in rows:
            writer.append(one)
    return path


def steps_of(path: Path) -> list[int]:
    return [step for segment in read_records(path)[0] for step in segment.rows["step"].tolist()]


def test_the_numbers_of_marks_never_change() -> None:
    assert MARKS == (Mark.WARMUP, Mark.CLEAN, Mark.TRANSITION, Mark.PROFILED)


def test_rows_read_back_as_they_were_written(tmp_path: Path) -> None:
    rows = [row(0, loss=2.5), row(1, loss=-1e300), row(2**40, loss=0.1)]
    (segment,), num_unread = read_records(written(tmp_path / "a.steps", *rows))
    assert [dict(zip(segment.rows.dtype.names or (), one, strict=True)) for one in segment.rows.tolist()] == rows
    assert num_unread == 0
    assert segment.header["rank"] == 3


def test_a_field_never_seen_before_begins_a_segment_and_later_rows_may_lack_it(tmp_path: Path) -> None:
    path = tmp_path / "a.steps"
    with RecordWriter(path, HEADER) as writer:
        writer.append(row(0))
        writer.flush()
        writer.append(row(1, stage=7, loss=0.5))
        writer.flush()
        writer.append(row(2))
    first, second = read_records(path)[0]
    assert (first.rows["step"].tolist(), second.rows["step"].tolist()) == ([0], [1, 2])
    assert second.rows["stage"].tolist() == [7, ABSENT_INT]
    assert second.rows["loss"].tolist()[0] == 0.5
    assert second.rows["loss"][1] != second.rows["loss"][1]


def test_rows_of_one_flush_share_their_fields(tmp_path: Path) -> None:
    (segment,), _ = read_records(written(tmp_path / "a.steps", row(0), row(1, stage=7)))
    assert segment.rows["stage"].tolist() == [ABSENT_INT, 7]


def test_a_changed_header_begins_a_segment_and_earlier_rows_keep_theirs(tmp_path: Path) -> None:
    path = tmp_path / "a.steps"
    with RecordWriter(path, HEADER) as writer:
        writer.append(row(0))
        writer.set_header("phases", ["", "long"])
        writer.append(row(1, phase=1))
    assert [segment.header["phases"] for segment in read_records(path)[0]] == [[""], ["", "long"]]


def test_a_file_that_is_opened_again_goes_on(tmp_path: Path) -> None:
    path = written(tmp_path / "a.steps", row(0))
    written(path, row(1))
    assert steps_of(path) == [0, 1]


def test_rows_that_were_not_flushed_are_not_in_the_file(tmp_path: Path) -> None:
    writer = RecordWriter(tmp_path / "a.steps", HEADER)
    writer.append(row(0))
    assert (writer.num_bytes(), steps_of(tmp_path / "a.steps")) == (0, [])
    writer.close()
    assert writer.header == HEADER
    assert steps_of(tmp_path / "a.steps") == [0]


def test_an_empty_file_holds_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.steps").touch()
    assert read_records(tmp_path / "a.steps") == ([], 0)


def test_a_file_cut_at_any_byte_gives_the_rows_before_the_cut(tmp_path: Path) -> None:
    path = tmp_path / "a.steps"
    with RecordWriter(path, HEADER) as writer:
        for step in (0, 1, 2):
            writer.append(row(step))
        writer.flush()
        whole_at = [writer.num_bytes()]
        writer.append(row(3, stage=7))
        writer.append(row(4, stage=8))
    data = path.read_bytes()
    seen = []
    for length in range(len(data) + 1):
        path.write_bytes(data[:length])
        segments, num_unread = read_records(path)
        steps = [step for segment in segments for step in segment.rows["step"].tolist()]
        assert steps == list(range(len(steps)))
        assert (num_unread == 0) == (length in _ends_of_records(segments, length, num_unread))
        seen.append(len(steps))
    assert seen == sorted(seen)
    assert (seen[0], seen[whole_at[0]], seen[-1]) == (0, 3, 5)


def _ends_of_records(segments: list[Any], length: int, num_unread: int) -> set[int]:
    """Where a file may end and be whole: at its start, after a header and after each record."""
    end = 0
    ends = {0}
    for segment in segments:
        end += len(MAGIC) + 8 + len(json.dumps(segment.header))
        ends |= {end + (segment.rows.dtype.itemsize) * n for n in range(len(segment.rows) + 1)}
        end = max(ends)
    assert end == length - num_unread
    return ends


def test_a_flipped_bit_anywhere_is_noticed_and_no_wrong_number_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.steps", row(0), row(1), row(2))
    data = path.read_bytes()
    for position in range(len(MAGIC), len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x10]) + data[position + 1 :])
        segments, num_unread = read_records(path)
        rows = [tuple(one) for segment in segments for one in segment.rows.tolist()]
        assert rows == [tuple(row(step).values()) for step in range(len(rows))]
        assert len(rows) < 3
        assert num_unread > 0


@pytest.mark.parametrize("content", [b"not a step log", b"{}", b"\x1f\x8b\x08", b"SPEEDPR2 of another version"])
def test_a_foreign_file_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.steps"
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match="not a speedprof step log") as refused:
        read_records(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("header", [{}, [], {"fields": 7}, {"fields": [["step", "O"]]}, {"fields": [["step"]]}])
def test_a_sound_header_that_says_no_fields_is_refused_in_one_line(tmp_path: Path, header: Any) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "a.steps"
    path.write_bytes(MAGIC + struct.pack("<I", len(text)) + text + struct.pack("<I", zlib.crc32(text)) + bytes(64))
    with pytest.raises(UnreadableError):
        read_records(path)


@pytest.mark.parametrize("name", ["missing.steps", "."])
def test_a_file_that_cannot_be_opened_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UnreadableError, match="cannot be read"):
        read_records(tmp_path / name)


def test_folding_keeps_means_starts_and_the_count_of_steps() -> None:
    rows = [row(0, host_ns=10, loss=1.0, device_start_ns=500), row(1, host_ns=13, loss=2.0, device_start_ns=900)]
    assert fold(rows, level="host_ns") == [
        row(0, host_ns=12, loss=1.5, device_start_ns=500, num_steps=2),
    ]


def test_a_field_that_some_steps_lack_is_the_mean_of_those_that_have_it() -> None:
    (folded,) = fold([row(0), row(1, stage=6), row(2, stage=8)], level="host_ns")
    assert folded["stage"] == 7


def test_a_block_is_at_most_its_size() -> None:
    folded = fold([row(step) for step in range(250)], level="host_ns")
    assert [(one["step"], one["num_steps"]) for one in folded] == [(0, 100), (100, 100), (200, 50)]


def test_an_outlier_stays_whole_in_its_place() -> None:
    rows = [row(step, host_ns=1_000 if step == 40 else 10) for step in range(100)]
    assert fold(rows, level="host_ns") == [row(0, num_steps=99), rows[40]]


def test_a_step_at_the_bound_is_no_outlier() -> None:
    rows = [row(0), row(1), row(2, host_ns=15)]
    assert [one["num_steps"] for one in fold(rows, level="host_ns")] == [3]


@pytest.mark.parametrize("field", ["kind", "mark", "phase"])
def test_steps_of_different_kinds_marks_and_phases_are_not_mixed(field: str) -> None:
    rows = [row(step, **{field: int(step >= 6) + 1}) for step in range(10)]
    folded = fold(rows, level="host_ns")
    assert [(one[field], one["num_steps"]) for one in folded] == [(1, 6), (2, 4)]


def test_what_is_folded_already_stays_as_it_is() -> None:
    once = fold([row(step) for step in range(200)], level="host_ns")
    assert fold(once, level="host_ns") == once


def test_folding_a_file_keeps_its_last_rows_and_lets_it_go_on(tmp_path: Path) -> None:
    path = tmp_path / "a.steps"
    with RecordWriter(path, HEADER) as writer:
        for step in range(150):
            writer.append(row(step))
        writer.set_header("phases", ["", "long"])
        for step in range(150, 300):
            writer.append(row(step, phase=1, stage=7))
        before = path.stat().st_size
        writer.fold(keep_last=10)
        assert writer.num_bytes() < before / 5
        writer.append(row(300, phase=1))
    segments, num_unread = read_records(path)
    assert num_unread == 0
    assert {tuple(segment.header["phases"]) for segment in segments} == {("", "long")}
    rows = [
        dict(zip(segment.rows.dtype.names or (), one, strict=True))
        for segment in segments
        for one in segment.rows.tolist()
    ]
    assert [one["step"] for one in rows] == [0, 100, 150, 250, *range(290, 301)]
    assert sum(max(1, one.get("num_steps", 1)) for one in rows) == 301
    assert [one["phase"] for one in rows[:4]] == [0, 0, 1, 1]
    assert not list(tmp_path.glob(".*"))


def test_folding_twice_keeps_the_count_of_steps(tmp_path: Path) -> None:
    path = tmp_path / "a.steps"
    with RecordWriter(path, HEADER) as writer:
        for start in (0, 1_000):
            for step in range(start, start + 1_000):
                writer.append(row(step))
            writer.fold(keep_last=50)
    counts = [
        max(1, count)
        for segment in read_records(path)[0]
        for count in (segment.rows["num_steps"].tolist() if "num_steps" in (segment.rows.dtype.names or ()) else [])
    ]
    assert sum(counts) == 2_000
