"""Starts the program on every rank through torch.distributed.run, watches it, and closes the run directory."""

from __future__ import annotations

import contextlib
import os
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
from speedprof.capture.outcome import Outcome, judge
from speedprof.capture.plan import WRITING_TRACE, CapturePlan
from speedprof.errors import EnvironmentUnfitError, UsageError
from speedprof.run_dir import (
    FORMAT_VERSION,
    Manifest,
    RankRecord,
    RunDir,
    RunStatus,
    is_process_alive,
    read_rank_records,
    write_manifest,
)

# Between two looks at the ranks.
_POLL_S = 0.1

# How long interrupted ranks may take to write what they have.
_CLOSING_LIMIT_S = 10.0

# The same where they were writing a trace already: stopping the profiler alone takes seconds per 100 MB.
_WRITING_LIMIT_S = 120.0

# How many runs of one name may begin in one second.
_MOST_NAMESAKES = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A program to capture: a module name or a path that ends in .py, and its arguments."""

    plan: CapturePlan
    program: str
    arguments: tuple[str, ...]
    num_ranks: int
    name: str  # of the preset or program, for the run's id
    device: str  # likewise, such as H200 or cpu


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
    if run_id is not None and (run_id in {"", ".", ".."} or Path(run_id).name != run_id):
        raise UsageError(f"--run-id {run_id}: is no plain name", next_step="leave out folders; --out chooses those")
    environment = read_environment(Path.cwd())
    created = datetime.now(UTC).astimezone()
    run_dir = _make_run_dir(
        root, run_id or _make_run_id(launch, created, environment["git"]), is_own=run_id is not None
    )
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


def run(launch: Launch, run_dir: RunDir, watcher: Watcher, received: list[int]) -> Outcome:
    """Run the program to its end, or to that of the plan. The manifest is still open afterwards.

    `received` is the list that `interrupts` fills; a signal in it ends the run, a second one at once.
    """
    with open(run_dir.launcher_log_path, "wb") as log:
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
            # Where torch.distributed.run died under them, the ranks were told so and are closing.
            patience_s = _CLOSING_LIMIT_S if process.poll() is not None and not received else 0.0
            _end_all(process, run_dir, patience_s=patience_s)
    return judge(run_dir, returncode=process.returncode, num_ranks=launch.num_ranks, received=received)


def build_command(launch: Launch, run_dir: RunDir) -> list[str]:
    """The argv that starts a session on every rank."""
    return [
        *(sys.executable, "-m", "speedprof.capture.elastic", "--standalone", f"--nproc-per-node={launch.num_ranks}"),
        *("-m", "speedprof.capture.session", "--run-dir", str(run_dir.path), "--plan", launch.plan.to_json()),
        *(launch.program, *launch.arguments),
    ]


def _make_run_dir(root: Path, run_id: str, *, is_own: bool) -> RunDir:
    """Make the folders of a run. A name that the user chose must be new; one of ours gets a number if it is not."""
    names = [run_id] if is_own else [run_id, *(f"{run_id}-{number}" for number in range(2, _MOST_NAMESAKES))]
    try:
        for name in names:
            with contextlib.suppress(FileExistsError):
                (root / name).mkdir(parents=True)
                for folder in ("steps", "kineto", "logs"):
                    (root / name / folder).mkdir()
                return RunDir(root / name)
    except OSError as error:
        raise UsageError(f"{root}: cannot hold a run ({error.strerror})", next_step="choose another --out") from error
    raise UsageError(
        f"{root / run_id}: exists already", next_step="choose another --run-id or --out; nothing is overwritten"
    )


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
                deadline = time.monotonic() + _closing_limit_s(run_dir)
                process.terminate()
            if len(received) > 1 or (deadline is not None and time.monotonic() > deadline):
                break
        for line in tail.new_lines(at_end=True):
            watcher.line_printed(line)


def _end_all(process: subprocess.Popen[bytes], run_dir: RunDir, *, patience_s: float) -> None:
    """Leave no process behind, whatever happened; ranks that are still closing have so long to do it."""
    pids = [record.pid for record in read_rank_records(run_dir) if record.host == socket.gethostname()]
    deadline = time.monotonic() + patience_s
    while any(map(is_process_alive, pids)) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    for pid in [process.pid, *pids] if process.poll() is None else pids:
        # torch.distributed.run makes each rank the leader of a group; compile workers are in it too.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    process.wait()


def _closing_limit_s(run_dir: RunDir) -> float:
    is_writing = any(record.stage_of_plan == WRITING_TRACE for record in read_rank_records(run_dir))
    return _WRITING_LIMIT_S if is_writing else _CLOSING_LIMIT_S


@contextlib.contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collect SIGINT, SIGTERM and SIGHUP, in the order in which they come, instead of being ended by them.

    One that is ignored already stays so: nohup asks for that.
    """
    received: list[int] = []

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)

    wanted = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    ]
    before = {number: signal.signal(number, receive) for number in wanted}
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
