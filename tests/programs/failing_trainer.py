"""The trainer with something that goes wrong on purpose: `failing_trainer.py HOW RANK STEP [ARGS of the trainer...]`.

On RANK at STEP: exit (the process is gone at once), sleep (it hangs before its collectives), raise (an error of its
own), gradient:<group> (that group's gradient holds a NaN), loss (the loss is a NaN).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from trainer.__main__ import main
from trainer.loop import Training, backward_groups


def _spoil(how: str, training: Training) -> None:
    if how == "exit":
        os._exit(3)
    if how == "sleep":
        time.sleep(600)
    if how == "raise":
        raise LookupError("lost on purpose")
    if how.startswith("gradient:"):
        groups = backward_groups(training.muon, training.adam, training.model)
        parameter = groups[how.partition(":")[2]][0]
        parameter.register_hook(lambda gradient: torch.full_like(gradient, torch.nan))
    if how == "loss":
        before = training.loss
        training.loss = lambda *batch: before(*batch) * torch.nan


def spoil(how: str, rank: int, at_step: int) -> None:
    """Make every Training of this process go wrong."""
    train_step: Callable[[Training, int], Tensor] = Training.train_step

    def spoilt(training: Training, step: int) -> Tensor:
        if training.ranks.rank == rank and step == at_step:
            _spoil(how, training)
        return train_step(training, step)

    Training.train_step = spoilt  # type: ignore[method-assign]


if __name__ == "__main__":
    spoil(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    sys.exit(main(sys.argv[4:]))
