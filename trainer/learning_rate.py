"""Both optimizers' learning rates, step by step, through torch's LambdaLR."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from trainer import schedule
from trainer.config import TrainConfig


class _Rates(torch.optim.Optimizer):
    """What LambdaLR needs to see: one group with a rate for each of our optimizers, and nothing to update."""

    def __init__(self, config: TrainConfig, device: torch.device) -> None:
        rates = {"muon": config.muon_learning_rate, "adam": config.adam_learning_rate}
        nothing = [nn.Parameter(torch.empty(0, device=device)) for _ in rates]
        groups = [
            {"params": [parameter], "lr": rate, "initial_lr": rate, "name": name}
            for parameter, (name, rate) in zip(nothing, rates.items(), strict=True)
        ]
        super().__init__(groups, defaults={})

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates nothing; LambdaLR wants it called before its own step."""


class LearningRates:
    """The rates of the step that it stands at, from `first_step` on; they are functions of the step alone, so a
    resumed run needs no state of them."""

    def __init__(self, config: TrainConfig, first_step: int = 0) -> None:
        self._config = config
        self._rates = _Rates(config, torch.device("cpu"))
        self._scheduler = LambdaLR(
            self._rates, functools.partial(schedule.learning_rate_factor, config), last_epoch=first_step - 1
        )

    def at(self, step: int) -> tuple[float, float]:
        """Muon's and Adam's rate at `step`, which never goes back. Raises ValueError where it would."""
        if step < self._scheduler.last_epoch:
            raise ValueError(f"step {step} lies before step {self._scheduler.last_epoch}")
        while self._scheduler.last_epoch < step:
            self._rates.step()
            self._scheduler.step()
        groups: list[dict[str, Any]] = self._rates.param_groups
        return groups[0]["lr"], groups[1]["lr"]

    def describe(self) -> str:
        """The whole schedule in one line, for the log."""
        config = self._config
        if config.learning_rate_schedule == "record":
            return f"learning rate: record, cooldown over the last {config.cooldown_ratio:.0%} of the schedule"
        warmup_steps = schedule.num_warmup_steps(config)
        final = config.muon_learning_rate * schedule.WARMUP_LINEAR_FINAL_RATIO
        return (
            f"learning rate: linear warm-up over {warmup_steps} steps to {config.muon_learning_rate:g} (Adam "
            f"{config.adam_learning_rate:g}), linear decay over {max(config.num_steps - warmup_steps, 0)} steps to "
            f"{final:g} (Adam {config.adam_learning_rate * schedule.WARMUP_LINEAR_FINAL_RATIO:g})"
        )
