"""The clock that is always on: how long each step and each of its stages takes, without ever holding the device up.

On a GPU a step runs from a CUDA event at its mark to another at the next mark, and a stage between events at its two
ends; events are read when they have long passed. On CPU ranks there is only the host's clock.
"""

from __future__ import annotations

import threading
import time
from collections import deque

import torch

from speedprof.annotate import StepKind
from speedprof.step_records import (
    KINDS,
    MARKS,
    METRIC_PREFIX,
    STAGE_HOST_PREFIX,
    STAGE_STREAM_PREFIX,
    Mark,
    RecordWriter,
)
from speedprof.units import NS_PER_MS, NS_PER_S

# How long an anchor may wait for its event, which lies on an idle stream.
_ANCHOR_PATIENCE_NS = 200_000


class _Stage:
    """One passage through a stage."""

    __slots__ = ("began", "host_ns", "left", "name")

    def __init__(self, name: str, began: torch.cuda.Event | None) -> None:
        self.name = name
        self.began = began
        self.left: torch.cuda.Event | None = None
        self.host_ns = time.perf_counter_ns()  # the start, until the stage is left


class _Step:
    """A step on its way: its record so far, and the events that still have to pass."""

    __slots__ = ("anchor", "aside", "began", "began_ns", "ended", "ended_ns", "is_over", "metrics", "row", "stages")

    def __init__(self, row: dict[str, int | float], began: torch.cuda.Event | None, anchor: _Anchor | None) -> None:
        self.row = row
        self.began = began
        self.began_ns = time.perf_counter_ns()
        self.ended: torch.cuda.Event | None = None
        self.ended_ns = self.began_ns
        self.is_over = False
        self.anchor = anchor
        self.stages: list[_Stage] = []
        self.aside: list[torch.cuda.Event] = []  # on other streams than the step's own, which may lag behind it
        self.metrics: list[tuple[str, torch.Tensor]] = []


class _Anchor:
    """An instant known on both clocks: an event on an idle stream, and the host's time as it passed."""

    __slots__ = ("event", "host_ns")

    def __init__(self, event: torch.cuda.Event, host_ns: int) -> None:
        self.event = event
        self.host_ns = host_ns


