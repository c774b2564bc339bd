"""The packed vector of learned scalars, the lambdas: which are in it, where, under which name, and how they start.

They lie in one vector so that Adam shards and updates them in one go. What is in it follows from the features of the
configuration; the vector is padded to a multiple of the ranks, or to the length that the configuration asks for.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from trainer.config import LayerPair, TrainConfig
from trainer.errors import WRONG_USAGE, TrainerError
from trainer.pattern import ATTENTION_LAYERS, MLP_LAYERS, VALUE_TABLE_OF_LAYER

INITIAL_VALUE_WEIGHT = 0.5  # of a layer's own V and of its value embedding alike
INITIAL_SMEAR = 0.0
INITIAL_PER_LAYER_BACKOUT = 0.0  # nothing is backed out at first, so no layer is preferred
PADDING = 1.0


class Scalars(NamedTuple):
    """Views of the packed vector."""

    skip: dict[LayerPair, Tensor]  # []: weight of the skip, before its gate
    block: dict[int, Tensor]  # per layer [2]: weights of x and of the embedding x0
    value: dict[int, Tensor]  # per attention layer [2]: weights of V and of the value embedding; [1] where it has none
    smear: Tensor  # []
    backout: dict[int, Tensor]  # per layer that is backed out []


class ScalarLayout:
    """The order of the packed vector: skips, block weights, value weights, smear, backout.

    names     one per number, in order; padding has none
    initial   what each starts with
    """

    def __init__(self, config: TrainConfig) -> None:
        self.skips = config.skips
        self.backed_out = _backed_out_layers(config)
        per_layer = config.backout == "per_layer"
        skips = [{f"skip_{source}_{target}": config.skip_initial} for source, target in self.skips]
        blocks = [{f"block_{layer}_x": config.block_initial, f"block_{layer}_x0": 0.0} for layer in MLP_LAYERS]
        values = [_value_weights(layer) for layer in ATTENTION_LAYERS]
        start = INITIAL_PER_LAYER_BACKOUT if per_layer else config.backout_initial
        backouts = [{f"backout_{layer}": start} for layer in self.backed_out]
        parts = [*skips, *blocks, *values, {"smear": INITIAL_SMEAR}, *backouts]
        self.names = tuple(name for part in parts for name in part)
        self.initial = tuple(value for part in parts for value in part.values())
        self._sizes = [len(part) for part in parts]

    def unpack(self, packed: Tensor) -> Scalars:
        """`packed` is at least as long as `names`; the rest is padding."""
        parts = torch.split(packed, [*self._sizes, len(packed) - len(self.names)])
        block = len(self.skips)
        value = block + len(MLP_LAYERS)
        smear = value + len(ATTENTION_LAYERS)
        return Scalars(
            skip={pair: parts[number][0] for number, pair in enumerate(self.skips)},
            block={layer: parts[block + number] for number, layer in enumerate(MLP_LAYERS)},
            value={layer: parts[value + number] for number, layer in enumerate(ATTENTION_LAYERS)},
            smear=parts[smear][0],
            backout={layer: parts[smear + 1 + number][0] for number, layer in enumerate(self.backed_out)},
        )

    def pack(self, num_scalars: int) -> Tensor:
        """The vector at the start, [num_scalars] fp32, padding and all."""
        return torch.tensor([*self.initial, *[PADDING] * (num_scalars - len(self.initial))])


def _backed_out_layers(config: TrainConfig) -> tuple[int, ...]:
    match config.backout:
        case "none":
            return ()
        case "layer":
            return (config.backout_layer,)
        case "per_layer":
            return MLP_LAYERS


def _value_weights(layer: int) -> dict[str, float]:
    names = ["own", "table"] if layer in VALUE_TABLE_OF_LAYER else ["own"]
    return {f"value_{layer}_{name}": INITIAL_VALUE_WEIGHT for name in names}


def packed_num_scalars(config: TrainConfig, world_size: int) -> int:
    """Length of the packed vector. Raises TrainerError for a count too small, or one that the ranks do not divide."""
    num_named = len(ScalarLayout(config).names)
    smallest = math.ceil(num_named / world_size) * world_size
    if config.num_scalars is None:
        return smallest
    if config.num_scalars < num_named or config.num_scalars % world_size:
        raise TrainerError(
            f"num_scalars={config.num_scalars} must be {num_named} or more and a multiple of "
            f"the {world_size} ranks: --set num_scalars={smallest}",
            WRONG_USAGE,
        )
    return config.num_scalars
