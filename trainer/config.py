"""What a training run is made of: one flat, frozen configuration, its presets, and `field=value` on top.

Figures of the presets `record_149`, `record_140` and `record_134` are those of the published records of 149.6 s
(2025-09-23), 140.7 s (2025-10-04) and 134.9 s (2025-11-18). `speedrun` is the best that we have.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from dataclasses import dataclass
from typing import Any, Literal

from trainer.errors import WRONG_USAGE, TrainerError
from trainer.pattern import LAST_LAYER

AttentionKernel = Literal["reference", "flex", "varlen"]
CompileMode = Literal["model", "blocks", "off"]
Precision = Literal["bf16", "fp32"]
NewtonSchulzKernel = Literal["auto", "triton", "torch"]
HeadMatmul = Literal["auto", "fp8", "bf16"]
Orthogonalisation = Literal["polar_express", "newton_schulz"]
MuonVariant = Literal["normuon", "plain"]
AdamReduction = Literal["backward", "step"]
SkipGate = Literal["sigmoid", "plain"]
Backout = Literal["none", "layer", "per_layer"]
LayerPair = tuple[int, int]
LearningRateSchedule = Literal["record", "warmup_linear"]

_NUM_SEEDS = 2**63  # more than that torch's generators do not take


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """All numbers of a run. Raises TrainerError (wrong usage) where they contradict each other."""

    preset: str
    seed: int = 0

    # Model. Its pattern of 12 layers is fixed (trainer/pattern.py); these are its sizes.
    dim: int
    num_heads: int
    vocab_size: int = 50_304  # GPT-2's 50,257 padded to a multiple of 128
    num_scalars: int | None  # length of the packed scalar vector; None: as many as needed, padded to the ranks
    precision: Precision  # of tables and activations; Muon's matrices are fp32 always
    attention: AttentionKernel
    compile: CompileMode

    # What the records differ in: skips from a layer's output to another's input, weighed by sigmoid(weight) or the
    # plain weight; what is taken off the last layer's output: nothing, a share of the output of one layer, or a share
    # of each layer's own contribution; the first weight of x in x <- a x + b x0.
    skips: tuple[LayerPair, ...] = ((4, 7),)
    skip_gate: SkipGate = "sigmoid"
    skip_initial: float = -1.5
    backout: Backout = "layer"
    backout_layer: int = 8
    backout_initial: float = 0.5
    block_initial: float = 1.1
    logits_precision: Precision  # into softcap and cross entropy
    head_matmul: HeadMatmul = "auto"  # of training; validation takes bf16. auto: fp8 on an H100 or later

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
    # For the validation after the last step: what RoPE is stretched to and the short window follows, and the long one.
    final_rope_window_blocks: int = 13
    final_validation_window_blocks: int = 20

    # Optimizers.
    newton_schulz_kernel: NewtonSchulzKernel = "auto"  # auto: triton on a GPU
    muon_variant: MuonVariant = "normuon"
    orthogonalisation: Orthogonalisation = "polar_express"
    muon_learning_rate: float
    mlp_up_learning_rate_scale: float = 2.0  # stored transposed, it misses Muon's factor for tall matrices
    muon_beta2: float = 0.95
    muon_weight_decay: float = 1.2
    muon_momentum_low: float = 0.85
    muon_momentum_high: float = 0.95
    muon_momentum_warmup_steps: int
    muon_momentum_cooldown_steps: int
    adam_interval: int = 2  # in steps; in between its gradients add up
    adam_reduces_in: AdamReduction = "backward"
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
            value = spell_value(getattr(self, field))
            raise TrainerError(f"{field}={value} {problem}: --set {field}=VALUE", WRONG_USAGE)

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
    yield from _layer_problems(config)
    if config.compile == "blocks" and config.attention != "reference":
        yield "compile", f"works with attention=reference, not {config.attention}; use model or off"


def _layer_problems(config: TrainConfig) -> typing.Iterator[tuple[str, str]]:
    """The problems of fields that name layers."""
    if any(not 1 <= source < target <= LAST_LAYER for source, target in config.skips):
        yield "skips", f"must be pairs of layers from 1 to {LAST_LAYER}, the lower one first"
    if len(set(config.skips)) < len(config.skips):
        yield "skips", "names a pair twice"
    if not 1 <= config.backout_layer <= LAST_LAYER:
        yield "backout_layer", f"must be a layer from 1 to {LAST_LAYER}"


def _number_problems(config: TrainConfig) -> typing.Iterator[tuple[str, str]]:
    """The problems of numbers taken alone."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            yield field.name, "is no finite number"
        is_count = field.name.startswith(("num_heads", "micro_", "max_", "log_", "validation_", "adam_interval"))
        if (is_count or field.name.endswith("window_blocks")) and isinstance(value, int) and value < 1:
            yield field.name, "must be 1 or more"
        if field.name.startswith("muon_momentum") and field.name.endswith("_steps") and value < 0:
            yield field.name, "must not be negative"
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
    logits_precision="bf16",
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

