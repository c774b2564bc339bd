"""Triton kernel of symmetric products: only the tiles on and under the diagonal are computed, the others mirrored."""

from __future__ import annotations

import triton
import triton.language as tl

from trainer.kernels import IS_INTERPRETED

# Triton's interpreter multiplies the bits of a bf16 as whole numbers; fp32 holds the products of bf16 exactly.
WIDENS = tl.constexpr(IS_INTERPRETED)


@triton.jit
def symmetric_kernel(
    x,  # [batch, rows, columns] bf16, any strides
    out,  # [batch, rows, rows] bf16, contiguous
    rows,
    columns,
    stride_batch,
    stride_row,
    stride_column,
    identity_weight,
    linear_weight,
    square_weight,
    IS_POLYNOMIAL: tl.constexpr,
    IS_EVEN: tl.constexpr,  # columns are a multiple of BLOCK_COLUMNS
    BLOCK: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """x x^T, or identity_weight I + linear_weight x + square_weight x x^T of a symmetric x; fp32 inside.

    One program is one tile: programs count along a triangle's rows, (0, 0), (1, 0), (1, 1), (2, 0) ...
    """
    num_tiles = tl.cdiv(rows, BLOCK)
    num_in_triangle = num_tiles * (num_tiles + 1) // 2
    matrix = (tl.program_id(0) // num_in_triangle).to(tl.int64)
    number = tl.program_id(0) % num_in_triangle
    tile_row = ((tl.sqrt(8.0 * number + 1.0) - 1.0) * 0.5).to(tl.int32)
    # The root may be off by its rounding.
    tile_row = tl.where((tile_row + 1) * (tile_row + 2) // 2 <= number, tile_row + 1, tile_row)
    tile_row = tl.where(tile_row * (tile_row + 1) // 2 > number, tile_row - 1, tile_row)
    tile_column = number - tile_row * (tile_row + 1) // 2

    x += matrix * stride_batch
    out += matrix * rows * rows
    of_row = tile_row * BLOCK + tl.arange(0, BLOCK)
    of_column = tile_column * BLOCK + tl.arange(0, BLOCK)
    of_inner = tl.arange(0, BLOCK_COLUMNS)
    # Rows past the edge read the last one again, which is cheaper than a mask; they are not stored.
    left = x + tl.minimum(of_row, rows - 1)[:, None] * stride_row + of_inner[None, :] * stride_column
    right = x + tl.minimum(of_column, rows - 1)[:, None] * stride_row + of_inner[None, :] * stride_column
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, columns, BLOCK_COLUMNS):
        if IS_EVEN:
            left_tile, right_tile = tl.load(left), tl.load(right)
        else:
            is_inside = (of_inner < columns - start)[None, :]
            left_tile, right_tile = tl.load(left, is_inside, 0.0), tl.load(right, is_inside, 0.0)
        if WIDENS:
            left_tile, right_tile = left_tile.to(tl.float32), right_tile.to(tl.float32)
        total = tl.dot(left_tile, tl.trans(right_tile), total)
        left += BLOCK_COLUMNS * stride_column
        right += BLOCK_COLUMNS * stride_column

    is_stored = (of_row < rows)[:, None] & (of_column < rows)[None, :]
    if IS_POLYNOMIAL:
        here = x + of_row[:, None] * stride_row + of_column[None, :] * stride_column
        linear = tl.load(here, is_stored, 0.0).to(tl.float32)
        total = square_weight * total + linear_weight * linear
        total += tl.where(of_row[:, None] == of_column[None, :], identity_weight, 0.0)
    tile = total.to(out.dtype.element_ty)
    tl.store(out + of_row[:, None] * rows + of_column[None, :], tile, is_stored)
    if tile_row != tile_column:
        mirrored = out + of_column[:, None] * rows + of_row[None, :]
        tl.store(mirrored, tl.trans(tile), (of_column < rows)[:, None] & (of_row < rows)[None, :])
