"""A small report whose every number is set by hand. Times are ns; a step is 10 ms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import polars as pl

from speedprof.analyses.analysis import Analysis, RankAnalysis
from speedprof.analyses.bandwidth import CollectiveBandwidth
from speedprof.analyses.breakdown import Breakdown, Partition, Segment
from speedprof.analyses.certainty import PartitionWithout
from speedprof.analyses.copies import CopyTime
from speedprof.analyses.exposure import RankExposure
from speedprof.analyses.idle_gaps import GapCause, GapGroup, IdleGaps
from speedprof.analyses.launches import LaunchOverhead
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.stages import StageTime
from speedprof.analyses.step_time import measure_step_time
from speedprof.analyses.stragglers import Straggler
from speedprof.analyses.top_kernels import KernelTime
from speedprof.findings import find_all
from speedprof.report.document import Report
from speedprof.run_dir import Manifest, RankRecord, RunStatus
from speedprof.step_log import StepLog
from speedprof.trace.model import ErrorBudget, Timeline

MS = 1_000_000
EPOCH_NS = 1_795_000_000_000_000_000

HOSTILE_NAMES = (
    "</script><img src=x onerror=alert(1)>",
    "a|b `code` [link](http://example.invalid) **bold** @everyone",
    "[red]markup[/red][link=http://example.invalid]x[/link]",
    "\x1b[31mred\x1b[0m\x07\x00\r\nnext",
    "\u202eesrever\u2066\u200b\u2028",
    "{{ 7 * 7 }}{% raw %}",
    "lone \ud800 surrogate",
    "long " * 2_000,
)


def partition(compute: int, communication: int, copy: int, idle: int) -> Partition:
    """A partition from whole microseconds."""
    return Partition(
        compute_ns=compute * 1_000,
        exposed_communication_ns=communication * 1_000,
        exposed_copy_ns=copy * 1_000,
        idle_ns=idle * 1_000,
    )


def breakdown(rank: int, steps: list[Partition], *, timeline: Timeline = Timeline.DEVICE) -> Breakdown:
    """Steps 60, 61, ... end to end, after 1 ms that precedes them."""
    start_ns = EPOCH_NS
    segments = []
    for position, one in enumerate([partition(0, 0, 0, 1_000), *steps]):
        step, kind = (None, None) if position == 0 else (59 + position, "train")
        end_ns = start_ns + one.window_ns
        segments.append(Segment(step=step, kind=kind, start_ns=start_ns, end_ns=end_ns, partition=one))
        start_ns += one.window_ns
    parts = [segment.partition for segment in segments]
    whole = Partition(
        compute_ns=sum(part.compute_ns for part in parts),
        exposed_communication_ns=sum(part.exposed_communication_ns for part in parts),
        exposed_copy_ns=sum(part.exposed_copy_ns for part in parts),
        idle_ns=sum(part.idle_ns for part in parts),
    )
    return Breakdown(
        rank=rank,
        timeline=timeline,
        partition=whole,
        communication_ns=2 * whole.exposed_communication_ns,
        overlapped_communication_ns=whole.exposed_communication_ns,
        segments=tuple(segments),
    )


def stage(name: str, group: str, exposed_us: int, *, calls: int = 2) -> StageTime:
    """Totals over two steps: `exposed_us` in all, twice that on the device, thrice on the host."""
    return StageTime(
        stage=name,
        group=group,
        num_calls=calls,
        host_ns=3_000 * exposed_us,
        device_ns=2_000 * exposed_us,
        exposed_ns=1_000 * exposed_us,
    )


def budget(device_events: int = 1_000, unlinked: int = 0) -> ErrorBudget:
    return ErrorBudget(device_events=device_events, unlinked=unlinked, cut=0, crossing=0, zero_length=2)


def idle_gaps(by_cause: Mapping[GapCause, int] | None = None, groups: tuple[GapGroup, ...] = ()) -> IdleGaps:
    """Idle time by its cause in ns, without the table of single gaps."""
    table = pl.DataFrame(
        schema={
            **dict.fromkeys(("start_ns", "end_ns", "step"), pl.Int64),
            **dict.fromkeys(("cause", "range", "op", "call", "kernel"), pl.String),
        }
    )
    return IdleGaps(table=table, groups=groups, by_cause=dict(by_cause or {}))


NO_LAUNCHES = LaunchOverhead(
    num_launches=0,
    num_kernels=0,
    launch_ns=0,
    median_launch_ns=None,
    median_lead_ns=None,
    num_late=0,
    num_short=0,
)


def rank_analysis(
    rank: int,
    steps: list[Partition],
    stages: tuple[StageTime, ...] = (),
    *,
    timeline: Timeline = Timeline.DEVICE,
    error_budget: ErrorBudget | None = None,
    is_damaged: bool = False,
    copies: tuple[CopyTime, ...] = (),
    idle: IdleGaps | None = None,
    launches: LaunchOverhead = NO_LAUNCHES,
    kernels: tuple[KernelTime, ...] = (),
    certainty: tuple[PartitionWithout, ...] = (),
    exposure: RankExposure | None = None,
) -> RankAnalysis:
    """Unless `idle` says otherwise, all idle time of the steps is the host's being late."""
    late = {GapCause.LATE_LAUNCH: sum(step.idle_ns for step in steps)} if timeline is Timeline.DEVICE else {}
    return RankAnalysis(
        rank=rank,
        breakdown=breakdown(rank, steps, timeline=timeline),
        stages=stages,
        idle=idle or idle_gaps(late),
        launches=launches,
        kernels=kernels,
        error_budget=error_budget or budget(),
        certainty=certainty,
        exposure=exposure,
        is_damaged=is_damaged,
        copies=copies,
    )


