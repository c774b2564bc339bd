"""For any rows: what is written is read back, a cut leaves a prefix, and folding loses no step."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from speedprof.step_records import ABSENT_INT, RecordWriter, Row, fold, read_records

_INTS = st.integers(min_value=ABSENT_INT + 1, max_value=2**63 - 1)
_FLOATS = st.floats(allow_nan=False)
_ROWS = st.lists(
    st.fixed_dictionaries(
        {"step": _INTS},
        optional={
            "host_ns": _INTS,
            "stage_host_ns:update/adam.head": _INTS,
            "metric:loss": _FLOATS,
            "metric:é|": _FLOATS,
        },
    ),
    max_size=12,
)
_STEPS = st.lists(
    st.fixed_dictionaries(
        {
            "kind": st.integers(0, 1),
            "mark": st.integers(0, 3),
            "phase": st.integers(0, 1),
            "host_start_ns": st.just(0),
            "host_ns": st.integers(1, 1_000),
        }
    ),
    max_size=60,
)


def _read(path: Path) -> tuple[list[dict[str, int | float]], int]:
    segments, num_unread = read_records(path)
    rows = [
        {name: value for name, value in zip(segment.rows.dtype.names or (), one, strict=True) if _is_there(value)}
        for segment in segments
        for one in segment.rows.tolist()
    ]
    return rows, num_unread


def _is_there(value: int | float) -> bool:
    return value != ABSENT_INT and value == value


@given(rows=_ROWS, flushed_at=st.sets(st.integers(0, 11)), cut=st.integers(0, 4_000))
def test_any_rows_read_back_and_any_cut_leaves_a_prefix(rows: list[Row], flushed_at: set[int], cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rank0.steps"
        with RecordWriter(path, {"rank": 0}) as writer:
            for position, row in enumerate(rows):
                writer.append(row)
                if position in flushed_at:
                    writer.flush()
        assert _read(path) == (rows, 0)
        path.write_bytes(path.read_bytes()[:cut])
        before_cut, _ = _read(path)
        assert before_cut == rows[: len(before_cut)]


@given(steps=_STEPS, size=st.integers(1, 20))
def test_folding_any_steps_loses_none_and_mixes_no_marks(steps: list[dict[str, int]], size: int) -> None:
    rows = [{"step": number, **step} for number, step in enumerate(steps)]
    folded = fold(rows, level="host_ns", size=size)
    assert sum(row.get("num_steps", 1) for row in folded) == len(rows)
    for mark in range(4):
        of_mark = [row for row in rows if row["mark"] == mark]
        assert sum(row.get("num_steps", 1) for row in folded if row["mark"] == mark) == len(of_mark)
    whole = [row for row in folded if "num_steps" not in row]
    assert all(row in rows for row in whole)
    assert fold(folded, level="host_ns", size=size) == folded or whole
