"""Causal attention inside documents, over a sliding window, by one of three kernels chosen by name.

Shapes: T tokens of a packed row, H heads, C channels of a head.

    reference  torch's scaled_dot_product_attention under an explicit T x T mask; any device
    flex       torch's flex_attention under a block mask, CUDA
    varlen     torch's own FlashAttention-2 for packed sequences, CUDA, bf16

A query at t sees the keys t - window ... t of its own document: window + 1 of them, as FlashAttention counts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from trainer.config import AttentionKernel, TrainConfig


class Sight(NamedTuple):
    """What the queries of a row may see; each kernel fills its own fields.

    mask: reference: [T, T], 0 where seen and -inf elsewhere, in the activations' dtype. flex: a BlockMask.
    cu_seqlens, window, max_document_tokens: varlen.
    """

    kernel: AttentionKernel
    mask: Any = None
    cu_seqlens: Tensor | None = None
    window: int = 0
    max_document_tokens: int = 0


def document_ids(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """Number of each token's document, [T] int64; empty documents at the end own no token."""
    positions = torch.arange(num_tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.searchsorted(cu_seqlens, positions, right=True) - 1


def make_sight(config: TrainConfig, cu_seqlens: Tensor, window_tokens: int, dtype: torch.dtype) -> Sight:
    """What one row's queries see through a window. Once per row and window, outside the compiled model."""
    num_tokens = config.micro_batch_tokens
    if config.attention == "varlen":
        return Sight("varlen", None, cu_seqlens, window_tokens, config.max_document_tokens)
    documents = document_ids(cu_seqlens, num_tokens)
    if config.attention == "flex":
        return Sight("flex", _block_mask(documents, window_tokens))
    return Sight("reference", _dense_mask(documents, window_tokens, dtype))


def _dense_mask(documents_T: Tensor, window_tokens: int, dtype: torch.dtype) -> Tensor:
    positions = torch.arange(len(documents_T), device=documents_T.device)
    distance = positions[:, None] - positions[None, :]
    is_seen = (distance >= 0) & (distance <= window_tokens) & (documents_T[:, None] == documents_T[None, :])
    return torch.zeros(is_seen.shape, dtype=dtype, device=is_seen.device).masked_fill_(~is_seen, float("-inf"))


def _block_mask(documents_T: Tensor, window_tokens: int) -> BlockMask:
    # The window is a tensor, so that a new window does not compile the mask's kernel again.
    is_seen = _seen(documents_T, torch.full((), window_tokens, device=documents_T.device))
    num_tokens = len(documents_T)
    return _compiled_create_block_mask()(is_seen, None, None, num_tokens, num_tokens, device=documents_T.device.type)


@functools.cache
def _compiled_create_block_mask() -> Callable[..., BlockMask]:
    """Compiled, or the mask would be made at full size first: a gigabyte at 32,768 tokens."""
    return torch.compile(create_block_mask, dynamic=False)


def _seen(documents_T: Tensor, window: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """What flex_attention asks for every batch, head, query and key."""

    def is_seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        distance = query - key
        return (distance >= 0) & (distance <= window) & (documents_T[query] == documents_T[key])

    return is_seen


def attend(q_THC: Tensor, k_THC: Tensor, v_THC: Tensor, sight: Sight) -> Tensor:
    """Softmax attention, [T, H, C] in and out; the scores are not scaled (q carries the scale)."""
    if sight.kernel == "varlen":
        assert sight.cu_seqlens is not None
        y_THC: Tensor
        y_THC, _ = varlen_attention(q_THC, k_THC, v_THC, sight.cu_seqlens, sight.max_document_tokens, sight.window)
        return y_THC
    q, k, v = (x_THC.transpose(0, 1)[None] for x_THC in (q_THC, k_THC, v_THC))
    if sight.kernel == "flex":
        y = flex_attention(q, k, v, block_mask=sight.mask, scale=1.0)
        assert isinstance(y, Tensor)
    else:
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=sight.mask, scale=1.0)
    return y[0].transpose(0, 1)


@torch.library.custom_op("trainer::varlen_attention", mutates_args=())
def varlen_attention(
    q_THC: Tensor, k_THC: Tensor, v_THC: Tensor, cu_seqlens: Tensor, max_document_tokens: int, window: int
) -> tuple[Tensor, Tensor]:
    """FlashAttention-2 over packed documents: output [T, H, C] and log-sum-exp [H, T] fp32."""
    y_THC, lse_HT, _, _, _ = torch.ops.aten._flash_attention_forward(
        q_THC,
        k_THC,
        v_THC,
        cu_seqlens,
        cu_seqlens,
        max_document_tokens,
        max_document_tokens,
        0.0,
        False,  # the window's right side of 0 makes it causal
        False,
        scale=1.0,
        window_size_left=window,
        window_size_right=0,
    )
    return y_THC.contiguous(), lse_HT


@varlen_attention.register_fake
def _(
    q_THC: Tensor, k_THC: Tensor, v_THC: Tensor, cu_seqlens: Tensor, max_document_tokens: int, window: int
) -> tuple[Tensor, Tensor]:
    num_tokens, num_heads, _ = q_THC.shape
    return q_THC.new_empty(q_THC.shape), q_THC.new_empty((num_heads, num_tokens), dtype=torch.float32)


@torch.library.custom_op("trainer::varlen_attention_backward", mutates_args=())
def _varlen_attention_backward(
    dy_THC: Tensor,
    q_THC: Tensor,
    k_THC: Tensor,
    v_THC: Tensor,
    y_THC: Tensor,
    lse_HT: Tensor,
    cu_seqlens: Tensor,
    max_document_tokens: int,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    # The random state matters to dropout alone, which is 0.
    random_state = torch.zeros(2, dtype=torch.uint64, device=q_THC.device)
    unused = torch.empty(0, device=q_THC.device)
    dq_THC, dk_THC, dv_THC = torch.ops.aten._flash_attention_backward(
        dy_THC.contiguous(),
        q_THC,
        k_THC,
        v_THC,
        y_THC,
        lse_HT,
        cu_seqlens,
        cu_seqlens,
        max_document_tokens,
        max_document_tokens,
        0.0,
        False,
        random_state,
        unused,
        scale=1.0,
        window_size_left=window,
        window_size_right=0,
    )
    return dq_THC.contiguous(), dk_THC.contiguous(), dv_THC.contiguous()


@_varlen_attention_backward.register_fake
def _(
    dy_THC: Tensor,
    q_THC: Tensor,
    k_THC: Tensor,
    v_THC: Tensor,
    y_THC: Tensor,
    lse_HT: Tensor,
    cu_seqlens: Tensor,
    max_document_tokens: int,
    window: int,
) -> tuple[Tensor, Tensor, Tensor]:
    return q_THC.new_empty(q_THC.shape), k_THC.new_empty(k_THC.shape), v_THC.new_empty(v_THC.shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q_THC, k_THC, v_THC, cu_seqlens, max_document_tokens, window = inputs
    ctx.save_for_backward(q_THC, k_THC, v_THC, *output, cu_seqlens)
    ctx.max_document_tokens = max_document_tokens
    ctx.window = window


def _differentiate(ctx: Any, dy_THC: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    gradients = _varlen_attention_backward(dy_THC, *ctx.saved_tensors, ctx.max_document_tokens, ctx.window)
    return *gradients, None, None, None


varlen_attention.register_autograd(_differentiate, setup_context=_save_for_backward)
