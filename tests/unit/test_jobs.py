"""Traces are read one at a time here, or several in processes: with the same answers, and no process is left."""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from speedprof.cli import ranks_in_parallel
from speedprof.cli.ranks_in_parallel import InThisProcess, choose_num_jobs, make_executor, measure_file, measure_files
from speedprof.cli.trace_options import choose_reading
from speedprof.errors import EnvironmentUnfitError, UnknownVersionError, UnreadableError
from speedprof.trace import read_kineto as reader
from speedprof.trace.model import Trace

ROOT = Path(__file__).parents[2]
TRACES = sorted((ROOT / "traces" / "samples" / "cpu-2ranks" / "kineto").iterdir())


class Deadly(type(Path())):  # type: ignore[misc]
    """A path that kills the process which it is sent to, as the kernel does when memory runs out."""

    def __reduce__(self) -> Any:
        return os._exit, (137,)


class DeadlyOnce(type(Path())):  # type: ignore[misc]
    """A path that kills the first process which it is sent to, and no other."""

    def __reduce__(self) -> Any:
        return survive_second, (str(self), f"{self}.killed")


def survive_second(path: str, mark: str) -> Path:
    if not os.path.exists(mark):
        Path(mark).touch()
        os._exit(137)
    return Path(path)


def tiny(path: Path, rank: int) -> Path:
    op = {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "tid": 1, "ts": 1, "dur": 2}
    path.write_text(json.dumps({"distributedInfo": {"rank": rank}, "traceEvents": [op]}))
    return path


def ranks_of(found: Any) -> list[Any]:
    return [one if isinstance(one, UnreadableError) else one.analysis.rank for one in found]


def test_processes_give_the_same_answers_in_the_order_of_the_files() -> None:
    paths = [TRACES[1], TRACES[0]]
    here = list(measure_files(paths, choose_reading(jobs=1)))
    there = list(measure_files(paths, choose_reading(jobs=2)))
    assert ranks_of(here) == ranks_of(there) == [1, 0]
    for one, other in zip(here, there, strict=True):
        assert not isinstance(one, UnreadableError)
        assert not isinstance(other, UnreadableError)
        assert one.analysis.breakdown == other.analysis.breakdown
        assert one.analysis.idle.table.equals(other.analysis.idle.table)
        assert one.notes == other.notes


def test_what_is_sent_on_is_small_beside_the_trace() -> None:
    trace = reader.read_kineto(TRACES[0])
    tables = [trace.kernels, trace.launches, trace.ops, trace.ranges, trace.collectives, trace.steps]
    assert len(pickle.dumps(measure_file(TRACES[0], choose_reading()))) < sum(map(len, map(pickle.dumps, tables))) / 10


def test_a_trace_is_dropped_before_the_next_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read, num_alive = reader.read_kineto, []

    def count_and_read(path: Path, **options: Any) -> Trace:
        gc.collect()
        num_alive.append(sum(type(one) is Trace for one in gc.get_objects()))
        return read(path, **options)

    gc.collect()  # what earlier tests left would be gone by the second count
    before = sum(type(one) is Trace for one in gc.get_objects())
    monkeypatch.setattr(reader, "read_kineto", count_and_read)
    kept = list(measure_files(TRACES, choose_reading(jobs=1)))
    assert (len(kept), num_alive) == (2, [before, before])


def test_what_cannot_be_read_is_told_in_its_turn(tmp_path: Path) -> None:
    paths = [TRACES[0], tmp_path / "missing.json", TRACES[1]]
    for jobs in (1, 2):
        first, second, third = measure_files(paths, choose_reading(jobs=jobs))
        assert ranks_of([first, third]) == [0, 1]
        assert isinstance(second, UnreadableError)
        assert (second.problem, second.next_step) == (f"{tmp_path}/missing.json does not exist", "check the path")


def test_errors_keep_their_kind_and_both_their_parts_between_processes() -> None:
    for kind in (UnreadableError, UnknownVersionError, EnvironmentUnfitError):
        error = pickle.loads(pickle.dumps(kind("x.json: is odd", next_step="leave it")))
        assert type(error) is kind
        assert (error.problem, error.next_step, str(error)) == (
            "x.json: is odd",
            "leave it",
            "x.json: is odd; leave it",
        )


