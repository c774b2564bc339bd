"""The model's end: backout, norm, head matmul, softcap and cross entropy.

Shapes: T tokens, D channels, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

SOFTCAP = 15.0


def head_loss(x_TD: Tensor, backout_TD: Tensor, backout: Tensor, head_VD: Tensor, targets_T: Tensor) -> Tensor:
    """Sum over tokens of the cross entropy, under logits capped to 0 ... 30: the tanh softcap of 15, shifted by 15."""
    x_TD = x_TD - backout.type_as(x_TD) * backout_TD
    x_TD = functional.rms_norm(x_TD, (x_TD.size(-1),))
    logits_TV = 2 * SOFTCAP * torch.sigmoid(functional.linear(x_TD, head_VD) / (SOFTCAP / 2))
    # Summed in fp32: a sum of 32,768 losses in bf16 would be off by half a percent.
    return functional.cross_entropy(logits_TV, targets_T, reduction="none").float().sum()
