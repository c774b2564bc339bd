"""What a training run is made of: one flat, frozen configuration, its presets, and `field=value` on top.

Figures of `record_134` are those of the published record of 134.9 s, 2025-11-18.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from trainer.errors import WRONG_USAGE, TrainerError

AttentionKernel = Literal["reference", "flex", "varlen"]
CompileMode = Literal["model", "blocks", "off"]
Precision = Literal["bf16", "fp32"]
NewtonSchulzKernel = Literal["auto", "triton", "torch"]
HeadMatmul = Literal["auto", "fp8", "bf16"]
LearningRateSchedule = Literal["record", "warmup_linear"]

_NUM_SEEDS = 2**63  # more than that torch's generators do not take


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """All numbers of a run. Raises TrainerError (wrong usage) where they contradict each other."""

    preset: str
    seed: int = 0

    # Model. Its pattern of 12 layers is fixed (trainer/model.py); these are its sizes.
    dim: int
    num_heads: int
    vocab_size: int = 50_304  # GPT-2's 50,257 padded to a multiple of 128
    num_scalars: int | None  # length of the packed scalar vector; None: as many as needed, padded to the ranks
    precision: Precision  # of tables and activations; Muon's matrices are fp32 always
    attention: AttentionKernel
    compile: CompileMode

    # Data.
    micro_batch_tokens: int
    micro_batches_per_step: int | None  # over all ranks; None: one per rank
    max_document_tokens: int
    max_documents: int  # slots of cu_seqlens in a micro-batch

    # Schedule, in steps.
    num_scheduled_steps: int
    num_extension_steps: int
    learning_rate_schedule: LearningRateSchedule = "record"
    cooldown_ratio: float = 0.5
    final_learning_rate_ratio: float = 0.1
    window_block_tokens: int
    window_blocks: tuple[int, ...] = (3, 7, 11)
    extension_window_blocks: int = 13
    final_validation_window_blocks: int = 20

    # Optimizers.
    muon_learning_rate: float
    muon_beta2: float = 0.95
    muon_weight_decay: float = 1.2
    muon_momentum_low: float = 0.85
    muon_momentum_high: float = 0.95
    muon_momentum_warmup_steps: int
    muon_momentum_cooldown_steps: int
    adam_learning_rate: float
    adam_beta1: float = 0.65
    adam_beta2: float = 0.95
    adam_epsilon: float = 1e-8

    # Reports.
    validation_interval: int | None  # in steps; None: at the end alone
    validation_micro_batches: int  # over all ranks
    log_interval: int

    def __post_init__(self) -> None:
        for field, problem in _problems(self):
            raise TrainerError(f"{field}={getattr(self, field)} {problem}: --set {field}=VALUE", WRONG_USAGE)

    @property
    def num_steps(self) -> int:
        return self.num_scheduled_steps + self.num_extension_steps

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def accumulation_steps(self, world_size: int) -> int:
        """Micro-batches of one rank in one step. Raises TrainerError where the ranks do not divide them."""
        if self.micro_batches_per_step is None:
            return 1
        if self.micro_batches_per_step % world_size:
            raise TrainerError(
                f"{world_size} ranks do not divide the {self.micro_batches_per_step} micro-batches of a step of preset "
                f"{self.preset}: use a divisor of them, or --set micro_batches_per_step=N",
                WRONG_USAGE,
            )
        return self.micro_batches_per_step // world_size

    def tokens_per_step(self, world_size: int) -> int:
        return self.accumulation_steps(world_size) * world_size * self.micro_batch_tokens


def _problems(config: TrainConfig) -> typing.Iterator[tuple[str, str]]:
    """Pairs (field, what is wrong with it)."""
    yield from _number_problems(config)
    if config.dim < 16 or config.dim % config.num_heads or config.head_dim % 4:
        yield "dim", "must be 16 or more and num_heads times a multiple of 4"
    if config.vocab_size < 2:
        yield "vocab_size", "must be 2 or more"
    if config.num_scheduled_steps < 1:
        yield "num_scheduled_steps", "must be 1 or more"
    if config.num_extension_steps < 0:
        yield "num_extension_steps", "must not be negative"
    if not 0 < config.cooldown_ratio <= 1:
        yield "cooldown_ratio", "must be over 0 and at most 1"
    if not config.window_blocks or min(config.window_blocks) < 1:
        yield "window_blocks", "must be numbers of 1 or more"
    if config.max_document_tokens > config.micro_batch_tokens:
        yield "max_document_tokens", f"is over micro_batch_tokens={config.micro_batch_tokens}"
    if config.compile == "blocks" and config.attention != "reference":
        yield "compile", f"works with attention=reference, not {config.attention}; use model or off"


def _number_problems(config: TrainConfig) -> typing.Iterator[tuple[str, str]]:
    """The problems of numbers taken alone."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            yield field.name, "is no finite number"
        is_count = field.name.startswith(("num_heads", "micro_", "max_", "log_", "validation_"))
        if (is_count or field.name.endswith("window_blocks")) and isinstance(value, int) and value < 1:
            yield field.name, "must be 1 or more"
        if "_beta" in field.name and not 0 <= value < 1:
            yield field.name, "must be 0 or more and under 1"
    if not 0 <= config.seed < _NUM_SEEDS:
        yield "seed", "must be 0 or more and under 2**63"
    if config.adam_epsilon <= 0:
        yield "adam_epsilon", "must be over 0"


