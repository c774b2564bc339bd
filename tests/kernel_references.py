"""The trainer's kernels against float64, on random input of awkward sizes; for the CPU, the interpreter and a GPU.

Every `check_` takes the device. Bounds are those of the arithmetic: half a step of the result's format for the last
rounding (a whole one under Triton's interpreter, which cuts off instead of rounding to nearest), and for sums of n fp32
products a small multiple of 2^-24 times the sum of their sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trainer.kernels import IS_INTERPRETED, cross_entropy, symmetric
from trainer.kernels.symmetric import LARGE, SMALL

BF16_ERROR = 2.0**-7 if IS_INTERPRETED else 2.0**-8
FP32_ERROR = 2.0**-24
SHAPES = [(2, 70, 130), (1, 64, 64), (3, 1, 5), (1, 200, 100), (2, 129, 48)]
VOCABULARIES = [97, 4096, 6147]
IGNORED = -100


def random_matrices(shape: tuple[int, int, int], device: str, *, is_transposed: bool = False) -> Tensor:
    """bf16 matrices of about unit norm; `is_transposed`: with columns in memory one after the other."""
    random = torch.Generator().manual_seed(sum(shape))
    batch, rows, columns = shape
    x = (torch.randn(batch, columns, rows, generator=random) / columns**0.5).to(device, torch.bfloat16).mT
    return x if is_transposed else x.contiguous()


def check_gram(shape: tuple[int, int, int], device: str, *, is_transposed: bool = False) -> None:
    x = random_matrices(shape, device, is_transposed=is_transposed)
    exact = x.double() @ x.double().mT
    sizes = x.double().abs() @ x.double().abs().mT
    for gram in _with_every_tiling(x, None):
        assert gram.shape == exact.shape
        assert gram.is_contiguous()
        assert_within(gram, exact, BF16_ERROR * exact.abs() + 8 * FP32_ERROR * sizes)
        if device != "cpu":
            assert torch.equal(gram, gram.mT), "not symmetric"


def check_polynomial(shape: tuple[int, int, int], device: str) -> None:
    x = random_matrices(shape, device)
    a = (x.float() @ x.float().mT).bfloat16()
    a = torch.tril(a) + torch.tril(a, -1).mT
    weights = 8.156, -22.483, 15.879
    identity = torch.eye(a.size(1), dtype=torch.float64, device=device)
    terms = weights[0] * identity, weights[1] * a.double(), weights[2] * a.double() @ a.double().mT
    sizes = sum(term.abs() for term in terms[:2]) + weights[2] * a.double().abs() @ a.double().abs().mT
    exact = sum(terms)
    assert isinstance(exact, Tensor)
    for polynomial in _with_every_tiling(a, weights):
        # The plain formula rounds to bf16 twice: before the identity is added and after.
        error = BF16_ERROR * (exact.abs() + (0 if symmetric.has_kernels(a) else weights[0] + sizes))
        assert_within(polynomial, exact, error + 8 * FP32_ERROR * sizes)


def _with_every_tiling(x: Tensor, weights: tuple[float, float, float] | None) -> list[Tensor]:
    """The operator's result and, where the kernel runs, that of each tiling."""
    results = [symmetric.gram(x) if weights is None else symmetric.symmetric_polynomial(x, *weights)]
    if symmetric.has_kernels(x):
        results += [symmetric._product(x, weights, tiling) for tiling in (SMALL, LARGE)]
    return results


