"""Softcap and cross entropy in one: loss = log sum exp(z) - z[target] with z = 30 sigmoid(logit / 7.5).

Shapes: T tokens, V vocabulary. Forward reads the logits once; backward reads them once more and writes the gradient.
All arithmetic is fp32, whatever the logits' dtype. A negative target has no loss and no gradient. Operators that torch
knows with their shapes: Triton kernels where they can run, else the plain formula.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op, register_fake

from trainer.kernels import IS_INTERPRETED, takes_kernels

kernels: Any
try:
    from trainer.kernels import cross_entropy_triton as kernels
except ImportError:  # torch's CPU builds come without Triton
    kernels = None

CAP = 30.0
SLOPE = 7.5
FP8_GRADIENT_SCALE = 448.0
"""What gradients are multiplied by before they are rounded to e5m2: the published record's static scale."""

# Columns of a program's turn and its warps; for the FP8 gradients the tile, tokens x words. Fixed, so none is timed.
LOSS_BLOCK, LOSS_WARPS = 4096, 4
GRADIENT_BLOCK, GRADIENT_WARPS = 2048, 4
FP8_TILE, FP8_WARPS = (128, 128), 8


def has_kernels(logits_TV: Tensor) -> bool:
    """Whether the operators run as Triton kernels on `logits_TV`."""
    return kernels is not None and takes_kernels(logits_TV) and logits_TV.dtype in (torch.bfloat16, torch.float32)


