"""What the ranks of the checkpoint tests run: a short training, perhaps from a checkpoint on, perhaps with saves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from trainer.checkpoint import Saver, read_checkpoint, restore
from trainer.checkpoint_file import checkpoint_path
from trainer.config import TrainConfig, preset, with_settings
from trainer.loop import Training, TrainingData
from trainer.ranks import Ranks
from trainer.shards import write_shard
from trainer.vocabulary import END_OF_TEXT

NUM_STEPS = 10
HALF = 5
"""Odd, so that gradients of Adam wait for its turn."""

SETTINGS = [
    "dim=16",
    "vocab_size=50257",
    "micro_batch_tokens=48",
    "max_document_tokens=48",
    "compile=off",
    "micro_batches_per_step=6",
    "log_interval=20",
    # The window grows twice in each half.
    "num_scheduled_steps=9",
    "num_extension_steps=2",
    "window_blocks=1,2,3,4,5",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """Where a run came to, on one rank."""

    parameters: dict[str, torch.Tensor]
    window_blocks: int
    rotary_scale: float
    random: torch.Tensor


def make_config() -> TrainConfig:
    return with_settings(preset("tiny_cpu"), SETTINGS)


def make_data(folder: Path) -> TrainingData:
    """Documents of random lengths and words, in two shards so small that the steps end one and start the other."""
    random = np.random.default_rng(3)
    for name in ("train_0.bin", "train_1.bin"):
        documents = [[END_OF_TEXT, *random.integers(10, 60, random.integers(4, 60))] for _ in range(40)]
        write_shard(np.array([token for document in documents for token in document], np.uint16), folder / name)
    return TrainingData(train=[folder / "train_0.bin", folder / "train_1.bin"], validation=[])


def train(data: TrainingData, num_steps: int, resume: Path | None = None, save: Path | None = None) -> Ended:
    """Train up to `num_steps`, from the checkpoint `resume` or from the start; save after the last into `save`."""
    config = make_config()
    training = Training(config, data, _ranks())
    if resume is not None:
        torch.manual_seed(123)
        restore(training, read_checkpoint(resume, config, data.train))
    saver = None if save is None else Saver(training, save, num_steps, num_steps)
    training.run(num_steps, *([] if saver is None else [saver.after_step]))
    return Ended(
        parameters={name: parameter.detach().clone() for name, parameter in training.model.named_parameters()},
        window_blocks=training.window_blocks,
        rotary_scale=training.model.rotary.scale.item(),
        random=torch.get_rng_state(),
    )


def straight_and_in_halves(data: TrainingData, folder: Path) -> tuple[Ended, Ended]:
    """Ten steps at once, and five, a checkpoint, and five more."""
    torch.manual_seed(7 + dist.get_rank())
    straight = train(data, NUM_STEPS)
    torch.manual_seed(7 + dist.get_rank())
    train(data, HALF, save=folder)
    dist.barrier()  # rank 0 writes
    return straight, train(data, NUM_STEPS, resume=checkpoint_path(folder, HALF))


def save_straight_and_halfway(data: TrainingData, folder: Path) -> None:
    """Checkpoints after the first half and, of a run that went straight on, after all steps."""
    train(data, HALF, save=folder)
    dist.barrier()
    train(data, NUM_STEPS, save=folder)


def resume_and_save(data: TrainingData, source: Path, folder: Path) -> None:
    """Take the checkpoint of the first half up, save it again as it is, and save after all steps."""
    config = make_config()
    training = Training(config, data, _ranks())
    restore(training, read_checkpoint(checkpoint_path(source, HALF), config, data.train))
    Saver(training, folder, 1, HALF).after_step(HALF)
    dist.barrier()
    train(data, NUM_STEPS, resume=checkpoint_path(source, HALF), save=folder)


def _ranks() -> Ranks:
    rank = dist.get_rank()
    return Ranks(rank=rank, local_rank=rank, world_size=dist.get_world_size(), device=torch.device("cpu"))
