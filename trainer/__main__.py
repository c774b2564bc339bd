"""`python -m trainer [train]` trains; see trainer/arguments.py for the other commands."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from trainer import config as configs
from trainer import repeat, stage_alone
from trainer.arguments import DEFAULT_CHECKPOINTS, DEFAULT_PRESETS, parse
from trainer.checkpoint import Saver, read_checkpoint, restore
from trainer.config import TrainConfig
from trainer.errors import WRONG_USAGE, TrainerError
from trainer.loop import Training, TrainingData, declare, write_header
from trainer.model import GPT
from trainer.ranks import Ranks, default_device_type, process_group, read_ranks
from trainer.scalars import packed_num_scalars
from trainer.sharding import GroupPlan, adam_plan, muon_plan
from trainer.shards import find_shards, read_header
from trainer.stdlib_text import stdlib_shards
from trainer.watch import COMPILING_TIMEOUT_S, watching


def _read_config(arguments: argparse.Namespace) -> TrainConfig:
    config = configs.preset(arguments.preset or DEFAULT_PRESETS[default_device_type()])
    return configs.with_settings(config, arguments.settings)


def _train(arguments: argparse.Namespace) -> None:
    config = _read_config(arguments)
    if arguments.seed is not None:
        config = dataclasses.replace(config, seed=arguments.seed)
    if arguments.lr_schedule is not None:
        config = dataclasses.replace(config, learning_rate_schedule=arguments.lr_schedule)
    num_steps = config.num_steps if arguments.steps is None else min(arguments.steps, config.num_steps)
    if num_steps < 1:
        raise TrainerError(f"--steps {arguments.steps}: must be 1 or more", WRONG_USAGE)
    if arguments.checkpoints is not None and arguments.save_every is None:
        raise TrainerError("--checkpoints needs --save-every: say after how many steps to write one", WRONG_USAGE)
    ranks = read_ranks()
    config.accumulation_steps(ranks.world_size)
    packed_num_scalars(config, ranks.world_size)
    data = _find_data(arguments, ranks)
    checkpoint = None
    if arguments.resume is not None:
        checkpoint = read_checkpoint(arguments.resume, config, data.train)
        checkpoint.check_steps_left(num_steps)
    is_logging_rates = config.learning_rate_schedule == "warmup_linear" and not arguments.no_log_lr
    with process_group(ranks), watching(ranks, arguments.collective_timeout):
        training = Training(config, data, ranks, is_logging_rates=is_logging_rates)
        declare(training)
        write_header(training, data)
        if checkpoint is not None:
            restore(training, checkpoint)
            checkpoint = None  # as large as the model and all its state
        if arguments.save_every is None:
            training.run(num_steps)
        else:
            folder = arguments.checkpoints or DEFAULT_CHECKPOINTS
            training.run(num_steps, Saver(training, folder, arguments.save_every, num_steps).after_step)
        if arguments.result is not None and ranks.is_first:
            repeat.write_result(training, arguments.result)


def _find_data(arguments: argparse.Namespace, ranks: Ranks) -> TrainingData:
    """The shards to use, all checked now rather than when their turn comes."""
    if arguments.data is None and arguments.val_data is not None:
        raise TrainerError("--val-data needs --data: name the shards to train on too", WRONG_USAGE)
    if arguments.data is None:
        text = stdlib_shards(is_builder=ranks.local_rank == 0)
        return TrainingData(train=[text.train], validation=[text.validation])
    data = TrainingData(train=find_shards(arguments.data), validation=_find_validation(arguments))
    for path in (*data.train, *data.validation):
        read_header(path)
    return data


def _find_validation(arguments: argparse.Namespace) -> list[Path]:
    if arguments.val_data is not None:
        return find_shards(arguments.val_data)
    pattern = arguments.data.replace("train", "val")
    try:
        return find_shards(pattern) if pattern != arguments.data else []
    except TrainerError:
        return []


def _plan(arguments: argparse.Namespace) -> None:
    config, world_size = _read_config(arguments), arguments.world_size
    if world_size < 1:
        raise TrainerError(f"--world-size {world_size}: must be 1 or more", WRONG_USAGE)
    config.accumulation_steps(world_size)
    model = GPT(config, num_scalars=packed_num_scalars(config, world_size), device=torch.device("meta"))
    groups = (*muon_plan(model.muon_parameters(), world_size), *adam_plan(model.adam_parameters(), world_size))  # type: ignore[arg-type]  # labels are set on them
    if arguments.json:
        document = {"preset": config.preset, "world_size": world_size, "groups": [group.to_json() for group in groups]}
        print(json.dumps(document, indent=2))
        return
    print(f"preset {config.preset}, {world_size} ranks")
    for group in groups:
        print(_describe(group))


def _stage(arguments: argparse.Namespace) -> None:
    config, ranks = _read_config(arguments), read_ranks()
    config.accumulation_steps(ranks.world_size)
    with process_group(ranks), watching(ranks, COMPILING_TIMEOUT_S):
        stage_alone.run(config, ranks, arguments)


def _describe(group: GroupPlan) -> str:
    shape = " x ".join(map(str, group.shape))
    return (
        f"{group.name:<22} {group.num_params:>3} of {shape:<14} {str(group.dtype).removeprefix('torch.'):<9} "
        f"slots {group.num_slots:>6}, {group.padding} of them padding, {group.shard_slots} a rank"
    )


_COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "train": _train,
    "plan": _plan,
    "stage": _stage,
    "repeat": repeat.run,
}


def main(arguments: list[str]) -> int:
    """The exit code; errors that the user can act on are one line on stderr."""
    try:
        parsed = parse(arguments)
        return _COMMANDS[parsed.command](parsed) or 0
    except TrainerError as error:
        print(f"trainer: error: {error.message}", file=sys.stderr, flush=True)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
