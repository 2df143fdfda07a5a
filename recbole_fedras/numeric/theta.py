"""The scoring network: its parameters by name, or flattened to one vector."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Theta = Mapping[str, Tensor]


def flatten(theta: Theta) -> Tensor:
    """Return the parameters of a network as one vector, shape (n_theta,)."""
    if not theta:
        return torch.zeros(0)
    return torch.cat([value.detach().reshape(-1) for value in theta.values()])


def unflatten(flat: Tensor, like: Theta) -> dict[str, Tensor]:
    """Split vectors, shape (..., n_theta), into parameters (..., *shape); views."""
    parts = torch.split(flat, [value.numel() for value in like.values()], dim=-1)
    return {
        name: part.reshape(*flat.shape[:-1], *value.shape)
        for (name, value), part in zip(like.items(), parts, strict=True)
    }
