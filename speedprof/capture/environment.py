"""Where a run was made: versions, machine, GPUs, git state, and the variables that change how torch runs."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

# Only what changes how a program runs is kept, so that no secret gets into a run directory.
_VARIABLES = re.compile(
    r"(CUDA_VISIBLE_DEVICES|CUDA_LAUNCH_BLOCKING|CUBLAS_WORKSPACE_CONFIG|OMP_NUM_THREADS|MKL_NUM_THREADS"
    r"|PYTHONHASHSEED|NVSHMEM_DISABLE_NVLS|PYTORCH_(CUDA_)?ALLOC_CONF|NCCL_[A-Z0-9_]+|TORCH_[A-Z0-9_]+"
    r"|TORCHINDUCTOR_[A-Z0-9_]+|TRITON_[A-Z0-9_]+|GLOO_[A-Z0-9_]+)"
)
_PACKAGES = ("torch", "triton", "numpy", "nvtx", "polars", "msgspec", "tensorboard", "torch-tb-profiler", "speedprof")
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_COMMAND_LIMIT_S = 10


def read_environment(folder: Path) -> dict[str, Any]:
    """The environment record of a run that starts in `folder`; None for what this machine cannot tell."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "num_cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": _gpus(),
        "topology": _output(["nvidia-smi", "topo", "-m"]),
        "git": read_git(folder),
        "variables": {name: hide_credentials(os.environ[name]) for name in sorted(os.environ) if _keeps(name)},
    }


def read_git(folder: Path) -> dict[str, str | bool | None]:
    """Commit, branch and whether the tree is dirty, with the hash of the difference; all None outside a checkout."""
    commit = _output(["git", "-C", str(folder), "rev-parse", "HEAD"])
    if commit is None:
        return {"commit": None, "branch": None, "dirty": None, "diff_sha256": None}
    status = _output(["git", "-C", str(folder), "status", "--porcelain"])
    difference = _output(["git", "-C", str(folder), "diff", "HEAD"]) or ""
    return {
        "commit": commit,
        "branch": _output(["git", "-C", str(folder), "rev-parse", "--abbrev-ref", "HEAD"]),
        "dirty": bool(status),
        "diff_sha256": hashlib.sha256(f"{status}\n{difference}".encode()).hexdigest() if status else None,
    }


def hide_credentials(text: str) -> str:
    """`text` without the user and password of any address in it."""
    return _CREDENTIALS.sub("", text)


def _keeps(name: str) -> bool:
    return _VARIABLES.fullmatch(name) is not None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str | None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return None
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found and found[1].strip()


def _gpus() -> list[dict[str, str]]:
    fields = ["name", "uuid", "memory.total", "driver_version", "power.limit", "clocks.max.sm"]
    table = _output(["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"])
    rows = [line.split(", ") for line in (table or "").splitlines()]
    return [dict(zip(fields, row, strict=True)) for row in rows if len(row) == len(fields)]


def _output(command: list[str]) -> str | None:
    """What a command prints, or None where it is missing, fails or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_LIMIT_S, check=True)
    except (subprocess.SubprocessError, OSError, UnicodeDecodeError):
        return None
    return done.stdout.strip()
