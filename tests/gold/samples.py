"""The kept captures: how each is made, and the reports that it must give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from speedprof.cli.outputs import QUICK_FORMATS, write_reports
from speedprof.cli.sources import report_on_run
from speedprof.report.console import print_report
from speedprof.run_dir import RunDir

ROOT = Path(__file__).parents[2]

# Relative to the root, since reports name their sources.
TRACES = Path("traces/samples")
REPORTS = Path("reports/samples")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A capture of the trainer, small enough to keep: few steps clocked, fewer traced."""

    name: str
    num_gpus: int  # 0: on CPU ranks
    capture_arguments: tuple[str, ...]

    @property
    def run_dir(self) -> RunDir:
        return RunDir(TRACES / self.name)


SAMPLES = (
    Sample(
        name="cpu-2ranks",
        num_gpus=0,
        capture_arguments=("--preset", "tiny_cpu", "--steps", "20", "--trace-steps", "4"),
    ),
    Sample(
        name="h200-2ranks",
        num_gpus=2,
        capture_arguments=("--preset", "record_134", "--steps", "20", "--trace-steps", "2"),
    ),
)


def write_gold(sample: Sample, folder: Path) -> None:
    """Write every report of a sample into `folder`. The working directory must be ROOT."""
    report = report_on_run(sample.run_dir)
    write_reports(report, folder, QUICK_FORMATS)
    _write_console(lambda console: print_report(report, console), folder / "console.txt")


def _write_console(draw: Callable[[Console], None], path: Path) -> None:
    with open(path, "w", encoding="utf-8") as file:
        draw(Console(file=file, width=100, no_color=True, force_terminal=False))
