"""Trace files read and measured one by one, or several at a time, each in a process of its own.

This is the one place that makes an `Executor`: another one, on other machines, can take its place here. A worker keeps
a trace no longer than it takes to measure it, and sends on little. Imports of what reads a trace are left to workers.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from speedprof.errors import EnvironmentUnfitError, UnreadableError

if TYPE_CHECKING:
    from speedprof.analyses.measure import RankMeasurement
    from speedprof.cli.trace_options import Reading

P = ParamSpec("P")
T = TypeVar("T")

# A gzip file unpacks to about so many times its size.
_TEXT_PER_PACKED_BYTE = 12
# Processes pay where they save reading this much text: to start one costs its imports again.
_TEXT_WORTH_PROCESSES = 250_000_000
# Each trace takes memory, so that however many cores there are, no more than this are read at a time unasked.
_MOST_JOBS_UNASKED = 16


def measure_files(paths: Sequence[Path], reading: Reading) -> Iterator[RankMeasurement | UnreadableError]:
    """What each file gives, in their order, or why it cannot be read.

    Where a worker is killed, nobody knows over which file: what is not read by then is read one file at a time, which
    may even go well. Raises EnvironmentUnfitError for a file that gets its worker killed again.
    """
    num_jobs = min(reading.num_jobs or choose_num_jobs(paths), max(len(paths), 1))
    num_read = 0
    try:
        with _workers(make_executor(num_jobs)) as executor:
            for one in _in_order(executor, paths, reading, num_ahead=1 if num_jobs == 1 else 2 * num_jobs):
                num_read += 1
                yield one
            return
    except BrokenExecutor:
        pass
    with _workers(_make_processes(1)) as alone:
        for path in paths[num_read:]:
            try:
                one = _submit(alone, path, reading).result()
            except BrokenExecutor:
                raise _lacks_memory(path) from None
            yield one


def _in_order(
    executor: Executor, paths: Sequence[Path], reading: Reading, *, num_ahead: int
) -> Iterator[RankMeasurement | UnreadableError]:
    """With `num_ahead` 1 a file is read when its turn comes, so that the first that fails can end it all."""
    running: deque[Future[RankMeasurement | UnreadableError]] = deque()
    for path in paths:
        running.append(_submit(executor, path, reading))
        if len(running) == num_ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def measure_file(path: Path, reading: Reading) -> RankMeasurement | UnreadableError:
    """Read one trace and measure it. Runs in a worker, so what it gives must be small."""
    from speedprof.analyses.measure import measure_rank
    from speedprof.trace.read_kineto import read_kineto

    try:
        return measure_rank(read_kineto(path, limits=reading.limits, patterns=reading.patterns))
    except UnreadableError as error:
        return error
    except MemoryError:
        raise _lacks_memory(path) from None


def choose_num_jobs(paths: Sequence[Path]) -> int:
    """As many as there are cores and files, where there is so much to read that starting processes pays; else 1."""
    num_cores = count_cores()
    text = sum(map(_estimate_text, paths))
    pays = text - text // num_cores > _TEXT_WORTH_PROCESSES
    return min(num_cores, len(paths), _MOST_JOBS_UNASKED) if pays else 1


def count_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _estimate_text(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError:
        return 0
    return size * _TEXT_PER_PACKED_BYTE if path.suffix == ".gz" else size


class InThisProcess(Executor):
    """Runs each call at once, where it is submitted."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def make_executor(num_jobs: int) -> Executor:
    """What runs `num_jobs` calls at a time.

    Processes are spawned, not forked: the threads of polars and numpy would hang in the fork of a process that has
    used them.
    """
    if num_jobs == 1:
        return InThisProcess()
    return _make_processes(num_jobs)


def _make_processes(num_jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        num_jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_worker,
        initargs=(max(count_cores() // num_jobs, 1),),
    )


def _begin_worker(num_threads: int) -> None:
    """Share the cores, and end with the process that started this one, however that ends."""
    for variable in ("POLARS_MAX_THREADS", "OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(variable, str(num_threads))
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


@contextmanager
def _workers(executor: Executor) -> Iterator[Executor]:
    """The executor, whose processes are ended at once where the caller fails, is interrupted, or has had enough."""
    others = multiprocessing.active_children()
    try:
        yield executor
    except BaseException:
        for worker in multiprocessing.active_children():
            if worker not in others:
                worker.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _submit(executor: Executor, path: Path, reading: Reading) -> Future[RankMeasurement | UnreadableError]:
    with _interrupts_held():
        return executor.submit(measure_file, path, reading)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Keep Ctrl-C for the end of this block. Processes started in it never hear of it: they end with this one."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _lacks_memory(path: Path) -> EnvironmentUnfitError:
    return EnvironmentUnfitError(
        f"{path}: the process that read it was killed, as when memory runs out",
        next_step="free some memory, or trace fewer steps",
    )
