"""On a GPU the kernels equal their float64 references, at awkward sizes and at the record's own, compiled and not."""

from __future__ import annotations

import kernel_references as references
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainer import head
from trainer.kernels import cross_entropy, symmetric
from trainer.orthogonalise import COEFFICIENTS, Method, orthogonalise
from trainer.reference import orthogonalised

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> None:
    torch._dynamo.reset()  # it gives up on a function that it has compiled for eight cases


RECORD_SHAPES = [(2, 768, 3072), (8, 768, 768)]
RECORD_VOCABULARY, RECORD_DIM = 50_304, 768


def _needs_fp8() -> None:
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs an H100 or a later GPU")


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("shape", references.SHAPES + RECORD_SHAPES)
def test_gram(shape: tuple[int, int, int], is_transposed: bool) -> None:
    references.check_gram(shape, "cuda", is_transposed=is_transposed)


@pytest.mark.parametrize("shape", references.SHAPES + RECORD_SHAPES)
def test_polynomial(shape: tuple[int, int, int]) -> None:
    references.check_polynomial(shape, "cuda")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("vocabulary", [*references.VOCABULARIES, RECORD_VOCABULARY])
def test_softcap_cross_entropy(vocabulary: int, dtype: torch.dtype) -> None:
    references.check_loss(vocabulary, "cuda", dtype)
    references.check_gradient(vocabulary, "cuda", dtype)


@pytest.mark.parametrize("vocabulary", [*references.VOCABULARIES, RECORD_VOCABULARY])
def test_fp8_gradients(vocabulary: int) -> None:
    _needs_fp8()
    references.check_fp8_gradients(vocabulary, "cuda")


def test_the_operators_keep_what_they_promise_torch() -> None:
    x = references.random_matrices((2, 64, 128), "cuda")
    logits_TV, targets_T = references.random_logits(97, "cuda", torch.float32)
    lse_T, weights_T = torch.ones(131, device="cuda"), torch.ones(131, device="cuda")
    # Dynamic shapes are of no use here: a tiling is chosen by numbers.
    checks = "test_schema", "test_autograd_registration", "test_faketensor"
    torch.library.opcheck(symmetric.gram, (x,), test_utils=checks)
    torch.library.opcheck(symmetric.symmetric_polynomial, (symmetric.gram(x), 1.0, 2.0, 3.0), test_utils=checks)
    torch.library.opcheck(cross_entropy.cross_entropy_op, (logits_TV, targets_T))
    torch.library.opcheck(cross_entropy.gradient_op, (logits_TV, targets_T, lse_T, weights_T))
    torch.library.opcheck(cross_entropy.gradient_in_place_op, (logits_TV, targets_T, lse_T, weights_T))


@pytest.mark.parametrize("method", COEFFICIENTS)
@pytest.mark.parametrize("shape", [(2, 256, 640), (2, 640, 256), (3, 300, 300)])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_newton_schulz(shape: tuple[int, int, int], method: Method, is_compiled: bool) -> None:
    """With symmetric products it stays about as near to the quintics of the singular values as with plain ones."""
    matrices = references.random_matrices(shape, "cuda")
    exact = torch.stack([orthogonalised(matrix, method) for matrix in matrices.double()])
    function = torch.compile(orthogonalise, dynamic=False, fullgraph=True) if is_compiled else orthogonalise
    plain, ours = (function(matrices, method, kernel).double() for kernel in ("torch", "triton"))
    errors = [float((found - exact).norm() / exact.norm()) for found in (plain, ours)]
    assert not torch.equal(plain, ours)
    assert errors[0] < 0.04
    assert errors[1] < 1.4 * errors[0]


def _head_inputs(num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator("cuda").manual_seed(1)
    x_TD = torch.randn(num_tokens, RECORD_DIM, generator=random, device="cuda")
    head_VD = 0.05 * torch.randn(RECORD_VOCABULARY, RECORD_DIM, generator=random, device="cuda")
    targets_T = torch.randint(0, RECORD_VOCABULARY, (num_tokens,), generator=random, device="cuda")
    return x_TD.bfloat16().requires_grad_(), head_VD.bfloat16().requires_grad_(), targets_T


@pytest.mark.parametrize("is_compiled", [False, True])
@pytest.mark.parametrize("matmul", ["bf16", "fp8"])
def test_the_whole_head_is_near_to_float64(matmul: head.Matmul, is_compiled: bool) -> None:
    """bf16 within its rounding; FP8 within that of e5m2, whose step is an eighth to a quarter of a value."""
    if matmul == "fp8":
        _needs_fp8()
    x_TD, head_VD, targets_T = _head_inputs(512)
    function = torch.compile(head.head_loss, dynamic=False, fullgraph=True) if is_compiled else head.head_loss
    loss = function(x_TD, None, None, head_VD, targets_T, None, matmul)
    loss.backward()
    exact_x_TD, exact_head_VD = (x.detach().double().requires_grad_() for x in (x_TD, head_VD))
    logits_TV = functional.rms_norm(exact_x_TD, (RECORD_DIM,)) @ exact_head_VD.T
    exact = functional.cross_entropy(30 * torch.sigmoid(logits_TV / 7.5), targets_T, reduction="sum")
    exact.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(loss.double(), exact, rtol=1e-3, atol=0)
    bound = 0.08 if matmul == "fp8" else 0.01
    for found, wanted in ((x_TD.grad, exact_x_TD.grad), (head_VD.grad, exact_head_VD.grad)):
        assert found is not None
        assert wanted is not None
        assert float((found.double() - wanted).norm() / wanted.norm()) < bound


def test_the_fp8_head_compiled_is_the_eager_one() -> None:
    _needs_fp8()
    found = []
    for function in (head.fp8_head_loss, torch.compile(head.fp8_head_loss, dynamic=False, fullgraph=True)):
        x_TD, head_VD, targets_T = _head_inputs(512)
        loss = function(x_TD, head_VD, targets_T)
        (0.25 * loss).backward()
        found.append((loss.detach(), x_TD.grad, head_VD.grad))
    for eager, compiled in zip(*found, strict=True):
        assert eager is not None
        assert compiled is not None
        assert float((eager.double() - compiled.double()).norm()) <= 1e-3 * float(eager.double().norm())
