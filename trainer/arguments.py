"""The command line: what the commands take, and the help that says so."""

from __future__ import annotations

import argparse
import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from trainer import config as configs
from trainer.config import LearningRateSchedule, TrainConfig
from trainer.errors import MEANINGS, WRONG_USAGE, TrainerError

PROGRAM = "python -m trainer"
DEFAULT_PRESETS = {"cuda": configs.RECORD_134.preset, "cpu": configs.TINY_CPU.preset}

DEFAULT_CHECKPOINTS = Path("checkpoints")
DEFAULT_TIMEOUT_S = 120.0

_TRAIN_USAGE = "\n       ".join(
    (f"{PROGRAM} [train] [options]", *(f"{PROGRAM} {name} [options]" for name in ("plan", "stage", "repeat")))
)
_TRAIN_EXAMPLES = (
    f"{PROGRAM} --steps 20 --set micro_batch_tokens=256",
    "python -m torch.distributed.run --nproc-per-node 2 -m trainer --data 'path/fineweb_train_*.bin'",
)
_STAGE_EXAMPLES = (
    f"{PROGRAM} stage --stage newton_schulz --group muon.mlp --repeat 50",
    "python -m torch.distributed.run --nproc-per-node 2 -m trainer stage --stage reduce_scatter --group muon.2 --json",
)
_REPEAT_EXAMPLES = (
    f"{PROGRAM} repeat --runs 5 --target-loss 3.28 --nproc-per-node 8 -- --data 'path/fineweb_train_*.bin'",
    f"{PROGRAM} repeat --runs 3 --target-loss 10 --baseline tiny_cpu --json -- --steps 20 --set dim=32",
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
    _add_stage(commands)
    _add_repeat(commands)
    if arguments[0] == "repeat" and "--" in arguments:
        end = arguments.index("--")
        parsed = parser.parse_args(arguments[:end])
        parsed.train_arguments = arguments[end + 1 :]
        return parsed
    return parser.parse_args(arguments)


def _add_train(commands: argparse._SubParsersAction[_Parser]) -> None:
    train = commands.add_parser(
        "train",
        usage=_TRAIN_USAGE,
        description=(
            "Train. The other commands: plan prints how the optimizers share the parameters; stage times one stage of "
            "one\ngroup alone; repeat trains several times and tests whether the losses meet a target."
        ),
        epilog="\n".join(
            (
                *_describe_presets(),
                "",
                *_describe_fields(),
                "",
                *_describe_exit_codes(),
                "",
                *_list_examples(_TRAIN_EXAMPLES),
            )
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    train.add_argument("--data", metavar="GLOB", help=".bin shards to train on; default: Python's own library")
    train.add_argument(
        "--val-data", metavar="GLOB", help="shards to validate on; default: --data with train read as val"
    )
    train.add_argument("--steps", type=int, metavar="N", help="stop after N steps of the preset's schedule")
    train.add_argument("--seed", type=int, metavar="S", help="of the weights and the order of documents (0)")
    _add_checkpoints(train)
    train.add_argument(
        "--lr-schedule",
        choices=typing.get_args(LearningRateSchedule),
        help="record: the preset's own cooldown (the default); warmup_linear: up over a tenth of the steps, down to a "
        "tenth of the peak",
    )
    train.add_argument(
        "--no-log-lr", action="store_true", help="with warmup_linear: leave the learning rates out of the log"
    )
    _add_timeout(train)
    train.add_argument("--result", type=Path, metavar="FILE", help="write the last loss and the times there, as JSON")
    _add_config(train)


def _add_checkpoints(train: argparse.ArgumentParser) -> None:
    train.add_argument(
        "--save-every", type=_positive_int, metavar="N", help="write a checkpoint every N steps, and after the last"
    )
    train.add_argument(
        "--checkpoints", type=Path, metavar="FOLDER", help=f"where --save-every writes ({DEFAULT_CHECKPOINTS})"
    )
    train.add_argument(
        "--resume", type=Path, metavar="PATH", help="go on from this checkpoint, or from the newest of this folder"
    )


def _add_timeout(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--collective-timeout",
        type=_positive_seconds,
        default=DEFAULT_TIMEOUT_S,
        metavar="SECONDS",
        help=f"end where other ranks keep a collective waiting for so long ({DEFAULT_TIMEOUT_S:g}); the first two "
        "steps, in which ranks compile, may take half an hour",
    )


def _positive_int(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} must be 1 or more")
    return number


def _positive_seconds(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{number:g} must be over 0 and finite")
    return number


def _add_stage(commands: argparse._SubParsersAction[_Parser]) -> None:
    stage = commands.add_parser(
        "stage",
        description=(
            "Time one stage of one parameter group alone: the optimizer's own code on the group's own shapes and\n"
            "dtypes, on as many ranks as torch.distributed.run starts. A collective's time ends when its transfer does."
        ),
        epilog="\n".join(_list_examples(_STAGE_EXAMPLES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    stage.add_argument("--stage", required=True, metavar="STAGE", help="such as reduce_scatter or newton_schulz")
    stage.add_argument(
        "--group",
        required=True,
        metavar="GROUP",
        help=f"as `{PROGRAM} plan` names it, or <optimizer>.<number>: muon.1 is the first of Muon's there",
    )
    stage.add_argument("--repeat", type=_positive_int, default=200, metavar="N", help="timed repetitions (200)")
    stage.add_argument("--warmup", type=_positive_int, default=10, metavar="N", help="repetitions before them (10)")
    stage.add_argument("--json", action="store_true", help="print one JSON document, with every repetition")
    _add_config(stage)


def _add_repeat(commands: argparse._SubParsersAction[_Parser]) -> None:
    repeat = commands.add_parser(
        "repeat",
        usage=f"{PROGRAM} repeat --runs N --target-loss LOSS [options] [-- options of train]",
        description=(
            "Train with N seeds, one after the other, and test as the speedrun does whether the mean of the final\n"
            "validation losses lies under the target: Student's one-sided t-test, met where p < 0.01."
        ),
        epilog="\n".join(_list_examples(_REPEAT_EXAMPLES)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    repeat.add_argument("--runs", type=_positive_int, default=5, metavar="N", help="runs, of seeds S, S + 1, ... (5)")
    repeat.add_argument("--target-loss", type=float, required=True, metavar="LOSS", help="what the losses must show")
    repeat.add_argument("--first-seed", type=int, default=0, metavar="S", help="(0)")
    repeat.add_argument(
        "--baseline",
        metavar="WHAT",
        help="a preset, run again on this machine in turn with the runs; or a file that `repeat --json` wrote",
    )
    repeat.add_argument("--baseline-runs", type=_positive_int, default=3, metavar="N", help="of a preset (3)")
    repeat.add_argument("--nproc-per-node", type=_positive_int, default=1, metavar="N", help="ranks of a run (1)")
    repeat.add_argument("--json", action="store_true", help="print one JSON document")
    repeat.set_defaults(train_arguments=[])


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


def _describe_exit_codes() -> Iterator[str]:
    yield "exit codes:"
    yield from (f"  {code:<5}{meaning}" for code, meaning in MEANINGS.items())


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
