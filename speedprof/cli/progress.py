"""How far a capture is: a bar on a terminal, a line a phase elsewhere; and the program's own log above it."""

from __future__ import annotations

import sys
import time
from collections import deque
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from speedprof.capture.launch import Launch, Watcher
from speedprof.run_dir import RankRecord, RunDir

# torch's own profiler prints these to stderr; they say nothing to a user.
_NOISE = ("USDT:",)

# How many of the program's last lines are kept, so that its error is not told twice.
_NUM_REMEMBERED = 100

_PHASES = {
    None: "starting",
    "warmup": "warm-up, compiling",
    "clean": "clean steps",
    "transition": "starting the profiler",
    "profiled": "tracing",
}


class CaptureProgress(Watcher):
    """Tells on stderr what a capture does. A context manager: the bar is gone when it ends."""

    def __init__(self, launch: Launch, run_dir: RunDir) -> None:
        self._launch = launch
        self._run_dir = run_dir
        self._console = Console(stderr=True)
        self._started = time.monotonic()
        self._phase: str | None = ""
        self._printed: deque[str] = deque(maxlen=_NUM_REMEMBERED)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(_PHASES[None], total=_expected_steps(launch))

    def __enter__(self) -> CaptureProgress:
        plan, ranks = self._launch.plan, self._launch.num_ranks
        traced = plan.steps if plan.trace_steps is None else plan.trace_steps
        self._print(
            f"capturing {self._launch.name} on {ranks} {self._launch.device} rank{'s' * (ranks > 1)}: "
            f"{plan.warmup} steps of warm-up, {plan.steps} clean, up to {traced} traced"
        )
        self._print(f"run directory {self._run_dir.path}")
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.stop()

    def line_printed(self, line: str) -> None:
        if not line.startswith(_NOISE):
            self._printed.append(line)
            self._print(line)

    def has_printed(self, text: str) -> bool:
        """Whether the last line of `text` is among the last that the program was seen to print."""
        return text.rstrip().rpartition("\n")[2] in self._printed

    def rank_moved(self, record: RankRecord) -> None:
        phase = _PHASES.get(record.stage_of_plan, record.stage_of_plan)
        self._bar.update(self._task, description=phase or "", completed=sum(record.num_marked.values()))
        if phase != self._phase and not self._console.is_terminal:
            self._print(f"[{time.monotonic() - self._started:6.1f} s] {phase}")
        self._phase = phase

    def _print(self, line: str) -> None:
        if self._console.is_terminal:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)


def _expected_steps(launch: Launch) -> int:
    """All steps of the plan: two to find the size of a trace, one to start the profiler, as far as there is one."""
    plan = launch.plan
    if plan.trace_steps is None:
        return plan.warmup + 2 * plan.steps + 3
    return plan.warmup + plan.steps + plan.trace_steps + (1 if plan.trace_steps else 0)
