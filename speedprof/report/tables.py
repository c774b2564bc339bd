"""How long steps take and where they go, rank by rank, and what they ran on, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from speedprof.analyses.analysis import RankAnalysis
from speedprof.analyses.breakdown import Partition, Segment
from speedprof.report.document import Report, as_mapping, run_facts
from speedprof.report.text_table import ABSENT, TextTable
from speedprof.units import format_bytes, format_ms, format_percent

PARTS: tuple[tuple[str, str, Callable[[Partition], int]], ...] = (
    ("compute", "compute", lambda one: one.compute_ns),
    ("communication", "exposed communication", lambda one: one.exposed_communication_ns),
    ("copy", "exposed copy", lambda one: one.exposed_copy_ns),
    ("idle", "idle", lambda one: one.idle_ns),
)


# Of each rank: a page that shows more is no longer read, and grows too large.
MOST_SEGMENTS = 300


def step_time_table(report: Report) -> TextTable:
    """The clean steps of each rank, and the profiled ones beside them."""
    rows = tuple(
        (
            str(one.rank),
            one.timeline.value,
            str(one.num_clean),
            format_ms(one.mean_ns),
            ABSENT if one.levels_ns else format_ms(one.median_ns),
            "-".join(map(format_ms, one.interval_ns)) if one.interval_ns else ABSENT,
            format_ms(one.mad_ns),
            format_ms(one.slowest_ns),
            str(one.slowest_step),
            ABSENT if one.profiled_ns is None else format_ms(one.profiled_ns),
            ABSENT if one.profiler_overhead_ratio is None else f"{100 * one.profiler_overhead_ratio:+.1f}%",
        )
        for one in report.analysis.step_times
    )
    columns = (
        *("rank", "clock", "clean", "mean", "median", "95% interval", "MAD", "slowest", "at step"),
        *("profiled", "overhead"),
    )
    return TextTable(
        title="Step time in ms",
        columns=columns,
        rows=rows,
        num_labels=2,
        remark="Mean, median with its interval, MAD (median absolute deviation) and slowest are of the clean steps, "
        f"which ran without the profiler; profiled is the median of the steps under it.{_levels_remark(report)}",
        weights=tuple(float(one.typical_ns) for one in report.analysis.step_times),
    )


def _levels_remark(report: Report) -> str:
    """What the columns mean for ranks whose steps alternate."""
    levels = [
        f"rank {one.rank} {' and '.join(map(format_ms, one.levels_ns))}"
        for one in report.analysis.step_times
        if one.levels_ns
    ]
    if not levels:
        return ""
    return (
        f" Steps alternate: {', '.join(levels)} in turn (medians). There the means, the interval, profiled and "
        "overhead are of pairs of steps, and the MAD is taken from each step's own level."
    )


def partition_table(report: Report) -> TextTable:
    """Where the time of each rank goes: the mean of its traced steps, or its whole capture where it has none."""
    ranks = report.analysis.ranks
    return TextTable(
        title="Where a traced step goes, ms per step",
        columns=("rank", "steps", "window", *(name for _, name, _ in PARTS), "overlapped"),
        rows=tuple(_partition_row(rank, is_told=report.analysis.can_tell_overlap) for rank in ranks),
        num_labels=2,
        remark="Window: the mean of the traced steps by the clock of the device or, on CPU ranks, of the host. "
        "Overlapped: the share of all communication in the capture that has compute beside it"
        + ("." if report.analysis.can_tell_overlap else "; not told of ranks that share cores."),
        weights=tuple(rank.breakdown.window_ns - rank.breakdown.partition.compute_ns for rank in ranks),
    )


def segment_table(rank: RankAnalysis) -> TextTable:
    """Every window of one rank in ms."""
    rows = tuple(
        (
            _segment_label(segment),
            format_ms(segment.partition.window_ns),
            *(format_ms(part(segment.partition)) for _, _, part in PARTS),
        )
        for segment in rank.breakdown.segments[:MOST_SEGMENTS]
    )
    num_left_out = len(rank.breakdown.segments) - len(rows)
    remark = f"{num_left_out:,} later windows left out." if num_left_out else ""
    columns = ("step", "window", *(name for _, name, _ in PARTS))
    return TextTable(
        title=f"Traced windows of rank {rank.rank} in ms", columns=columns, rows=rows, num_labels=1, remark=remark
    )


def _segment_label(segment: Segment) -> str:
    if segment.step is None:
        return "before the first"
    return str(segment.step) if segment.kind in ("train", None) else f"{segment.step} {segment.kind}"


def environment_table(report: Report) -> TextTable:
    """What the run ran on and with; no rows where there is no run."""
    rows = _environment_rows(report) if report.manifest else []
    return TextTable(title="Environment", columns=("what", "value"), rows=tuple(rows), num_labels=2)


def _partition_row(rank: RankAnalysis, *, is_told: bool) -> tuple[str, ...]:
    breakdown = rank.breakdown
    num_steps = len(breakdown.steps)
    timeline = breakdown.timeline.value
    if rank.is_damaged or not breakdown.window_ns:
        why = "damaged" if rank.is_damaged else f"no {timeline} work"
        return (str(rank.rank), why, *[ABSENT] * (len(PARTS) + 2))
    windows = [step.partition for step in breakdown.steps] or [breakdown.partition]
    whole_ns = sum(window.window_ns for window in windows)
    overlap = breakdown.overlap_ratio
    return (
        str(rank.rank),
        f"{num_steps} {timeline}" if num_steps else f"none: whole {timeline} capture",
        format_ms(whole_ns / len(windows)),
        *(_part_cell(sum(part(window) for window in windows), whole_ns, len(windows)) for _, _, part in PARTS),
        format_percent(overlap) if overlap is not None and is_told else ABSENT,
    )


def _part_cell(part_ns: int, whole_ns: int, num_windows: int) -> str:
    share = f" ({format_percent(part_ns / whole_ns)})" if whole_ns else ""
    return format_ms(part_ns / num_windows) + share


def _environment_rows(report: Report) -> list[tuple[str, str]]:
    assert report.manifest is not None
    facts = run_facts(report.manifest)
    environment = as_mapping(facts["environment"])
    memory = environment.get("memory_bytes")
    gpus = environment.get("gpus")
    rows = [
        ("run", facts["run_id"]),
        ("status", facts["status"]),
        ("made", facts["created"]),
        ("preset", facts["preset"]),
        ("ranks", f"{facts['world_size']} x {facts['device'] or 'unknown device'}"),
        ("commit", f"{facts['commit']}{' with changes' if facts['dirty'] else ''}" if facts["commit"] else None),
        ("command", " ".join(str(word) for word in facts["command"])),
        ("machine", environment.get("platform")),
        ("CPU", f"{environment.get('cpu')}, {environment.get('num_cores')} cores" if environment.get("cpu") else None),
        ("memory", format_bytes(memory) if isinstance(memory, int) else None),
        ("GPUs", _joined(as_mapping(gpu).get("name") for gpu in gpus) if isinstance(gpus, list) else None),
        ("Python", environment.get("python")),
        ("packages", _pairs(environment.get("packages"), " ")),
        ("variables", _pairs(environment.get("variables"), "=")),
    ]
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _joined(names: Iterable[object]) -> str:
    return ", ".join(str(name) for name in names if name is not None)


def _pairs(value: object, separator: str) -> str:
    return _joined(f"{name}{separator}{one}" for name, one in as_mapping(value).items() if one is not None)
