"""Slow, plain twins of both optimizers: one process, one parameter at a time, no buffers, shards or batches.

The tests hold the sharded optimizers against these. They share constants with them, never code.
The gradients they take are those that the ranks would have averaged.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from trainer.muon import Variant
from trainer.orthogonalise import COEFFICIENTS, NORM_FLOOR, NORM_SAFETY, Method


def orthogonalised(matrix: Tensor, method: Method) -> Tensor:
    """The quintics of `method` applied to the singular values of one matrix, by way of its decomposition."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    values = values / (values.square().sum().sqrt() * NORM_SAFETY + NORM_FLOOR)
    for a, b, c in COEFFICIENTS[method]:
        values = a * values + b * values**3 + c * values**5
    nearest: Tensor = left @ torch.diag(values) @ right
    return nearest


def neuron_normalised(update: Tensor, mean_square: Tensor, beta2: float) -> tuple[Tensor, Tensor]:
    """NorMuon on one matrix whose neurons are its rows (rows x columns): the new update and running means (rows)."""
    mean_square = beta2 * mean_square + (1 - beta2) * (update**2).mean(1)
    normalised = update / mean_square.clamp(min=1e-10).sqrt()[:, None]
    return normalised * (update.norm() / normalised.norm().clamp(min=1e-10)), mean_square


@dataclass(slots=True, eq=False)
class MatrixState:
    """What Muon remembers of one matrix."""

    momentum: Tensor
    mean_square: Tensor


@dataclass(slots=True, kw_only=True, eq=False)
class ReferenceMuon:
    """Muon on plain tensors; `labels` says which of them hold Q, K, V and O, `scales` multiply their learning rates."""

    parameters: Sequence[Tensor]
    labels: Sequence[str]
    scales: Sequence[float]
    learning_rate: float
    momentum: float = 0.95
    beta2: float = 0.95
    weight_decay: float = 1.2
    method: Method = "polar_express"
    variant: Variant = "normuon"
    _states: dict[tuple[int, int], MatrixState] = field(default_factory=dict)

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One update from one gradient a parameter, of its shape."""
        for index, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            rows, columns = parameter.shape
            shape = (4, rows, columns // 4) if self.labels[index] == "attn" else (1, rows, columns)
            for part in range(shape[0]):
                matrix = parameter.view(shape)[part]
                self._step_matrix((index, part), matrix, gradient.view(shape)[part], is_wide=rows < columns)

    def _step_matrix(self, key: tuple[int, int], matrix: Tensor, gradient: Tensor, *, is_wide: bool) -> None:
        """`is_wide`: neurons are columns, for the parameter is stored wide, though one of Q, K, V, O is square."""
        if key not in self._states:
            self._states[key] = MatrixState(
                torch.zeros_like(matrix), matrix.new_zeros(matrix.shape[1 if is_wide else 0])
            )
        state = self._states[key]
        state.momentum = self.momentum * state.momentum + (1 - self.momentum) * gradient
        nesterov = self.momentum * state.momentum + (1 - self.momentum) * gradient
        update = orthogonalised(nesterov, self.method)
        if self.variant == "normuon":
            neurons = update.T if is_wide else update
            neurons, state.mean_square = neuron_normalised(neurons, state.mean_square, self.beta2)
            update = neurons.T if is_wide else neurons
        decays = ((update * matrix) >= 0).to(matrix.dtype)
        factor = self.scales[key[0]] * math.sqrt(max(1, matrix.shape[0] / matrix.shape[1]))
        decay = self.learning_rate * self.weight_decay * decays * matrix
        matrix -= self.learning_rate * factor * (update + decay)


@dataclass(slots=True, kw_only=True, eq=False)
class ReferenceAdam:
    """Adam on plain tensors."""

    parameters: Sequence[Tensor]
    learning_rate: float = 0.008
    betas: tuple[float, float] = (0.65, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    num_steps: int = 0
    _means: list[Tensor] = field(default_factory=list)
    _squares: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self.parameters]

    def step(self, gradients: Sequence[Tensor]) -> None:
        """One update from one gradient a parameter, of its shape."""
        self.num_steps += 1
        beta1, beta2 = self.betas
        for index, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            self._means[index] = beta1 * self._means[index] + (1 - beta1) * gradient
            self._squares[index] = beta2 * self._squares[index] + (1 - beta2) * gradient**2
            mean = self._means[index] / (1 - beta1**self.num_steps)
            square = self._squares[index] / (1 - beta2**self.num_steps)
            parameter *= 1 - self.learning_rate * self.weight_decay
            parameter -= self.learning_rate * mean / (square.sqrt() + self.eps)
