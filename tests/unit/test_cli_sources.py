"""What the reading commands take for one run, and what they say of what is missing."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import kineto_text, rows_to_events

from speedprof.cli.run_names import find_run
from speedprof.cli.sources import report_on_run, report_on_traces
from speedprof.cli.trace_options import choose_reading
from speedprof.errors import BeyondLimitError, UnreadableError
from speedprof.run_dir import RunDir

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "traces" / "samples"
STEP_OF_ONE_OP = rows_to_events("0 | main | speedprof.step/1 | 0 | 100 |\n0 | main | aten::mm | 10 | 90 |")[0]


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """A run of two CPU ranks that a test may spoil."""
    shutil.copytree(SAMPLES / "cpu-2ranks", tmp_path / "run")
    return RunDir(tmp_path / "run")


def test_two_traces_of_a_rank_are_refused(run_dir: RunDir) -> None:
    path = run_dir.kineto_paths()[0]
    again = shutil.copy(path, run_dir.path / "again.json.gz")
    with pytest.raises(UnreadableError, match=r"is of rank 0, as .* is; name the traces of one run alone"):
        report_on_traces([path, Path(again)])


def test_a_file_that_is_named_twice_is_read_once(run_dir: RunDir) -> None:
    path = run_dir.kineto_paths()[0]
    link = run_dir.path / "link.json.gz"
    link.symlink_to(path)
    report = report_on_traces([path, path, path.parent / "." / path.name, path.resolve(), link])
    assert ([rank.rank for rank in report.analysis.ranks], report.trace_paths) == ([0], (path,))


def test_the_traces_of_a_report_are_in_the_order_of_ranks(run_dir: RunDir) -> None:
    paths = run_dir.kineto_paths()
    report = report_on_traces(paths[::-1])
    assert [rank.rank for rank in report.analysis.ranks] == [0, 1]
    assert report.trace_paths == tuple(paths)
    assert report.sources == tuple(str(path) for path in paths[::-1])


def test_a_folder_of_several_runs_is_refused() -> None:
    with pytest.raises(UnreadableError, match="name the traces of one run alone"):
        report_on_traces([SAMPLES])


def test_gpu_and_cpu_ranks_are_not_averaged(run_dir: RunDir) -> None:
    gpu = RunDir(SAMPLES / "h200-2ranks").kineto_paths()[0]
    with pytest.raises(UnreadableError, match=r"is of a CPU rank, .* of a GPU rank; name the traces"):
        report_on_traces([gpu, run_dir.kineto_paths()[1]])


def test_a_rank_without_a_trace_is_told(run_dir: RunDir) -> None:
    run_dir.kineto_paths()[1].unlink()
    report = report_on_run(run_dir)
    assert "rank 1 has no trace: the means over ranks leave it out" in report.analysis.notes
    assert [rank.rank for rank in report.analysis.ranks] == [0]


def test_a_damaged_step_log_costs_its_rank_alone(run_dir: RunDir) -> None:
    run_dir.steps_path(0).write_bytes(b"rubbish")
    report = report_on_run(run_dir)
    assert [one.rank for one in report.analysis.step_times] == [1]
    assert any("not a speedprof step log" in note for note in report.analysis.notes)


def test_a_skipped_file_is_named_with_its_reason(run_dir: RunDir) -> None:
    (run_dir.path / "kineto" / "rank2.json").write_bytes(b"")
    report = report_on_traces([run_dir.path / "kineto"])
    assert any("1 of 3 JSON files" in note for note in report.analysis.notes)
    assert any("rank2.json" in note and "empty" in note for note in report.analysis.notes)


def test_a_run_that_lost_its_manifest_is_still_found_by_name(run_dir: RunDir) -> None:
    run_dir.manifest_path.unlink()
    assert find_run("latest", run_dir.path.parent).path == run_dir.path


@pytest.mark.parametrize(("name", "advice"), [("no/such", "see what lies"), ("run/kineto", "use `analyze`")])
def test_a_path_that_is_no_run_is_not_told_to_be_rebuilt(run_dir: RunDir, name: str, advice: str) -> None:
    with pytest.raises(UnreadableError, match=advice):
        find_run(str(run_dir.path.parent / name), run_dir.path.parent)


def run(*words: str, stdout: int | None = subprocess.PIPE, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "speedprof", *words]
    return subprocess.run(command, cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment)


def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = run("analyze", "traces/samples/cpu-2ranks", stdout=full.fileno())
    assert (done.returncode, done.stderr.count("\n")) == (6, 1)
    assert "No space left on device; free some space" in done.stderr


def test_a_terminal_without_unicode_is_served() -> None:
    done = run("analyze", "traces/samples/h200-2ranks", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()


def test_a_name_in_an_error_does_not_reach_the_terminal_raw() -> None:
    done = run("analyze", "\x1b[31mred\nx.json")
    assert (done.returncode, done.stderr.count("\n")) == (4, 1)
    assert "\x1b" not in done.stderr


def test_a_missing_json_file_is_said_to_be_missing() -> None:
    done = run("analyze", "nowhere.json")
    assert done.stderr == "speedprof: error: nowhere.json does not exist; check the path\n"
    assert json.dumps(done.stdout) == '""'


def test_a_file_of_a_folder_beyond_the_limit_is_named_not_skipped(tmp_path: Path) -> None:
    small = kineto_text(STEP_OF_ONE_OP, rank=0)
    (tmp_path / "rank0.json").write_text(small)
    (tmp_path / "rank1.json").write_text(kineto_text(STEP_OF_ONE_OP, rank=1) + " " * 4_000)
    reading = choose_reading(max_bytes=str(len(small) + 2_000))
    with pytest.raises(BeyondLimitError, match=r"rank1\.json holds more than") as error:
        report_on_traces([tmp_path], reading)
    assert "--max-bytes" in error.value.next_step


def test_traces_of_days_far_apart_are_not_of_one_run(tmp_path: Path) -> None:
    day_ns = 86_400 * 10**9
    for rank, base_ns in ((0, 10**18), (1, 10**18 + 3 * day_ns)):
        text = kineto_text(STEP_OF_ONE_OP, rank=rank, baseTimeNanoseconds=base_ns)
        (tmp_path / f"rank{rank}.json").write_text(text)
    with pytest.raises(UnreadableError, match="was captured 3 days before or after"):
        report_on_traces([tmp_path])
