"""From what a user names, a run directory or trace files, to everything that can be said of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from speedprof.analyses.core_sharing import is_sharing_cores
from speedprof.analyses.measure import RankMeasurement, compare_ranks
from speedprof.analyses.step_time import measure_step_time
from speedprof.analyses.timeline import RankTimeline
from speedprof.cli.ranks_in_parallel import measure_files
from speedprof.cli.run_names import find_run
from speedprof.cli.trace_files import TraceFile, find_trace_files
from speedprof.cli.trace_options import Reading, choose_reading
from speedprof.errors import BeyondLimitError, UnreadableError
from speedprof.findings import find_all
from speedprof.report.document import Report
from speedprof.run_dir import Manifest, RunDir, read_manifest
from speedprof.step_log import StepLog, read_step_log
from speedprof.trace.model import Timeline, Trace
from speedprof.trace.read_kineto import read_kineto
from speedprof.units import NS_PER_DAY

# No two hosts' clocks differ by so much, and no two ranks are captured so far apart in one run.
_LONGEST_BETWEEN_NS = NS_PER_DAY
# How many skipped files of a folder are named with their reason.
_MOST_PROBLEMS = 5

_KINDS = {Timeline.DEVICE: "GPU", Timeline.HOST: "CPU"}

# A trace and where it was read.
_Ranks = dict[Path, RankMeasurement]


def find_source(names: Sequence[str], root: Path) -> RunDir | tuple[Path, ...]:
    """What is meant: one run, by path or name in `root`, or any number of trace files and folders.

    Raises UsageError or UnreadableError where there is no such run.
    """
    first = names[0]
    is_there, is_run = os.path.exists(first), os.path.isfile(os.path.join(first, "manifest.json"))
    if len(names) == 1 and (is_run or not is_there) and not first.endswith((".json", ".gz")):
        return find_run(first, root)
    return tuple(map(Path, names))


def report_on(source: RunDir | Sequence[Path], reading: Reading | None = None) -> Report:
    """Everything that a run or traces tell; without `reading`, read as without any option."""
    reading = reading or choose_reading()
    return report_on_run(source, reading) if isinstance(source, RunDir) else report_on_traces(source, reading)


def report_on_run(run_dir: RunDir, reading: Reading | None = None) -> Report:
    """Everything that a run directory tells. What of it is missing or cannot be read becomes a note."""
    manifest = read_manifest(run_dir)
    notes: list[str] = []
    ranks = _read_run(run_dir, reading or choose_reading(), notes)
    if ranks:
        missing = {record.rank for record in manifest.ranks} - {one.analysis.rank for one in ranks.values()}
        notes += [f"rank {rank} has no trace: the means over ranks leave it out" for rank in sorted(missing)]
    step_log = _read_step_logs(run_dir.steps_paths(), notes)
    return _report([run_dir.path], ranks, step_log=step_log, manifest=manifest, notes=notes)


def report_on_traces(paths: Sequence[Path], reading: Reading | None = None) -> Report:
    """Everything that Kineto files tell, one of each rank. In a folder, files that are no Kineto traces are skipped.

    Raises UnreadableError for a named file that cannot be read, for a folder without any trace, and for traces that
    cannot be of one run: two of a rank, of runs of different size, of days far apart, or of a host and a device
    timeline.
    """
    notes: list[str] = []
    ranks = _read_files(find_trace_files(paths, notes), reading or choose_reading(), paths, notes)
    return _report(paths, ranks, step_log=None, manifest=None, notes=notes)


def read_again(report: Report, reading: Reading) -> Iterator[Trace]:
    """The traces of a report one at a time, in the order of their ranks."""
    for path in report.trace_paths:
        yield read_kineto(path, limits=reading.limits, patterns=reading.patterns)


def _report(
    paths: Sequence[Path],
    ranks: _Ranks,
    *,
    step_log: StepLog | None,
    manifest: Manifest | None,
    notes: Sequence[str],
) -> Report:
    analysis = compare_ranks(
        list(ranks.values()),
        step_times=measure_step_time(step_log) if step_log else (),
        notes=(*notes, *(step_log.notes if step_log else ())),
        ranks_share_cores=is_sharing_cores(manifest) if manifest else None,
    )
    return Report(
        analysis=analysis,
        findings=find_all(analysis),
        manifest=manifest,
        step_log=step_log,
        sources=tuple(str(path) for path in paths),
        trace_paths=tuple(sorted(ranks, key=lambda path: ranks[path].analysis.rank)),
    )


def _read_run(run_dir: RunDir, reading: Reading, notes: list[str]) -> _Ranks:
    """The traces of a run. One that cannot be read, or is of a rank that there is one of, becomes a note."""
    paths = run_dir.kineto_paths()
    path_of: dict[int, Path] = {}
    ranks: _Ranks = {}
    for path, found in zip(paths, measure_files(paths, reading), strict=True):
        if isinstance(found, UnreadableError):
            notes.append(found.problem)
        elif (first := path_of.setdefault(found.analysis.rank, path)) != path:
            notes.append(f"{path} is of rank {found.analysis.rank}, as {first} is, and is left out")
        else:
            ranks[path] = found
    return ranks


def _read_files(files: Sequence[TraceFile], reading: Reading, named: Sequence[Path], notes: list[str]) -> _Ranks:
    ranks: _Ranks = {}
    problems: dict[Path, list[str]] = {path: [] for path in named if os.path.isdir(path)}
    for file, found in zip(files, measure_files([file.path for file in files], reading), strict=True):
        if not isinstance(found, UnreadableError):
            _require_one_run(ranks, file.path, found)
            ranks[file.path] = found
        elif file.folder is None or isinstance(found, BeyondLimitError):
            raise found
        else:
            problems[file.folder].append(found.problem)
    for folder, skipped in problems.items():
        num_files = sum(file.folder == folder for file in files)
        if not any(path.is_relative_to(folder) for path in ranks):
            raise UnreadableError(
                f"{folder}: none of its {num_files} JSON files is a Kineto trace",
                next_step="name a folder that torch.profiler wrote to",
            )
        if skipped:
            notes.append(f"{len(skipped)} of {num_files} JSON files in {folder} are no Kineto traces and were skipped")
            notes += skipped[:_MOST_PROBLEMS]
    return ranks


def _require_one_run(ranks: _Ranks, path: Path, found: RankMeasurement) -> None:
    """Raises UnreadableError where a trace cannot be of one run with those before it."""
    ours = found.timeline
    for other_path, other in ranks.items():
        theirs = other.timeline
        difference = None
        if ours.rank == theirs.rank:
            difference = f"is of rank {ours.rank}, as {other_path} is"
        elif ours.timeline is not theirs.timeline:
            difference = f"is of a {_KINDS[ours.timeline]} rank, {other_path} of a {_KINDS[theirs.timeline]} rank"
        elif None not in (ours.world_size, theirs.world_size) and ours.world_size != theirs.world_size:
            difference = f"is of a run of {ours.world_size} ranks, {other_path} of one of {theirs.world_size}"
        elif _time_between(ours, theirs) > _LONGEST_BETWEEN_NS:
            days = _time_between(ours, theirs) / NS_PER_DAY
            difference = f"was captured {days:,.0f} days before or after {other_path}"
        if difference:
            raise UnreadableError(f"{path} {difference}", next_step="name the traces of one run alone")


def _time_between(a: RankTimeline, b: RankTimeline) -> int:
    """How long after the end of one capture the other begins, in ns by their own clocks; 0 where either is empty."""
    if not (a.end_ns and b.end_ns):
        return 0
    return max(a.start_ns - b.end_ns, b.start_ns - a.end_ns, 0)


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
