"""`speedprof report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[str, typer.Argument(help="A run: path, id prefix, latest, latest~1 or @commit.")] = "latest",
    formats: Annotated[str, typer.Option("--format", help="What to write, of html,json,md.")] = "html,json,md",
    open_page: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite reports that exist.")] = False,
    out: Annotated[Path, typer.Option(help="Where traces/ and reports/ lie.")] = Path(),
) -> None:
    """Write the reports of a run into reports/<run-id>/.

    Examples:
      python -m speedprof report latest
      python -m speedprof report latest --format md --force
    """
    from speedprof.cli.outputs import Format, write_reports
    from speedprof.cli.run_names import find_run
    from speedprof.cli.sources import report_on_run
    from speedprof.errors import UsageError

    try:
        chosen = [Format(name.strip()) for name in formats.split(",")]
    except ValueError as error:
        raise UsageError(f"--format {formats}: {error}", next_step=f"choose from {','.join(Format)}") from None
    run_dir = find_run(run, out / "traces")
    folder = out / "reports" / run_dir.path.resolve().name
    paths = write_reports(report_on_run(run_dir), folder, chosen, force=force)
    for path in paths:
        print(f"wrote {path}", file=sys.stderr)
    if open_page and Format.HTML in chosen:
        typer.launch(str(folder / "index.html"))
