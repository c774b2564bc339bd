"""`python -m trainer [train]` trains; `python -m trainer plan` says how the optimizers share the parameters."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch

from trainer import config as configs
from trainer.arguments import DEFAULT_PRESETS, parse
from trainer.config import TrainConfig
from trainer.errors import WRONG_USAGE, TrainerError
from trainer.loop import Training, TrainingData, declare, write_header
from trainer.model import GPT
from trainer.ranks import Ranks, default_device_type, process_group, read_ranks
from trainer.scalars import packed_num_scalars
from trainer.sharding import GroupPlan, adam_plan, muon_plan
from trainer.shards import find_shards, read_header
from trainer.stdlib_text import stdlib_shards


def _read_config(arguments: argparse.Namespace) -> TrainConfig:
    config = configs.preset(arguments.preset or DEFAULT_PRESETS[default_device_type()])
    return configs.with_settings(config, arguments.settings)


def _train(arguments: argparse.Namespace) -> None:
    config = _read_config(arguments)
    if arguments.seed is not None:
        config = dataclasses.replace(config, seed=arguments.seed)
    num_steps = config.num_steps if arguments.steps is None else min(arguments.steps, config.num_steps)
    if num_steps < 1:
        raise TrainerError(f"--steps {arguments.steps}: must be 1 or more", WRONG_USAGE)
    ranks = read_ranks()
    config.accumulation_steps(ranks.world_size)
    packed_num_scalars(config, ranks.world_size)
    data = _find_data(arguments, ranks)
    with process_group(ranks):
        training = Training(config, data, ranks)
        declare(training)
        write_header(training, data)
        training.run(num_steps)


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


def _describe(group: GroupPlan) -> str:
    shape = " x ".join(map(str, group.shape))
    return (
        f"{group.name:<22} {group.num_params:>3} of {shape:<14} {str(group.dtype).removeprefix('torch.'):<9} "
        f"slots {group.num_slots:>6}, {group.padding} of them padding, {group.shard_slots} a rank"
    )


def main(arguments: list[str]) -> int:
    """The exit code; errors that the user can act on are one line on stderr."""
    try:
        parsed = parse(arguments)
        (_plan if parsed.command == "plan" else _train)(parsed)
    except TrainerError as error:
        print(f"trainer: error: {error.message}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
