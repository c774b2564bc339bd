"""`python -m trainer stage`: one stage of one parameter group, alone, again and again, with the optimizer's own code.

A repetition of a collective ends when its transfer has: reduce_scatter and all_gather are timed with their waits.
`*_wait` alone is what is left of the transfer right after its launch. Ranks meet before every repetition, so
that no rank's time holds the lateness of another.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from speedprof.annotate import Stage
from trainer.adam import ADAM_STAGES, DistAdam
from trainer.config import TrainConfig
from trainer.errors import WRONG_USAGE, TrainerError
from trainer.loop import build_model, build_optimizers
from trainer.muon import MUON_STAGES, Muon
from trainer.position import collective
from trainer.ranks import Ranks
from trainer.sharding import GroupPlan, adam_plan, muon_plan

Step = Callable[[Stage], None]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)

_WAIT_OF = {
    Stage.REDUCE_SCATTER: Stage.REDUCE_SCATTER_WAIT,
    Stage.ALL_GATHER: Stage.ALL_GATHER_WAIT,
}
_LAUNCH_OF = {wait: launch for launch, wait in _WAIT_OF.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """The stages of one repetition: those before the timed ones, the timed ones, and those that end what was begun."""

    before: tuple[Stage, ...] = ()
    timed: tuple[Stage, ...]

    @classmethod
    def of(cls, stage: Stage, stages: Sequence[Stage]) -> Repetition:
        """stages: what the group passes through. An update of Muon uses up the direction that newton_schulz gives."""
        if stage in _WAIT_OF:
            return cls(timed=(stage, _WAIT_OF[stage]))
        if stage in _LAUNCH_OF:
            return cls(before=(_LAUNCH_OF[stage],), timed=(stage,))
        if stage == Stage.UPDATE and Stage.NEWTON_SCHULZ in stages:
            return cls(before=(Stage.NEWTON_SCHULZ,), timed=(stage,))
        return cls(timed=(stage,))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageTimes:
    """Of one stage and group. times_ns: [ranks][repetitions]. bytes: what the group's padded buffer holds;
    bus_bytes: what crosses a rank's links in one repetition, (n - 1) / n of that for n ranks; 0 for the others."""

    stage: str
    group: str
    world_size: int
    device: str
    bytes: int
    bus_bytes: int
    times_ns: list[list[int]]

    @property
    def slowest_ns(self) -> list[int]:
        """Of each repetition, the slowest rank's: when the stage was over everywhere."""
        return [max(times) for times in zip(*self.times_ns, strict=True)]

    @property
    def median_ns(self) -> int:
        return round(float(np.median(self.slowest_ns)))

    @property
    def bus_bytes_per_s(self) -> float | None:
        """Bus bandwidth as nccl-tests have it; None where nothing crosses the bus."""
        return self.bus_bytes / (self.median_ns / 1e9) if self.bus_bytes and self.median_ns else None

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "median_ns": self.median_ns,
            "quantiles_ns": {f"{share:g}": round(float(np.quantile(self.slowest_ns, share))) for share in QUANTILES},
            "median_ns_per_rank": [round(float(np.median(times))) for times in self.times_ns],
            "bus_bytes_per_s": self.bus_bytes_per_s,
            "slowest_ns": self.slowest_ns,
        }

    def describe(self) -> str:
        bandwidth = self.bus_bytes_per_s
        bus = (
            "nothing on the bus"
            if bandwidth is None
            else f"{self.bus_bytes:,} bytes on the bus, {bandwidth / 1e9:.2f} GB/s"
        )
        quantiles = "  ".join(f"{share}: {ns:,}" for share, ns in self.to_json()["quantiles_ns"].items())
        return (
            f"{self.stage} of {self.group}, {self.world_size} ranks, {self.device}, {len(self.slowest_ns)} times\n"
            f"median {self.median_ns:,} ns of the slowest rank; {self.bytes:,} bytes, {bus}\n"
            f"quantiles in ns  {quantiles}"
        )


