"""The model's end: backout, norm, head matmul, softcap and cross entropy.

Shapes: T tokens, D channels, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SOFTCAP = 15.0


def head_loss(
    x_TD: Tensor,
    backout_TD: Tensor | None,
    backout: Tensor | None,
    head_VD: Tensor,
    targets_T: Tensor,
    logits_dtype: torch.dtype | None = None,
) -> Tensor:
    """Sum over tokens of the cross entropy, under logits capped to 0 ... 30: the tanh softcap of 15, shifted by 15.

    backout_TD, backout   an earlier residual stream and the share of it to take off x first; None: nothing
    logits_dtype          what the matmul's result is rounded to before softcap and cross entropy; None: not at all
    """
    if backout_TD is not None and backout is not None:
        x_TD = x_TD - backout.type_as(x_TD) * backout_TD
    x_TD = functional.rms_norm(x_TD, (x_TD.size(-1),))
    logits_TV = functional.linear(x_TD, head_VD)
    logits_TV = logits_TV if logits_dtype is None else logits_TV.to(logits_dtype)
    logits_TV = 2 * SOFTCAP * torch.sigmoid(logits_TV / (SOFTCAP / 2))
    # Summed in fp32: a sum of 32,768 losses in bf16 would be off by half a percent.
    return functional.cross_entropy(logits_TV, targets_T, reduction="none").float().sum()
