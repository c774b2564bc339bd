"""Whole captures: of a toy program, with all that reads them, and of the real trainer."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from captures import Capture, capture, capture_toy, processes_naming, speedprof, wait_until

from speedprof.capture.launch import Launch, Watcher, create_run, run
from speedprof.capture.plan import CapturePlan
from speedprof.run_dir import RunStatus, close_manifest, find_damage
from speedprof.step_log import read_step_log
from speedprof.trace.read_kineto import read_kineto

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Capture:
    return capture_toy(tmp_path_factory.mktemp("toy"), "ok")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Capture:
    words = ("--preset", "tiny_cpu", "--steps", "4", "--warmup", "2", "--trace-steps", "2")
    return capture(tmp_path_factory.mktemp("trainer"), *words)


# A toy program


def test_a_whole_run_is_complete_and_every_rank_passed_the_plan_exactly(toy: Capture) -> None:
    assert toy.code == 0, toy.err
    manifest = toy.manifest
    assert (manifest.status, manifest.failure) == (RunStatus.COMPLETE, None)
    assert [one.notes for one in manifest.ranks] == [[], []]
    marked = {"warmup": 2, "clean": 6, "transition": 3, "profiled": 6}
    assert [(one.rank, one.num_marked, one.exit_code) for one in manifest.ranks] == [(0, marked, 0), (1, marked, 0)]
    assert manifest.declared == {"preset": "toy"}
    assert manifest.plan["steps"] == 6


def test_every_step_of_both_ranks_is_in_the_step_log_with_its_mark(toy: Capture) -> None:
    log = read_step_log(toy.run_dir.steps_paths())
    marks = ["warmup"] * 2 + ["clean"] * 6 + ["transition"] * 3 + ["profiled"] * 6
    for rank in (0, 1):
        rows = log.steps.filter(rank=rank).sort("step")
        assert rows["step"].to_list() == list(range(17))
        assert rows["mark"].to_list() == marks
        assert rows["host_ns"].min() > 0  # type: ignore[operator]
    assert log.notes == ()
    assert log.metrics.filter(name="loss").height == 34
    assert set(log.stages.select("stage", "group").rows()) == {
        ("reduce_scatter", "toy.weights"),
        ("update", "toy.weights"),
    }


def test_the_traces_of_both_ranks_hold_the_profiled_steps(toy: Capture) -> None:
    traces = [read_kineto(path) for path in toy.run_dir.kineto_paths()]
    assert [trace.rank for trace in traces] == [0, 1]
    for trace in traces:
        names = trace.ranges["name"].cast(str).to_list()
        assert [f"speedprof.step/{step}" in names for step in range(11, 17)] == [True] * 6
        assert trace.notes == ()


def test_every_file_is_in_the_manifest_with_its_checksum_and_the_run_is_fit(toy: Capture) -> None:
    assert find_damage(toy.run_dir, toy.manifest) == []
    assert not list(toy.run_dir.path.rglob("*.tmp*"))
    answer = speedprof("check", toy.run_dir.path)
    assert (answer.returncode, answer.stderr) == (0, "")


def test_the_reports_are_there_and_the_console_says_where(toy: Capture) -> None:
    assert sorted(path.name for path in toy.reports.iterdir()) == ["index.html", "report.json", "report.md"]
    report = json.loads((toy.reports / "report.json").read_text())
    assert [rank["rank"] for rank in report["ranks"]] == [0, 1]
    assert str(toy.reports / "index.html") in toy.out
    assert str(toy.run_dir.path) in toy.out


def test_the_programs_log_passes_through_on_stderr(toy: Capture) -> None:
    assert re.findall(r"^step (\d+) loss ", toy.err, re.MULTILINE) == [str(step) for step in range(17)]
    assert "step 3 loss" not in toy.out


def test_tensorboard_reads_step_times_and_losses_of_every_step(toy: Capture) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(toy.run_dir.path), size_guidance={"scalars": 0})
    accumulator.Reload()
    assert {"step_time_ms/rank0", "step_time_ms/rank1", "loss"} <= set(accumulator.Tags()["scalars"])
    for tag in ("step_time_ms/rank0", "step_time_ms/rank1", "loss"):
        points = accumulator.Scalars(tag)
        assert [point.step for point in points] == list(range(17))
        assert all(point.value > 0 for point in points)


@pytest.fixture(scope="module")
def tensorboard(toy: Capture) -> Iterator[str]:
    """The address of a TensorBoard on the folder of the toy's runs; it leaves no process behind."""
    logdir = toy.run_dir.path.parent
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    with process.stderr as said:
        address = next((found[0] for line in said if (found := re.search(r"http://127\.0\.0\.1:\d+/", line))), None)
        assert address is not None, "TensorBoard did not start"
        yield address
        process.send_signal(signal.SIGINT)  # after SIGTERM its data server would stay
        process.wait(timeout=30)
    assert wait_until(lambda: not processes_naming(logdir), limit_s=30)


