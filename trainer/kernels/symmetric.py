"""Symmetric matrix products of Newton-Schulz, at half the work: X X^T, and the polynomial a I + b A + c A A.

bfloat16 in and out, fp32 sums. Operators made of Triton kernels that torch.compile sees through; where no kernel can
run they are the plain products.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op, register_fake, triton_op, wrap_triton

from trainer.kernels import takes_kernels

symmetric_kernel: Any
try:
    from trainer.kernels.symmetric_triton import symmetric_kernel
except ImportError:  # torch's CPU builds come without Triton
    symmetric_kernel = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How one program of the kernel works."""

    block: int  # rows and columns of its tile of the result
    block_columns: int  # of X, multiplied at a time
    num_warps: int
    num_stages: int  # blocks of columns under way at once


# Registers and shared memory of both leave room for two programs a processor, the polynomial's too.
LARGE = Tiling(block=128, block_columns=64, num_warps=4, num_stages=3)
SMALL = Tiling(block=64, block_columns=64, num_warps=4, num_stages=4)
NUM_PROCESSORS = 132  # of an H100 or H200


def choose_tiling(batch: int, rows: int) -> Tiling:
    """The tiling for a batch x rows x rows result: the large one, unless that leaves processors without a tile.

    Two tilings, chosen by shape and never timed at run time: a choice costs no start-up, and a run does the same
    arithmetic every time. Of the record's shapes only 2 x 768 x 3072 takes the small one (42 large tiles).
    """
    num_tiles = -(-rows // LARGE.block)
    return LARGE if batch * num_tiles * (num_tiles + 1) // 2 >= NUM_PROCESSORS else SMALL


def has_kernels(x: Tensor) -> bool:
    """Whether the operators run as Triton kernels on `x`."""
    return symmetric_kernel is not None and takes_kernels(x) and x.dtype == torch.bfloat16


def _gram(x: Tensor) -> Tensor:
    return _product(x, None) if has_kernels(x) else torch.bmm(x, x.mT)


def _symmetric_polynomial(a: Tensor, identity_weight: float, linear_weight: float, square_weight: float) -> Tensor:
    if has_kernels(a):
        return _product(a, (identity_weight, linear_weight, square_weight))
    # Rounded once, as in the kernel: adding the identity to what is rounded would cost three times the error.
    wide = a.to(torch.promote_types(a.dtype, torch.float32))
    polynomial = torch.baddbmm(wide, wide, wide.mT, beta=linear_weight, alpha=square_weight)
    polynomial.diagonal(dim1=-2, dim2=-1).add_(identity_weight)
    return polynomial.to(a.dtype, copy=True)


def _product(x: Tensor, weights: tuple[float, float, float] | None, tiling: Tiling | None = None) -> Tensor:
    batch, rows, columns = x.shape
    tiling = tiling or choose_tiling(batch, rows)
    out = x.new_empty(batch, rows, rows)
    num_tiles = -(-rows // tiling.block)
    wrap_triton(symmetric_kernel)[(batch * num_tiles * (num_tiles + 1) // 2,)](
        x,
        out,
        rows,
        columns,
        *x.stride(),
        *(weights or (0.0, 0.0, 0.0)),
        IS_POLYNOMIAL=weights is not None,
        IS_EVEN=columns % tiling.block_columns == 0,
        BLOCK=tiling.block,
        BLOCK_COLUMNS=tiling.block_columns,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    return out


# torch.compile sees through the one and calls the other as it is; without Triton the one warns on being made.
_operator = custom_op if symmetric_kernel is None else triton_op

gram: Callable[[Tensor], Tensor] = _operator("trainer::gram", _gram, mutates_args=())
"""X X^T. X: batch x rows x columns, any strides. Returns batch x rows x rows, contiguous; what lies outside the tiles
on the diagonal is exactly symmetric."""

symmetric_polynomial: Callable[[Tensor, float, float, float], Tensor] = _operator(
    "trainer::symmetric_polynomial", _symmetric_polynomial, mutates_args=()
)
"""(A, i, l, s) -> i I + l A + s A A^T. A: batch x rows x rows and symmetric, as only its lower tiles are read for l A.
Returns batch x rows x rows, contiguous."""


def _like_gram(x: Tensor, *_: float) -> Tensor:
    return x.new_empty(x.size(0), x.size(1), x.size(1))


register_fake("trainer::gram", _like_gram)
register_fake("trainer::symmetric_polynomial", _like_gram)
