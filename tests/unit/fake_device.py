"""A host clock that moves only when told, a CUDA device that works beside it, and what a step clock wrote."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from speedprof.annotate import StepKind
from speedprof.capture import step_clock
from speedprof.step_records import ABSENT_INT, Mark, read_records

CURRENT_STREAM = object()
SIDE_STREAM = object()

EPOCH_NS = 1_795_000_000_000_000_000


@dataclass(slots=True)
class FakeClock:
    """`now_ns` since the machine started; the epoch's time runs along with it."""

    now_ns: int = 1_000

    def pass_ns(self, ns: int) -> None:
        self.now_ns += ns

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        fake = SimpleNamespace(perf_counter_ns=lambda: self.now_ns, time_ns=lambda: EPOCH_NS + self.now_ns)
        monkeypatch.setattr(step_clock, "time", fake)


@dataclass(slots=True)
class FakeDevice:
    """One stream that works through what it is given, and idle ones; its clock is `offset_ns` ahead of the host's."""

    clock: FakeClock
    offset_ns: int = 0
    busy_until_ns: int = 0
    side_busy_until_ns: int = 0
    is_on_side: bool = False  # whether the program is on its side stream
    is_capturing: bool = False
    has_failed: bool = False
    answer_ns: int = 0  # what a query costs the host
    lateness_ns: int = 0  # of events on idle streams
    num_events: int = 0
    synchronized_at: list[int] = field(default_factory=list)

    def work(self, ns: int) -> None:
        """Launch a kernel of `ns` on the current stream; the host does not wait."""
        if self.is_on_side:
            self.side_busy_until_ns = max(self.side_busy_until_ns, self.clock.now_ns) + ns
        else:
            self.busy_until_ns = max(self.busy_until_ns, self.clock.now_ns) + ns

    def require_sound(self) -> None:
        if self.has_failed:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def synchronize(self) -> None:
        self.require_sound()
        self.synchronized_at.append(self.clock.now_ns)
        self.clock.now_ns = max(self.clock.now_ns, self.busy_until_ns, self.side_busy_until_ns)

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        replaced: dict[str, Callable[..., object]] = {
            "Event": lambda enable_timing: FakeEvent(self),
            "Stream": object,
            "synchronize": self.synchronize,
            "current_device": lambda: 0,
            "current_stream": lambda: SIDE_STREAM if self.is_on_side else CURRENT_STREAM,
            "is_current_stream_capturing": lambda: self.is_capturing,
        }
        for name, replacement in replaced.items():
            monkeypatch.setattr(torch.cuda, name, replacement)
        monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: int(self.is_on_side), raising=False)


class FakeEvent:
    """An event of a FakeDevice: on the current stream it passes behind the work given so far, else at once."""

    def __init__(self, device: FakeDevice) -> None:
        device.num_events += 1
        self._device = device
        self._passes_ns: int | None = None
        self._stamp_ns = 0

    def record(self, stream: object = None) -> None:
        self._device.require_sound()
        now_ns = self._device.clock.now_ns
        busy = {CURRENT_STREAM: self._device.busy_until_ns, SIDE_STREAM: self._device.side_busy_until_ns}
        is_idle = stream not in busy
        self._passes_ns = now_ns + self._device.lateness_ns if is_idle else max(now_ns, busy[stream])
        self._stamp_ns = self._passes_ns + self._device.offset_ns

    def query(self) -> bool:
        self._device.require_sound()
        assert self._passes_ns is not None
        has_passed = self._device.clock.now_ns >= self._passes_ns
        self._device.clock.pass_ns(self._device.answer_ns)
        return has_passed

    def elapsed_time(self, end: FakeEvent) -> float:
        """In milliseconds. As in torch, both events must have passed."""
        if not (self.query() and end.query()):
            raise RuntimeError("CUDA error: device not ready")
        return (end._stamp_ns - self._stamp_ns) / 1e6


def rows_of(path: Path) -> list[dict[str, Any]]:
    """What is in a step log, without absent values."""
    return [
        {
            name: value
            for name, value in zip(segment.rows.dtype.names or (), one, strict=True)
            if value != ABSENT_INT and value == value
        }
        for segment in read_records(path)[0]
        for one in segment.rows.tolist()
    ]


def column(path: Path, name: str) -> list[Any]:
    return [row.get(name) for row in rows_of(path)]


def begin(steps: step_clock.StepClock, step: int, mark: Mark = Mark.CLEAN, kind: StepKind = "train") -> None:
    """The program marks a step."""
    steps.step_passed()
    steps.step_began(step, kind, mark)


def end(steps: step_clock.StepClock) -> None:
    """The program leaves its last step, and the capture closes."""
    steps.step_ended()
    steps.close(is_last_whole=True)