def _ask(address: str, route: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{address}data/plugin/{route}?{urllib.parse.urlencode(query)}", timeout=30) as answer:
        return json.load(answer)


def test_tensorboards_profiler_plugin_lists_the_run_with_both_ranks(toy: Capture, tensorboard: str) -> None:
    profiler = "pytorch_profiler"
    assert wait_until(lambda: bool(_ask(tensorboard, f"{profiler}/runs")["runs"]), limit_s=60)
    assert wait_until(lambda: not _ask(tensorboard, f"{profiler}/runs")["loading"], limit_s=60)
    assert _ask(tensorboard, f"{profiler}/runs")["runs"] == ["run/kineto"]
    views = _ask(tensorboard, f"{profiler}/views", run="run/kineto")
    assert {"Overview", "Operator", "Trace", "Distributed"} <= set(views)
    workers = _ask(tensorboard, f"{profiler}/workers", run="run/kineto", view="Overview")
    assert sorted(worker for worker in workers if worker != "All") == ["rank0", "rank1"]


def test_tensorboards_scalars_list_the_run(toy: Capture, tensorboard: str) -> None:
    def tags() -> dict[str, Any]:
        found: dict[str, Any] = _ask(tensorboard, "scalars/tags").get("run", {})
        return found

    assert wait_until(lambda: "loss" in tags(), limit_s=30)


def test_a_trace_that_would_grow_too_large_has_fewer_steps_and_says_so(tmp_path: Path) -> None:
    plan = CapturePlan(steps=6, warmup=0, max_trace_bytes=1)
    launch = Launch(plan=plan, program="tests/programs/toy.py", arguments=(), num_ranks=2, name="toy", device="cpu")
    run_dir, manifest = create_run(launch, tmp_path, run_id="run", command=[])
    outcome = run(launch, run_dir, Watcher(), [])
    closed = close_manifest(run_dir, manifest, status=outcome.status, failure=outcome.failure)
    assert (outcome.status, outcome.exit_code) == (RunStatus.COMPLETE, 0)
    assert [one.num_marked["profiled"] for one in closed.ranks] == [1, 1]
    first, second = (one.notes for one in closed.ranks)
    assert first[0].startswith("every rank traced 1 of 6 steps: ")
    assert [note.partition(" of JSON")[2] for note in (first[1], *second)] == [
        ", over --max-trace-mb 0: its steps are larger than the first ones were"
    ] * 2


# The real trainer


def test_the_trainer_declares_its_preset_and_its_optimizers_plan(trainer: Capture) -> None:
    assert trainer.code == 0, trainer.err
    manifest = trainer.manifest
    assert manifest.status is RunStatus.COMPLETE
    assert manifest.declared["preset"] == "tiny_cpu"
    assert {group["optimizer"] for group in manifest.declared["optimizer_plan"]} == {"muon", "adam"}
    marked = {"warmup": 2, "clean": 4, "transition": 1, "profiled": 2}
    assert [one.num_marked for one in manifest.ranks] == [marked, marked]


def test_every_stage_of_every_group_of_both_optimizers_is_in_the_trace_of_each_rank(trainer: Capture) -> None:
    planned = {
        f"speedprof.stage/{stage}/{group['name']}"
        for group in trainer.manifest.declared["optimizer_plan"]
        for stage in group["stages"]
    }
    assert {name.split("/")[1] for name in planned} == {
        "reduce_scatter",
        "reduce_scatter_wait",
        "newton_schulz",
        "update",
        "all_gather",
        "all_gather_wait",
        "copy_back",
    }
    for path in trainer.run_dir.kineto_paths():
        names = set(read_kineto(path).ranges["name"].cast(str))
        assert planned - names == set()


def test_the_trainers_loss_and_stages_are_in_the_step_log_of_each_rank(trainer: Capture) -> None:
    log = read_step_log(trainer.run_dir.steps_paths())
    losses = log.metrics.filter(name="loss")
    assert sorted(losses.select("rank", "step").rows()) == [(rank, step) for rank in (0, 1) for step in range(9)]
    groups = {group["name"] for group in trainer.manifest.declared["optimizer_plan"]}
    assert set(log.stages["group"].to_list()) == groups


def test_a_trace_ends_before_a_validation_pass_and_says_so(tmp_path: Path) -> None:
    done = capture(
        *(tmp_path, "--program", "tests/programs/validating.py", "--warmup", "1", "--steps", "6", "--", "7", "2000")
    )
    assert done.code == 0
    for record in done.manifest.ranks:
        assert record.num_marked == {"warmup": 1, "clean": 6, "transition": 3, "profiled": 4}
    assert "traced 4 of 6 steps: a validation pass came" in done.manifest.ranks[0].notes[0]
    steps = read_step_log(done.run_dir.steps_paths()).steps
    assert steps.filter(pl.col("kind") == "validation").height == 2
