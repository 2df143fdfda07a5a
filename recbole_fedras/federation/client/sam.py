"""Sharpness-aware minimisation: the gradient is taken a step uphill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

#: Keeps a gradient of zero from being divided by its norm.
TINY = 1e-12

Parameters = tuple[Tensor, Tensor, Mapping[str, Tensor]]
Gradients = tuple[Tensor, Tensor, Sequence[Tensor]]


def ascend(
    parameters: Parameters,
    gradients: Gradients,
    row: Tensor,
    rho_shared: float,
    rho_private: float,
) -> Parameters:
    """Return parameters that lie rho uphill, for each of n clients by itself.

    Source: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving
    Generalization" (ICLR 2021), for two groups as FedRecGEL (WWW 2026): with g the
    gradient of a group, the private one (the user's embedding) or the shared one (item
    rows and network, one norm),
    ``eps = rho g / (|g| + 1e-12)``.

    Parameters
    ----------
    parameters : tuple
        Users (n, dim); the item rows of all clients (n_rows, dim), of which each has
        its own; the network by name, shapes (n, ...).
    gradients : tuple
        Users' (n, dim), that of each sample's item (n * n_samples, dim), and the
        network's, shapes (n, ...).
    row : Tensor of int64, shape (n, n_samples, ...)
        Item row, or rows, of each sample.
    rho_shared, rho_private : float

    Notes
    -----
    **Departures**: SAM goes uphill on the loss of a batch; that of items is the
    gradient that training applies, so CoLR climbs within its subspace.
    """
    users, table, network = parameters
    user_gradient, item_gradient, of_network = gradients
    n = len(users)
    slope = torch.zeros_like(table).index_add_(0, row.reshape(-1), item_gradient)
    # A row belongs to the client whose samples have it.
    owner = torch.zeros(len(table), dtype=torch.int64, device=table.device)
    owner[row.reshape(-1)] = torch.arange(n, device=table.device).repeat_interleave(
        row[0].numel()
    )
    square = torch.zeros(n, device=table.device)
    square.index_add_(0, owner, slope.square().sum(1))
    for gradient in of_network:
        square += gradient.flatten(1).square().sum(1)
    shared = rho_shared / (square.sqrt() + TINY)  # (n,)
    private = rho_private / (user_gradient.norm(dim=1) + TINY)
    return (
        users + private[:, None] * user_gradient,
        table + shared[owner, None] * slope,
        {
            name: value + _like(shared, gradient) * gradient
            for (name, value), gradient in zip(network.items(), of_network, strict=True)
        },
    )


def _like(of_client: Tensor, value: Tensor) -> Tensor:
    return of_client.reshape(-1, *[1] * (value.dim() - 1))
