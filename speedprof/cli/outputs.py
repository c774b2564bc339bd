"""Writing a report in the formats a user asked for, and saying where everything is."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path

from speedprof.errors import UsageError
from speedprof.report.document import Report
from speedprof.report.html import write_html
from speedprof.report.json_report import write_json
from speedprof.report.markdown import write_markdown


class Format(StrEnum):
    HTML = "html"
    JSON = "json"
    MD = "md"


_WRITERS: dict[Format, tuple[str, Callable[[Report, Path], None]]] = {
    Format.HTML: ("index.html", write_html),
    Format.JSON: ("report.json", write_json),
    Format.MD: ("report.md", write_markdown),
}


def write_reports(report: Report, folder: Path, formats: Sequence[Format], *, force: bool) -> list[Path]:
    """Write each format into `folder`. Raises UsageError where a file exists already, unless `force`."""
    paths = [folder / _WRITERS[one][0] for one in formats]
    existing = [path for path in paths if path.exists()]
    if existing and not force:
        raise UsageError(f"{existing[0]}: exists already", next_step="overwrite it with --force, or choose --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one, path in zip(formats, paths, strict=True):
            _WRITERS[one][1](report, path)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})", next_step="choose another --out") from error
    return paths


def terminal_width() -> int:
    """The width for tables: that of the terminal, but never under 100 columns, which they need."""
    return max(100, shutil.get_terminal_size((100, 40)).columns)
