"""Which run a user means by a name."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

from speedprof.errors import UnreadableError, UsageError
from speedprof.run_dir import RunDir


def find_run(name: str, root: Path) -> RunDir:
    """The run that `name` means: a path, `latest`, `latest~1`, `@<commit>` (its latest run) or the start of a run's id.

    Runs are looked for in `root`. Raises UsageError where none or more than one fits.
    """
    if os.sep in name or _is_run(Path(name)):
        return _run_at(Path(name))
    runs = [path.name for path in sorted(filter(_is_run, root.glob("*")), key=_age)]
    if not runs:
        raise UsageError(f"{name}: {root} holds no run", next_step="make one with `python -m speedprof capture`")
    if name.startswith("latest"):
        return RunDir(root / _nth_latest(name, runs))
    if name.startswith("@"):
        fits = [run for run in runs if len(name) > 1 and _commit(root / run).startswith(name[1:])][-1:]
    else:
        fits = [run for run in runs if run.startswith(name)]
    if len(fits) != 1:
        problem = f"{len(fits)} runs fit" if fits else "no run fits"
        raise UsageError(f"{name}: {problem} in {root}", next_step=f"the latest is {runs[-1]}")
    return RunDir(root / fits[0])


def _is_run(path: Path) -> bool:
    """Whether a folder holds a run; one that lost its manifest still has what its ranks wrote."""
    return os.path.isfile(path / "manifest.json") or os.path.isfile(path / "rank0.json")


def _run_at(path: Path) -> RunDir:
    if not os.path.exists(path):
        raise UnreadableError(f"{path}: there is no such run", next_step="see what lies in traces/")
    if not _is_run(path):
        raise UnreadableError(f"{path}: is no run directory", next_step="for trace files and folders use `analyze`")
    return RunDir(path)


def _age(path: Path) -> tuple[float, str]:
    """Sorts runs from the oldest to the newest; a run whose manifest is damaged or lost counts as old."""
    try:
        created = datetime.fromisoformat(_manifest(path)["created"]).timestamp()
    except (KeyError, TypeError, ValueError):
        created = 0.0
    return created, path.name


def _commit(path: Path) -> str:
    """The commit that a run was made from; empty where it is not known."""
    try:
        return str(_manifest(path)["environment"]["git"]["commit"])
    except (KeyError, TypeError):
        return ""


def _manifest(path: Path) -> Any:
    """The manifest as it lies there, unchecked; empty where it cannot be read."""
    try:
        return json.loads((path / "manifest.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}


def _nth_latest(name: str, runs: list[str]) -> str:
    back = name.removeprefix("latest").removeprefix("~") or "0"
    if not back.isdigit() or int(back) >= len(runs):
        raise UsageError(f"{name}: there are {len(runs)} runs", next_step="say `latest` or `latest~1`")
    return runs[-1 - int(back)]
