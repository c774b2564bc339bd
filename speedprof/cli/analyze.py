"""`speedprof analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from speedprof.cli.trace_options import Jobs, MaxBytes, Only, Patterns, PatternsOnly


def analyze(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", help="A run (path, id, latest, @commit), or Kineto files and folders."),
    ],
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
    only: Only = None,
    collective_pattern: Patterns = None,
    collective_pattern_only: PatternsOnly = None,
    max_bytes: MaxBytes = "64GiB",
    jobs: Jobs = None,
    out: Annotated[Path, typer.Option(help="Where traces/ lies, to find runs by name.")] = Path(),
) -> None:
    """Say where each millisecond of a step goes, in a run or in any Kineto traces, one file a rank.

    Examples:
      python -m speedprof analyze latest --only partition,overlap
      python -m speedprof analyze rank0.json.gz rank1.json.gz --json
    """
    from dataclasses import replace

    from rich.console import Console

    from speedprof.cli.outputs import terminal_width
    from speedprof.cli.sources import find_source, report_on
    from speedprof.cli.trace_options import choose_reading, choose_sections
    from speedprof.report.console import print_report
    from speedprof.report.json_report import format_json

    sections = choose_sections(only)
    reading = choose_reading(
        patterns=collective_pattern, patterns_only=collective_pattern_only, max_bytes=max_bytes, jobs=jobs
    )
    report = replace(report_on(find_source(paths, out / "traces"), reading), sections=sections)
    if json:
        print(format_json(report), end="")
    else:
        print_report(report, Console(width=terminal_width()))