def test_in_this_process_a_file_is_read_only_when_its_turn_comes(tmp_path: Path) -> None:
    paths = [tiny(tmp_path / f"rank{rank}.json", rank) for rank in range(2)]
    found = measure_files(paths, choose_reading(jobs=1))
    assert ranks_of([next(found)]) == [0]
    paths[1].unlink()
    assert isinstance(next(found), UnreadableError)


# Workers that die


def test_a_file_whose_reader_is_killed_is_named_in_one_line(tmp_path: Path) -> None:
    paths = [tiny(tmp_path / "rank0.json", 0), Deadly(tmp_path / "rank1.json"), tiny(tmp_path / "rank2.json", 2)]
    with pytest.raises(EnvironmentUnfitError) as error:
        list(measure_files(paths, choose_reading(jobs=2)))
    assert str(error.value) == (
        f"{tmp_path}/rank1.json: the process that read it was killed, as when memory runs out; "
        "free some memory, or trace fewer steps"
    )


def test_what_was_not_read_when_a_reader_was_killed_is_read_alone(tmp_path: Path) -> None:
    paths = [tiny(tmp_path / f"rank{rank}.json", rank) for rank in range(3)]
    found = measure_files([paths[0], DeadlyOnce(paths[1]), paths[2]], choose_reading(jobs=2))
    assert ranks_of(found) == [0, 1, 2]


def test_too_little_memory_here_names_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(reader, "read_kineto", fail)
    with pytest.raises(EnvironmentUnfitError, match=r"rank0\..*memory runs out"):
        list(measure_files(TRACES, choose_reading(jobs=1)))


def children_of(parent: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition: Any) -> None:
    """For a minute at most, which only a failure takes."""
    for _ in range(6_000):
        if condition():
            return
        time.sleep(0.01)
    pytest.fail("it did not come to pass within a minute")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc to see other processes")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)])
def test_no_process_is_left_however_the_command_ends(tmp_path: Path, number: signal.Signals, code: int) -> None:
    op = json.dumps({"ph": "X", "cat": "cpu_op", "name": "aten::mm", "tid": 1, "ts": 1, "dur": 2})
    for rank in range(2):
        with open(tmp_path / f"rank{rank}.json", "w") as file:
            file.write('{"traceEvents": [' + ",".join([op] * 200_000) + "]}")
    command = [sys.executable, "-m", "speedprof", "analyze", str(tmp_path), "--jobs", "2"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    # Two workers, and the tracker of Python's own that comes with them.
    wait_until(lambda: len(children_of(process.pid)) >= 3 or process.poll() is not None)
    workers = children_of(process.pid)
    if number is signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    if number is signal.SIGINT:
        assert err == ""  # killed, it leaves its workers to find out by themselves, even while they start
    assert len(workers) >= 3
    wait_until(lambda: not any(map(is_alive, workers)))


# How many


def sparse(path: Path, num_bytes: int) -> Path:
    with open(path, "wb") as file:
        file.truncate(num_bytes)
    return path


@pytest.mark.parametrize(
    ("num_cores", "num_files", "megabytes", "suffix", "num_jobs"),
    [
        (2, 8, 1, ".json.gz", 1),  # as the 8 ranks of a short capture: read here before a process would have started
        (2, 2, 500, ".json", 2),
        (2, 2, 50, ".json.gz", 2),
        (1, 8, 500, ".json", 1),
        (64, 8, 500, ".json", 8),
        (64, 100, 500, ".json", 16),
        (64, 1, 5_000, ".json", 1),
    ],
)
def test_processes_are_started_where_they_pay(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    num_cores: int,
    num_files: int,
    megabytes: int,
    suffix: str,
    num_jobs: int,
) -> None:
    monkeypatch.setattr(ranks_in_parallel, "count_cores", lambda: num_cores)
    paths = [sparse(tmp_path / f"rank{rank}{suffix}", megabytes * 1_000_000) for rank in range(num_files)]
    assert choose_num_jobs(paths) == num_jobs


def test_files_that_are_missing_weigh_nothing(tmp_path: Path) -> None:
    assert choose_num_jobs([tmp_path / "a.json", tmp_path / "b.json"]) == 1
    assert choose_num_jobs([]) == 1


def test_one_place_makes_the_executor() -> None:
    assert isinstance(make_executor(1), InThisProcess)
    with make_executor(2) as executor:
        assert isinstance(executor, ProcessPoolExecutor)
