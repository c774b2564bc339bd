"""`speedprof check`."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer


def check(
    run: Annotated[str, typer.Argument(help="A run: path, id prefix, latest, latest~1 or @commit.")] = "latest",
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
    out: Annotated[Path, typer.Option(help="Where traces/ lies, to find runs by name.")] = Path(),
) -> None:
    """Say whether a run is whole and fit to conclude from; close its manifest if the launcher died before it could.

    Exit code 0 for a run that is fit, 5 for one that is not.

    Examples:
      python -m speedprof check latest
      python -m speedprof check latest --json
    """
    from speedprof.cli.run_names import find_run
    from speedprof.errors import ExitCode
    from speedprof.run_dir import RunStatus, find_damage, read_or_rebuild_manifest

    run_dir = find_run(run, out / "traces")
    manifest, was_rebuilt = read_or_rebuild_manifest(run_dir)
    problems = [] if manifest.status is RunStatus.COMPLETE else [f"the run is {manifest.status}"]
    problems += [] if manifest.status is RunStatus.RUNNING else find_damage(run_dir, manifest)
    if json:
        print(
            json_module.dumps({"schema_version": 1, "run": manifest.run_id, "fit": not problems, "problems": problems})
        )
    else:
        print(f"{run_dir.path}: {'not fit to conclude from' if problems else 'whole and fit to conclude from'}")
        notes = [f"rank {record.rank}: {note}" for record in manifest.ranks for note in record.notes]
        for problem in [*problems, *notes, *(["its manifest was rebuilt"] if was_rebuilt else [])]:
            print(f"  {problem}")
    raise typer.Exit(ExitCode.INCONCLUSIVE if problems else ExitCode.FINE)
