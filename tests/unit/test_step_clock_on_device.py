"""The step clock beside a device that is told how long it works: exact device times, and the host never waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_device import EPOCH_NS, FakeClock, FakeDevice, begin, column, end, rows_of

from speedprof.capture.step_clock import StepClock
from speedprof.step_records import RecordWriter

MS = 1_000_000
S = 1_000_000_000


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    clock.install(monkeypatch)
    return clock


@pytest.fixture
def device(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    device = FakeDevice(clock)
    device.install(monkeypatch)
    return device


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rank0.steps"


@pytest.fixture
def writer(path: Path) -> Iterator[RecordWriter]:
    with RecordWriter(path, {"rank": 0}) as writer:
        yield writer


@pytest.fixture
def steps(writer: RecordWriter, device: FakeDevice) -> StepClock:
    return StepClock(writer, has_device=True)


def test_device_time_runs_between_the_marks_on_the_stream_not_on_the_host(
    steps: StepClock, path: Path, clock: FakeClock, device: FakeDevice
) -> None:
    for step, work_ns in enumerate((5 * MS, 7 * MS)):
        begin(steps, step)
        device.work(work_ns)
        clock.pass_ns(100)
        steps.step_ended()
        clock.pass_ns(100)
    steps.close(is_last_whole=True)
    assert column(path, "device_ns") == [5 * MS, 7 * MS]
    assert column(path, "host_ns") == [200, 100]


def test_a_stage_is_clocked_on_the_stream_over_both_its_passages(
    steps: StepClock, path: Path, clock: FakeClock, device: FakeDevice
) -> None:
    begin(steps, 0)
    device.work(10 * MS)
    for work_ns in (2 * MS, 3 * MS):
        steps.stage_began("newton_schulz", "muon.attn")
        device.work(work_ns)
        clock.pass_ns(50)
        steps.stage_ended()
    end(steps)
    assert column(path, "stage_stream_ns:newton_schulz/muon.attn") == [5 * MS]
    assert column(path, "stage_host_ns:newton_schulz/muon.attn") == [100]


def test_the_host_never_waits_for_the_device_before_the_close(
    steps: StepClock, writer: RecordWriter, path: Path, clock: FakeClock, device: FakeDevice
) -> None:
    for step in range(4):
        begin(steps, step)
        device.work(10 * MS)
        clock.pass_ns(1 * MS)
        steps.step_ended()
    writer.flush()
    assert rows_of(path) == []  # the host is 36 ms ahead
    clock.pass_ns(20 * MS)
    begin(steps, 4)
    writer.flush()
    assert column(path, "step") == [0, 1]
    assert device.synchronized_at == []
    assert clock.now_ns == 1_000 + 24 * MS
    end(steps)
    assert column(path, "device_ns") == [10 * MS] * 4 + [0]
    assert device.synchronized_at == [1_000 + 24 * MS]


def test_events_are_used_again_once_they_have_passed(
    steps: StepClock, path: Path, clock: FakeClock, device: FakeDevice
) -> None:
    for step in range(100):
        begin(steps, step)
        steps.stage_began("update", "adam.head")
        device.work(1_000)
        clock.pass_ns(2_000)
        steps.stage_ended()
        steps.step_ended()
    end(steps)
    assert column(path, "stage_stream_ns:update/adam.head") == [2_000] * 100
    assert device.num_events <= 10


def test_an_anchor_places_the_devices_clock_on_the_hosts(
    steps: StepClock, path: Path, clock: FakeClock, device: FakeDevice
) -> None:
    device.offset_ns = 123_456_789
    begin(steps, 0)
    device.work(4 * MS)
    clock.pass_ns(1 * MS)
    begin(steps, 1)
    end(steps)
    began_ns = EPOCH_NS + 1_000
    assert column(path, "device_start_ns") == [began_ns, began_ns + 4 * MS]


def test_a_second_later_a_new_anchor_says_how_far_the_clocks_have_drifted(
    steps: StepClock, path: Path, clock: FakeClock, device: FakeDevice
) -> None:
    for step, offset_ns in enumerate((0, 100, 300, 300)):
        device.offset_ns = offset_ns
        begin(steps, step)
        clock.pass_ns(S // 2)
    end(steps)
    assert column(path, "anchor_residual_ns") == [None, None, -300, None]
    starts = column(path, "device_start_ns")
    assert [start - EPOCH_NS - 1_000 for start in starts] == [0, S // 2 + 100, S, 3 * S // 2]


def test_an_anchor_whose_event_is_late_is_not_trusted_and_is_tried_again(
    steps: StepClock, path: Path, clock: FakeClock, device: FakeDevice
) -> None:
    device.answer_ns = 50_000
    device.lateness_ns = 1 * MS
    begin(steps, 0)
    assert clock.now_ns == 1_000 + 250_000  # its patience, and the query that passed it
    device.answer_ns = device.lateness_ns = 0
    begin(steps, 1)
    end(steps)
    assert column(path, "device_start_ns") == [None, EPOCH_NS + 251_000]


def test_while_a_graph_is_captured_no_event_is_recorded(
    steps: StepClock, path: Path, clock: FakeClock, device: FakeDevice
) -> None:
    begin(steps, 0)
    device.is_capturing = True
    steps.stage_began("update", "adam.head")
    clock.pass_ns(5)
    steps.stage_ended()
    device.is_capturing = False
    device.work(2 * MS)
    end(steps)
    (row,) = rows_of(path)
    assert row["device_ns"] == 5 + 2 * MS
    assert row["stage_host_ns:update/adam.head"] == 5
    assert "stage_stream_ns:update/adam.head" not in row


def test_a_number_on_the_device_is_copied_and_read_when_its_step_has_passed(
    steps: StepClock, path: Path, clock: FakeClock, device: FakeDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnDevice(torch.Tensor):
        is_cuda = True  # type: ignore[assignment]

        def __float__(self) -> float:
            raise AssertionError("this would make the host wait")

    class Pinned(torch.Tensor):
        def copy_(self, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
            copies.append(non_blocking)
            return torch.Tensor.copy_(self.as_subclass(torch.Tensor), source.as_subclass(torch.Tensor))

    empty = torch.empty
    copies: list[bool] = []

    def pin(*size: Any, dtype: torch.dtype, pin_memory: bool) -> torch.Tensor:
        assert pin_memory
        return empty(*size, dtype=dtype).as_subclass(Pinned)

    monkeypatch.setattr(torch, "empty", pin)
    begin(steps, 0)
    steps.metric_seen("loss", torch.tensor([2.5], dtype=torch.bfloat16).as_subclass(OnDevice))
    steps.metric_seen("lr", 0.5)
    end(steps)
    assert (column(path, "metric:loss"), column(path, "metric:lr")) == ([2.5], [0.5])
    assert copies == [True]


def test_a_device_that_failed_leaves_the_hosts_times(
    steps: StepClock, path: Path, clock: FakeClock, device: FakeDevice
) -> None:
    begin(steps, 0)
    device.work(5 * MS)
    clock.pass_ns(100)
    begin(steps, 1)
    steps.stage_began("update", "adam.head")
    clock.pass_ns(30)
    device.has_failed = True
    steps.stage_ended()
    steps.step_ended()
    steps.close(is_last_whole=False)
    assert rows_of(path) == [
        {"step": 0, "kind": 0, "mark": 1, "phase": 0, "host_start_ns": EPOCH_NS + 1_000, "host_ns": 100}
    ]


def test_a_stage_on_a_side_stream_that_outlasts_its_step_is_waited_for_by_nobody(
    steps: StepClock, path: Path, clock: FakeClock, device: FakeDevice, writer: RecordWriter
) -> None:
    begin(steps, 0)
    device.is_on_side = True
    steps.stage_began("update", "muon.attn")
    device.work(9 * MS)
    steps.stage_ended()
    device.is_on_side = False
    device.work(2 * MS)
    clock.pass_ns(100)
    begin(steps, 1)
    clock.pass_ns(3 * MS)
    begin(steps, 2)  # the first step has passed on its own stream, its stage has not
    writer.flush()
    assert rows_of(path) == []
    clock.pass_ns(7 * MS)
    begin(steps, 3)
    writer.flush()
    assert column(path, "stage_stream_ns:update/muon.attn")[0] == 9 * MS
    assert device.synchronized_at == []
