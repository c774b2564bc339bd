"""This process among the others: its rank, its device, and the process group while the program runs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from trainer import flight_recorder
from trainer.errors import ENVIRONMENT, WRONG_USAGE, TrainerError

# Compiling may keep one rank minutes behind the others; trainer/watch.py ends a run that hangs long before this.
_TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """rank is global, local_rank counts on this host."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def default_device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def read_ranks() -> Ranks:
    """The ranks that torch.distributed.run put into the environment, or a single one.

    Raises TrainerError where this host has fewer GPUs than ranks, or the environment is not numbers.
    """
    try:
        rank, local_rank, world_size = (
            int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1))
        )
    except ValueError as error:
        raise TrainerError(f"RANK, LOCAL_RANK and WORLD_SIZE: {error}; unset them to run alone", WRONG_USAGE) from error
    if default_device_type() == "cpu":
        return Ranks(rank=rank, local_rank=local_rank, world_size=world_size, device=torch.device("cpu"))
    if local_rank >= torch.cuda.device_count():
        raise TrainerError(
            f"local rank {local_rank} has no GPU, {torch.cuda.device_count()} are here: start fewer ranks", ENVIRONMENT
        )
    return Ranks(rank=rank, local_rank=local_rank, world_size=world_size, device=torch.device("cuda", local_rank))


@contextmanager
def process_group(ranks: Ranks) -> Iterator[None]:
    """Join the other ranks (NCCL on GPUs, gloo on CPUs), and part from them at the end or when the program stops.

    After an error the group is left as it is: waiting for ranks that may hang would hide the error.
    """
    _set_up_device(ranks)
    _join(ranks)
    try:
        yield
    except SystemExit:  # how a capture stops the program, on every rank at the same step
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _set_up_device(ranks: Ranks) -> None:
    if ranks.device.type == "cuda":
        torch.cuda.set_device(ranks.device)
        return
    # One thread a rank: ranks share the cores, and a timeline of one thread can be split into exact parts.
    torch.set_num_threads(1)


def _join(ranks: Ranks) -> None:
    backend = "nccl" if ranks.device.type == "cuda" else "gloo"
    device_id = ranks.device if backend == "nccl" else None
    flight_recorder.turn_on()
    if "MASTER_ADDR" in os.environ:
        dist.init_process_group(backend, timeout=_TIMEOUT, device_id=device_id)
        return
    if ranks.world_size > 1:
        raise TrainerError("WORLD_SIZE is set without MASTER_ADDR: start ranks by torch.distributed.run", WRONG_USAGE)
    dist.init_process_group(
        backend,
        store=dist.HashStore(),  # type: ignore[attr-defined]  # not in its __all__
        rank=0,
        world_size=1,
        timeout=_TIMEOUT,
        device_id=device_id,
    )