def _loss(logits_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and log-sum-exp of every token, [T] fp32 each."""
    if not has_kernels(logits_TV):
        return _plain_loss(logits_TV, targets_T)
    logits_TV = _with_dense_rows(logits_TV)
    num_tokens, vocabulary = logits_TV.shape
    loss_T, lse_T = (logits_TV.new_empty(num_tokens, dtype=torch.float32) for _ in range(2))
    kernels.loss_kernel[(num_tokens,)](
        logits_TV,
        targets_T.contiguous(),
        loss_T,
        lse_T,
        logits_TV.stride(0),
        VOCABULARY=vocabulary,
        BLOCK=LOSS_BLOCK,
        num_warps=LOSS_WARPS,
    )
    return loss_T, lse_T


def _gradient(logits_TV: Tensor, targets_T: Tensor, lse_T: Tensor, weights_T: Tensor) -> Tensor:
    """d loss / d logits in the logits' dtype, contiguous. weights_T: the gradient of every token's loss, fp32."""
    gradient_TV = torch.empty_like(logits_TV, memory_format=torch.contiguous_format)
    _write_gradient(logits_TV, targets_T, lse_T, weights_T, gradient_TV)
    return gradient_TV


def _gradient_in_place(logits_TV: Tensor, targets_T: Tensor, lse_T: Tensor, weights_T: Tensor) -> None:
    """The same, over the logits: no memory but theirs."""
    _write_gradient(logits_TV, targets_T, lse_T, weights_T, logits_TV)


def _write_gradient(
    logits_TV: Tensor, targets_T: Tensor, lse_T: Tensor, weights_T: Tensor, gradient_TV: Tensor
) -> None:
    if not has_kernels(logits_TV) or logits_TV.stride(1) != 1:
        gradient_TV.copy_(_plain_slope(logits_TV, targets_T, lse_T) * weights_T[:, None])
        return
    num_tokens, vocabulary = logits_TV.shape
    kernels.gradient_kernel[(num_tokens,)](
        logits_TV,
        targets_T.contiguous(),
        lse_T,
        weights_T,
        gradient_TV,
        logits_TV.stride(0),
        gradient_TV.stride(0),
        weights_T.stride(0),
        VOCABULARY=vocabulary,
        BLOCK=GRADIENT_BLOCK,
        num_warps=GRADIENT_WARPS,
    )


def _fp8_gradients(logits_TV: Tensor, targets_T: Tensor, lse_T: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """FP8_GRADIENT_SCALE d loss / d logits for losses of weight 1, e5m2: as [T, V] and transposed as [V, T].

    weight: the gradient of the loss. It is not read: without it torch.compile would see nothing here that belongs to
    the backward pass, and run this in the forward pass, in validation too.
    """
    if not has_kernels(logits_TV):
        slope_TV = FP8_GRADIENT_SCALE * _plain_slope(logits_TV, targets_T, lse_T)
        return slope_TV.to(torch.float8_e5m2), slope_TV.T.contiguous().to(torch.float8_e5m2)
    logits_TV = _with_dense_rows(logits_TV)
    by_token_TV, by_word_VT = _fp8_gradient_shapes(logits_TV)
    if IS_INTERPRETED:  # Triton's interpreter loses the carry of what it rounds to e5m2: torch has to
        by_token_TV, by_word_VT = by_token_TV.float(), by_word_VT.float()
    num_tokens, vocabulary = logits_TV.shape
    block_tokens, block_words = FP8_TILE
    kernels.fp8_gradients_kernel[(-(-vocabulary // block_words), -(-num_tokens // block_tokens))](
        logits_TV,
        targets_T.contiguous(),
        lse_T,
        by_token_TV,
        by_word_VT,
        num_tokens,
        logits_TV.stride(0),
        VOCABULARY=vocabulary,
        BLOCK_TOKENS=block_tokens,
        BLOCK_WORDS=block_words,
        num_warps=FP8_WARPS,
    )
    return by_token_TV.to(torch.float8_e5m2), by_word_VT.to(torch.float8_e5m2)


def _with_dense_rows(x: Tensor) -> Tensor:
    return x if x.stride(1) == 1 else x.contiguous()


def _plain_loss(logits_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    capped_TV = CAP * torch.sigmoid(logits_TV.float() / SLOPE)
    lse_T = capped_TV.logsumexp(1)
    of_target_T = capped_TV.gather(1, targets_T.clamp_min(0).long()[:, None])[:, 0]
    return torch.where(targets_T >= 0, lse_T - of_target_T, 0.0), lse_T


def _plain_slope(logits_TV: Tensor, targets_T: Tensor, lse_T: Tensor) -> Tensor:
    """d loss / d logits for losses of weight 1, fp32."""
    share_TV = torch.sigmoid(logits_TV.float() / SLOPE)
    slope_TV = (CAP * share_TV - lse_T[:, None]).exp()
    slope_TV.scatter_add_(1, targets_T.clamp_min(0).long()[:, None], -torch.ones_like(lse_T)[:, None])
    slope_TV *= CAP / SLOPE * share_TV * (1 - share_TV)
    return torch.where(targets_T[:, None] >= 0, slope_TV, 0.0)


def _loss_shapes(logits_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    loss_T, lse_T = (logits_TV.new_empty(len(logits_TV), dtype=torch.float32) for _ in range(2))
    return loss_T, lse_T


def _gradient_shape(logits_TV: Tensor, targets_T: Tensor, lse_T: Tensor, weights_T: Tensor) -> Tensor:
    return torch.empty_like(logits_TV, memory_format=torch.contiguous_format)


def _fp8_gradient_shapes(logits_TV: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
    num_tokens, vocabulary = logits_TV.shape
    by_token_TV = logits_TV.new_empty(num_tokens, vocabulary, dtype=torch.float8_e5m2)
    return by_token_TV, logits_TV.new_empty(vocabulary, num_tokens, dtype=torch.float8_e5m2)


cross_entropy_op: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = custom_op(
    "trainer::softcap_cross_entropy", _loss, mutates_args=()
)
gradient_op: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = custom_op(
    "trainer::softcap_cross_entropy_gradient", _gradient, mutates_args=()
)
gradient_in_place_op: Callable[[Tensor, Tensor, Tensor, Tensor], None] = custom_op(
    "trainer::softcap_cross_entropy_gradient_in_place", _gradient_in_place, mutates_args=("logits_TV",)
)
fp8_gradients_op: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] = custom_op(
    "trainer::softcap_cross_entropy_fp8_gradients", _fp8_gradients, mutates_args=()
)
register_fake("trainer::softcap_cross_entropy", _loss_shapes)
register_fake("trainer::softcap_cross_entropy_gradient", _gradient_shape)
register_fake("trainer::softcap_cross_entropy_fp8_gradients", _fp8_gradient_shapes)


class _SoftcapCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_TV: Tensor, targets_T: Tensor) -> Tensor:
        loss_T, lse_T = cross_entropy_op(logits_TV, targets_T)
        ctx.save_for_backward(logits_TV, targets_T, lse_T)
        return loss_T

    @staticmethod
    def backward(ctx: Any, weights_T: Tensor) -> tuple[Tensor, None]:
        logits_TV, targets_T, lse_T = ctx.saved_tensors
        if torch.compiler.is_compiling():
            # A compiled graph copies what it is to change in place, which costs more than memory for the result.
            return gradient_op(logits_TV, targets_T, lse_T, weights_T), None
        gradient_in_place_op(logits_TV, targets_T, lse_T, weights_T)
        return logits_TV, None


def softcap_cross_entropy(logits_TV: Tensor, targets_T: Tensor) -> Tensor:
    """Cross entropy of each token under capped logits, [T] fp32. Eager backward overwrites the logits with their
    gradient, so nothing else may need them then."""
    loss_T: Tensor = _SoftcapCrossEntropy.apply(logits_TV, targets_T)  # type: ignore[no-untyped-call]
    return loss_T
