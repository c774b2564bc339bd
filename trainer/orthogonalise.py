"""The nearest (semi-)orthogonal matrix, by a few matrix products: the heart of Muon."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trainer.config import NewtonSchulzKernel
from trainer.errors import ENVIRONMENT, TrainerError
from trainer.kernels import symmetric

Method = Literal["polar_express", "newton_schulz"]

POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
"""Each round's (a, b, c): the minimax quintics of The Polar Express (arXiv 2505.16932), five rounds, with the 2%
safety factor that the published speedrun trains with. They map a singular value from 0.01 to 1 close to 1."""

NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5
"""One quintic for every round, tuned for a steep start at 0: Keller Jordan's write-up of Muon (December 2024).
It ends anywhere between 0.7 and 1.2, which training does not mind."""

COEFFICIENTS: dict[Method, tuple[tuple[float, float, float], ...]] = {
    "polar_express": POLAR_EXPRESS,
    "newton_schulz": NEWTON_SCHULZ,
}

NORM_SAFETY = 1.02
"""The quintics diverge above 1, and bf16 rounds a norm by up to 1%: so matrices start 2% below 1."""

NORM_FLOOR = 1e-6
"""Keeps a matrix of zeros at zero."""


SMALLEST_SIDE = 256
"""Of matrices that the symmetric kernels take: below it every product is over before the next is launched."""


def check_kernel(kernel: NewtonSchulzKernel, device: torch.device) -> None:
    """Raises TrainerError where Triton's kernels are asked for by name and cannot run."""
    if kernel != "triton" or (device.type == "cuda" and symmetric.symmetric_kernel is not None):
        return
    lack = "Triton" if device.type == "cuda" else "a CUDA device"
    raise TrainerError(f"newton_schulz_kernel=triton needs {lack}: --set newton_schulz_kernel=auto", ENVIRONMENT)


def orthogonalise(matrices: Tensor, method: Method = "polar_express", kernel: NewtonSchulzKernel = "auto") -> Tensor:
    """U V^T of each matrix U S V^T of `matrices` (batch x rows x columns), approximately, in their dtype.

    A round is X <- a X + (b A + c A A) X with A = X X^T: an odd quintic applied to each singular value. The
    shorter side goes first, so that A is small. The scale of a matrix does not matter; one of zeros stays zero.

    kernel: torch: plain products. triton, auto: symmetric products at half the work, for bf16 matrices on a GPU
    whose sides are SMALLEST_SIDE or more; plain products for all others.
    """
    is_tall = matrices.size(-2) > matrices.size(-1)
    x = matrices.mT if is_tall else matrices
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) * NORM_SAFETY + NORM_FLOOR)
    is_halved = kernel != "torch" and x.size(-2) >= SMALLEST_SIDE and symmetric.has_kernels(x)
    for a, b, c in COEFFICIENTS[method]:
        if is_halved:
            # a X inside the product too, as a I: added by itself, torch would first copy all of X for it.
            x = torch.bmm(symmetric.symmetric_polynomial(symmetric.gram(x), a, b, c), x)
        else:
            gram = torch.bmm(x, x.mT)
            polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if is_tall else x
