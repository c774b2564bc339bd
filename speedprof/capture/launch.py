"""Starts the program on every rank through torch.distributed.run, watches it, and closes the run directory."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from speedprof.capture.environment import hide_credentials, read_environment
from speedprof.capture.plan import CapturePlan
from speedprof.errors import EnvironmentUnfitError, ExitCode, UsageError
from speedprof.run_dir import (
    FORMAT_VERSION,
    Manifest,
    RankRecord,
    RunDir,
    RunStatus,
    read_rank_records,
    write_manifest,
)

# Between two looks at the ranks.
_POLL_S = 0.1

# How long interrupted ranks may take to write what they have.
_CLOSING_LIMIT_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A program to capture: a module name or a path that ends in .py, and its arguments."""

    plan: CapturePlan
    program: str
    arguments: tuple[str, ...]
    num_ranks: int
    name: str  # of the preset or program, for the run's id
    device: str  # likewise, such as H200 or cpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run ended. `failure` says in one line which rank failed and how, `error` is what that rank printed last."""

    status: RunStatus
    exit_code: int
    failure: str | None = None
    error: str | None = None


class Watcher:
    """What a launch tells while it runs; the default tells nobody."""

    def line_printed(self, line: str) -> None:
        """Rank 0 printed a line."""

    def rank_moved(self, record: RankRecord) -> None:
        """Rank 0 is at another place of the plan."""