RECORD_140 = dataclasses.replace(
    RECORD_134,
    preset="record_140",
    skips=((1, 10), (2, 9), (3, 8), (4, 7), (5, 6)),
    block_initial=1.0,
    num_scheduled_steps=2290,
    cooldown_ratio=0.45,
    extension_window_blocks=11,
    muon_variant="plain",
    muon_learning_rate=0.06,
    mlp_up_learning_rate_scale=1.0,
    muon_weight_decay=0.0,
    adam_reduces_in="step",
)

RECORD_149 = dataclasses.replace(
    RECORD_140,
    preset="record_149",
    num_scalars=72,
    backout="none",
    logits_precision="fp32",
    micro_batch_tokens=49_152,
    max_documents=256,
    num_scheduled_steps=1640,
    cooldown_ratio=0.5,
    orthogonalisation="newton_schulz",
    muon_learning_rate=0.05,
    muon_momentum_cooldown_steps=0,
    adam_interval=1,
    adam_beta1=0.8,
    validation_micro_batches=216,  # the least that 8 ranks divide and that holds the validation set
)

SPEEDRUN = dataclasses.replace(RECORD_134, preset="speedrun")

TINY_CPU = TrainConfig(
    preset="tiny_cpu",
    dim=64,
    num_heads=2,
    num_scalars=None,
    precision="fp32",
    attention="reference",
    compile="blocks",
    logits_precision="fp32",
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

PRESETS = {preset.preset: preset for preset in (TINY_CPU, RECORD_149, RECORD_140, RECORD_134, SPEEDRUN)}


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
    if annotation == tuple[LayerPair, ...]:
        return () if text.lower() == "none" else tuple(_parse_pair(part) for part in text.split(","))
    if origin is tuple:
        return tuple(int(part) for part in text.split(","))
    return annotation(text)


def _parse_pair(text: str) -> LayerPair:
    """Raises ValueError."""
    source, target = text.split("-")
    return int(source), int(target)


def spell_value(value: object) -> str:
    """A field's value as a setting spells it: `_parse` reads it back."""
    if value is None or value == ():
        return "none"
    if not isinstance(value, tuple):
        return str(value)
    return ",".join("-".join(map(str, part)) if isinstance(part, tuple) else str(part) for part in value)


def describe_type(annotation: Any) -> str:
    """What a field of that type takes, in words."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return " or ".join(typing.get_args(annotation))
    if origin is types.UnionType:
        return " or ".join(
            "none" if option is types.NoneType else describe_type(option) for option in typing.get_args(annotation)
        )
    if annotation == tuple[LayerPair, ...]:
        return "pairs of layers as in 3-8,4-7, or none"
    if origin is tuple:
        return "whole numbers with commas between"
    return {int: "a whole number", float: "a number"}.get(annotation, "a text")
