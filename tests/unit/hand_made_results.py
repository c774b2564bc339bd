"""The small report of hand_made.py with every result that comparing ranks and looking at gaps and kernels can give.

Two ranks of two traced steps each, 10 ms a step: rank 1 is exposed for 3.5 ms, of which it waits 2 ms for rank 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import polars as pl
from hand_made import EPOCH_NS, MS, analysis, idle_gaps, manifest, partition, rank_analysis, run_log, stage

from speedprof.analyses.analysis import Analysis, RankAnalysis
from speedprof.analyses.bandwidth import CollectiveBandwidth
from speedprof.analyses.certainty import PartitionWithout
from speedprof.analyses.clocks import RankClock
from speedprof.analyses.exposure import CollectiveTime, ExposedSplit, RankExposure, Wait
from speedprof.analyses.idle_gaps import GapCause, GapGroup
from speedprof.analyses.launches import LaunchOverhead
from speedprof.analyses.matching import CollectiveMatch
from speedprof.analyses.stragglers import SlowKernel, Straggler, StragglerCause
from speedprof.analyses.top_kernels import KernelTime
from speedprof.findings import find_all
from speedprof.report.document import Report
from speedprof.run_dir import RunStatus

KERNEL = "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>>(int, char*)"


def split(wait: int, transfer: int, unsplit: int = 0) -> ExposedSplit:
    """A split from whole microseconds."""
    return ExposedSplit(wait_ns=wait * 1_000, transfer_ns=transfer * 1_000, unsplit_ns=unsplit * 1_000)


def wait(rank: int, *, compute: int = 0, communication: int = 0, copy: int = 0, **causes: int) -> Wait:
    """A wait from whole microseconds; `causes` are those of the idle time."""
    idle = {GapCause(cause): us * 1_000 for cause, us in causes.items()}
    return Wait(
        rank=rank,
        ns=(compute + communication + copy) * 1_000 + sum(idle.values()),
        compute_ns=compute * 1_000,
        communication_ns=communication * 1_000,
        copy_ns=copy * 1_000,
        idle_ns=sum(idle.values()),
        idle_by_cause=idle,
        longest_start_ns=EPOCH_NS + 2 * MS,
        longest_end_ns=EPOCH_NS + 2 * MS + 300_000,
        longest_step=60,
    )


def collective(
    name: str, stage: str | None, group: str | None, exposed: ExposedSplit, *, hidden_us: int = 400
) -> CollectiveTime:
    return CollectiveTime(
        name=name,
        stage=stage,
        group=group,
        dtype="BFloat16",
        in_elements=1_000,
        out_elements=2_000,
        count=4,
        time_ns=exposed.exposed_ns + hidden_us * 1_000,
        hidden_ns=hidden_us * 1_000,
        split=exposed,
        longest_start_ns=EPOCH_NS + 2 * MS,
        longest_end_ns=EPOCH_NS + 3 * MS,
        longest_step=60,
    )


def exposure(
    rank: int,
    steps: tuple[ExposedSplit, ...],
    waits: tuple[Wait, ...],
    collectives: tuple[CollectiveTime, ...],
    *,
    contention_us: int | None = None,
) -> RankExposure:
    """Nothing is exposed outside the steps, and each stage has one kind of collective."""
    return RankExposure(
        rank=rank,
        split=split(*(sum(getattr(one, f"{part}_ns") for one in steps) // 1_000 for part in PARTS)),
        steps=steps,
        waits=waits,
        capture_waits=waits,
        stages={(one.stage, one.group): one.split for one in collectives if one.stage and one.group},
        collectives=collectives,
        contention_ns=None if contention_us is None else contention_us * 1_000,
        capture_contention_ns=None if contention_us is None else contention_us * 1_000,
        contention_basis=None if contention_us is None else "10 of 12 transfers have an equal one",
    )


PARTS = ("wait", "transfer", "unsplit")


def gap_group(cause: GapCause, total_us: int, *, name: str | None = "aten::item", longest_us: int = 200) -> GapGroup:
    """Ten gaps; the longest begins 2 ms into step 60."""
    return GapGroup(
        cause=cause,
        range="speedprof.stage/update/adam.scalars",
        op=name,
        call="cudaStreamSynchronize",
        num_gaps=10,
        total_ns=total_us * 1_000,
        longest_ns=longest_us * 1_000,
        longest_start_ns=EPOCH_NS + 3 * MS,
        longest_step=60,
    )


def kernel(name: str, total_us: int, *, stage: str | None = None, group: str | None = None) -> KernelTime:
    return KernelTime(
        name=name,
        kind="compute",
        stage=stage,
        group=group,
        count=20,
        total_ns=total_us * 1_000,
        alone_ns=total_us * 500,
    )


LAUNCHES = LaunchOverhead(
    num_launches=400,
    num_kernels=380,
    launch_ns=3 * MS,
    median_launch_ns=6_500,
    median_lead_ns=1_250_000,
    num_late=8,
    num_short=19,
)


def two_full_ranks(name: str = "muon.attn", kernel_name: str = KERNEL) -> tuple[RankAnalysis, RankAnalysis]:
    """`name` is that of the parameter group and of the operator in gaps."""
    gather = collective("all_gather", "all_gather", name, split(100, 400, 100))
    scatter = collective("reduce_scatter", "reduce_scatter", name, split(200, 1_000))
    reduce = collective("all_reduce", None, None, split(1_500, 1_000, 100), hidden_us=0)
    first = exposure(
        0, (split(200, 750, 50), split(100, 650, 50)), (wait(1, compute=300),), (scatter, gather), contention_us=200
    )
    second = exposure(
        1,
        (split(1_200, 750, 50), split(800, 650, 50)),
        (wait(0, compute=500, late_launch=1_200, sync=300),),
        (reduce, replace(gather, split=split(500, 400))),
    )
    groups = (gap_group(GapCause.LATE_LAUNCH, 1_000), gap_group(GapCause.SYNC, 600, name=name, longest_us=300))
    kernels = (kernel("gemm", 6_000), kernel(kernel_name, 1_000, stage="update", group=name))
    without = partition(16_000, 1_800, 200, 3_000)
    certainty = tuple(
        PartitionWithout(kind=kind, num_events=number, partition=without)
        for kind, number in (("unlinked", 5), ("cut", 5), ("crossing", 0), ("zero_length", 2), ("any", 7))
    )
    stages = (
        stage("reduce_scatter", name, 1_200),
        stage("newton_schulz", name, 0),
        stage("all_gather", name, 600),
    )
    return (
        rank_analysis(
            0,
            [partition(8_000, 1_000, 100, 900), partition(8_200, 800, 100, 900)],
            stages,
            idle=idle_gaps({GapCause.LATE_LAUNCH: 1_000_000, GapCause.SYNC: 800_000}, groups),
            launches=LAUNCHES,
            kernels=kernels,
            certainty=certainty,
            exposure=first,
        ),
        rank_analysis(
            1,
            [partition(7_000, 2_000, 0, 1_000), partition(7_500, 1_500, 0, 1_000)],
            (stage("all_gather", name, 900),),
            idle=idle_gaps({GapCause.LATE_LAUNCH: 2_000_000}, groups[:1]),
            launches=LAUNCHES,
            kernels=kernels[:1],
            exposure=second,
        ),
    )


def match(*, refused_because: str | None = None, offset_ns: int = 0) -> CollectiveMatch:
    columns = ["collective", "rank", "row", "start_ns", "end_ns", "last_start_ns", "last_rank"]
    schema = dict.fromkeys(columns, pl.Int64) | {"is_complete": pl.Boolean}
    return CollectiveMatch(
        instances=pl.DataFrame(schema=schema),
        num_matched=0 if refused_because else 12,
        num_matchable=12,
        certainty=None if refused_because else 0.75,
        refused_because=refused_because,
        clocks=(
            RankClock(rank=0, offset_ns=0, residual_ns=0, num_collectives=12),
            RankClock(rank=1, offset_ns=offset_ns, residual_ns=5_000, num_collectives=12),
        ),
    )


BANDWIDTHS = (
    CollectiveBandwidth(
        name="all_gather",
        dtype="BFloat16",
        num_bytes=4_000_000,
        group_size=2,
        count=10,
        median_ns=100_000,
        fastest_ns=80_000,
        bus_factor=0.5,
    ),
    CollectiveBandwidth(
        name="barrier",
        dtype="Int",
        num_bytes=4,
        group_size=2,
        count=1,
        median_ns=20_000,
        fastest_ns=20_000,
        bus_factor=None,
    ),
)


def straggler(
    excess_ns: Mapping[str, int] | None = None, *, kernel_name: str = KERNEL, cause: str = "late_launch"
) -> Straggler:
    return Straggler(
        rank=0,
        cost_ns=1_000_000,
        cost_interval_ns=None,
        gain_ns=1_000_000,
        as_late=(),
        share=0.87,
        p_value=0.001,
        num_units=8,
        unit="block",
        cause=StragglerCause(cause),
        excess_ns=excess_ns or {"compute": 600_000, "late_launch": 700_000, "copy": -50_000, "sync": 0},
        slow_kernels=(SlowKernel(name=kernel_name, own_ns=200_000, others_ns=120_000),),
    )


def full_analysis(name: str = "muon.attn", kernel_name: str = KERNEL, *, offset_ns: int = 0) -> Analysis:
    return analysis(
        two_full_ranks(name, kernel_name),
        run_log(),
        notes=("2 files were skipped: they are not Kineto traces",),
        match=match(offset_ns=offset_ns),
        bandwidths=BANDWIDTHS,
        stragglers=(straggler(kernel_name=kernel_name),),
    )


def full_report(measured: Analysis | None = None) -> Report:
    measured = measured or full_analysis()
    return Report(
        analysis=measured,
        findings=find_all(measured),
        manifest=manifest(),
        step_log=run_log(),
        sources=("20261121-221502_abc1234_tiny_2xh200",),
    )


def hostile_report(name: str) -> Report:
    """A report with `name` wherever a name from outside can stand."""
    run = manifest()
    measured = replace(full_analysis(name, name, offset_ns=7_000), notes=(name,))
    named = replace(BANDWIDTHS[0], name=name, dtype=name)
    bandwidths = (replace(named, num_bytes=4_000), named)
    first, second = measured.ranks
    assert first.exposure is not None
    renamed = tuple(replace(one, name=name) for one in first.exposure.collectives)
    groups = tuple(replace(one, range=name, op=name, call=name) for one in first.idle.groups)
    first = replace(
        first, exposure=replace(first.exposure, collectives=renamed), idle=replace(first.idle, groups=groups)
    )
    measured = replace(measured, ranks=(first, second), bandwidths=bandwidths, match=match(refused_because=name))
    records = [replace(record, error=name, notes=[name], device=name) for record in run.ranks]
    environment = {**run.environment, "cpu": name, "platform": name, "packages": {name: name}}
    hostile = replace(
        run,
        run_id=name,
        status=RunStatus.FAILED,
        failure=name,
        command=[name],
        declared={"preset": name},
        ranks=records,
        environment={**environment, "git": {"commit": name, "dirty": True}, "gpus": [{"name": name}]},
    )
    return Report(analysis=measured, findings=find_all(measured), manifest=hostile, step_log=run_log(), sources=(name,))
