"""From what a user names, a run directory or trace files, to everything that can be said of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from speedprof.analyses.analysis import Analysis, RankAnalysis
from speedprof.analyses.breakdown import measure_breakdown
from speedprof.analyses.copies import measure_copies
from speedprof.analyses.core_sharing import is_sharing_cores
from speedprof.analyses.stages import measure_stages
from speedprof.analyses.step_time import measure_step_time
from speedprof.cli.run_names import find_run
from speedprof.errors import UnreadableError
from speedprof.findings import find_all
from speedprof.report.document import Report
from speedprof.run_dir import Manifest, RunDir, read_manifest
from speedprof.step_log import StepLog, read_step_log
from speedprof.trace.model import Trace
from speedprof.trace.read_kineto import read_kineto

TRACE_PATTERNS = ("*.json", "*.json.gz")

# How many skipped files of a folder are named with their reason.
_MOST_PROBLEMS = 5


def report_on_run(run_dir: RunDir) -> Report:
    """Everything that a run directory tells. What of it is missing or cannot be read becomes a note."""
    manifest = read_manifest(run_dir)
    notes: list[str] = []
    traces = _read_some(run_dir.kineto_paths(), notes)
    if traces:
        missing = {record.rank for record in manifest.ranks} - {trace.rank for trace in traces}
        notes += [f"rank {rank} has no trace: the means over ranks leave it out" for rank in sorted(missing)]
    step_log = _read_step_logs(run_dir.steps_paths(), notes)
    return _report([run_dir.path], traces, step_log=step_log, manifest=manifest, notes=notes)


def report_on_traces(paths: Sequence[Path]) -> Report:
    """Everything that Kineto files tell, one of each rank. In a folder, files that are no Kineto traces are skipped.

    Raises UnreadableError for a named file that cannot be read, for a folder without any trace, and for traces that
    cannot be of one run: two of a rank, or of a host and a device timeline.
    """
    notes: list[str] = []
    traces: list[tuple[Path, Trace]] = []
    for path in dict.fromkeys(paths):  # a file named twice is read once
        traces += _read_folder(path, notes) if path.is_dir() else [(path, read_kineto(path))]
    _require_one_run(traces)
    return _report(paths, [trace for _, trace in traces], step_log=None, manifest=None, notes=notes)


def report_on(names: Sequence[str], root: Path) -> Report:
    """What `analyze` was asked for: one run, by path or name in `root`, or any number of trace files and folders."""
    if len(names) == 1 and (not Path(names[0]).exists() or (Path(names[0]) / "manifest.json").is_file()):
        if names[0].endswith((".json", ".gz")):
            raise UnreadableError(f"{names[0]}: there is no such file", next_step="name a trace, a folder or a run")
        return report_on_run(find_run(names[0], root))
    return report_on_traces([Path(name) for name in names])


def _report(
    paths: Sequence[Path],
    traces: Sequence[Trace],
    *,
    step_log: StepLog | None,
    manifest: Manifest | None,
    notes: Sequence[str],
) -> Report:
    analysis = Analysis(
        ranks=tuple(_measure(trace) for trace in sorted(traces, key=lambda trace: trace.rank)),
        step_times=measure_step_time(step_log) if step_log else (),
        notes=(*notes, *(step_log.notes if step_log else ()), *_trace_notes(traces)),
    )
    shares_cores = is_sharing_cores(manifest) if manifest else None
    return Report(
        analysis=analysis,
        findings=find_all(analysis, ranks_share_cores=shares_cores),
        manifest=manifest,
        step_log=step_log,
        sources=tuple(str(path) for path in paths),
    )


def _measure(trace: Trace) -> RankAnalysis:
    breakdown = measure_breakdown(trace)
    return RankAnalysis(
        rank=trace.rank,
        breakdown=breakdown,
        stages=measure_stages(trace),
        copies=measure_copies(trace, breakdown),
        error_budget=trace.error_budget,
        is_damaged=trace.is_damaged,
    )


def _trace_notes(traces: Sequence[Trace]) -> list[str]:
    return [f"rank {trace.rank}: {note}" for trace in traces for note in trace.notes]


def _require_one_run(traces: Sequence[tuple[Path, Trace]]) -> None:
    first_of_rank: dict[int, Path] = {}
    for path, trace in traces:
        if trace.rank in first_of_rank:
            raise UnreadableError(
                f"{path}: is of rank {trace.rank}, as {first_of_rank[trace.rank]} is",
                next_step="name the traces of one run alone",
            )
        first_of_rank[trace.rank] = path
    if len({trace.timeline for _, trace in traces}) > 1:
        raise UnreadableError(
            f"{traces[0][0]}: and others beside it are of GPU and of CPU ranks",
            next_step="name the traces of one run alone",
        )


def _read_folder(folder: Path, notes: list[str]) -> list[tuple[Path, Trace]]:
    paths = sorted({path for pattern in TRACE_PATTERNS for path in folder.rglob(pattern) if path.is_file()})
    traces: list[tuple[Path, Trace]] = []
    problems: list[str] = []
    for path in paths:
        try:
            traces.append((path, read_kineto(path)))
        except UnreadableError as error:
            problems.append(error.problem)
    if not traces:
        raise UnreadableError(
            f"{folder}: none of its {len(paths)} JSON files is a Kineto trace",
            next_step="name a folder that torch.profiler wrote to",
        )
    if problems:
        notes.append(f"{len(problems)} of {len(paths)} JSON files in {folder} are not Kineto traces and were skipped")
        notes += problems[:_MOST_PROBLEMS]
    return traces


def _read_some(paths: Sequence[Path], notes: list[str]) -> list[Trace]:
    traces: list[Trace] = []
    for path in paths:
        try:
            traces.append(read_kineto(path))
        except UnreadableError as error:
            notes.append(error.problem)
    return traces


def _read_step_logs(paths: Sequence[Path], notes: list[str]) -> StepLog:
    """The step logs that can be read, as one; the others become notes."""
    logs = [read_step_log([])]
    for path in paths:
        try:
            logs.append(read_step_log([path]))
        except UnreadableError as error:
            notes.append(error.problem)
    return StepLog(
        steps=pl.concat(log.steps for log in logs),
        stages=pl.concat(log.stages for log in logs),
        metrics=pl.concat(log.metrics for log in logs),
        notes=tuple(note for log in logs for note in log.notes),
    )
