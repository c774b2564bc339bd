from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hand_made import EPOCH_NS, MS, run_log, step_log, step_rows

from speedprof.report.tensorboard import write_scalars


def read(folder: Path) -> object:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loaded = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0})
    loaded.Reload()
    return loaded


def test_tensorboard_reads_every_step_of_every_rank(tmp_path: Path) -> None:
    write_scalars(run_log(), tmp_path)
    found = read(tmp_path)
    tags = ["step_time_ms/rank0", "step_time_ms/rank1", "stage_ms/reduce_scatter/muon.attn", "loss"]
    assert sorted(found.Tags()["scalars"]) == sorted(tags)  # type: ignore[attr-defined]
    times = found.Scalars("step_time_ms/rank1")  # type: ignore[attr-defined]
    assert [one.step for one in times] == list(range(71))
    assert times[10].value == pytest.approx(9.1)
    assert times[10].wall_time == pytest.approx((EPOCH_NS + 100 * MS) / 1e9)
    assert found.Scalars("loss")[7].value == pytest.approx(9.93)  # type: ignore[attr-defined]
    # Only the lowest rank's stages and metrics: one point a step.
    assert len(found.Scalars("stage_ms/reduce_scatter/muon.attn")) == 71  # type: ignore[attr-defined]


def test_host_times_stand_in_where_there_is_no_device(tmp_path: Path) -> None:
    write_scalars(step_log(step_rows(3, "clean", 0, [MS], on_device=False)), tmp_path)
    (only,) = read(tmp_path).Scalars("step_time_ms/rank3")  # type: ignore[attr-defined]
    assert only.value == pytest.approx(1.000007)


def test_validation_has_metrics_but_no_step_time(tmp_path: Path) -> None:
    rows = step_rows(0, "clean", 0, [MS, MS])
    rows[1]["kind"] = "validation"
    write_scalars(step_log(rows), tmp_path)
    found = read(tmp_path)
    assert len(found.Scalars("step_time_ms/rank0")) == 1  # type: ignore[attr-defined]
    assert len(found.Scalars("loss")) == 2  # type: ignore[attr-defined]


def test_an_empty_log_gives_a_readable_file(tmp_path: Path) -> None:
    assert write_scalars(step_log([]), tmp_path / "new").is_file()
    assert read(tmp_path / "new").Tags()["scalars"] == []  # type: ignore[attr-defined]


def test_writing_twice_gives_the_same_bytes_in_the_same_file(tmp_path: Path) -> None:
    first = write_scalars(run_log(), tmp_path)
    content = first.read_bytes()
    assert write_scalars(run_log(), tmp_path) == first
    assert first.read_bytes() == content


def test_torch_is_not_imported() -> None:
    program = (
        "import sys, speedprof.report.console, speedprof.report.html, speedprof.report.tensorboard; "
        "import speedprof.report.json_report; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, cwd=Path(__file__).parents[2])
