"""What the learned lambdas came to: their table by layer, and the share with which each layer reaches the prediction.

Every layer makes x_i = a_i (x_(i-1) + skips) + b_i x_0 + r_i, where r_i is what its attention and MLP add. Unrolled,
the residual stream after the last layer n holds r_i times a_(i+1) ... a_n; with one a for all, a^(n-i), as the note of
the record of 134.9 s has it. Skips carry more of r_i there, and backout takes some of it away.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from trainer.config import TrainConfig
from trainer.pattern import LAST_LAYER, MLP_LAYERS

_COLUMNS = ("layer", "a", "b", "carried", "reaching", "V own", "V table", "backout")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerShare:
    """One layer's lambdas and what follows from them.

    x, x0            a and b
    carried          a_(i+1) ... a_n: what the block lambdas alone leave of r_i in the residual stream's end
    reaching         what reaches the prediction of r_i, skips added and backout taken off, before the last norm
    own, table       weights of V and of the value embedding; None where the layer has none
    backout          the coefficient of what is backed out after this layer, or of its own part; None: there is none
    """

    layer: int
    x: float
    x0: float
    carried: float
    reaching: float
    own: float | None
    table: float | None
    backout: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LambdaTable:
    """All layers from 1 on; `embedding` is what reaches the prediction of x_0, by every way.

    skips      pair as it is spelled -> the share that its gate lets through
    """

    layers: tuple[LayerShare, ...]
    embedding: float
    skips: Mapping[str, float]
    smear: float
    is_per_layer: bool

    def describe(self) -> str:
        """Lines for the log."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield "learned lambdas: each layer makes x <- a x + b x0, then adds its own part"
        yield _row(_COLUMNS)
        for share in self.layers:
            numbers = (share.x, share.x0, share.carried, share.reaching, share.own, share.table, share.backout)
            yield _row([str(share.layer), *("" if number is None else f"{number:.4f}" for number in numbers)])
        skips = "".join(f"  skip {pair} {share:.4f}" for pair, share in self.skips.items())
        yield f"x0 reaching {self.embedding:.4f}{skips}  smear {self.smear:.4f}"
        yield "carried: what later a leave of a layer's part; reaching: the same, skips added and backout taken off"
        if self.is_per_layer:
            yield describe_choice([share.backout or 0.0 for share in self.layers])


def describe_choice(coefficients: Sequence[float]) -> str:
    """The layer after which to back out, from one coefficient a layer."""
    last = chosen_layer(coefficients)
    if last == 0:
        return "backout: the first coefficients add up to nothing positive, so there is nothing to back out"
    return (
        f"backout: the coefficients up to layer {last} add up to most: --set backout=layer --set backout_layer={last}"
    )


def chosen_layer(coefficients: Sequence[float]) -> int:
    """The layer up to which the coefficients, one a layer, add up to most; 0 where no such sum is positive.

    The record of 140.7 s chose 8, where its note's coefficients turn from positive to negative for good. The sum finds
    that turn, and a first layer of the other sign does not mislead it.
    """
    sums = [0.0, *itertools.accumulate(coefficients)]
    return sums.index(max(sums))


def lambda_table(config: TrainConfig, values: Mapping[str, float]) -> LambdaTable:
    """From the numbers of the packed vector by name (trainer/scalars.py)."""
    gates = {pair: _open(config, values[f"skip_{pair[0]}_{pair[1]}"]) for pair in config.skips}
    backout = {layer: values[f"backout_{layer}"] for layer in MLP_LAYERS if f"backout_{layer}" in values}
    reaching = _reaching(config, values, gates, backout)
    layers = tuple(
        LayerShare(
            layer=layer,
            x=values[f"block_{layer}_x"],
            x0=values[f"block_{layer}_x0"],
            carried=math.prod(values[f"block_{later}_x"] for later in range(layer + 1, LAST_LAYER + 1)),
            reaching=reaching[layer],
            own=values.get(f"value_{layer}_own"),
            table=values.get(f"value_{layer}_table"),
            backout=backout.get(layer),
        )
        for layer in MLP_LAYERS
    )
    return LambdaTable(
        layers=layers,
        embedding=reaching[0],
        skips={f"{source}-{target}": share for (source, target), share in gates.items()},
        smear=values["smear"],
        is_per_layer=config.backout == "per_layer",
    )


def _reaching(
    config: TrainConfig,
    values: Mapping[str, float],
    gates: Mapping[tuple[int, int], float],
    backout: Mapping[int, float],
) -> list[float]:
    """The derivative of the last residual stream, backout taken off, by r_i; by x_0 at index 0. From the end back."""
    is_per_layer = config.backout == "per_layer"
    of_output = [0.0] * LAST_LAYER + [1.0]  # of what each layer puts out
    if not is_per_layer:
        for layer, share in backout.items():
            of_output[layer] -= share
    of_embedding = 0.0
    for layer in reversed(MLP_LAYERS):
        taken = backout[layer] if is_per_layer else 0.0  # of the layer's output less its input
        of_output[layer] -= taken
        of_embedding += values[f"block_{layer}_x0"] * of_output[layer]
        of_input = values[f"block_{layer}_x"] * of_output[layer] + taken
        of_output[layer - 1] += of_input
        for (source, target), share in gates.items():
            if target == layer:
                of_output[source] += share * of_input
    of_output[0] += of_embedding
    return of_output


def _open(config: TrainConfig, weight: float) -> float:
    return 1 / (1 + math.exp(-weight)) if config.skip_gate == "sigmoid" else weight


def _row(cells: Sequence[str]) -> str:
    return "".join(f"{cell:>10}" for cell in cells).rstrip()
