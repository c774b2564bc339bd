"""What the JSON document says of one rank, part by part, each of bounded size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import polars as pl

from speedprof.analyses.analysis import RankAnalysis
from speedprof.analyses.breakdown import Segment
from speedprof.analyses.exposure import ExposedSplit, RankExposure, Wait
from speedprof.analyses.stages import StageTime
from speedprof.report.means import capture_split, not_split, stage_split
from speedprof.report.sections import Section

MOST_STEPS = 2_000
MOST_STAGES = 500
MOST_WAITS = 32
MOST_COLLECTIVES = 100
MOST_GAP_GROUPS = 50
MOST_KERNELS = 50
LONGEST_NAME = 4_000


def rank_document(rank: RankAnalysis, sections: frozenset[Section]) -> dict[str, Any]:
    """The keys of `sections`, and those that every document has. Of a damaged trace nobody knows what is missing, so
    its sums are null."""
    exposure = rank.exposure
    found: dict[str, Any] = {
        "rank": rank.rank,
        "is_damaged": rank.is_damaged,
        "timeline": rank.breakdown.timeline.value,
        "window_ns": rank.breakdown.window_ns,
        "num_steps": len(rank.breakdown.steps),
    }
    if Section.PARTITION in sections:
        found |= {"partition": asdict(rank.breakdown.partition)}
    if sections & {Section.PARTITION, Section.OVERLAP}:
        found |= {
            "communication_ns": rank.breakdown.communication_ns,
            "overlapped_communication_ns": rank.breakdown.overlapped_communication_ns,
            "steps": _steps(rank, sections),
            "before_first_step": _before_first_step(rank, sections),
        }
    if Section.OVERLAP in sections:
        found |= {
            "exposed_split": asdict(capture_split(rank)),
            "contention_estimate_ns": exposure.capture_contention_ns if exposure else None,
            "contention_basis": exposure.contention_basis if exposure else None,
            "collectives": _collectives(exposure),
            "stages": [_stage(rank, stage) for stage in _costliest_stages(rank.stages)],
        }
    if sections & {Section.OVERLAP, Section.STRAGGLERS}:
        found |= {
            "waited_for": _waits(exposure.capture_waits if exposure else ()),
            "waited_for_in_steps": _waits(exposure.waits if exposure else ()),
        }
    found |= _device_parts(rank, sections)
    return _without_sums(found) if rank.is_damaged else found


# What a damaged trace cannot tell. Stages, copies and steps of one are of what was read.
_SUMS = frozenset(
    {
        *("window_ns", "partition", "communication_ns", "overlapped_communication_ns", "exposed_split"),
        *("contention_estimate_ns", "contention_basis", "collectives", "waited_for", "waited_for_in_steps"),
        *("idle", "launches", "num_kernels", "kernels"),
    }
)


def _without_sums(found: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: None if name in _SUMS else value for name, value in found.items()}
    if "error_budget" in found:
        kept["error_budget"] = {**found["error_budget"], "without": None}
    return kept


def _device_parts(rank: RankAnalysis, sections: frozenset[Section]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if Section.PARTITION in sections:
        found["copies"] = [asdict(copy) for copy in rank.copies]
    if Section.IDLE in sections:
        found["idle"] = {
            "by_cause": {cause.value: ns for cause, ns in rank.idle.by_cause.items()},
            "capture_by_cause": _idle_of_capture(rank),
            "num_groups": len(rank.idle.groups),
            "groups": [with_short_names(asdict(group)) for group in rank.idle.groups[:MOST_GAP_GROUPS]],
        }
    if Section.LAUNCHES in sections:
        found["launches"] = asdict(rank.launches)
    if Section.KERNELS in sections:
        found["num_kernels"] = len(rank.kernels)
        found["kernels"] = [with_short_names(asdict(kernel)) for kernel in rank.kernels[:MOST_KERNELS]]
    if Section.CERTAINTY in sections:
        without = {
            one.kind: {"num_events": one.num_events, "partition": asdict(one.partition)} for one in rank.certainty
        }
        found["error_budget"] = asdict(rank.error_budget) | {"without": without}
    return found


def _idle_of_capture(rank: RankAnalysis) -> dict[str, int]:
    """Idle ns by cause over the whole capture."""
    length = pl.col("end_ns") - pl.col("start_ns")
    totals = rank.idle.table.group_by(pl.col("cause").cast(pl.String)).agg(length.sum()).sort("end_ns", descending=True)
    return dict(totals.iter_rows())


def _steps(rank: RankAnalysis, sections: frozenset[Section]) -> list[dict[str, Any]]:
    steps = rank.breakdown.steps[:MOST_STEPS]
    splits: Sequence[ExposedSplit | None] = [None] * len(steps)
    if rank.exposure and not rank.is_damaged:
        splits = rank.exposure.steps[:MOST_STEPS]
    return [_step(step, split, sections) for step, split in zip(steps, splits, strict=True)]


def _before_first_step(rank: RankAnalysis, sections: frozenset[Section]) -> dict[str, Any] | None:
    """The part of the capture that precedes the first window, so that parts and whole can be held together."""
    first = next(iter(rank.breakdown.segments), None)
    return None if first is None or first.step is not None else _step(first, None, sections)


def _step(step: Segment, split: ExposedSplit | None, sections: frozenset[Section]) -> dict[str, Any]:
    found: dict[str, Any] = {"step": step.step, "kind": step.kind, "start_ns": step.start_ns, "end_ns": step.end_ns}
    if Section.PARTITION in sections:
        found["partition"] = asdict(step.partition)
    if Section.OVERLAP in sections:
        found["exposed_split"] = asdict(split or not_split(step.partition.exposed_communication_ns))
    return found


def _stage(rank: RankAnalysis, stage: StageTime) -> dict[str, Any]:
    split = stage_split(rank, stage.stage, stage.group, stage.exposed_ns)
    return with_short_names(asdict(stage)) | {"exposed_split": asdict(split)}


def _costliest_stages(stages: Sequence[StageTime]) -> list[StageTime]:
    """Those that cost most, in the order in which a rank has them."""
    costs = [(stage.exposed_ns, stage.device_ns, stage.host_ns) for stage in stages]
    order = sorted(range(len(stages)), key=costs.__getitem__, reverse=True)
    return [stages[position] for position in sorted(order[:MOST_STAGES])]


def _waits(waits: Sequence[Wait]) -> list[dict[str, Any]]:
    return [
        {
            "rank": wait.rank,
            "ns": wait.ns,
            "compute_ns": wait.compute_ns,
            "communication_ns": wait.communication_ns,
            "copy_ns": wait.copy_ns,
            "idle_ns": wait.idle_ns,
            "outside_ns": wait.outside_ns,
            "idle_by_cause": {cause.value: ns for cause, ns in wait.idle_by_cause.items()},
        }
        for wait in waits[:MOST_WAITS]
    ]


def _collectives(exposure: RankExposure | None) -> list[dict[str, Any]]:
    found = [with_short_names(asdict(one)) for one in exposure.collectives[:MOST_COLLECTIVES]] if exposure else []
    for one in found:
        one["exposed_split"] = one.pop("split")
    return found


def with_short_names(found: Mapping[str, Any]) -> dict[str, Any]:
    """The same with no text longer than `LONGEST_NAME`: names come from traces, and may be of any length."""
    return {name: _short(value) if isinstance(value, str) else value for name, value in found.items()}


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else f"{text[: LONGEST_NAME - 1]}…"
