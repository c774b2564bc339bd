"""`speedprof report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from speedprof.cli.trace_options import Jobs, MaxBytes, Only, Patterns, PatternsOnly


def report(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH]...",
            help="A run (path, id, latest, latest~1, @commit), or Kineto files and folders.",
            show_default="latest",
        ),
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            help="What to write, of html,json,md,perfetto. perfetto is a timeline for ui.perfetto.dev, "
            "and takes about half as long again.",
        ),
    ] = "html,json,md",
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite reports that exist.")] = False,
    only: Only = None,
    collective_pattern: Patterns = None,
    collective_pattern_only: PatternsOnly = None,
    max_bytes: MaxBytes = "64GiB",
    jobs: Jobs = None,
    out: Annotated[Path, typer.Option(help="Where traces/ and reports/ lie.")] = Path(),
) -> None:
    """Write the reports of a run into reports/<run-id>/, of traces into reports/<their folder's or file's name>/.

    Examples:
      python -m speedprof report latest
      python -m speedprof report rank0.json.gz rank1.json.gz --format html,perfetto --force
    """
    from dataclasses import replace

    from speedprof.cli.outputs import Format, choose_formats, refuse_existing, write_reports
    from speedprof.cli.sources import find_source, report_on
    from speedprof.cli.trace_files import name_after
    from speedprof.cli.trace_options import choose_reading, choose_sections
    from speedprof.report.text import make_plain
    from speedprof.run_dir import RunDir

    chosen, sections = choose_formats(formats), choose_sections(only)
    reading = choose_reading(
        patterns=collective_pattern, patterns_only=collective_pattern_only, max_bytes=max_bytes, jobs=jobs
    )
    source = find_source(paths or ["latest"], out / "traces")
    name = source.path.resolve().name if isinstance(source, RunDir) else name_after(source)
    folder = out / "reports" / name
    if not force:
        refuse_existing(folder, chosen)
    document = replace(report_on(source, reading), sections=sections)
    for path in write_reports(document, folder, chosen, reading=reading):
        print(f"wrote {make_plain(str(path), limit=2_000)}", file=sys.stderr)
    if open_page and Format.HTML in chosen:
        typer.launch(str(folder / "index.html"))
