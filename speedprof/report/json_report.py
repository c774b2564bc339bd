"""report.json: the document, for programs."""

from __future__ import annotations

import json
from pathlib import Path

from speedprof.report.document import Report, as_document
from speedprof.run_dir import write_atomically


def format_json(report: Report) -> str:
    """The document as JSON of ASCII characters alone, so that no terminal or parser trips over a name."""
    return json.dumps(as_document(report), indent=1, allow_nan=False) + "\n"


def write_json(report: Report, path: Path) -> None:
    write_atomically(path, format_json(report).encode("ascii"), durable=False)
