"""A capture that is stopped from outside ends within seconds, closes its run, and leaves no process behind."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from captures import finish, processes_naming, speedprof, start, start_toy, wait_for_ends

from speedprof.run_dir import ArtifactKind, RunDir, RunStatus, find_damage, read_manifest
from speedprof.step_log import read_step_log

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"])
def test_a_capture_that_is_interrupted_keeps_what_there_is(tmp_path: Path, stop: signal.Signals, code: int) -> None:
    process = start_toy(tmp_path, "ok", until="clean steps")
    process.send_signal(stop)
    run = finish(process, tmp_path)
    assert run.code == code
    assert (run.manifest.status, run.manifest.failure) == (RunStatus.INTERRUPTED, None)
    assert [one.status for one in run.manifest.ranks] == [RunStatus.INTERRUPTED] * 2
    assert f"speedprof: interrupted; what there is so far is kept in {run.run_dir.path}" in run.err
    assert "Traceback" not in run.err.partition("speedprof: interrupted")[2]
    assert find_damage(run.run_dir, run.manifest) == []
    log = read_step_log(run.run_dir.steps_paths())
    assert (log.ranks, log.notes) == ([0, 1], ())
    for rank in log.ranks:
        steps = log.steps.filter(rank=rank)["step"].to_list()
        assert steps == list(range(len(steps)))
    assert processes_naming(run.run_dir.path) == []


def test_ctrl_c_ends_a_capture_whose_ranks_hang(tmp_path: Path) -> None:
    process = start_toy(tmp_path, "hang", until="step 4 ")
    process.send_signal(signal.SIGINT)
    run = finish(process, tmp_path)
    assert run.code == 130
    assert run.manifest.status is RunStatus.INTERRUPTED
    assert find_damage(run.run_dir, run.manifest) == []
    assert processes_naming(run.run_dir.path) == []


def test_when_the_launcher_is_killed_the_ranks_end_and_check_closes_the_run(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path / "traces" / "run")
    process = start_toy(tmp_path, "ok", until="clean steps")
    process.kill()
    process.communicate()
    assert wait_for_ends(processes_naming(run_dir.path), limit_s=30) == []
    assert read_manifest(run_dir).status is RunStatus.INTERRUPTED
    assert read_manifest(run_dir).artifacts == []
    answer = speedprof("check", run_dir.path)
    assert (answer.returncode, answer.stderr) == (5, "")
    assert "the run is interrupted" in answer.stdout
    assert "its manifest was rebuilt" in answer.stdout
    manifest = read_manifest(run_dir)
    assert manifest.artifacts
    # One rank sees first that the launcher is gone; the other may fail as its connection breaks.
    assert RunStatus.INTERRUPTED in [one.status for one in manifest.ranks]
    assert len(manifest.ranks) == 2
    assert read_step_log(run_dir.steps_paths()).notes == ()
    assert speedprof("analyze", run_dir.path, "--json").returncode == 0


def test_a_trace_that_is_being_written_is_finished_before_the_end(tmp_path: Path) -> None:
    words = ("--steps", "3", "--warmup", "1", "--trace-steps", "2000", "--", "ok")
    process = start(tmp_path, *words, until="writing the trace")
    process.send_signal(signal.SIGINT)
    run = finish(process, tmp_path)
    assert run.code == 130
    assert [artifact.rank for artifact in run.manifest.artifacts if artifact.kind is ArtifactKind.KINETO] == [0, 1]
    assert find_damage(run.run_dir, run.manifest) == []
    assert processes_naming(run.run_dir.path) == []