def count_gpus() -> int:
    """How many CUDA devices torch can use here; 0 without any."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_name() -> str:
    """The GPU's short name for a run's id (`H200`), or `cpu`."""
    import torch

    if not count_gpus():
        return "cpu"
    words = [word for word in torch.cuda.get_device_name(0).split() if word not in {"NVIDIA", "AMD", "GeForce"}]
    return "".join(char for char in "".join(words[:2]) if char.isalnum()) or "gpu"


def choose_num_ranks(asked: int | None) -> int:
    """One rank a GPU, or two on a CPU machine, unless asked for another number.

    Raises UsageError for fewer than one, EnvironmentUnfitError for more than there are GPUs.
    """
    num_gpus = count_gpus()
    if asked is None:
        return num_gpus or 2
    if asked < 1:
        raise UsageError(f"--nproc {asked}: there is nothing to run", next_step="ask for 1 rank or more")
    if num_gpus and asked > num_gpus:
        raise EnvironmentUnfitError(
            f"--nproc {asked}: this machine has {num_gpus} GPU{'s' * (num_gpus > 1)}",
            next_step=f"ask for at most {num_gpus}, or hide the GPUs with CUDA_VISIBLE_DEVICES= to run on CPU ranks",
        )
    return asked


def create_run(launch: Launch, root: Path, *, run_id: str | None, command: list[str]) -> tuple[RunDir, Manifest]:
    """Make the run directory and its manifest. Raises UsageError where it exists or cannot be made."""
    if run_id is not None and Path(run_id).name != run_id:
        raise UsageError(f"--run-id {run_id}: is no plain name", next_step="leave out folders; --out chooses those")
    environment = read_environment(Path.cwd())
    created = datetime.now(UTC).astimezone()
    run_dir = RunDir(root / (run_id or _make_run_id(launch, created, environment["git"])))
    try:
        run_dir.path.mkdir(parents=True)
        for folder in ("steps", "kineto", "logs"):
            (run_dir.path / folder).mkdir()
    except FileExistsError:
        raise UsageError(
            f"{run_dir.path}: exists already", next_step="choose another --run-id or --out; nothing is overwritten"
        ) from None
    except OSError as error:
        raise UsageError(
            f"{run_dir.path}: cannot be made ({error.strerror})", next_step="choose another --out"
        ) from error
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        run_id=run_dir.path.name,
        created=created.isoformat(timespec="seconds"),
        status=RunStatus.RUNNING,
        launcher_host=socket.gethostname(),
        launcher_pid=os.getpid(),
        plan=launch.plan.as_dict(),
        command=[hide_credentials(word) for word in command],
        environment=environment,
    )
    write_manifest(run_dir, manifest)
    return run_dir, manifest


def run(launch: Launch, run_dir: RunDir, watcher: Watcher) -> Outcome:
    """Run the program to its end, or to that of the plan. The manifest is still open afterwards."""
    with open(run_dir.launcher_log_path, "wb") as log, _interrupts() as received:
        process = subprocess.Popen(
            build_command(launch, run_dir),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=_environment(launch.num_ranks),
            start_new_session=True,  # so that Ctrl-C reaches the ranks through us, in order
        )
        try:
            _watch(process, run_dir, watcher, received)
        finally:
            _end_all(process, run_dir)
        return _judge(process.returncode, run_dir, launch.num_ranks, received)


def build_command(launch: Launch, run_dir: RunDir) -> list[str]:
    """The argv that starts a session on every rank."""
    return [
        *(sys.executable, "-m", "speedprof.capture.elastic", "--standalone", f"--nproc-per-node={launch.num_ranks}"),
        *("-m", "speedprof.capture.session", "--run-dir", str(run_dir.path), "--plan", launch.plan.to_json()),
        *(launch.program, *launch.arguments),
    ]


def find_culprit(records: list[RankRecord], launcher_log: str) -> RankRecord | None:
    """The rank that failed first: one that a signal killed, one that died without a word, or the first to write
    down an error of its own.

    When a rank dies, the others fail in turn as their connections break; such an error counts only where there is
    no other.
    """
    failed = [record for record in records if record.status in {RunStatus.RUNNING, RunStatus.FAILED}]

    def order(record: RankRecord) -> tuple[bool, bool, int, int]:
        was_killed = _killing_signal(record, launcher_log) is not None
        return not was_killed, _is_broken_connection(record.error or ""), record.failed_at_ns or 0, record.rank

    return min(failed, key=order, default=None)


def _make_run_id(launch: Launch, created: datetime, git: dict[str, str | bool | None]) -> str:
    commit = str(git["commit"])[:7] if git["commit"] else "nogit"
    dirty = "-dirty" if git["dirty"] else ""
    return f"{created:%Y%m%d-%H%M%S}_{commit}{dirty}_{launch.name}_{launch.num_ranks}x{launch.device}"


def _environment(num_ranks: int) -> dict[str, str]:
    """The ranks' environment: cores shared out between them, unless the user has said otherwise."""
    threads = max(1, len(os.sched_getaffinity(0)) // num_ranks)
    return {"OMP_NUM_THREADS": str(threads), **os.environ, "SPEEDPROF_LAUNCHER_PID": str(os.getpid())}


def _watch(process: subprocess.Popen[bytes], run_dir: RunDir, watcher: Watcher, received: list[int]) -> None:
    """Pass on what rank 0 prints and where it stands until all ranks have ended, or have been told to."""
    before: RankRecord | None = None
    deadline: float | None = None
    with contextlib.closing(_Tail(run_dir.log_path(0))) as tail:
        while process.poll() is None:
            time.sleep(_POLL_S)
            for line in tail.new_lines():
                watcher.line_printed(line)
            record = next(iter(read_rank_records(run_dir)), None)
            if record is not None and record != before:
                watcher.rank_moved(record)
                before = record
            if received and deadline is None:
                deadline = time.monotonic() + _CLOSING_LIMIT_S
                process.terminate()
            if len(received) > 1 or (deadline is not None and time.monotonic() > deadline):
                break
        for line in tail.new_lines(at_end=True):
            watcher.line_printed(line)


def _end_all(process: subprocess.Popen[bytes], run_dir: RunDir) -> None:
    """Leave no process behind, whatever happened."""
    pids = [record.pid for record in read_rank_records(run_dir) if record.host == socket.gethostname()]
    for pid in [process.pid, *pids] if process.poll() is None else pids:
        # torch.distributed.run makes each rank the leader of a group; compile workers are in it too.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    process.wait()


def _judge(returncode: int, run_dir: RunDir, num_ranks: int, received: list[int]) -> Outcome:
    records = read_rank_records(run_dir)
    if received:
        return Outcome(status=RunStatus.INTERRUPTED, exit_code=128 + received[0])
    launcher_log = run_dir.launcher_log_path.read_text(errors="replace")
    culprit = find_culprit(records, launcher_log)
    if culprit is not None:
        failure = _describe(culprit, records, launcher_log)
        return Outcome(status=RunStatus.FAILED, exit_code=ExitCode.PROGRAM_FAILED, failure=failure, error=culprit.error)
    if returncode or len(records) < num_ranks:
        failure = f"{len(records)} of {num_ranks} ranks started, torch.distributed.run exited with {returncode}"
        return Outcome(status=RunStatus.FAILED, exit_code=ExitCode.PROGRAM_FAILED, failure=failure, error=launcher_log)
    is_complete = all(record.status is RunStatus.COMPLETE for record in records)
    return Outcome(status=RunStatus.COMPLETE if is_complete else RunStatus.PARTIAL, exit_code=ExitCode.FINE)


def _describe(culprit: RankRecord, records: list[RankRecord], launcher_log: str) -> str:
    last_step = max((record.last_step for record in records if record.last_step is not None), default=None)
    where = "before its first step" if last_step is None else f"about step {last_step}"
    if culprit.status is RunStatus.RUNNING:
        killer = _killing_signal(culprit, launcher_log)
        cause = f"killed by {killer}" if killer else "killed from outside or crashed"
        return f"rank {culprit.rank} died {where} without a word: {cause}"
    last_line = (culprit.error or "").rstrip().rpartition("\n")[2]
    return f"rank {culprit.rank} failed {where} with exit code {culprit.exit_code}: {last_line}"


def _killing_signal(record: RankRecord, launcher_log: str) -> str | None:
    """The signal that ended the rank, as torch.distributed.run reports it; None where it ended by itself."""
    found = re.search(rf"Signal \d+ \((\w+)\) received by PID {record.pid}\b", launcher_log)
    return found and found[1]


def _is_broken_connection(error: str) -> bool:
    return (
        re.search(r"Connection (closed|reset|refused)|Broken pipe|ncclRemoteError|remote process exited", error)
        is not None
    )


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM instead of being ended by them."""
    received: list[int] = []

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)

    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Tail:
    """The lines that a growing file has gained since the last look."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def new_lines(self, *, at_end: bool = False) -> list[str]:
        """Whole lines; with `at_end`, an unfinished last one too."""
        if self._file is None:
            if not self._path.exists():
                return []
            self._file = open(self._path, "rb")  # noqa: SIM115 - lives as long as the tail
        *lines, self._rest = (self._rest + self._file.read()).split(b"\n")
        if at_end and self._rest:
            lines.append(self._rest)
        return [line.decode(errors="replace") for line in lines]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