class StepClock:
    """Clocks the steps of one rank and writes a record for each.

    Fields of a record (absent where they do not apply):
        step, kind, mark, phase     kind, mark: indices into step_records.KINDS and MARKS; phase: into the header's list
        host_start_ns, host_ns      since the epoch; from this mark to the next
        device_start_ns, device_ns  the same on the device's clock, placed on the host's by the last anchor
        anchor_residual_ns          how far the clocks had drifted apart since the last anchor, where one was taken
        stage_host_ns:<stage>/<group>, stage_stream_ns:<stage>/<group>, metric:<name>
    """

    def __init__(self, writer: RecordWriter, *, has_device: bool) -> None:
        self._writer = writer
        self._has_device = has_device
        self._phases = [""]
        self._phase = 0
        self._writer.set_header("phases", list(self._phases))
        self._open: _Step | None = None
        self._passing: deque[_Step] = deque()
        self._free_events: list[torch.cuda.Event] = []
        self._threads = threading.local()
        self._anchor: _Anchor | None = None
        self._anchor_stream = torch.cuda.Stream() if has_device else None
        self._device = torch.cuda.current_device() if has_device else 0
        self._streams: dict[int, torch.cuda.Stream] = {}
        self._step_stream: torch.cuda.Stream | None = None

    def step_passed(self) -> None:
        """The next step's mark has come: the open step, if any, ends here.

        What a capture does between this and `step_began`, such as starting the profiler, belongs to no step.
        """
        if self._open is None:
            return
        self._recycle(self._open.ended)
        self.step_ended()
        self._passing.append(self._open)
        self._open = None

    def step_began(self, step: int, kind: StepKind, mark: Mark) -> None:
        """Open `step`; the step before it must have passed."""
        row: dict[str, int | float] = {
            "step": step,
            "kind": KINDS.index(kind),
            "mark": MARKS.index(mark),
            "phase": self._phase,
            "host_start_ns": time.time_ns(),
        }
        if self._anchor_stream is not None and self._is_anchor_due():
            row |= self._take_anchor(self._anchor_stream)
        self._step_stream = self._current_stream() if self._has_device else None
        self._open = _Step(row, self._record_event(), self._anchor)
        self._write_passed()

    def step_ended(self) -> None:
        """The step's own range is over; the step itself lasts until the next mark, if one comes."""
        if self._open is not None:
            self._open.ended, self._open.ended_ns = self._record_event(), time.perf_counter_ns()
            self._open.is_over = True

    def stage_began(self, stage: str, group: str) -> None:
        self._stack().append(_Stage(f"{stage}/{group}", self._record_event()))

    def stage_ended(self) -> None:
        passage = self._stack().pop()
        passage.left = self._record_event()
        passage.host_ns = time.perf_counter_ns() - passage.host_ns
        if self._open is not None:
            self._open.stages.append(passage)

    def metric_seen(self, name: str, value: float | torch.Tensor) -> None:
        if self._open is None:
            return
        if isinstance(value, torch.Tensor) and value.is_cuda:
            # Pinned memory, or the copy would make the host wait for the device.
            copy = torch.empty((), dtype=value.dtype, pin_memory=True)
            self._open.metrics.append((name, copy.copy_(value.detach().reshape(()), non_blocking=True)))
        else:
            self._open.row[METRIC_PREFIX + name] = float(value.detach() if isinstance(value, torch.Tensor) else value)

    def phase_began(self, name: str) -> None:
        if name not in self._phases:
            self._phases.append(name)
            self._writer.set_header("phases", list(self._phases))
        self._phase = self._phases.index(name)

    def close(self, *, is_last_whole: bool) -> None:
        """Write what is left, waiting for the device; where the device has failed, the host's times alone.

        A last step that was not left, or that an error or a signal cut short, is not written: its time is no step's.
        """
        if self._open is not None and self._open.is_over and is_last_whole:
            self._passing.append(self._open)
        self._open = None
        try:
            if self._has_device:
                torch.cuda.synchronize()
        except RuntimeError:
            self._has_device = False
        while self._passing:
            self._write(self._passing.popleft())
        self._writer.flush()

    def _stack(self) -> list[_Stage]:
        if not hasattr(self._threads, "stack"):
            self._threads.stack = []
        stack: list[_Stage] = self._threads.stack
        return stack

    def _record_event(self) -> torch.cuda.Event | None:
        if not self._has_device or torch.cuda.is_current_stream_capturing():
            return None
        event = self._free_events.pop() if self._free_events else torch.cuda.Event(enable_timing=True)
        stream = self._current_stream()
        try:
            event.record(stream)
        except RuntimeError:
            return None  # the device has failed; the program's own next call says so better
        if self._open is not None and stream is not self._step_stream:
            self._open.aside.append(event)
        return event

    def _current_stream(self) -> torch.cuda.Stream:
        """This thread's stream. torch.cuda.current_stream takes 3.9 us of an event's 5.8, looking it up here 0.2."""
        handle: int = torch._C._cuda_getCurrentRawStream(self._device)
        if handle not in self._streams:
            self._streams[handle] = torch.cuda.current_stream()
        return self._streams[handle]

    def _recycle(self, *events: torch.cuda.Event | None) -> None:
        self._free_events += [event for event in events if event is not None]

    def _is_anchor_due(self) -> bool:
        return self._anchor is None or time.time_ns() - self._anchor.host_ns >= NS_PER_S

    def _take_anchor(self, stream: torch.cuda.Stream) -> dict[str, int]:
        """Set a new anchor; the clocks' drift since the last one, if the event passed in time to be trusted."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(stream)
        deadline = time.perf_counter_ns() + _ANCHOR_PATIENCE_NS
        while not event.query():
            if time.perf_counter_ns() > deadline:
                return {}
        before, self._anchor = self._anchor, _Anchor(event, time.time_ns())
        if before is None:
            return {}
        expected_ns = before.host_ns + _elapsed_ns(before.event, event)
        return {"anchor_residual_ns": self._anchor.host_ns - expected_ns}

    def _write_passed(self) -> None:
        while self._passing and _has_passed(self._passing[0]):
            self._write(self._passing.popleft())

    def _write(self, step: _Step) -> None:
        row = step.row
        row["host_ns"] = step.ended_ns - step.began_ns
        for passage in step.stages:
            _add(row, STAGE_HOST_PREFIX + passage.name, passage.host_ns)
        if self._has_device:
            self._add_device_times(step)
        self._writer.append(row)
        self._recycle(step.began, step.ended, *(event for one in step.stages for event in (one.began, one.left)))

    def _add_device_times(self, step: _Step) -> None:
        row = step.row
        for name, copy in step.metrics:
            row[METRIC_PREFIX + name] = float(copy)
        if step.began is not None and step.ended is not None:
            row["device_ns"] = _elapsed_ns(step.began, step.ended)
            if step.anchor is not None:
                row["device_start_ns"] = step.anchor.host_ns + _elapsed_ns(step.anchor.event, step.began)
        for passage in step.stages:
            if passage.began is not None and passage.left is not None:
                _add(row, STAGE_STREAM_PREFIX + passage.name, _elapsed_ns(passage.began, passage.left))


def _add(row: dict[str, int | float], name: str, value: int) -> None:
    row[name] = row.get(name, 0) + value


def _has_passed(step: _Step) -> bool:
    """Whether all events of the step have passed: on its own stream none comes after the last, so that one is asked
    alone (0.26 to 1.9 us a question, of 140)."""
    return (step.ended is None or step.ended.query()) and all(event.query() for event in step.aside)


def _elapsed_ns(start: torch.cuda.Event, end: torch.cuda.Event) -> int:
    return round(float(start.elapsed_time(end)) * NS_PER_MS)
