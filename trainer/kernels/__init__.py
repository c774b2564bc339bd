"""Triton kernels of the trainer, each beside the plain formula that it replaces.

Every pair of files is one kernel: `<name>.py` has the operators that torch knows, with shapes for tracing and the
plain formula, and imports without Triton; `<name>_triton.py` has the kernels themselves.
"""

from __future__ import annotations

import os

from torch import Tensor

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton runs its kernels on the CPU, as tests do; it reads this when it is imported."""


def takes_kernels(x: Tensor) -> bool:
    """Whether Triton kernels, if there are any here, can run on `x`."""
    return x.is_cuda or (IS_INTERPRETED and x.device.type == "cpu")
