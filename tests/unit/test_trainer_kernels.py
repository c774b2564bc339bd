"""The trainer's kernels equal float64 references: their plain formulas here, or the kernels under Triton's interpreter.

`test_trainer_kernels_interpreted.py` runs this file once more with TRITON_INTERPRET=1.
"""

from __future__ import annotations

import kernel_references as references
import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional

from trainer import head, orthogonalise
from trainer.attention import make_sight
from trainer.config import preset, with_settings
from trainer.data import MicroBatch
from trainer.errors import TrainerError
from trainer.kernels import IS_INTERPRETED, cross_entropy, symmetric
from trainer.model import GPT, Regions
from trainer.orthogonalise import check_kernel
from trainer.reference import orthogonalised

CPU = torch.device("cpu")
not_interpreted = pytest.mark.skipif(IS_INTERPRETED, reason="torch.compile does not see the interpreter's kernels")
# numpy, which the interpreter computes with, warns where a GPU gives infinity.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered")


def test_the_kernels_run_if_the_interpreter_does() -> None:
    x = torch.zeros(1, 1, 1, dtype=torch.bfloat16)
    assert symmetric.has_kernels(x) == cross_entropy.has_kernels(x[0]) == IS_INTERPRETED


@pytest.mark.parametrize("is_transposed", [False, True])
@pytest.mark.parametrize("shape", references.SHAPES)
def test_gram(shape: tuple[int, int, int], is_transposed: bool) -> None:
    references.check_gram(shape, "cpu", is_transposed=is_transposed)


@pytest.mark.parametrize("shape", references.SHAPES)
def test_polynomial(shape: tuple[int, int, int]) -> None:
    references.check_polynomial(shape, "cpu")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("vocabulary", references.VOCABULARIES)
def test_softcap_cross_entropy(vocabulary: int, dtype: torch.dtype) -> None:
    references.check_loss(vocabulary, "cpu", dtype)
    references.check_gradient(vocabulary, "cpu", dtype)


@pytest.mark.parametrize("vocabulary", references.VOCABULARIES)
def test_fp8_gradients(vocabulary: int) -> None:
    references.check_fp8_gradients(vocabulary, "cpu")


def test_a_target_outside_the_vocabulary_does_not_go_by() -> None:
    logits_TV, targets_T = references.random_logits(97, "cpu", torch.bfloat16)
    targets_T[5] = 97
    if IS_INTERPRETED:
        loss_T, _ = cross_entropy.cross_entropy_op(logits_TV, targets_T)
        assert loss_T.isnan().nonzero().tolist() == [[5]]
    else:
        with pytest.raises(RuntimeError, match="out of bounds"):
            cross_entropy.cross_entropy_op(logits_TV, targets_T)


def test_a_second_backward_through_overwritten_logits_is_refused() -> None:
    logits_TV, targets_T = references.random_logits(97, "cpu", torch.float32)
    loss = cross_entropy.softcap_cross_entropy(logits_TV.requires_grad_() * 1, targets_T).sum()
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()  # type: ignore[no-untyped-call]


@not_interpreted
def test_the_operators_keep_what_they_promise_torch() -> None:
    x = references.random_matrices((2, 6, 10), "cpu")
    logits_TV, targets_T = references.random_logits(97, "cpu", torch.float32)
    lse_T, weights_T = torch.ones(131), torch.ones(131)
    torch.library.opcheck(symmetric.gram, (x,))
    torch.library.opcheck(symmetric.symmetric_polynomial, (symmetric.gram(x), 1.0, 2.0, 3.0))
    torch.library.opcheck(cross_entropy.cross_entropy_op, (logits_TV, targets_T))
    torch.library.opcheck(cross_entropy.gradient_op, (logits_TV, targets_T, lse_T, weights_T))
    torch.library.opcheck(cross_entropy.gradient_in_place_op, (logits_TV, targets_T, lse_T, weights_T))
    torch.library.opcheck(cross_entropy.fp8_gradients_op, (logits_TV, targets_T, lse_T, weights_T[0]))


