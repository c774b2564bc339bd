"""The command line: what the commands take, and the help that says so."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import NoReturn

from trainer import config as configs
from trainer.config import TrainConfig
from trainer.errors import WRONG_USAGE, TrainerError

PROGRAM = "python -m trainer"
DEFAULT_PRESETS = {"cuda": configs.RECORD_134.preset, "cpu": configs.TINY_CPU.preset}

_TRAIN_USAGE = f"{PROGRAM} [train] [options]\n       {PROGRAM} plan [options]"
_TRAIN_EXAMPLES = (
    f"{PROGRAM} --steps 20 --set micro_batch_tokens=256",
    "python -m torch.distributed.run --nproc-per-node 2 -m trainer --data 'path/fineweb_train_*.bin'",
)
_PLAN_EXAMPLES = (f"{PROGRAM} plan --preset record_134 --world-size 8", f"{PROGRAM} plan --set dim=128 --json")


class _Parser(argparse.ArgumentParser):
    """Wrong usage is one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        raise TrainerError(f"{message}; see {PROGRAM} --help", WRONG_USAGE)


def parse(arguments: list[str]) -> argparse.Namespace:
    """The words after the program's name; without a command they are those of `train`, --help too.

    Raises TrainerError (wrong usage).
    """
    if not arguments or arguments[0].startswith("-"):
        arguments = ["train", *arguments]
    parser = _Parser(prog=PROGRAM, add_help=False)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    _add_train(commands)
    _add_plan(commands)
    return parser.parse_args(arguments)


def _add_train(commands: argparse._SubParsersAction[_Parser]) -> None:
    train = commands.add_parser(
        "train",
        usage=_TRAIN_USAGE,
        description=f"Train. `{PROGRAM} plan` trains nothing: it prints how the optimizers share the parameters.",
        epilog="\n".join((*_describe_presets(), "", *_describe_fields(), "", *_list_examples(_TRAIN_EXAMPLES))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    train.add_argument("--data", metavar="GLOB", help=".bin shards to train on; default: Python's own library")
    train.add_argument(
        "--val-data", metavar="GLOB", help="shards to validate on; default: --data with train read as val"
    )
    train.add_argument("--steps", type=int, metavar="N", help="stop after N steps of the preset's schedule")
    train.add_argument("--seed", type=int, metavar="S", help="of the weights and the order of documents (0)")
    _add_config(train)


def _add_plan(commands: argparse._SubParsersAction[_Parser]) -> None:
    plan = commands.add_parser(
        "plan",
        description="Print the parameter groups of the optimizers, and how the ranks share them.",
        epilog="\n".join((f"`{PROGRAM} --help` lists the fields of --set.", "", *_list_examples(_PLAN_EXAMPLES))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    plan.add_argument("--world-size", type=int, default=1, metavar="N", help="number of ranks (1)")
    plan.add_argument("--json", action="store_true", help="print one JSON document")
    _add_config(plan)


def _add_config(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--preset", metavar="NAME", help=f"one of {', '.join(configs.PRESETS)}; default: by the device"
    )
    command.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="settings",
        help="change a field of the preset; may be given again and again",
    )


def _describe_presets() -> Iterator[str]:
    yield "presets:"
    device_of = {preset: device for device, preset in DEFAULT_PRESETS.items()}
    for name, config in configs.PRESETS.items():
        sizes = f"width {config.dim}, rows of {config.micro_batch_tokens:,} tokens, {config.num_steps:,} steps"
        default = f"; the default where the device is {device_of[name]}" if name in device_of else ""
        yield f"  {name:<12}{sizes}{default}"


def _describe_fields() -> Iterator[str]:
    """One line a field: its name, its value in each preset, and what it takes where that is no plain number."""
    yield "fields of --set, and what each preset has:"
    yield _field_row("", list(configs.PRESETS), "")
    for field, annotation in configs.settable_fields().items():
        takes = "" if annotation in (int, float) else configs.describe_type(annotation)
        yield _field_row(field, [_spell(config, field) for config in configs.PRESETS.values()], takes)


def _spell(config: TrainConfig, field: str) -> str:
    return configs.spell_value(getattr(config, field))


def _field_row(field: str, values: list[str], takes: str) -> str:
    return f"  {field:<32}{''.join(f'{value:<13} ' for value in values)}{takes}".rstrip()


def _list_examples(examples: tuple[str, ...]) -> Iterator[str]:
    yield "examples:"
    yield from (f"  {example}" for example in examples)
