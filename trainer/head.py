"""The model's end: backout, norm, head matmul, softcap and cross entropy.

Shapes: T tokens, D channels, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from trainer.config import HeadMatmul
from trainer.errors import ENVIRONMENT, TrainerError
from trainer.kernels import cross_entropy
from trainer.kernels.cross_entropy import FP8_GRADIENT_SCALE, softcap_cross_entropy

SOFTCAP = 15.0

Matmul = Literal["fp8", "bf16"]
"""How the head's products are taken; bf16 stands for the activations' own dtype."""

E4M3_MAX = 448.0
WEIGHT_UNIT = 2.0**-9
"""What one e4m3 step of 1 of the head's weights means: they reach +-0.875, as in the published record."""

FP8_MULTIPLE = 16
"""Sizes of an FP8 product must be multiples of it."""


def choose_matmul(wanted: HeadMatmul, device: torch.device, dtype: torch.dtype, *sizes: int) -> Matmul:
    """What `wanted` comes to here. Raises TrainerError where FP8 is asked for by name and cannot be had.

    auto is fp8 on GPUs of compute capability 9.0 and later (H100) for bf16 activations, else bf16.
    sizes: channels, vocabulary and tokens of a row
    """
    if device.type == "meta":
        return "bf16"
    lack = None
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (9, 0):
        lack = "an H100 or a later GPU"
    elif dtype != torch.bfloat16:
        lack = "precision=bf16"
    elif any(size % FP8_MULTIPLE for size in sizes):
        lack = f"dim, vocab_size and micro_batch_tokens that are multiples of {FP8_MULTIPLE}"
    if wanted == "fp8" and lack is not None:
        raise TrainerError(f"head_matmul=fp8 needs {lack}: --set head_matmul=auto takes what there is", ENVIRONMENT)
    return "bf16" if wanted == "bf16" or lack is not None else "fp8"


def head_loss(
    x_TD: Tensor,
    backout_TD: Tensor | None,
    backout: Tensor | None,
    head_VD: Tensor,
    targets_T: Tensor,
    logits_dtype: torch.dtype | None = None,
    matmul: Matmul = "bf16",
) -> Tensor:
    """Sum over tokens of the cross entropy, under logits capped to 0 ... 30: the tanh softcap of 15, shifted by 15.

    backout_TD, backout   an earlier residual stream and the share of it to take off x first; None: nothing
    logits_dtype          what the matmul's result is rounded to before softcap and cross entropy; None: not at all
    matmul                fp8: see `fp8_head_loss`

    On a GPU, bf16 logits go through one kernel each way, which computes in fp32 whatever `logits_dtype` says.
    """
    if backout_TD is not None and backout is not None:
        x_TD = x_TD - backout.type_as(x_TD) * backout_TD
    x_TD = functional.rms_norm(x_TD, (x_TD.size(-1),))
    if matmul == "fp8":
        return fp8_head_loss(x_TD, head_VD, targets_T)
    logits_TV = functional.linear(x_TD, head_VD)
    if logits_TV.dtype == torch.bfloat16 and cross_entropy.has_kernels(logits_TV):
        return softcap_cross_entropy(logits_TV, targets_T).sum()
    logits_TV = logits_TV if logits_dtype is None else logits_TV.to(logits_dtype)
    logits_TV = 2 * SOFTCAP * torch.sigmoid(logits_TV / (SOFTCAP / 2))
    # Summed in fp32: a sum of 32,768 losses in bf16 would be off by half a percent.
    return functional.cross_entropy(logits_TV, targets_T, reduction="none").float().sum()


def fp8_head_loss(x_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> Tensor:
    """The summed loss with all three head products in FP8: e4m3 for x and weights, e5m2 for the logits' gradient.

    x_TD must be normed: none of its values then exceeds sqrt(D), which becomes e4m3's largest, 448. Weights beyond
    +-0.875 count as that. The gradient of the loss itself is a factor of the products, so it may be of any size.
    """
    loss: Tensor = _Fp8HeadLoss.apply(x_TD, head_VD, targets_T)  # type: ignore[no-untyped-call]
    return loss


class _Fp8HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> Tensor:
        x_f8_TD, head_f8_VD = _to_e4m3(x_TD, _x_unit(x_TD)), _to_e4m3(head_VD, WEIGHT_UNIT)
        logits_TV = _fp8_product(x_f8_TD, head_f8_VD.T, _x_unit(x_TD), WEIGHT_UNIT, is_exact=False)
        loss_T, lse_T = cross_entropy.cross_entropy_op(logits_TV, targets_T)
        ctx.save_for_backward(x_f8_TD, head_f8_VD, logits_TV, targets_T, lse_T)
        return loss_T.sum()

    @staticmethod
    def backward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor, None]:
        x_f8_TD, head_f8_VD, logits_TV, targets_T, lse_T = ctx.saved_tensors
        slope_TV, slope_VT = cross_entropy.fp8_gradients_op(logits_TV, targets_T, lse_T, weight)
        unit = weight.float() / FP8_GRADIENT_SCALE
        # The second factor of an FP8 product must lie column by column.
        dx_TD = _fp8_product(slope_TV, head_f8_VD.T.contiguous().T, unit, WEIGHT_UNIT, is_exact=True)
        dhead_VD = _fp8_product(slope_VT, x_f8_TD.T.contiguous().T, unit, _x_unit(x_f8_TD), is_exact=True)
        return dx_TD, dhead_VD, None


def _x_unit(x_TD: Tensor) -> float:
    """What one e4m3 step of 1 of a normed x means."""
    return math.sqrt(x_TD.size(1)) / E4M3_MAX


def _to_e4m3(x: Tensor, unit: float) -> Tensor:
    # Clamped because torch rounds what e4m3 cannot hold to NaN.
    return (x.float() * (1 / unit)).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn)


def _fp8_product(a: Tensor, b: Tensor, a_unit: float | Tensor, b_unit: float | Tensor, *, is_exact: bool) -> Tensor:
    """a_unit a @ b_unit b in bf16. is_exact: fp32 sums throughout, which the long sums of gradients need."""
    units = (
        unit if isinstance(unit, Tensor) else torch.full((), unit, dtype=torch.float32, device=a.device)
        for unit in (a_unit, b_unit)
    )
    scale_a, scale_b = units
    return torch._scaled_mm(
        a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16, use_fast_accum=not is_exact
    )
