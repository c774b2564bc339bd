"""The step clock of a CPU rank, under a clock that is told what time it is."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fake_device import EPOCH_NS, FakeClock, begin, column, end, rows_of

from speedprof.capture.step_clock import StepClock
from speedprof.step_records import Mark, RecordWriter, read_records

S = 1_000_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    clock.install(monkeypatch)
    return clock


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rank0.steps"


@pytest.fixture
def steps(path: Path, clock: FakeClock) -> Iterator[StepClock]:
    with RecordWriter(path, {"rank": 0}) as writer:
        yield StepClock(writer, has_device=False)


def test_a_step_lasts_from_its_mark_to_the_next(steps: StepClock, path: Path, clock: FakeClock) -> None:
    for step, (inside, outside) in enumerate([(50, 20), (40, 0)]):
        begin(steps, step)
        clock.pass_ns(inside)
        steps.step_ended()
        clock.pass_ns(outside)
    steps.close(is_last_whole=True)
    assert rows_of(path) == [
        {"step": 0, "kind": 0, "mark": 1, "phase": 0, "host_start_ns": EPOCH_NS + 1_000, "host_ns": 70},
        {"step": 1, "kind": 0, "mark": 1, "phase": 0, "host_start_ns": EPOCH_NS + 1_070, "host_ns": 40},
    ]


def test_the_last_step_ends_with_its_range_however_late_the_clock_is_closed(
    steps: StepClock, path: Path, clock: FakeClock
) -> None:
    begin(steps, 0, Mark.PROFILED)
    clock.pass_ns(50)
    steps.step_ended()
    clock.pass_ns(9 * S)  # the trace is written
    steps.close(is_last_whole=True)
    assert column(path, "host_ns") == [50]


def test_what_comes_between_two_marks_before_the_next_step_begins_belongs_to_neither(
    steps: StepClock, path: Path, clock: FakeClock
) -> None:
    begin(steps, 0)
    clock.pass_ns(50)
    steps.step_passed()
    clock.pass_ns(9 * S)  # the profiler starts
    steps.step_began(1, "train", Mark.TRANSITION)
    clock.pass_ns(60)
    steps.step_passed()
    steps.close(is_last_whole=True)
    assert column(path, "host_ns") == [50, 60]


def test_a_step_that_an_error_cut_short_is_not_written(steps: StepClock, path: Path, clock: FakeClock) -> None:
    begin(steps, 0)
    clock.pass_ns(30)
    begin(steps, 1)
    clock.pass_ns(10)
    steps.step_ended()
    steps.close(is_last_whole=False)
    assert column(path, "host_ns") == [30]


def test_a_clock_that_saw_no_step_writes_none(steps: StepClock, path: Path, clock: FakeClock) -> None:
    steps.stage_began("update", "adam.head")
    steps.stage_ended()
    steps.metric_seen("loss", 1.0)
    steps.step_ended()
    end(steps)
    assert rows_of(path) == []


def test_marks_and_kinds_are_kept_and_a_validation_ends_the_step_before_it(
    steps: StepClock, path: Path, clock: FakeClock
) -> None:
    begin(steps, 4, Mark.WARMUP)
    clock.pass_ns(10)
    begin(steps, 0, Mark.WARMUP, "validation")
    clock.pass_ns(30)
    begin(steps, 5, Mark.TRANSITION)
    clock.pass_ns(5)
    end(steps)
    assert [(row["step"], row["kind"], row["mark"], row["host_ns"]) for row in rows_of(path)] == [
        (4, 0, 0, 10),
        (0, 1, 0, 30),
        (5, 0, 2, 5),
    ]


def test_two_passages_through_a_stage_are_summed(steps: StepClock, path: Path, clock: FakeClock) -> None:
    begin(steps, 0)
    for ns in (7, 8):
        steps.stage_began("update", "adam.head")
        clock.pass_ns(ns)
        steps.stage_ended()
    end(steps)
    assert column(path, "stage_host_ns:update/adam.head") == [15]


def test_a_stage_within_a_stage_counts_for_both(steps: StepClock, path: Path, clock: FakeClock) -> None:
    begin(steps, 0)
    steps.stage_began("update", "outer.group")
    clock.pass_ns(3)
    steps.stage_began("newton_schulz", "inner.group")
    clock.pass_ns(4)
    steps.stage_ended()
    steps.stage_ended()
    end(steps)
    assert column(path, "stage_host_ns:update/outer.group") == [7]
    assert column(path, "stage_host_ns:newton_schulz/inner.group") == [4]


def test_a_stage_on_another_thread_does_not_mix_with_those_of_this_one(
    steps: StepClock, path: Path, clock: FakeClock
) -> None:
    begin(steps, 0)
    steps.stage_began("update", "adam.head")

    def in_autograd() -> None:
        steps.stage_began("reduce_scatter", "muon.attn")
        clock.pass_ns(5)
        steps.stage_ended()

    thread = threading.Thread(target=in_autograd)
    thread.start()
    thread.join()
    clock.pass_ns(2)
    steps.stage_ended()
    end(steps)
    assert column(path, "stage_host_ns:reduce_scatter/muon.attn") == [5]
    assert column(path, "stage_host_ns:update/adam.head") == [7]


def test_metrics_belong_to_the_step_that_is_open(steps: StepClock, path: Path, clock: FakeClock) -> None:
    for step, loss in enumerate((torch.tensor([2.5], requires_grad=True), 1.25)):
        begin(steps, step)
        steps.step_ended()
        steps.metric_seen("loss", loss)
    end(steps)
    assert column(path, "metric:loss") == [2.5, 1.25]


def test_a_phase_holds_from_the_next_step_on_and_one_that_returns_keeps_its_number(
    steps: StepClock, path: Path, clock: FakeClock
) -> None:
    for step, phase in enumerate(("short", "short", "long", "short")):
        steps.phase_began(phase)
        begin(steps, step)
    end(steps)
    segments, _ = read_records(path)
    assert [segment.header["phases"][row["phase"]] for segment in segments for row in segment.rows] == [
        "short",
        "short",
        "long",
        "short",
    ]
    assert segments[-1].header["phases"] == ["", "short", "long"]


def test_a_step_that_was_never_left_is_not_written(steps: StepClock, path: Path, clock: FakeClock) -> None:
    begin(steps, 0)
    clock.pass_ns(30)
    steps.close(is_last_whole=True)
    assert rows_of(path) == []
