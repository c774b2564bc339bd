"""The session inside each rank: runs the program, clocks every step, traces some, and closes what it wrote.

    python -m speedprof.capture.session --run-dir DIR --plan JSON PROGRAM [ARGS...]

PROGRAM is a module name or a path that ends in .py; it runs as __main__ and hears nothing of this. It must mark its
steps with speedprof.annotate. Started by speedprof.capture.launch through torch.distributed.run.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from speedprof import annotate
from speedprof.annotate import StepKind
from speedprof.capture.plan import WRITING_TRACE, CapturePlan
from speedprof.capture.profiler import StepProfiler, measure_trace_bytes, write_trace
from speedprof.capture.program import code_of, last_line, own_traceback, redirect_output, run_as_main
from speedprof.capture.step_clock import StepClock
from speedprof.capture.termination import CaptureTerminated, Termination, die_with_parent
from speedprof.errors import ExitCode
from speedprof.run_dir import RankRecord, RunDir, RunStatus, is_process_alive, overwrite_rank_record, write_rank_record
from speedprof.step_records import Mark, RecordWriter
from speedprof.units import NS_PER_S

# Adam steps every second time in some trainers, so one step alone would misjudge the size of a trace.
_NUM_PROBE_STEPS = 2

# By how much a trace may exceed its bound before a note says so; its size is only estimated beforehand.
_OVERSHOOT_RATIO = 1.2

# How large a step log may grow before its older steps are folded.
_MAX_STEPS_BYTES = 64_000_000

# How long a rank waits for the others to agree on the number of traced steps.
_AGREEMENT_LIMIT = timedelta(minutes=5)

_LAUNCHER_PID = "SPEEDPROF_LAUNCHER_PID"


class CaptureFinished(SystemExit):
    """Ends the program at a step mark: the plan is fulfilled."""


class _ValidationBegan(Exception):  # noqa: N818 - a signal between us and a generator, no error
    """Tells the plan, at one of its marks, that what comes next is no training step."""


class CaptureSession:
    """Hears the program's annotations and carries out the plan. A `speedprof.annotate.Listener`."""

    def __init__(
        self, plan: CapturePlan, run_dir: RunDir, *, rank: int, world_size: int, termination: Termination
    ) -> None:
        self._plan = plan
        self._termination = termination
        self._run_dir = run_dir
        self._world_size = world_size
        self._launcher_pid = int(os.environ.get(_LAUNCHER_PID, "0"))
        self._record = RankRecord(rank=rank, host=socket.gethostname(), pid=os.getpid(), status=RunStatus.RUNNING)
        self._num_marked: Counter[str] = Counter()
        self._writer = RecordWriter(run_dir.steps_path(rank), {"rank": rank})
        self._clock: StepClock | None = None
        self._script = self._follow_plan()
        self._mark = Mark.WARMUP
        self._mark_ahead: Mark | None = None
        self._is_recording = False
        self._flushed_ns = 0
        self.is_finished = False
        self.save(durable=False)

    # What the program says

    def step_began(self, step: int, kind: StepKind) -> None:
        clock = self._open_clock()
        clock.step_passed()
        if kind == "train":
            self._mark = self._next_mark()
            self._num_marked[self._mark] += 1
        elif self._is_recording:
            self._stop_recording()
        self._record = replace(self._record, last_step=step, num_marked=dict(self._num_marked))
        clock.step_began(step, kind, self._mark)
        self._save_sometimes()

    def step_ended(self, step: int) -> None:
        if self._clock is not None:
            self._clock.step_ended()

    def stage_began(self, stage: str, group: str) -> None:
        self._open_clock().stage_began(stage, group)

    def stage_ended(self, stage: str, group: str) -> None:
        self._open_clock().stage_ended()

    def metric_seen(self, name: str, value: float | torch.Tensor) -> None:
        self._open_clock().metric_seen(name, value)

    def phase_began(self, name: str) -> None:
        self._open_clock().phase_began(name)

    def declared(self, name: str, value: Any) -> None:
        self._record = replace(self._record, declared={**self._record.declared, name: value})
        self.save(durable=False)

    # The plan

    def _next_mark(self) -> Mark:
        mark, self._mark_ahead = self._mark_ahead, None
        if mark is None:
            mark = self._go_on(self._script.__next__)
        if mark != self._record.stage_of_plan:
            self._record = replace(self._record, stage_of_plan=mark)
            self.save(durable=False)
        return mark

    def _stop_recording(self) -> None:
        """A validation pass begins: it is no training step, may be long, and is not traced."""
        self._is_recording = False
        self._mark_ahead = self._go_on(lambda: self._script.throw(_ValidationBegan()))

    def _go_on(self, advance: Callable[[], Mark]) -> Mark:
        """The mark of the next training step. Raises CaptureFinished where the plan has none."""
        try:
            return advance()
        except StopIteration:
            self.is_finished = True
            raise CaptureFinished(0) from None

    def _follow_plan(self) -> Generator[Mark, None, None]:
        """What each training step is for, in turn. Closed early, it still writes the trace that it has."""
        for _ in range(self._plan.warmup):
            yield Mark.WARMUP
        for _ in range(self._plan.steps):
            yield Mark.CLEAN
        num_steps = self._plan.trace_steps
        if num_steps is None:
            num_steps = yield from self._probe_trace_size()
        if num_steps:
            yield from self._trace(num_steps)

    def _probe_trace_size(self) -> Generator[Mark, None, int]:
        """Trace a few steps only to see how large they are; all ranks then trace as many as the largest allows."""
        profiler = StepProfiler(self._plan, discard_first=False)
        num_probed = 0
        profiler.start()
        try:
            with contextlib.suppress(_ValidationBegan):
                self._is_recording = True
                for _ in range(_NUM_PROBE_STEPS):
                    num_probed += 1
                    yield Mark.TRANSITION
        finally:
            self._is_recording = False
            with self._termination.deferred():
                profiler.stop()
        scratch = self._run_dir.path / "kineto" / f".rank{self._record.rank}.probe.json"
        step_bytes = measure_trace_bytes(profiler, scratch) / num_probed
        affordable = max(1, int(self._plan.max_trace_bytes / step_bytes))
        num_steps = min(self._plan.steps, self._agree_on_least(affordable))
        if num_steps < self._plan.steps and self._record.rank == 0:
            self._note(
                f"every rank traced {num_steps} of {self._plan.steps} steps: a step is about {step_bytes / 1e6:.1f} MB "
                f"of JSON, and --max-trace-mb is {self._plan.max_trace_bytes / 1e6:.0f}"
            )
        return num_steps

    def _trace(self, num_steps: int) -> Generator[Mark, None, None]:
        path = self._run_dir.kineto_path(self._record.rank, time.time_ns())
        profiler = StepProfiler(self._plan, discard_first=True)
        profiler.start()
        try:
            yield Mark.TRANSITION
            with contextlib.suppress(_ValidationBegan):
                for _ in range(num_steps):
                    profiler.step()
                    self._is_recording = True
                    yield Mark.PROFILED
            self._note_early_end(num_steps)
        finally:
            self._is_recording = False
            with self._termination.deferred():
                self._end_trace(profiler, path)

    def _end_trace(self, profiler: StepProfiler, path: Path) -> None:
        """Stop the profiler and write what it has; what goes wrong costs the trace and is noted, no more."""
        self._record = replace(self._record, stage_of_plan=WRITING_TRACE)
        self.save(durable=False)
        try:
            profiler.stop()
            num_bytes = write_trace(profiler, path) if self._num_marked[Mark.PROFILED] else 0
        except Exception as error:
            self._note(f"the trace was lost: {error}")
            return
        if self._plan.trace_steps is None and num_bytes > _OVERSHOOT_RATIO * self._plan.max_trace_bytes:
            self._note(
                f"the trace takes {num_bytes / 1e6:.0f} MB of JSON, over --max-trace-mb "
                f"{self._plan.max_trace_bytes / 1e6:.0f}: its steps are larger than the first ones were"
            )

    def _note_early_end(self, num_steps: int) -> None:
        num_traced = self._num_marked[Mark.PROFILED]
        if num_traced < num_steps and self._record.rank == 0:
            self._note(
                f"every rank traced {num_traced} of {num_steps} steps: a validation pass came, which is not traced; "
                "ask for fewer --steps, or have the program validate later"
            )

    def _agree_on_least(self, value: int) -> int:
        """The least of the ranks' values. Through a file, so that it leaves no trace in the program's collectives."""
        if self._world_size == 1:
            return value
        store = dist.FileStore(  # type: ignore[attr-defined]
            str(self._run_dir.path / ".agreement"), self._world_size
        )
        keys = [f"{rank}" for rank in range(self._world_size)]
        store.set(f"{self._record.rank}", str(value))
        store.wait(keys, _AGREEMENT_LIMIT)
        return min(int(store.get(key)) for key in keys)

    # What is written

    def save(self, *, durable: bool) -> None:
        """Say where this rank stands. On a full disk it goes on without: only the last word matters."""
        with contextlib.suppress(OSError):
            write_rank_record(self._run_dir, self._record, durable=durable)

    def fail(self, *, exit_code: int, error: str) -> None:
        """Write down at once how this rank failed: what failed first is what a user must see."""
        self._end(RunStatus.FAILED, exit_code=exit_code, error=error)
        self.save(durable=True)

    def close(self, status: RunStatus, *, exit_code: int) -> None:
        """Close the trace, the step log and the record; a status set by `fail` stays."""
        annotate.listen(None)
        try:
            self._script.close()
        except Exception as error:  # the trace is lost, the rest must not be
            self._note(f"the trace was lost: {error}")
        if self._record.status is not RunStatus.FAILED:
            self._end(status, exit_code=exit_code, error=None)
        try:
            if self._clock is not None:
                self._clock.close(is_last_whole=status in {RunStatus.COMPLETE, RunStatus.PARTIAL})
            self._writer.close()
        except OSError as error:
            self._end(RunStatus.FAILED, exit_code=1, error=f"the step log could not be written: {error}")
        self._save_at_last()

    def _save_at_last(self) -> None:
        """Save for the last time. On a full disk there may be no room for a new file, but there is for the old one."""
        try:
            write_rank_record(self._run_dir, self._record, durable=True)
        except OSError:
            with contextlib.suppress(OSError):
                overwrite_rank_record(self._run_dir, self._record)

    def _end(self, status: RunStatus, *, exit_code: int, error: str | None) -> None:
        self._record = replace(
            self._record,
            status=status,
            exit_code=exit_code,
            error=error,
            failed_at_ns=None if error is None else time.time_ns(),
        )

    def _note(self, text: str) -> None:
        self._record = replace(self._record, notes=[*self._record.notes, text])

    def _open_clock(self) -> StepClock:
        """The clock, made at the first annotation: the program has chosen its device by then."""
        if self._clock is None:
            has_device = torch.cuda.is_available() and torch.cuda.is_initialized()
            device = torch.cuda.get_device_name() if has_device else "cpu"
            self._record = replace(self._record, device=device)
            self._clock = StepClock(self._writer, has_device=has_device)
        return self._clock

    def _save_sometimes(self) -> None:
        """Once a second: flush the step log, bound it, and see whether the launcher still lives."""
        now_ns = time.monotonic_ns()
        if now_ns - self._flushed_ns < NS_PER_S:
            return
        self._flushed_ns = now_ns
        self._writer.flush()
        if self._writer.num_bytes() > _MAX_STEPS_BYTES:
            self._writer.fold()
        self.save(durable=False)
        if self._launcher_pid and not is_process_alive(self._launcher_pid):
            raise CaptureTerminated(ExitCode.TERMINATED)


