"""Adam's mathematics, against torch's own."""

import pytest
import torch

from trainer.adam import adam_update
from trainer.reference import ReferenceAdam

BETAS, EPS, RATE = (0.65, 0.95), 1e-8, 0.008


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_update_and_reference_equal_torch_adamw(weight_decay):
    random = torch.Generator().manual_seed(0)
    start = torch.randn(6, 5, generator=random)
    theirs = torch.nn.Parameter(start.clone())
    ours, plain = start.clone(), start.clone()
    mean, mean_square = torch.zeros_like(ours), torch.zeros_like(ours)
    constants = {"betas": BETAS, "eps": EPS, "weight_decay": weight_decay}
    torch_adam = torch.optim.AdamW([theirs], lr=RATE, **constants)
    reference = ReferenceAdam(parameters=[plain], learning_rate=RATE, **constants)
    for step in range(1, 11):
        gradient = torch.randn(6, 5, generator=random)
        theirs.grad = gradient.clone()
        torch_adam.step()
        reference.step([gradient])
        corrections = [torch.tensor(1 - beta**step) for beta in BETAS]
        adam_update(ours, gradient, mean, mean_square, torch.tensor(RATE), *corrections, **constants)
    # Ten steps of rounding on values near 1 (one unit in the last place is 1.2e-7).
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(plain, theirs.detach(), rtol=0, atol=1e-6)


def test_the_first_step_is_the_sign_of_the_gradient():
    parameter, gradient = torch.zeros(3), torch.tensor([5.0, -0.1, 0.0])
    state = torch.zeros(3), torch.zeros(3)
    corrections = [torch.tensor(1 - beta) for beta in BETAS]
    constants = {"betas": BETAS, "eps": EPS, "weight_decay": 0.0}
    adam_update(parameter, gradient, *state, torch.tensor(RATE), *corrections, **constants)
    torch.testing.assert_close(parameter, torch.tensor([-RATE, RATE, 0.0]))
