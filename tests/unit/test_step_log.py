"""Step logs of all ranks become columns: absent values are null, folded rows count, cut files are noted."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from speedprof.errors import UnreadableError
from speedprof.step_log import read_step_log
from speedprof.step_records import RecordWriter, Row

SCATTER = "reduce_scatter/muon.attn"
UPDATE = "update/adam.head"


def row(step: int, *, kind: int = 0, mark: int = 1, phase: int = 0, **more: int | float) -> dict[str, int | float]:
    fixed = {"step": step, "kind": kind, "mark": mark, "phase": phase}
    return {**fixed, "host_start_ns": 1_000 + step, "host_ns": 10, **more}


def written(path: Path, *rows: Row, rank: int = 0, phases: tuple[str, ...] = ("",)) -> Path:
    with RecordWriter(path, {"rank": rank, "phases": list(phases)}) as writer:
        for one in rows:
            writer.append(one)
            writer.flush()
    return path


def test_marks_kinds_and_phases_are_words(tmp_path: Path) -> None:
    path = written(
        tmp_path / "rank0.steps",
        row(0, mark=0),
        row(1, mark=1, phase=1),
        row(0, mark=2, kind=1, phase=1),
        row(2, mark=3, phase=1),
        phases=("", "long"),
    )
    steps = read_step_log([path]).steps
    assert steps.select("step", "kind", "mark", "phase").rows() == [
        (0, "train", "warmup", ""),
        (1, "train", "clean", "long"),
        (0, "validation", "transition", "long"),
        (2, "train", "profiled", "long"),
    ]
    assert steps.select("num_steps", "host_start_ns", "host_ns").row(1) == (1, 1_001, 10)


def test_cpu_ranks_have_no_device_times(tmp_path: Path) -> None:
    log = read_step_log([written(tmp_path / "rank0.steps", row(0, **{f"stage_host_ns:{UPDATE}": 4}))])
    assert log.steps["device_ns"].to_list() == [None]
    assert log.stages.rows() == [(0, 0, "update", "adam.head", 4, None)]


def test_two_ranks_are_told_apart_and_keep_their_own_times(tmp_path: Path) -> None:
    first = written(tmp_path / "rank0.steps", row(0, device_ns=9), row(1, device_ns=8))
    second = written(tmp_path / "rank1.steps", row(0, device_ns=7), rank=1)
    log = read_step_log([first, second])
    assert log.ranks == [0, 1]
    assert log.steps.select("rank", "step", "device_ns").rows() == [(0, 0, 9), (0, 1, 8), (1, 0, 7)]
    assert log.notes == ()


def test_a_stage_that_a_step_did_not_pass_has_no_row(tmp_path: Path) -> None:
    path = written(
        tmp_path / "rank0.steps",
        row(0, **{f"stage_host_ns:{SCATTER}": 4, f"stage_stream_ns:{SCATTER}": 3}),
        row(1, **{f"stage_host_ns:{UPDATE}": 6}),
    )
    assert sorted(read_step_log([path]).stages.rows()) == [
        (0, 0, "reduce_scatter", "muon.attn", 4, 3),
        (0, 1, "update", "adam.head", 6, None),
    ]


def test_metrics_are_rows_and_a_step_without_one_has_none(tmp_path: Path) -> None:
    path = written(tmp_path / "rank0.steps", row(0, **{"metric:loss": 2.5, "metric:lr": 0.1}), row(1), row(2))
    metrics = read_step_log([path]).metrics
    assert sorted(metrics.rows()) == [(0, 0, "loss", 2.5), (0, 0, "lr", 0.1)]


def test_a_folded_row_counts_its_steps(tmp_path: Path) -> None:
    path = written(tmp_path / "rank0.steps", row(0, num_steps=100), row(100))
    assert read_step_log([path]).steps["num_steps"].to_list() == [100, 1]


def test_the_tables_have_their_columns_even_without_a_step(tmp_path: Path) -> None:
    path = tmp_path / "rank0.steps"
    path.touch()
    log = read_step_log([path])
    assert (len(log.steps), len(log.stages), len(log.metrics), log.ranks) == (0, 0, 0, [])
    assert log.steps.schema["host_ns"] == pl.Int64
    assert read_step_log([]).steps.columns == log.steps.columns


def test_a_file_that_breaks_off_is_read_up_to_there_and_noted(tmp_path: Path) -> None:
    path = written(tmp_path / "rank7.steps", row(0), row(1), rank=7)
    path.write_bytes(path.read_bytes()[:-3])
    log = read_step_log([path])
    assert log.steps["step"].to_list() == [0]
    assert log.notes == ("rank7.steps breaks off: its last 49 bytes could not be read",)


def test_a_file_cut_behind_a_header_has_no_rows_and_is_whole(tmp_path: Path) -> None:
    path = written(tmp_path / "rank0.steps", row(0))
    path.write_bytes(path.read_bytes()[:-52])
    log = read_step_log([path])
    assert (len(log.steps), log.notes) == (0, ())


def test_records_that_are_no_steps_are_refused_in_one_line(tmp_path: Path) -> None:
    path = written(tmp_path / "rank0.steps", {"events": 3})
    with pytest.raises(UnreadableError, match="lacks what a step log must hold") as refused:
        read_step_log([path])
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("wrong", [row(0, mark=9), row(0, kind=5), row(0, phase=3)])
def test_a_mark_kind_or_phase_that_is_not_known_is_refused(tmp_path: Path, wrong: Row) -> None:
    with pytest.raises(UnreadableError):
        read_step_log([written(tmp_path / "rank0.steps", wrong)])