RECORD_134 = TrainConfig(
    preset="record_134",
    dim=768,
    num_heads=6,
    num_scalars=64,
    precision="bf16",
    attention="varlen",
    compile="model",
    micro_batch_tokens=32_768,
    micro_batches_per_step=8,
    max_document_tokens=2048,
    max_documents=128,
    num_scheduled_steps=2185,
    num_extension_steps=40,
    window_block_tokens=128,
    muon_learning_rate=0.03,
    muon_momentum_warmup_steps=300,
    muon_momentum_cooldown_steps=50,
    adam_learning_rate=0.008,
    validation_interval=125,
    validation_micro_batches=320,  # 10,485,760 tokens, the speedrun's validation set
    log_interval=10,
)

TINY_CPU = TrainConfig(
    preset="tiny_cpu",
    dim=64,
    num_heads=2,
    num_scalars=None,
    precision="fp32",
    attention="reference",
    compile="blocks",
    micro_batch_tokens=192,
    micro_batches_per_step=None,
    max_document_tokens=128,
    max_documents=16,
    num_scheduled_steps=480,
    num_extension_steps=20,
    window_block_tokens=8,
    muon_learning_rate=0.03,
    muon_momentum_warmup_steps=60,
    muon_momentum_cooldown_steps=20,
    adam_learning_rate=0.008,
    validation_interval=125,
    validation_micro_batches=8,
    log_interval=10,
)

PRESETS = {preset.preset: preset for preset in (TINY_CPU, RECORD_134)}


def preset(name: str) -> TrainConfig:
    """The preset of that name. Raises TrainerError (wrong usage) for an unknown one."""
    if name not in PRESETS:
        raise TrainerError(f"no preset {name!r}: use one of {', '.join(PRESETS)}", WRONG_USAGE)
    return PRESETS[name]


def settable_fields() -> dict[str, Any]:
    """Every field that a setting may change -> its type."""
    annotations = typing.get_type_hints(TrainConfig)
    del annotations["preset"]
    return annotations


def with_settings(config: TrainConfig, settings: list[str]) -> TrainConfig:
    """`config` with each `field=value` of `settings` applied. Raises TrainerError (wrong usage)."""
    annotations = settable_fields()
    changes: dict[str, Any] = {}
    for setting in settings:
        field, _, text = setting.partition("=")
        if field not in annotations:
            fields = ", ".join(annotations)
            raise TrainerError(f"--set {setting}: no field {field!r}; the fields are {fields}", WRONG_USAGE)
        try:
            changes[field] = _parse(text, annotations[field])
        except ValueError:
            wanted = describe_type(annotations[field])
            raise TrainerError(
                f"--set {setting}: {field} takes {wanted}, as in --set {field}=VALUE", WRONG_USAGE
            ) from None
    return dataclasses.replace(config, **changes)


def _parse(text: str, annotation: Any) -> Any:
    """The value that `text` spells; raises ValueError where it is none of that type."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        if text not in typing.get_args(annotation):
            raise ValueError(text)
        return text
    if origin is types.UnionType:
        inner = next(option for option in typing.get_args(annotation) if option is not types.NoneType)
        return None if text.lower() == "none" else _parse(text, inner)
    if origin is tuple:
        return tuple(int(part) for part in text.split(","))
    return annotation(text)


def spell_value(value: object) -> str:
    """A field's value as a setting spells it: `_parse` reads it back."""
    if value is None:
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def describe_type(annotation: Any) -> str:
    """What a field of that type takes, in words."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return " or ".join(typing.get_args(annotation))
    if origin is types.UnionType:
        return " or ".join(
            "none" if option is types.NoneType else describe_type(option) for option in typing.get_args(annotation)
        )
    if origin is tuple:
        return "whole numbers with commas between"
    return {int: "a whole number", float: "a number"}.get(annotation, "a text")
