"""Muon's mathematics: nearly orthogonal directions, even neurons at unchanged norm, cautious decay."""

import pytest
import torch

from trainer.muon import momentum_direction, muon_update, neuron_dim, normuon_scale, shape_scale
from trainer.orthogonalise import COEFFICIENTS, orthogonalise
from trainer.reference import orthogonalised

SHAPES = [(3, 8, 8), (2, 8, 32), (2, 32, 8), (1, 1, 12)]
BANDS = {"polar_express": (0.85, 1.15), "newton_schulz": (0.65, 1.25)}


def matrices_with_values(values: torch.Tensor, columns: int) -> torch.Tensor:
    """One matrix (values x columns) with these singular values."""
    random = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(len(values), len(values), generator=random))
    right, _ = torch.linalg.qr(torch.randn(columns, columns, generator=random))
    return (left @ torch.diag(values) @ right[: len(values)])[None]


@pytest.mark.parametrize("method", COEFFICIENTS)
@pytest.mark.parametrize("columns", [16, 40])
def test_singular_values_from_a_hundredth_to_1_end_near_1(method, columns):
    matrices = matrices_with_values(torch.logspace(-2, 0, 16), columns)
    low, high = BANDS[method]
    for found in (orthogonalise(matrices, method), orthogonalise(matrices.mT, method).mT):
        values = torch.linalg.svdvals(found)
        assert values.min() > low
        assert values.max() < high


@pytest.mark.parametrize("method", COEFFICIENTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_batch_equals_the_quintics_on_singular_values_one_by_one(method, shape):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    expected = torch.stack([orthogonalised(matrix, method) for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices, method), expected, rtol=0, atol=2e-5)


def test_bfloat16_stays_near_float32():
    matrices = matrices_with_values(torch.logspace(-1, 0, 16), 40)
    found = torch.linalg.svdvals(orthogonalise(matrices.bfloat16()).float())
    assert found.min() > 0.8
    assert found.max() < 1.2


def test_the_scale_of_a_matrix_does_not_matter_and_zero_stays_zero():
    matrices = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(orthogonalise(1000 * matrices), orthogonalise(matrices), rtol=0, atol=1e-4)
    assert orthogonalise(torch.zeros(2, 8, 16)).count_nonzero() == 0


def test_momentum_is_nesterov_and_starts_as_the_gradient():
    gradient = torch.randn(2, 8, 16, generator=torch.Generator().manual_seed(4))
    buffer = torch.zeros_like(gradient)
    method = {"method": "polar_express", "dtype": torch.float32}
    direction = momentum_direction(gradient, buffer, torch.tensor(0.9), **method)
    torch.testing.assert_close(buffer, 0.1 * gradient)
    torch.testing.assert_close(direction, orthogonalise(gradient), rtol=0, atol=1e-5)
    second = momentum_direction(-gradient, buffer, torch.tensor(0.9), **method)
    # The buffer is 0.9 x 0.1 g - 0.1 g = -0.01 g; both terms of the direction point along -g.
    torch.testing.assert_close(buffer, -0.01 * gradient)
    torch.testing.assert_close(second, orthogonalise(-gradient), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("shape", "inside"), [((3, 8, 32), -2), ((3, 32, 8), -1), ((3, 8, 8), -1)])
def test_neurons_step_evenly_at_unchanged_norm(shape, inside):
    direction = torch.randn(shape, generator=torch.Generator().manual_seed(5)) * torch.arange(1, 4)[:, None, None]
    mean_square = torch.zeros_like(direction.mean(inside, keepdim=True))
    scaled = normuon_scale(direction, mean_square, 0.95)
    norms = (scaled.square().sum((-2, -1)), direction.square().sum((-2, -1)))
    torch.testing.assert_close(*norms)
    of_neurons = scaled.square().mean(inside)
    torch.testing.assert_close(of_neurons, of_neurons.mean(-1, keepdim=True).expand_as(of_neurons))
    assert normuon_scale(torch.zeros_like(direction), mean_square.zero_(), 0.95).count_nonzero() == 0


def test_decay_shrinks_only_what_the_step_moves_towards_zero():
    parameters = torch.tensor([[[2.0, -2.0], [-2.0, 2.0]]])
    direction = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]])
    rate, decay = torch.tensor(0.1), torch.tensor(0.5)
    muon_update(parameters, direction, torch.ones(1, 2, 1), torch.tensor([[[3.0]]]), rate, decay, beta2=0.95)
    # Step 0.1 x 3 along the direction; where both signs agree, 2 shrinks by 2 x 0.5 x 0.3 more.
    torch.testing.assert_close(parameters, torch.tensor([[[1.4, -2.3], [-1.4, 2.3]]]))


def test_plain_muon_steps_along_the_direction_itself():
    parameters, direction = torch.ones(1, 2, 3), torch.tensor([[[1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]]])
    mean_square, scale = torch.zeros(1, 1, 3), torch.ones(1, 1, 1)
    rate, none = torch.tensor(0.5), torch.tensor(0.0)
    muon_update(parameters, direction, mean_square, scale, rate, none, beta2=0.95, variant="plain")
    torch.testing.assert_close(parameters, 1 - 0.5 * direction)
    assert mean_square.count_nonzero() == 0


def test_the_neurons_of_attention_are_the_columns_of_each_square():
    """As in the record: Q, K, V and O are stored side by side as one wide matrix, whose neurons are its columns."""
    direction = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(7))
    mean_square = torch.zeros_like(direction.mean(neuron_dim((8, 32)), keepdim=True))
    scaled = normuon_scale(direction, mean_square, 0.95)
    of_columns = scaled.square().mean(-2)
    torch.testing.assert_close(of_columns, of_columns.mean(-1, keepdim=True).expand_as(of_columns))


def test_tall_attention_matrices_go_back_to_their_four_parts():
    matrices = torch.randn(1, 12, 32, generator=torch.Generator().manual_seed(6)).view(4, 12, 8)
    parameters = torch.zeros(1, 12, 32)
    one, none = torch.tensor(1.0), torch.tensor(0.0)
    muon_update(parameters, orthogonalise(matrices), torch.zeros(4, 12, 1), one.view(1, 1, 1), one, none, beta2=0.0)
    columns = parameters.view(4, 12, 8).mT @ matrices
    assert (columns.diagonal(dim1=-2, dim2=-1) < 0).all()  # each part moves against its own gradient


def test_tall_matrices_step_further():
    assert shape_scale((32, 8)) == 2
    assert shape_scale((8, 8)) == shape_scale((8, 32)) == 1
