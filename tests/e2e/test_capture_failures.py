"""A program that fails on one rank: the rank is named with its own words, and what there is stays readable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from captures import ROOT, Capture, capture, capture_toy, processes_naming, speedprof

from speedprof.run_dir import ArtifactKind, RunDir, RunStatus, find_damage, read_manifest
from speedprof.step_log import read_step_log
from speedprof.trace.read_kineto import read_kineto

pytestmark = pytest.mark.e2e


def require_kept(run: Capture, steps_of_rank_0: list[int]) -> None:
    """The partial run is marked, undamaged and readable, and nothing runs on."""
    assert run.manifest.status is RunStatus.FAILED
    assert find_damage(run.run_dir, run.manifest) == []
    assert f"speedprof: error: {run.manifest.failure}; what it left is kept in {run.run_dir.path}" in run.err
    assert read_step_log([run.run_dir.steps_path(0)]).steps["step"].to_list() == steps_of_rank_0
    check = speedprof("check", run.run_dir.path)
    assert (check.returncode, "the run is failed" in check.stdout) == (5, True)
    analyze = speedprof("analyze", run.run_dir.path, "--json")
    assert (analyze.returncode, analyze.stderr) == (0, "")
    assert json.loads(analyze.stdout)["schema_version"] >= 1
    assert processes_naming(run.run_dir.path) == []


def test_a_rank_that_raises_is_named_with_its_own_traceback(tmp_path: Path) -> None:
    run = capture_toy(tmp_path, "raise")
    assert run.code == 3
    require_kept(run, [0, 1, 2, 3, 4])
    assert run.manifest.failure == "rank 1 failed about step 5 with exit code 1: ValueError: the loss is not a number"
    error = run.manifest.ranks[1].error
    assert error is not None
    assert error.splitlines()[-1] == "ValueError: the loss is not a number"
    assert 'raise ValueError("the loss is not a number")' in error
    assert "speedprof/capture" not in error
    assert run.err.count(error) == 1


def test_a_rank_that_raises_while_it_is_traced_leaves_the_trace_so_far(tmp_path: Path) -> None:
    run = capture_toy(tmp_path, "raise", "--warmup", "0", "--steps", "1", "--trace-steps", "100")
    assert run.code == 3
    require_kept(run, [0, 1, 2, 3, 4])
    traces = [read_kineto(path) for path in run.run_dir.kineto_paths()]
    assert [trace.rank for trace in traces] == [0, 1]
    for trace in traces:
        names = set(trace.ranges["name"].cast(str))
        assert {f"speedprof.step/{step}" for step in (2, 3, 4)} <= names


def test_a_rank_that_exits_with_a_message_is_named_with_it(tmp_path: Path) -> None:
    run = capture_toy(tmp_path, "exit")
    assert run.code == 3
    require_kept(run, [0, 1, 2, 3, 4])
    assert (run.manifest.ranks[1].error, run.manifest.ranks[1].exit_code) == ("toy: error: out of data", 1)
    assert run.manifest.failure == "rank 1 failed about step 5 with exit code 1: toy: error: out of data"


def test_a_rank_that_is_killed_is_named_with_the_signal(tmp_path: Path) -> None:
    run = capture_toy(tmp_path, "kill")
    assert run.code == 3
    require_kept(run, [0, 1, 2, 3, 4])
    assert run.manifest.failure == "rank 1 died about step 5 without a word: killed by SIGKILL"
    assert [one.status for one in run.manifest.ranks] == [RunStatus.FAILED, RunStatus.FAILED]


def test_a_program_that_ends_early_is_partial_and_no_failure(tmp_path: Path) -> None:
    run = capture_toy(tmp_path, "short")
    assert run.code == 0
    assert (run.manifest.status, run.manifest.failure) == (RunStatus.PARTIAL, None)
    assert [one.num_marked for one in run.manifest.ranks] == [{"warmup": 2, "clean": 4}] * 2
    assert "the program ended, or never marked a step, before the plan was fulfilled" in run.err
    assert read_step_log(run.run_dir.steps_paths()).steps["step"].to_list() == [0, 1, 2, 3, 4, 5] * 2
    assert run.run_dir.kineto_paths() == []
    assert (run.reports / "index.html").is_file()
    assert speedprof("check", run.run_dir.path).returncode == 5


def test_a_program_that_is_not_there_fails_before_its_first_step(tmp_path: Path) -> None:
    run = capture(tmp_path, "--program", str(tmp_path / "missing.py"))
    assert run.code == 3
    assert run.manifest.status is RunStatus.FAILED
    assert "failed before its first step with exit code 1: FileNotFoundError" in str(run.manifest.failure)
    assert "missing.py" in run.err
    assert processes_naming(run.run_dir.path) == []


def test_a_program_may_change_folder(tmp_path: Path) -> None:
    program = tmp_path / "wanders.py"
    program.write_text(
        "import os\nfrom speedprof import annotate\nos.chdir('/')\n"
        "for n in range(100):\n    with annotate.step(n):\n        pass\n"
    )
    plan = ("--steps", "3", "--warmup", "1", "--nproc", "1")
    command = [sys.executable, "-m", "speedprof", "capture", "--program", str(program), *plan]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*command, "--run-id", "run"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    manifest = read_manifest(RunDir(tmp_path / "traces" / "run"))
    assert manifest.status is RunStatus.COMPLETE
    assert {artifact.kind for artifact in manifest.artifacts} >= {ArtifactKind.KINETO, ArtifactKind.STEPS}


def test_another_trainer_in_the_folder_is_not_run_by_mistake(tmp_path: Path) -> None:
    (tmp_path / "trainer.py").write_text("print('mine')")
    command = [sys.executable, "-m", "speedprof", "capture", "--steps", "3"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is not the trainer that comes with speedprof" in done.stderr
    assert not (tmp_path / "traces").exists()
