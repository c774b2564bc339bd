"""What the ranks of the optimizer tests run: a few annotated steps, with everything worth knowing recorded."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from speedprof import annotate
from trainer.adam import DistAdam
from trainer.muon import Muon

MUON_SHAPES = {
    "smear_gate": [(1, 12)],
    "attn_gate": [(15, 12)] * 10,  # tall, as no gate of the record is: its shape scale is not 1
    "attn": [(8, 32)] * 10,
    "mlp": [(8, 32)] * 22,
}
"""The record's counts: 1, 10, 10, 22. None divides by 3 or by 8."""

ADAM_SHAPES = {
    "embed": (48, 6),  # divides by 1, 2, 3 and 8
    "value_embed_0": (23, 6),  # divides by none
    "value_embed_1": (5, 6),  # leaves three of 8 ranks without a row
    "lm_head": (48, 6),
    "scalars": (62,),  # the record's count at 1 and 2 ranks
}

NUM_STEPS = 4
ADAM_EVERY = 2
MUON_RATE, ADAM_RATE = 0.03, 0.008


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What one rank saw: values after the steps, and (event, name) pairs of the ranges and of the listener.

    The range events hold ("mark", "step 1") and ("mark", "backward ended") as well.
    """

    muon: list[Tensor]
    adam: list[Tensor]
    ranges: list[tuple[str, str]]
    heard: list[tuple[str, str]]
    threads_were_balanced: bool


def make_parameters(
    dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Muon's and Adam's parameters, the same on every rank; small values, as a model's are."""
    random = torch.Generator().manual_seed(1)

    def make(label: str, shape: Sequence[int]) -> nn.Parameter:
        parameter = nn.Parameter((0.05 * torch.randn(*shape, generator=random)).to(device, dtype))
        parameter.label = label
        return parameter

    muon = [make(label, shape) for label, shapes in MUON_SHAPES.items() for shape in shapes]
    for parameter in muon[-22::2]:  # the rate of MLP-up, its neighbours' of MLP-down
        parameter.learning_rate_scale = 2.0
    return muon, [make(label, shape) for label, shape in ADAM_SHAPES.items()]


def gradients_of(step: int, rank: int, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients of one rank in one step."""
    random = torch.Generator().manual_seed(1000 * step + rank)
    return [torch.randn(parameter.shape, generator=random).to(parameter) for parameter in parameters]


PLAIN_MUON = {"method": "newton_schulz", "variant": "plain", "weight_decay": 0.0}
"""Muon as the record of 149.6 s has it."""


def train(
    *,
    arm: bool,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    compiled: bool = False,
    muon_options: Mapping[str, Any] | None = None,
) -> Recorded:
    """NUM_STEPS steps on this rank, Adam in every second one and on the gradients of both, as the record does."""
    muon_parameters, adam_parameters = make_parameters(dtype, device)
    muon = Muon(muon_parameters, learning_rate=MUON_RATE, compile=compiled, **(muon_options or {}))
    adam = DistAdam(adam_parameters, learning_rate=ADAM_RATE, compile=compiled)
    parameters = muon_parameters + adam_parameters
    with recorded_ranges() as ranges, recorded_listener() as heard:
        for step in range(1, NUM_STEPS + 1):
            is_adam_step = step % ADAM_EVERY == 0
            ranges.append(("mark", f"step {step}"))
            adam.reduce_in_backward(arm and is_adam_step)
            _backward(parameters, gradients_of(step, dist.get_rank(), parameters))
            ranges.append(("mark", "backward ended"))
            if is_adam_step:
                adam.step()
                adam.zero_grad()
            muon.step()
            muon.zero_grad()
    return Recorded(
        muon=[parameter.detach().cpu() for parameter in muon_parameters],
        adam=[parameter.detach().cpu() for parameter in adam_parameters],
        ranges=ranges,
        heard=heard.events,
        threads_were_balanced=not any(ranges.open_names.values()),
    )


def train_thrice() -> tuple[Recorded, Recorded, Recorded]:
    """Unarmed, armed, and armed again; one start of the ranks for all three."""
    return train(arm=False), train(arm=True), train(arm=True)


def train_plainly() -> Recorded:
    """Once, with plain Muon."""
    return train(arm=False, muon_options=PLAIN_MUON)


def _backward(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """A real backward whose gradients are `gradients`, so that the hooks run."""
    sum((parameter * gradient).sum() for parameter, gradient in zip(parameters, gradients, strict=True)).backward()


class _RangeRecorder(list[tuple[str, str]]):
    """Stands in for nvtx: (push, name) and (pop, name), where a pop ends the last push of its own thread."""

    def __init__(self) -> None:
        super().__init__()
        self.open_names: dict[int, list[str]] = {}

    def push(self, name: str) -> None:
        self.open_names.setdefault(threading.get_ident(), []).append(name)
        self.append(("push", name))

    def pop(self) -> None:
        self.append(("pop", self.open_names[threading.get_ident()].pop()))


@contextmanager
def recorded_ranges() -> Iterator[_RangeRecorder]:
    recorder, before = _RangeRecorder(), annotate._nvtx
    annotate._nvtx = (recorder.push, recorder.pop)
    try:
        yield recorder
    finally:
        annotate._nvtx = before


class _StageListener:
    """Hears the stages alone."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []

    def stage_began(self, stage: str, group: str) -> None:
        self.events.append(("began", f"{stage}/{group}"))

    def stage_ended(self, stage: str, group: str) -> None:
        self.events.append(("ended", f"{stage}/{group}"))


@contextmanager
def recorded_listener() -> Iterator[_StageListener]:
    listener = _StageListener()
    annotate.listen(listener)
    try:
        yield listener
    finally:
        annotate.listen(None)
