"""The optimizers as a loop uses them: they learn, refuse what is wrong, start over, and compile once."""

import pytest
import torch
import torch.distributed as dist
from gloo import run_ranks
from optimizer_program import gradients_of, make_parameters
from torch import nn

from trainer.adam import DistAdam
from trainer.muon import Muon


def _labelled(label: str, values: torch.Tensor, learning_rate_scale: float = 1.0) -> nn.Parameter:
    parameter = nn.Parameter(values)
    parameter.label = label
    parameter.learning_rate_scale = learning_rate_scale
    return parameter


def _learn_a_regression() -> list[float]:
    """The mean losses of a small network on two ranks with data of their own; the target is another such network."""
    random = torch.Generator().manual_seed(0)
    data = torch.Generator().manual_seed(1 + dist.get_rank())
    target = [torch.randn(8, 32, generator=random) / 3, torch.randn(8, 32, generator=random) / 6]
    weights = [_labelled("mlp", 0.1 * torch.randn(8, 32, generator=random)) for _ in target]
    offset = _labelled("scalars", torch.zeros(8), learning_rate_scale=0.5)
    muon = Muon(weights, learning_rate=0.02)
    adam = DistAdam([offset], learning_rate=0.02)
    losses = []
    for _ in range(60):
        inputs = torch.randn(64, 8, generator=data)
        wanted = (inputs @ target[0]).relu() @ target[1].T
        adam.reduce_in_backward(True)
        loss = ((inputs @ weights[0]).relu() @ weights[1].T + offset - wanted).square().mean()
        loss.backward()
        adam.step()
        muon.step()
        adam.zero_grad()
        muon.zero_grad()
        dist.all_reduce(loss.detach_(), op=dist.ReduceOp.AVG)
        losses.append(loss.item())
    return losses


def test_the_loss_falls_on_all_ranks_alike():
    first, second = run_ranks(_learn_a_regression, 2)
    assert first == second
    assert sum(first[-5:]) < 0.2 * sum(first[:5])


def _misuse() -> dict[str, str]:
    """What each wrong use says."""
    muon_parameters, adam_parameters = make_parameters()
    muon, adam = Muon(muon_parameters, learning_rate=0.1), DistAdam(adam_parameters)
    said = {}
    with pytest.raises(RuntimeError) as error:
        muon.step()
    said["muon without gradients"] = str(error.value)
    with pytest.raises(RuntimeError) as error:
        adam.step()
    said["adam without gradients"] = str(error.value)
    adam.reduce_in_backward(True)
    adam_parameters[0].sum().backward()
    with pytest.raises(RuntimeError) as error:
        adam_parameters[0].sum().backward()
    said["armed over two backwards"] = str(error.value)
    return said


def test_misuse_says_what_is_wrong():
    (said,) = run_ranks(_misuse, 1)
    assert said["muon without gradients"] == "muon.smear_gate: 1 of 1 parameters have no gradient"
    assert said["adam without gradients"] == "adam.lm_head: the parameter has no gradient"
    assert "arm before the last micro-batch" in said["armed over two backwards"]


def _steps_after_reset() -> bool:
    """Whether two steps after a reset give what they gave at first."""
    muon_parameters, adam_parameters = make_parameters()
    parameters = muon_parameters + adam_parameters
    before = [parameter.detach().clone() for parameter in parameters]
    muon, adam = Muon(muon_parameters, learning_rate=0.03), DistAdam(adam_parameters)
    seen = []
    for _ in range(2):
        with torch.no_grad():
            torch._foreach_copy_(parameters, before)
        muon.reset()
        adam.reset()
        for step in range(2):
            for parameter, gradient in zip(parameters, gradients_of(step, dist.get_rank(), parameters), strict=True):
                parameter.grad = gradient
            muon.step()
            adam.step()
        seen.append([parameter.detach().clone() for parameter in parameters])
    return all(torch.equal(first, second) for first, second in zip(*seen, strict=True))


def test_reset_starts_over_to_the_bit():
    assert run_ranks(_steps_after_reset, 3) == [True] * 3


def _compiled_against_eager() -> tuple[float, int, int]:
    """The largest difference after two steps, and how many graphs were compiled by the first and by both."""
    torch._inductor.config.compile_threads = 1
    counters = torch._dynamo.utils.counters["stats"]
    values, num_graphs = [], []
    for compiled in (False, True):
        weights = [_labelled("mlp", 0.1 * torch.ones(4, 16).tril()) for _ in range(2)]
        table = _labelled("embed", torch.ones(10, 4))
        muon = Muon(weights, learning_rate=0.03, compile=compiled)
        adam = DistAdam([table], compile=compiled)
        for step in range(2):
            muon.learning_rate, muon.momentum, adam.learning_rate = 0.03 / (1 + step), 0.9 + 0.02 * step, 0.01 * step
            for parameter, gradient in zip([*weights, table], gradients_of(step, 0, [*weights, table]), strict=True):
                parameter.grad = gradient
            muon.step()
            adam.step()
            num_graphs.append(counters["unique_graphs"])
        values.append([parameter.detach() for parameter in [*weights, table]])
    difference = max((a - b).abs().max().item() for a, b in zip(*values, strict=True))
    return difference, num_graphs[-2], num_graphs[-1]


def test_compiled_steps_equal_eager_ones_and_a_schedule_does_not_recompile():
    ((difference, graphs_after_one, graphs_after_two),) = run_ranks(_compiled_against_eager, 1)
    assert difference < 1.2e-5  # see test_sharded_optimizers
    assert (graphs_after_one, graphs_after_two) == (3, 3)  # two functions of Muon, one of Adam
