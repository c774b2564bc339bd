"""What an optimizer remembers on this rank, said so that ranks of any number can put it together and share it anew."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardState:
    """This rank's part of the state of one parameter, as views: copying into them loads a state.

    index     which of the optimizer's parameters
    begin     where the part begins in the whole state of the parameter, along the first dimension
    tensors   name -> the part. Muon: "momentum" and "mean_square", float32, [matrices, ...], always whole (an
              attention parameter is 4 matrices). Adam: "mean" and "mean_square", [rows, ...], in its state's dtype
    """

    index: int
    begin: int
    tensors: dict[str, Tensor]
