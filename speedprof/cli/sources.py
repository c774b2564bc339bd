"""From what a user names, a run directory or trace files, to everything that can be said of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from speedprof.analyses.analysis import Analysis, RankAnalysis
from speedprof.analyses.breakdown import measure_breakdown
from speedprof.analyses.core_sharing import is_sharing_cores
from speedprof.analyses.stages import measure_stages
from speedprof.analyses.step_time import measure_step_time
from speedprof.errors import UnreadableError
from speedprof.findings import find_all
from speedprof.report.document import Report
from speedprof.run_dir import Manifest, RunDir, find_run, read_manifest
from speedprof.step_log import StepLog, read_step_log
from speedprof.trace.model import Trace
from speedprof.trace.read_kineto import read_kineto

TRACE_PATTERNS = ("*.json", "*.json.gz")


def report_on_run(run_dir: RunDir) -> Report:
    """Everything that a run directory tells. What of it cannot be read becomes a note; the rest is told."""
    manifest = read_manifest(run_dir)
    notes: list[str] = []
    traces = _read_some(run_dir.kineto_paths(), notes)
    step_log = read_step_log(run_dir.steps_paths())
    return _report([run_dir.path], traces, step_log=step_log, manifest=manifest, notes=notes)


def report_on_traces(paths: Sequence[Path]) -> Report:
    """Everything that Kineto files tell. In a folder, files that are not Kineto traces are skipped and counted.

    Raises UnreadableError for a named file that cannot be read, and for a folder without any trace.
    """
    notes: list[str] = []
    traces: list[Trace] = []
    for path in paths:
        traces += _read_folder(path, notes) if path.is_dir() else [read_kineto(path)]
    return _report(paths, traces, step_log=None, manifest=None, notes=notes)


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
    return RankAnalysis(
        rank=trace.rank,
        breakdown=measure_breakdown(trace),
        stages=measure_stages(trace),
        error_budget=trace.error_budget,
    )


def _trace_notes(traces: Sequence[Trace]) -> list[str]:
    return [f"rank {trace.rank}: {note}" for trace in traces for note in trace.notes]


def _read_folder(folder: Path, notes: list[str]) -> list[Trace]:
    paths = sorted({path for pattern in TRACE_PATTERNS for path in folder.rglob(pattern)})
    traces: list[Trace] = []
    num_skipped = 0
    for path in paths:
        try:
            traces.append(read_kineto(path))
        except UnreadableError:
            num_skipped += 1
    if not traces:
        raise UnreadableError(
            f"{folder}: none of its {len(paths)} JSON files is a Kineto trace",
            next_step="name a folder that torch.profiler wrote to",
        )
    if num_skipped:
        notes.append(f"{num_skipped} of {len(paths)} JSON files in {folder} are not Kineto traces and were skipped")
    return traces


def _read_some(paths: Sequence[Path], notes: list[str]) -> list[Trace]:
    traces: list[Trace] = []
    for path in paths:
        try:
            traces.append(read_kineto(path))
        except UnreadableError as error:
            notes.append(str(error))
    return traces