def analysis(
    ranks: tuple[RankAnalysis, ...] = (),
    log: StepLog | None = None,
    notes: tuple[str, ...] = (),
    *,
    match: CollectiveMatch | None = None,
    bandwidths: tuple[CollectiveBandwidth, ...] = (),
    stragglers: tuple[Straggler, ...] = (),
) -> Analysis:
    return Analysis(
        ranks=ranks,
        match=match,
        bandwidths=bandwidths,
        stragglers=stragglers,
        step_times=measure_step_time(log) if log else (),
        notes=notes,
    )


def step_rows(rank: int, mark: str, first: int, times_ns: list[int], *, on_device: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "rank": rank,
            "step": first + position,
            "kind": "train",
            "mark": mark,
            "phase": "",
            "num_steps": 1,
            "host_start_ns": EPOCH_NS + (first + position) * 10 * MS,
            "host_ns": time_ns + 7,
            "device_ns": time_ns if on_device else None,
        }
        for position, time_ns in enumerate(times_ns)
    ]


def step_log(rows: list[dict[str, Any]]) -> StepLog:
    """A log of these steps; each rank has one stage and, with the loss, one metric."""
    steps = pl.DataFrame(
        rows,
        schema={
            "rank": pl.Int32,
            "step": pl.Int64,
            "kind": pl.String,
            "mark": pl.String,
            "phase": pl.String,
            "num_steps": pl.Int64,
            "host_start_ns": pl.Int64,
            "host_ns": pl.Int64,
            "device_ns": pl.Int64,
        },
    )
    stages = steps.select(
        "rank",
        "step",
        pl.lit("reduce_scatter").alias("stage"),
        pl.lit("muon.attn").alias("group"),
        (pl.col("host_ns") // 10).alias("host_ns"),
        (pl.col("device_ns") // 10).alias("stream_ns"),
    )
    metrics = steps.select("rank", "step", pl.lit("loss").alias("name"), (10.0 - pl.col("step") / 100).alias("value"))
    return StepLog(steps=steps, stages=stages, metrics=metrics, notes=())


def run_log(num_ranks: int = 2, num_clean: int = 50) -> StepLog:
    """Warm-up, clean, transition and profiled steps; clean ones take 9.00 to 9.49 ms, rank 1's 0.1 ms more."""
    rows = []
    for rank in range(num_ranks):
        more_ns = rank * MS // 10
        clean = [9 * MS + (17 * k % 50) * 10_000 + more_ns for k in range(num_clean)]
        rows += step_rows(rank, "warmup", 0, [900 * MS, *[11 * MS - k * 100_000 for k in range(9)]])
        rows += step_rows(rank, "clean", 10, clean)
        rows += step_rows(rank, "transition", 10 + num_clean, [30 * MS])
        rows += step_rows(rank, "profiled", 11 + num_clean, [10 * MS + k * 10_000 for k in range(10)])
    return step_log(rows)


def manifest(*, status: RunStatus = RunStatus.COMPLETE, failure: str | None = None, num_ranks: int = 2) -> Manifest:
    ranks = [
        RankRecord(rank=rank, host="node", pid=100 + rank, status=status, device="h200", last_step=70)
        for rank in range(num_ranks)
    ]
    return Manifest(
        format_version=1,
        run_id="20261121-221502_abc1234_tiny_2xh200",
        created="2026-11-21T22:15:02+01:00",
        status=status,
        launcher_host="node",
        launcher_pid=99,
        plan={"steps": 50},
        command=["python", "-m", "speedprof", "capture", "--steps", "50"],
        environment={
            "python": "3.11.9",
            "packages": {"torch": "2.13.0", "nvtx": None},
            "platform": "Linux",
            "cpu": "A processor",
            "num_cores": 32,
            "memory_bytes": 256_000_000_000,
            "gpus": [{"name": "NVIDIA H200"}, {"name": "NVIDIA H200"}],
            "git": {"commit": "abc1234def5678", "branch": "main", "dirty": True},
            "variables": {"OMP_NUM_THREADS": "8"},
        },
        failure=failure,
        declared={"preset": "tiny"},
        ranks=ranks,
    )


def two_ranks(group: str = "muon.attn") -> tuple[RankAnalysis, RankAnalysis]:
    """Two ranks with two traced steps of 10 ms each; rank 1 waits more."""
    stages = (stage("reduce_scatter", group, 1_200), stage("newton_schulz", group, 0), stage("all_gather", group, 600))
    return (
        rank_analysis(0, [partition(8_000, 1_000, 100, 900), partition(8_200, 800, 100, 900)], stages),
        rank_analysis(
            1,
            [partition(7_000, 2_000, 0, 1_000), partition(7_500, 1_500, 0, 1_000)],
            (stage("all_gather", group, 900),),
        ),
    )


def small_report() -> Report:
    log = run_log()
    measured = analysis(two_ranks(), log, notes=("2 files were skipped: they are not Kineto traces",))
    return Report(
        analysis=measured,
        findings=find_all(measured),
        manifest=manifest(),
        step_log=log,
        sources=("20261121-221502_abc1234_tiny_2xh200",),
    )


def damaged_report() -> Report:
    """The small report with rank 1's trace damaged."""
    report = small_report()
    first, second = two_ranks()
    measured = replace(report.analysis, ranks=(first, replace(second, is_damaged=True)))
    return replace(report, analysis=measured, findings=find_all(measured))


def alternating_log(num_ranks: int = 1) -> StepLog:
    """Clean steps of 100 and 200 ms in turn, profiled ones of 150 and 290."""
    rows = []
    for rank in range(num_ranks):
        rows += step_rows(rank, "clean", 10, [100 * MS, 200 * MS] * 10)
        rows += step_rows(rank, "profiled", 30, [150 * MS, 290 * MS])
    return step_log(rows)


def empty_report() -> Report:
    return Report(analysis=analysis(), findings=(), manifest=None, step_log=None, sources=())
