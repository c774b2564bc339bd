"""Runs the commands as a user does, and looks for what they leave behind."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from speedprof.run_dir import Manifest, RunDir, read_manifest

ROOT = Path(__file__).parents[2]
TOY = "tests/programs/toy.py"
_LIMIT_S = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """A capture that has ended: its exit code, what it said, and its run."""

    code: int
    out: str
    err: str
    run_dir: RunDir

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.run_dir)

    @property
    def reports(self) -> Path:
        return self.run_dir.path.parents[1] / "reports" / self.run_dir.path.name


def speedprof(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """A command, in the repository's folder, to its end."""
    command = [sys.executable, "-m", "speedprof", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=_LIMIT_S)


def capture(out: Path, *words: str) -> Capture:
    """`speedprof capture` to its end; the run is named `run`."""
    done = speedprof("capture", "--out", out, "--run-id", "run", *words)
    return Capture(code=done.returncode, out=done.stdout, err=done.stderr, run_dir=RunDir(out / "traces" / "run"))


def capture_toy(out: Path, how: str, *words: str) -> Capture:
    plan = words or ("--steps", "6", "--warmup", "2")
    return capture(out, "--program", TOY, *plan, "--", how)


def start_toy(out: Path, how: str, *, until: str) -> subprocess.Popen[str]:
    """Start a capture of very many steps, and return once it has said a line that contains `until`."""
    return start(out, "--steps", "100000", "--", how, until=until)


def start(out: Path, *plan: str, until: str) -> subprocess.Popen[str]:
    """Start a capture of the toy program, and return once it has said a line that contains `until`."""
    words = ["capture", "--out", str(out), "--run-id", "run", "--program", TOY, *plan]
    process = subprocess.Popen(
        [sys.executable, "-m", "speedprof", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a signal to pytest is none to it
    )
    assert process.stderr is not None
    assert any(until in line for line in process.stderr), "the capture ended before it got there"
    return process


def finish(process: subprocess.Popen[str], out: Path) -> Capture:
    """Wait for a started capture."""
    said, errors = process.communicate(timeout=_LIMIT_S)
    return Capture(code=process.returncode, out=said, err=errors, run_dir=RunDir(out / "traces" / "run"))


def processes_naming(text: str | Path) -> list[int]:
    """The processes, this one left out, whose command line contains `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes()
        except OSError:
            continue
        if str(text).encode() in command and int(path.parent.name) != os.getpid():
            found.append(int(path.parent.name))
    return found


def wait_for_ends(pids: list[int], *, limit_s: float) -> list[int]:
    """Wait until these processes, which need not be ours, have ended; returns those that have not in time."""
    left = []
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([handle], [], [], limit_s)[0]:
                left.append(pid)
        finally:
            os.close(handle)
    return left


def wait_until(condition: Callable[[], bool], *, limit_s: float) -> bool:
    """Whether the condition came true in time."""
    deadline = time.monotonic() + limit_s
    while not (is_true := condition()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return is_true
