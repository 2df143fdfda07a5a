"""NCF: a small network on the concatenated embeddings (FedNCF)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from recbole_fedras.model.base import FederatedRecommender
from recbole_fedras.rng import Stream, generator
from recbole_fedras.theta import Theta


class NCF(FederatedRecommender):
    """FedNCF: an MLP on ``[p_u, q_i]``; the network is shared and averaged.

    Source: Perifanis and Efraimidis, "Federated Neural Collaborative Filtering" (2022);
    FedRAS (KDD 2025, section 5.1). With dim 32 and ``mlp_hidden_size: [32, 16]`` the
    layers are 64-32-16-1, ReLU between them.

    Parameters
    ----------
    config, dataset
        As for the base class; also reads ``mlp_hidden_size``.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        hidden = config["mlp_hidden_size"]
        if not isinstance(hidden, list | tuple) or not all(
            type(size) is int and size > 0 for size in hidden
        ):
            raise ValueError(
                f"mlp_hidden_size={hidden!r} is not allowed; it must be a list of "
                "positive integers"
            )
        sizes = [2 * self.dim, *hidden, 1]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            rng = generator(self.seed, Stream.INITIALISATION, 2 + layer)
            values = rng.standard_normal((fan_in, fan_out)) * (2 / fan_in) ** 0.5
            self.weights.append(nn.Parameter(torch.from_numpy(values).float()))
            self.biases.append(nn.Parameter(torch.zeros(fan_out)))

    def score(self, user_rows: Tensor, item_rows: Tensor, theta: Theta) -> Tensor:
        """Return the MLP's output; the first layer adds its two halves."""
        dim = user_rows.shape[-1]
        first = theta["weights.0"]  # (n_clients or 1, 2 dim, hidden)
        hidden = user_rows @ first[:, :dim] + item_rows @ first[:, dim:]
        hidden = hidden + theta["biases.0"][:, None]
        for layer in range(1, sum(name.startswith("weights.") for name in theta)):
            weight, bias = theta[f"weights.{layer}"], theta[f"biases.{layer}"]
            hidden = torch.relu(hidden) @ weight + bias[:, None]
        return hidden.squeeze(-1)