class _Halved:
    """Stands for the kernels' module where no kernel can run: the operators, said to be worth it."""

    gram = staticmethod(symmetric.gram)
    symmetric_polynomial = staticmethod(symmetric.symmetric_polynomial)

    @staticmethod
    def has_kernels(_: Tensor) -> bool:
        return True


@pytest.mark.parametrize("shape", [(2, 48, 80), (2, 80, 48)])
def test_symmetric_products_orthogonalise_as_plain_ones_do(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both stay near to the exact quintics of the singular values, the one with symmetric products about as near."""
    monkeypatch.setattr(orthogonalise, "SMALLEST_SIDE", 16)
    monkeypatch.setattr(orthogonalise, "symmetric", _Halved)
    matrices = references.random_matrices(shape, "cpu")
    exact = torch.stack([orthogonalised(matrix, "polar_express") for matrix in matrices.double()])
    plain, halved = (
        orthogonalise.orthogonalise(matrices, "polar_express", kernel).double() for kernel in ("torch", "auto")
    )
    errors = [float((found - exact).norm() / exact.norm()) for found in (plain, halved)]
    assert not torch.equal(plain, halved)
    assert errors[0] < 0.03
    assert errors[1] < (0.06 if IS_INTERPRETED else 1.4 * errors[0])  # the interpreter's bf16 errs twice as far


@not_interpreted
def test_orthogonalising_with_symmetric_products_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orthogonalise, "SMALLEST_SIDE", 16)
    monkeypatch.setattr(orthogonalise, "symmetric", _Halved)
    matrices = references.random_matrices((2, 48, 80), "cpu")
    compiled = torch.compile(orthogonalise.orthogonalise, dynamic=False, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(matrices), orthogonalise.orthogonalise(matrices))


def test_a_kernel_that_cannot_run_here_is_refused_by_name() -> None:
    check_kernel("auto", CPU)
    with pytest.raises(TrainerError, match=r"newton_schulz_kernel=triton needs a CUDA device: --set .*=auto"):
        check_kernel("triton", CPU)
    assert head.choose_matmul("auto", CPU, torch.bfloat16, 768) == "bf16"
    with pytest.raises(TrainerError, match=r"head_matmul=fp8 needs an H100 or a later GPU: --set head_matmul=auto"):
        head.choose_matmul("fp8", CPU, torch.bfloat16, 768)


def test_the_tiling_leaves_no_processor_of_an_h100_idle_where_it_can() -> None:
    shapes = [(2, 768), (8, 768), (11, 768), (22, 768)]
    assert [symmetric.choose_tiling(*shape) for shape in shapes] == [symmetric.SMALL] + 3 * [symmetric.LARGE]


NUM_TOKENS, DIM, VOCABULARY = 32, 48, 112


def _head_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Normed x, head and targets; one weight is beyond what e4m3 holds, one target is ignored."""
    random = torch.Generator().manual_seed(1)
    x_TD = functional.rms_norm(torch.randn(NUM_TOKENS, DIM, generator=random), (DIM,)).bfloat16()
    head_VD = (0.1 * torch.randn(VOCABULARY, DIM, generator=random)).bfloat16()
    head_VD[5, 7] = 3.0
    targets_T = torch.randint(0, VOCABULARY, (NUM_TOKENS,), generator=random)
    targets_T[3] = references.IGNORED
    return x_TD.requires_grad_(), head_VD.requires_grad_(), targets_T


def _exact_fp8_head(x_TD: Tensor, head_VD: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients in float64, quantised where the formats quantise and nowhere else, but for bf16 logits."""
    x_unit, head_unit = DIM**0.5 / 448, 2.0**-9
    x_TD = x_unit * (x_TD.detach().double() / x_unit).clamp(-448, 448).to(torch.float8_e4m3fn).double()
    head_VD = head_unit * (head_VD.detach().double() / head_unit).clamp(-448, 448).to(torch.float8_e4m3fn).double()
    logits_TV = (x_TD @ head_VD.T).bfloat16()
    loss_T, _, slope_TV = references.exact_loss(logits_TV, targets_T)
    slope_TV = (448 * slope_TV).to(torch.float8_e5m2).double() / 448
    return loss_T.sum(), slope_TV @ head_VD, slope_TV.T @ x_TD


@not_interpreted
@pytest.mark.parametrize("is_compiled", [False, True])
def test_the_fp8_head_is_the_quantised_formula(is_compiled: bool) -> None:
    inputs = _head_inputs()
    function = (
        torch.compile(head.fp8_head_loss, fullgraph=True, backend="aot_eager") if is_compiled else head.fp8_head_loss
    )
    loss = function(*inputs)
    exact_loss, exact_dx_TD, exact_dhead_VD = _exact_fp8_head(*inputs)
    # A logit on the verge between two of bf16 may fall to either side; an e5m2 gradient then may too.
    torch.testing.assert_close(loss.double(), exact_loss, rtol=1e-4, atol=0)
    (1e-3 * loss).backward()
    for found, exact in zip(inputs[:2], (exact_dx_TD, exact_dhead_VD), strict=True):
        assert found.grad is not None
        assert found.grad.dtype == torch.bfloat16
        assert (1e3 * found.grad.double() - exact).norm() < 5e-3 * exact.norm()


def test_fp8_is_near_to_no_fp8() -> None:
    """At the record's scales the loss moves by under a thousandth and its gradient by a few hundredths."""
    x_TD, head_VD, targets_T = _head_inputs()
    with torch.no_grad():
        head_VD[5, 7] = 0.3
    loss = head.fp8_head_loss(x_TD, head_VD, targets_T)
    exact = references.exact_loss((x_TD.detach().double() @ head_VD.detach().double().T), targets_T)
    assert loss.item() == pytest.approx(exact[0].sum().item(), rel=1e-3)
    loss.backward()  # type: ignore[no-untyped-call]
    exact_dx_TD = exact[2] @ head_VD.detach().double()
    assert x_TD.grad is not None
    assert 1e-3 < (x_TD.grad.double() - exact_dx_TD).norm() / exact_dx_TD.norm() < 0.06


@pytest.mark.skipif(not IS_INTERPRETED, reason="without kernels the head is the plain formula; see the model's tests")
def test_the_head_of_bf16_logits_goes_through_the_kernel() -> None:
    x_TD, head_VD, targets_T = _head_inputs()
    loss = head.head_loss(x_TD, None, None, head_VD, targets_T)
    logits_TV = functional.linear(functional.rms_norm(x_TD, (DIM,)), head_VD)
    exact = references.exact_loss(logits_TV, targets_T)[0].sum()
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)


def test_presets_take_what_there_is() -> None:
    record = preset("record_134")
    assert (record.newton_schulz_kernel, record.head_matmul) == ("auto", "auto")


@not_interpreted
def test_the_gradient_of_the_fp8_head_is_left_to_the_backward_pass() -> None:
    """torch.compile moves what does not depend on the loss's gradient into the forward pass."""
    graphs: list[str] = []

    def record(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        graphs.append(graph.code)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=record, partition_fn=min_cut_rematerialization_partition)
    torch._dynamo.reset()
    torch.compile(head.fp8_head_loss, fullgraph=True, backend=backend)(*_head_inputs()).backward()
    assert ["fp8_gradients" in code for code in graphs] == [False, True]


def test_the_head_trains_in_fp8_and_validates_in_bf16() -> None:
    config = with_settings(preset("tiny_cpu"), ["micro_batch_tokens=16", "max_document_tokens=16", "vocab_size=50272"])
    asked: list[str] = []

    def head_loss(x_TD: Tensor, *inputs: object) -> Tensor:
        asked.append(str(inputs[-1]))
        return x_TD.sum()

    model = GPT(config, num_scalars=64, device=CPU, regions=Regions(head_loss=head_loss))
    assert model.head_matmul == "bf16"
    model.head_matmul = "fp8"  # as on an H100
    model.initialise(0)
    ids = torch.zeros(16, dtype=torch.int64)
    batch = MicroBatch(tokens_T=ids.int(), targets_T=ids, cu_seqlens=torch.tensor([0, 16], dtype=torch.int32))
    sight = make_sight(config, batch.cu_seqlens, 8, torch.float32)
    for is_training in (True, False):
        model.train(is_training)(batch, sight, sight)
    assert asked == ["fp8", "bf16"]
