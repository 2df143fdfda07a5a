"""Adam for private vectors of many clients side by side."""

from __future__ import annotations

import torch
from torch import Tensor


def adam_step(state: Tensor, gradient: Tensor, learning_rate: float) -> Tensor:
    """Return what Adam subtracts from n private vectors; update its state in place.

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization" (ICLR 2015),
    Algorithm 1, with its defaults.

    Parameters
    ----------
    state : Tensor, shape (n, 2 dim + 1)
        Means, squares and steps taken, from zeros.
    gradient : Tensor, shape (n, dim)
    learning_rate : float
    """
    dim = gradient.shape[1]
    mean, squares, steps = state[:, :dim], state[:, dim:-1], state[:, -1:]
    beta, decay, tiny = 0.9, 0.999, 1e-8
    mean.lerp_(gradient, 1 - beta)
    squares.lerp_(gradient.square(), 1 - decay)
    steps += 1
    root = (squares / (1 - torch.pow(decay, steps))).sqrt()
    return learning_rate * mean / (1 - torch.pow(beta, steps)) / (root + tiny)
