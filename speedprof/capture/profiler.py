"""torch.profiler over a number of steps, and its trace written so that it is whole or not there."""

from __future__ import annotations

import gzip
import os
import shutil
import warnings
from pathlib import Path

import torch
from torch.profiler import ProfilerAction, ProfilerActivity, profile

from speedprof.capture.plan import CapturePlan

# zlib's level: 4 packs a trace about 12 to 1 in half the time of the default.
_GZIP_LEVEL = 4


class StepProfiler:
    """Profiles steps from `start` to `stop`; `step` marks a boundary between two of them.

    With `discard_first`, the profiler runs through the first step without keeping it: torch 2.10 and later lose
    kernels at the start of a session (pytorch#192021).
    """

    def __init__(self, plan: CapturePlan, *, discard_first: bool) -> None:
        # torch 2.11 warns that cycles are not added up. There is but one here, and asking for the sum (acc_events)
        # turns every event into a Python object: 80 s more for a 220 MB trace (docs/log.md).
        warnings.filterwarnings("ignore", message="Warning: Profiler clears events at the end of each cycle")
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self._profile = profile(
            activities=activities,
            schedule=lambda step: ProfilerAction.WARMUP if discard_first and step == 0 else ProfilerAction.RECORD,
            record_shapes=plan.shapes,
            profile_memory=plan.memory,
            with_stack=plan.stacks,
        )

    def start(self) -> None:
        self._profile.start()

    def step(self) -> None:
        self._profile.step()

    def stop(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # what the last step launched belongs to the trace
        self._profile.stop()

    def export(self, path: Path) -> None:
        """Write the trace as JSON. Raises OSError where the file is not whole: torch says nothing on a full disk."""
        # By a relative path, since the trace holds the path that it is given.
        self._profile.export_chrome_trace(os.path.relpath(path))
        if not _ends_like_json(path):
            raise OSError(f"{path}: torch.profiler wrote no whole trace; is the disk full?")


def write_trace(profiler: StepProfiler, path: Path) -> int:
    """Export to `path`, a .json.gz that appears whole or not at all. Returns the size of its JSON in bytes."""
    plain = path.with_name(f".{path.name}.tmp.json")
    packed = path.with_name(f".{path.name}.tmp.gz")
    try:
        profiler.export(plain)
        with open(plain, "rb") as source, gzip.open(packed, "wb", compresslevel=_GZIP_LEVEL) as target:
            shutil.copyfileobj(source, target, 1 << 20)
        num_bytes = plain.stat().st_size
        packed.rename(path)
    finally:
        _remove(plain)
        packed.unlink(missing_ok=True)
    return num_bytes


def measure_trace_bytes(profiler: StepProfiler, scratch: Path) -> int:
    """The size in bytes of the JSON that the profiler would write."""
    try:
        profiler.export(scratch)
        return scratch.stat().st_size
    finally:
        _remove(scratch)


def _remove(path: Path) -> None:
    """Remove an export, and what torch leaves of one that it could not finish."""
    path.unlink(missing_ok=True)
    path.with_name(f"{path.name}.tmp").unlink(missing_ok=True)


def _ends_like_json(path: Path) -> bool:
    if not path.is_file() or path.stat().st_size < 2:
        return False
    with open(path, "rb") as file:
        file.seek(-min(64, path.stat().st_size), 2)
        return file.read().rstrip().endswith(b"}")