def run(config: TrainConfig, ranks: Ranks, arguments: argparse.Namespace) -> None:
    """Time it and print it, on rank 0. Raises TrainerError for an unknown stage or group."""
    model, _ = build_model(config, ranks)
    parameters = {"muon": model.muon_parameters(), "adam": model.adam_parameters()}
    plans = (
        *muon_plan(parameters["muon"], ranks.world_size),  # type: ignore[arg-type]  # labels are set on them
        *adam_plan(parameters["adam"], ranks.world_size),  # type: ignore[arg-type]
    )
    plan = find_group(arguments.group, plans)
    stage = find_stage(arguments.stage, plan)
    muon, adam = build_optimizers(config, model)
    optimizer: Muon | DistAdam = muon if plan.optimizer == "muon" else adam
    fill_gradients([parameters[plan.optimizer][index] for index in plan.indices], ranks)

    def call(stage: Stage) -> None:
        optimizer.run_stage(stage, plan.name)

    times = time_stage(call, Repetition.of(stage, _stages(plan)), ranks, arguments.repeat, arguments.warmup)
    everyone: list[Any] = [None] * ranks.world_size
    with collective("gather of the times"):
        dist.all_gather_object(everyone, times)
    if ranks.is_first:
        is_collective = stage in _WAIT_OF or stage in _LAUNCH_OF
        result = StageTimes(
            stage=stage,
            group=plan.name,
            world_size=ranks.world_size,
            device=_device_name(ranks),
            bytes=plan.num_bytes,
            bus_bytes=plan.num_bytes * (ranks.world_size - 1) // ranks.world_size if is_collective else 0,
            times_ns=everyone,
        )
        print(json.dumps(result.to_json()) if arguments.json else result.describe(), flush=True)


def find_group(name: str, plans: Sequence[GroupPlan]) -> GroupPlan:
    """The group of that name, or of that place in its optimizer's plan: muon.1 is Muon's first. Raises TrainerError."""
    by_name = {plan.name: plan for plan in plans}
    by_place: dict[str, GroupPlan] = {}
    for optimizer in dict.fromkeys(plan.optimizer for plan in plans):
        own = [plan for plan in plans if plan.optimizer == optimizer]
        by_place |= {f"{optimizer}.{place}": plan for place, plan in enumerate(own, 1)}
    found = by_name.get(name) or by_place.get(name)
    if found is None:
        choices = ", ".join(f"{plan.name} ({place})" for place, plan in by_place.items())
        raise TrainerError(f"--group {name}: no such group; use one of {choices}", WRONG_USAGE)
    return found


def find_stage(name: str, plan: GroupPlan) -> Stage:
    """The stage of that name, if the group passes through it. Raises TrainerError."""
    stages = _stages(plan)
    if name not in stages:
        raise TrainerError(
            f"--stage {name}: {plan.name} has no such stage; use one of {', '.join(stages)}", WRONG_USAGE
        )
    return Stage(name)


def _stages(plan: GroupPlan) -> tuple[Stage, ...]:
    return MUON_STAGES if plan.optimizer == "muon" else ADAM_STAGES


def fill_gradients(parameters: Sequence[nn.Parameter], ranks: Ranks) -> None:
    """Normal noise, another on every rank."""
    random = torch.Generator(ranks.device).manual_seed(ranks.rank)
    for parameter in parameters:
        parameter.grad = torch.empty_like(parameter).normal_(generator=random)


def time_stage(call: Step, repetition: Repetition, ranks: Ranks, num_repetitions: int, num_warmup: int) -> list[int]:
    """Nanoseconds of each repetition on this rank: CUDA events on a GPU, else the host's clock."""
    # Every stage needs what the stages before it leave: gradients in the shard, then a direction.
    for stage in (Stage.REDUCE_SCATTER, Stage.REDUCE_SCATTER_WAIT):
        call(stage)
    times = []
    for _ in range(num_warmup + num_repetitions):
        for stage in repetition.before:
            call(stage)
        _meet(ranks)
        times.append(_time(call, repetition.timed, ranks))
    return times[num_warmup:]


def _meet(ranks: Ranks) -> None:
    """Wait for all ranks, and for the work that each has queued."""
    with collective("barrier before a repetition"):
        if ranks.world_size > 1:
            dist.barrier()
    if ranks.device.type == "cuda":
        torch.cuda.synchronize()


def _time(call: Step, stages: Sequence[Stage], ranks: Ranks) -> int:
    if ranks.device.type != "cuda":
        began_ns = time.perf_counter_ns()
        for stage in stages:
            call(stage)
        return time.perf_counter_ns() - began_ns
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    for stage in stages:
        call(stage)
    ended.record()
    ended.synchronize()
    elapsed_ms: float = began.elapsed_time(ended)
    return round(elapsed_ms * 1e6)


def _device_name(ranks: Ranks) -> str:
    return torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu"
