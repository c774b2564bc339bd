"""What one annotated range costs, beside torch.profiler.record_function: nothing listening, NVTX, step clock, profiler.

    python -m benchmarks.annotation_cost

All cases run in turn in every round, so that a slow spell of the machine meets all of them. Printed per case: the
median over rounds of ns per range, the spread (least and most), and the ratio to record_function in the same state.
With the step clock, every 70 ranges make a step, and its marks and its record are part of the cost. On a machine with
a GPU the clock records CUDA events, and the first step, which makes them, is not counted.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from speedprof import annotate
from speedprof.capture.step_clock import StepClock
from speedprof.step_records import Mark, RecordWriter

NUM_ROUNDS = 15
NUM_RANGES = 2_100
STAGES_PER_STEP = 70  # about as many as a step of both of the record's optimizers has: 64 on 2 GPUs

State = Callable[[], AbstractContextManager[object]]


def our_range() -> None:
    with annotate.stage("update", "adam.embed"):
        pass


def their_range() -> None:
    with record_function("speedprof.stage/update/adam.embed"):
        pass


@contextmanager
def without_nvtx() -> Iterator[None]:
    kept, annotate._nvtx = annotate._nvtx, None
    try:
        yield
    finally:
        annotate._nvtx = kept


class _ClockAlone:
    """A listener that hands stages to a step clock, as a capture does, with a step mark every so many stages."""

    def __init__(self, clock: StepClock) -> None:
        self._clock = clock
        self._num_stages = 0

    def stage_began(self, stage: str, group: str) -> None:
        if self._num_stages % STAGES_PER_STEP == 0:
            self._clock.step_passed()
            self._clock.step_began(self._num_stages // STAGES_PER_STEP, "train", Mark.CLEAN)
        self._num_stages += 1
        self._clock.stage_began(stage, group)

    def stage_ended(self, stage: str, group: str) -> None:
        self._clock.stage_ended()


@contextmanager
def with_step_clock() -> Iterator[None]:
    has_device = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as folder, RecordWriter(Path(folder) / "x.steps", {"rank": 0}) as writer:
        clock = StepClock(writer, has_device=has_device)
        annotate.listen(_ClockAlone(clock))  # type: ignore[arg-type]
        try:
            yield
        finally:
            annotate.listen(None)
            clock.close(is_last_whole=True)


def with_profiler() -> AbstractContextManager[object]:
    return profile(activities=[ProfilerActivity.CPU], acc_events=True)


CASES: dict[str, tuple[State, Callable[[], None]]] = {
    "off, no NVTX": (without_nvtx, our_range),
    "NVTX, no tool attached": (nullcontext, our_range),
    "NVTX and step clock": (with_step_clock, our_range),
    "NVTX and profiler": (with_profiler, our_range),
    "record_function, off": (nullcontext, their_range),
    "record_function, profiler": (with_profiler, their_range),
}


def measure(state: State, function: Callable[[], None]) -> float:
    """ns per range."""
    with state():
        for _ in range(2 * STAGES_PER_STEP):
            function()
        started = time.perf_counter_ns()
        for _ in range(NUM_RANGES):
            function()
        return (time.perf_counter_ns() - started) / NUM_RANGES


def main() -> None:
    rounds = [{name: measure(*case) for name, case in CASES.items()} for _ in range(NUM_ROUNDS)]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(f"torch {torch.__version__}, {device}, {NUM_ROUNDS} rounds of {NUM_RANGES} ranges")
    print(f"{'case':<28}{'ns':>9}{'least':>9}{'most':>9}{'of record_function':>22}")
    for name in CASES:
        values = [one[name] for one in rounds]
        rival = "record_function, profiler" if "profiler" in name else "record_function, off"
        ratio = statistics.median(one[name] / one[rival] for one in rounds)
        print(f"{name:<28}{statistics.median(values):>9.0f}{min(values):>9.0f}{max(values):>9.0f}{ratio:>22.3f}")


if __name__ == "__main__":
    main()