def random_logits(vocabulary: int, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[T, V] logits, some far outside the cap's bend, and [T] targets, one of them ignored; T is 131."""
    random = torch.Generator().manual_seed(vocabulary)
    logits_TV = 10 * torch.randn(131, vocabulary, generator=random)
    logits_TV[0, 0], logits_TV[1, 1] = 200, -200
    targets_T = torch.randint(0, vocabulary, (131,), generator=random)
    targets_T[0], targets_T[1], targets_T[3], targets_T[4] = 0, 1, IGNORED, vocabulary - 1
    return logits_TV.to(device, dtype), targets_T.to(device)


def exact_loss(logits_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, log-sum-exp and d sum of losses / d logits in float64."""
    leaf_TV = logits_TV.detach().double().requires_grad_()
    capped_TV = 30 * torch.sigmoid(leaf_TV / 7.5)
    loss_T = functional.cross_entropy(capped_TV, targets_T, reduction="none", ignore_index=IGNORED)
    (gradient_TV,) = torch.autograd.grad(loss_T.sum(), leaf_TV)
    return loss_T.detach(), capped_TV.logsumexp(1).detach(), gradient_TV


def check_loss(vocabulary: int, device: str, dtype: torch.dtype) -> None:
    logits_TV, targets_T = random_logits(vocabulary, device, dtype)
    loss_T, lse_T = cross_entropy.cross_entropy_op(logits_TV, targets_T)
    exact_loss_T, exact_lse_T, _ = exact_loss(logits_TV, targets_T)
    # 30 in fp32 is exact to 2e-6, and sigmoid to a few units in its last place.
    torch.testing.assert_close(loss_T.double(), exact_loss_T, rtol=0, atol=2e-5)
    torch.testing.assert_close(lse_T.double(), exact_lse_T, rtol=0, atol=2e-5)
    assert loss_T[3] == 0


def check_gradient(vocabulary: int, device: str, dtype: torch.dtype) -> None:
    """Both operators, and the autograd function, whose backward overwrites the logits."""
    logits_TV, targets_T = random_logits(vocabulary, device, dtype)
    _, lse_T, exact_TV = exact_loss(logits_TV, targets_T)
    weights_T = torch.linspace(0.5, 2, len(targets_T), device=device)
    exact_TV *= weights_T.double()[:, None]
    # An error e of z or lse is a relative error e of a probability.
    bound_TV = (2e-5 + (BF16_ERROR if dtype == torch.bfloat16 else 0)) * exact_TV.abs() + 2e-6
    assert_within(cross_entropy.gradient_op(logits_TV, targets_T, lse_T.float(), weights_T), exact_TV, bound_TV)
    in_place_TV = logits_TV.clone()
    cross_entropy.gradient_in_place_op(in_place_TV, targets_T, lse_T.float(), weights_T)
    assert_within(in_place_TV, exact_TV, bound_TV)
    leaf_TV = logits_TV.clone().requires_grad_()
    (cross_entropy.softcap_cross_entropy(leaf_TV * 1, targets_T) * weights_T).sum().backward()  # type: ignore[no-untyped-call]
    assert leaf_TV.grad is not None
    assert_within(leaf_TV.grad, exact_TV, bound_TV)


def check_fp8_gradients(vocabulary: int, device: str) -> None:
    logits_TV, targets_T = random_logits(vocabulary, device, torch.bfloat16)
    _, lse_T, exact_TV = exact_loss(logits_TV, targets_T)
    by_token_TV, by_word_VT = cross_entropy.fp8_gradients_op(
        logits_TV, targets_T, lse_T.float(), torch.ones((), device=device)
    )
    assert by_token_TV.dtype == by_word_VT.dtype == torch.float8_e5m2
    assert by_word_VT.is_contiguous()
    assert torch.equal(by_token_TV.float().T, by_word_VT.float())
    assert_e5m2(by_token_TV, 448 * exact_TV)


def assert_e5m2(found: Tensor, exact: Tensor) -> None:
    """Every value is the nearest of the format to one within fp32's error of the exact one.

    So each is that of the exact value or, where rounding is on the verge, its neighbour; and those are few.
    """
    lower, upper = (
        (exact * (1 - 1e-4 * sign) - 1e-7 * sign).to(torch.float32).to(torch.float8_e5m2).double() for sign in (1, -1)
    )
    low, high = torch.minimum(lower, upper), torch.maximum(lower, upper)
    assert ((found.double() >= low) & (found.double() <= high)).all()
    assert (low < high).double().mean() < 0.02


def assert_within(found: Tensor, exact: Tensor, bound: Tensor) -> None:
    excess = ((found.double() - exact).abs() - bound).max()
    assert excess <= 0, f"{excess:.3g} over its bound"
