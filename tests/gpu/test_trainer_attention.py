"""On a GPU the fast attention kernels give what the reference gives, gradients included."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer.attention import attend, make_sight
from trainer.config import AttentionKernel, preset, with_settings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

NUM_TOKENS, NUM_HEADS, HEAD_DIM = 1024, 2, 128
STARTS = [0, 1, 130, 131, 700]


def _attend(kernel: AttentionKernel, window: int, qkv: list[Tensor], dy: Tensor) -> list[Tensor]:
    """Output and the gradients of q, k and v, fp32."""
    sizes = [f"micro_batch_tokens={NUM_TOKENS}", "max_document_tokens=600", f"attention={kernel}", "compile=off"]
    config = with_settings(preset("tiny_cpu"), sizes)
    cu_seqlens = torch.tensor(STARTS + [NUM_TOKENS] * 12, dtype=torch.int32, device="cuda")
    sight = make_sight(config, cu_seqlens, window, torch.bfloat16)
    leaves = [x.clone().requires_grad_() for x in qkv]
    function = torch.compile(attend, dynamic=False, fullgraph=True) if kernel != "reference" else attend
    y = function(*leaves, sight)
    y.backward(dy)
    return [x.float() for x in (y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None))]


@pytest.mark.parametrize("window", [64, 192, 2048])
@pytest.mark.parametrize("kernel", ["varlen", "flex"])
def test_a_kernel_gives_what_the_reference_gives(kernel: AttentionKernel, window: int) -> None:
    random = torch.Generator("cuda").manual_seed(0)
    shape = NUM_TOKENS, NUM_HEADS, HEAD_DIM
    q, k, v, dy = (torch.randn(shape, generator=random, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    qkv = [0.1 * q, k, v]
    for name, one, other in zip(
        ("y", "dq", "dk", "dv"), _attend(kernel, window, qkv, dy), _attend("reference", window, qkv, dy), strict=True
    ):
        torch.testing.assert_close(one, other, atol=5e-2, rtol=5e-2, msg=lambda text, name=name: f"{name}: {text}")