def run_program(
    session: CaptureSession, program: str, arguments: list[str], *, log_path: Path, termination: Termination
) -> int:
    """Run the program under the session and close it, however it ends. Returns the rank's exit code."""
    sys.argv = [program, *arguments]
    exit_code, status = 0, RunStatus.COMPLETE
    try:
        try:
            run_as_main(program)
        finally:
            termination.ignore()  # from here on things are written down
        status = RunStatus.COMPLETE if session.is_finished else RunStatus.PARTIAL
    except CaptureFinished:
        pass
    except (CaptureTerminated, KeyboardInterrupt):
        exit_code, status = ExitCode.TERMINATED, RunStatus.INTERRUPTED
    except SystemExit as stop:
        exit_code = code_of(stop)
        status = RunStatus.COMPLETE if session.is_finished else RunStatus.PARTIAL
        if exit_code:
            status = RunStatus.FAILED
            session.fail(exit_code=exit_code, error=last_line(log_path))
    except BaseException as error:
        exit_code, status = 1, RunStatus.FAILED
        text = own_traceback(error, caller=__file__)
        session.fail(exit_code=exit_code, error=text)
        with contextlib.suppress(OSError):  # the log may lie on the full disk that is the trouble
            print(text, file=sys.stderr)
    session.close(status, exit_code=exit_code)
    return exit_code


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m speedprof.capture.session")
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--plan", type=CapturePlan.from_json, required=True)
    parser.add_argument("program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    run_dir = RunDir(options.run_dir.resolve())  # the program may change folder
    redirect_output(run_dir.log_path(rank))
    die_with_parent()
    faulthandler.enable()
    termination = Termination()
    termination.install()
    session = CaptureSession(options.plan, run_dir, rank=rank, world_size=world_size, termination=termination)
    annotate.listen(session)
    log_path = run_dir.log_path(rank)
    return run_program(session, options.program, options.arguments, log_path=log_path, termination=termination)


if __name__ == "__main__":
    sys.exit(main())
