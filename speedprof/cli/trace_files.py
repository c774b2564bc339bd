"""Which files a user means by the paths of traces and folders."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from speedprof.errors import UnreadableError

TRACE_SUFFIXES = (".json", ".json.gz")


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFile:
    """A file that may be a trace. `folder` is the named folder that it lies in; None where it was named itself."""

    path: Path
    folder: Path | None


def find_trace_files(paths: Sequence[Path], notes: list[str]) -> list[TraceFile]:
    """The named files, and all files of named folders that could be traces, each once, those of a folder by name.

    A folder within one that cannot be listed becomes a note. Links to folders are not followed, so that no loop of
    them is either. Raises UnreadableError for a named folder that cannot be listed.
    """
    files: dict[str, TraceFile] = {}
    for path in paths:
        folder = path if os.path.isdir(path) else None
        for found in _list_folder(folder, notes) if folder else [path]:
            # One file may have several names.
            files.setdefault(os.path.realpath(found), TraceFile(path=found, folder=folder))
    return list(files.values())


def _list_folder(folder: Path, notes: list[str]) -> list[Path]:
    def tell(error: OSError) -> None:
        problem = f"{error.filename}: cannot be listed ({error.strerror})"
        if Path(error.filename) == folder:
            raise UnreadableError(problem, next_step="check its permissions")
        notes.append(problem)

    found = [
        Path(where, name)
        for where, _, names in os.walk(folder, onerror=tell)
        for name in names
        if name.endswith(TRACE_SUFFIXES)
    ]
    return sorted(path for path in found if os.path.isfile(path))


def name_after(paths: Sequence[Path]) -> str:
    """A name for the reports of these paths: that of the one path, without a trace's suffixes, or of their folder."""
    whole = [Path(os.path.abspath(path)) for path in paths]
    if len(whole) > 1:
        return Path(os.path.commonpath([path.parent for path in whole])).name or "traces"
    name = whole[0].name
    for suffix in (".gz", ".json", ".trace", ".pt"):
        name = name.removesuffix(suffix)
    return "traces" if name in ("", ".", "..") else name
