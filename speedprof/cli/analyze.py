"""`speedprof analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def analyze(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="A run (path, id, latest, @commit), or Kineto files and folders."),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
    out: Annotated[Path, typer.Option(help="Where traces/ lies, to find runs by name.")] = Path(),
) -> None:
    """Say where each millisecond of a step goes, in a run or in any Kineto traces.

    Examples:
      python -m speedprof analyze latest
      python -m speedprof analyze rank0.json.gz rank1.json.gz --json
    """
    from rich.console import Console

    from speedprof.cli.outputs import terminal_width
    from speedprof.cli.sources import report_on
    from speedprof.report.console import print_report
    from speedprof.report.json_report import format_json

    report = report_on(paths, out / "traces")
    if json:
        print(format_json(report))
    else:
        print_report(report, Console(width=terminal_width()))
