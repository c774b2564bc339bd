"""Writing a report in the formats a user asked for, and saying where everything is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path

from speedprof.cli.sources import read_again
from speedprof.cli.trace_options import Reading, choose_reading
from speedprof.errors import UsageError
from speedprof.report.document import Report
from speedprof.report.json_report import write_json
from speedprof.report.markdown import write_markdown


class Format(StrEnum):
    HTML = "html"
    JSON = "json"
    MD = "md"
    PERFETTO = "perfetto"


# All that is made of the analysis alone, without reading the traces again.
QUICK_FORMATS = (Format.HTML, Format.JSON, Format.MD)

_FILES = {
    Format.HTML: "index.html",
    Format.JSON: "report.json",
    Format.MD: "report.md",
    Format.PERFETTO: "perfetto.json.gz",
}


def choose_formats(text: str) -> list[Format]:
    """The formats that `--format` names, each once. Raises UsageError for what is none."""
    try:
        return list(dict.fromkeys(Format(name.strip()) for name in text.split(",")))
    except ValueError:
        known = ",".join(Format)
        raise UsageError(f"--format {text}: is no list of formats", next_step=f"choose from {known}") from None


def refuse_existing(folder: Path, formats: Sequence[Format]) -> None:
    """Raises UsageError where `folder` holds a report in one of these formats already."""
    for path in (folder / _FILES[one] for one in formats):
        if os.path.exists(path):
            raise UsageError(f"{path}: exists already", next_step="overwrite it with --force, or choose --out")


def write_reports(
    report: Report, folder: Path, formats: Sequence[Format], *, reading: Reading | None = None
) -> list[Path]:
    """Write each format into `folder`, over what is there. `reading` says how the traces were read, for those formats
    that read them again."""
    paths = [folder / _FILES[one] for one in formats]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one, path in zip(formats, paths, strict=True):
            _write(report, one, path, reading or choose_reading())
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})", next_step="choose another --out") from error
    return paths


def terminal_width() -> int:
    """The width for tables: that of the terminal, but never under 100 columns, which they need."""
    return max(100, shutil.get_terminal_size((100, 40)).columns)


def _write(report: Report, form: Format, path: Path, reading: Reading) -> None:
    """What takes long to import is imported only for its own format: `analyze` needs none of it."""
    if form is Format.HTML:
        from speedprof.report.html import write_html

        write_html(report, path)
    elif form is Format.JSON:
        write_json(report, path)
    elif form is Format.MD:
        write_markdown(report, path)
    else:
        from speedprof.report.perfetto import write_perfetto

        write_perfetto(read_again(report, reading), report.analysis, report.findings, path)
