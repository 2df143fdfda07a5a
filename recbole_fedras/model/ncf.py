"""NCF: a small network on the concatenated embeddings (FedNCF)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn

from recbole_fedras.model.base import FederatedRecommender
from recbole_fedras.numeric.rng import Stream, generator
from recbole_fedras.numeric.theta import Theta

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_compiled = njit(nogil=True, cache=True, error_model="numpy")


@_compiled
def _layer(flat: Floats, n: int, layer: int, sizes: Ints) -> Floats:
    """Return the part of ``flat`` that holds a layer's outputs, shape (n, fan out)."""
    start = n * sizes[1 : layer + 1].sum()
    fan_out = sizes[layer + 1]
    return flat[start : start + n * fan_out].reshape(n, fan_out)


@_compiled
def _weight(theta: Floats, layer: int, sizes: Ints) -> Floats:
    """Return a layer's weight, shape (fan in, fan out); a view of all weights."""
    start = (sizes[:layer] * sizes[1 : layer + 1]).sum()
    fan_in, fan_out = sizes[layer], sizes[layer + 1]
    return theta[start : start + fan_in * fan_out].reshape(fan_in, fan_out)


@_compiled
def _bias(theta: Floats, layer: int, sizes: Ints) -> Floats:
    """Return a layer's bias; biases come after all weights."""
    start = (sizes[:-1] * sizes[1:]).sum() + sizes[1 : layer + 1].sum()
    return theta[start : start + sizes[layer + 1]]


@_compiled
def _forward(
    user: Floats, items: Floats, theta: Floats, sizes: Ints, outputs: Floats
) -> None:
    """Write every layer's outputs, after ReLU but for the last, which are logits."""
    n, dim = items.shape
    n_layers = len(sizes) - 1
    below = items
    for layer in range(n_layers):
        weight, own = _weight(theta, layer, sizes), _layer(outputs, n, layer, sizes)
        shift = _bias(theta, layer, sizes)
        if layer == 0:  # its two halves
            shift = shift + np.dot(user, weight[:dim])
            weight = weight[dim:]
        np.dot(below, weight, own)
        for i in range(n):
            for j in range(len(shift)):
                value = own[i, j] + shift[j]
                linear = layer == n_layers - 1 or not value < 0  # NaN stays NaN
                own[i, j] = value if linear else np.float32(0)
        below = own


@_compiled
def _losses(logits: Floats, labels: Floats, pairwise: bool, slopes: Floats) -> float:
    """Write the slope of the loss at each sample's logit; return the loss.

    Binary cross-entropy, or BPR's of pairs of an item and a negative.
    """
    loss, zero, one = 0.0, np.float32(0), np.float32(1)
    if pairwise:
        for i in range(0, len(logits), 2):
            ahead = logits[i, 0] - logits[i + 1, 0]
            decay = np.exp(-abs(ahead))
            loss += np.log1p(decay) - min(ahead, zero)
            slope = (decay if ahead >= 0 else one) / (one + decay)
            slopes[i, 0], slopes[i + 1, 0] = -slope, slope
        return loss
    for i in range(len(logits)):
        logit = logits[i, 0]
        decay = np.exp(-abs(logit))
        loss += max(logit, zero) - logit * labels[i] + np.log1p(decay)
        slopes[i, 0] = (one if logit >= 0 else decay) / (one + decay) - labels[i]
    return loss


@_compiled
def _gradients(  # type: ignore[no-untyped-def]
    user, items, theta, labels, pairwise, gradient_map, sizes, outputs, errors, of_user,
    of_items, of_theta,
):  # fmt: skip
    """Write gradients of the loss, summed over samples; return the loss.

    Parameters
    ----------
    items : ndarray of float32, shape (n, dim)
        Of each sample.
    gradient_map : ndarray of float32, shape (dim, dim) or empty
        Applied to those of items.
    outputs, errors : ndarray of float32
        Room for each layer's outputs, and for their gradients before ReLU.
    of_user, of_items, of_theta : ndarray of float32
        Overwritten; shaped as ``user``, ``items`` and ``theta``.
    """
    n, dim = items.shape
    n_layers = len(sizes) - 1
    _forward(user, items, theta, sizes, outputs)
    error = _layer(errors, n, n_layers - 1, sizes)
    logits = _layer(outputs, n, n_layers - 1, sizes)
    loss = _losses(logits, labels, pairwise, error)
    for layer in range(n_layers - 1, -1, -1):
        weight = _weight(theta, layer, sizes)
        of_weight = _weight(of_theta, layer, sizes)
        of_bias = _bias(of_theta, layer, sizes)
        of_bias[:] = 0
        for i in range(n):
            for j in range(len(of_bias)):
                of_bias[j] += error[i, j]
        if layer == 0:
            np.dot(items.T, error, of_weight[dim:])
            of_weight[:dim] = np.outer(user, of_bias)
            np.dot(weight[:dim], of_bias, of_user)
            np.dot(error, weight[dim:].T, of_items)
        else:
            below = _layer(outputs, n, layer - 1, sizes)
            np.dot(below.T, error, of_weight)
            lower = _layer(errors, n, layer - 1, sizes)
            np.dot(error, weight.T, lower)
            for i in range(n):
                for j in range(sizes[layer]):
                    if not below[i, j] > 0:
                        lower[i, j] = 0
            error = lower
    if len(gradient_map):
        of_items[:] = np.dot(of_items, gradient_map)
    return loss


@_compiled
def _ascend(  # type: ignore[no-untyped-def]
    user, items, theta, of_user, of_items, of_theta, rows, rho_shared, rho_private,
    of_rows,
):  # fmt: skip
    """Return user and network that lie uphill, move ``items``; see ``sam.ascend``.

    ``of_rows``, with a row for each of the client's, is zero before and after.
    """
    tiny = np.float32(1e-12)
    for i in range(len(rows)):
        of_rows[rows[i]] += of_items[i]
    square = np.float32(0)
    for i in range(len(rows)):
        for j in range(items.shape[1]):
            square += of_items[i, j] * of_rows[rows[i], j]
    square += np.dot(of_theta, of_theta)
    shared = np.float32(rho_shared) / (np.sqrt(square) + tiny)
    private = np.float32(rho_private) / (np.sqrt(np.dot(of_user, of_user)) + tiny)
    for i in range(len(rows)):
        for j in range(items.shape[1]):
            items[i, j] += shared * of_rows[rows[i], j]
    for i in range(len(rows)):
        of_rows[rows[i]] = 0
    return user + private * of_user, theta + shared * of_theta


@_compiled
def _train_client(  # type: ignore[no-untyped-def]
    sizes, user, table, theta, rows, labels, batch_size, learning_rate,
    user_learning_rate, theta_learning_rate, gradient_map, rho_shared, rho_private,
    pairwise, upload_gradient,
):  # fmt: skip
    """Train one client in place; return the loss."""
    dim, batch_size = len(user), min(batch_size, rows.shape[1])
    rate, user_rate = np.float32(learning_rate), np.float32(user_learning_rate)
    sharpness_aware = rho_shared > 0 or rho_private > 0
    all_items = np.empty((batch_size, dim), np.float32)
    all_of_items = np.empty((batch_size, dim), np.float32)
    outputs = np.empty(batch_size * sizes[1:].sum(), np.float32)
    errors = np.empty_like(outputs)
    of_user, of_theta = np.empty_like(user), np.empty_like(theta)
    of_rows = np.zeros((len(table) if sharpness_aware else 0, dim), np.float32)
    loss = 0.0
    for epoch in range(len(rows)):
        for start in range(0, rows.shape[1], batch_size):
            batch = rows[epoch, start : start + batch_size]
            label = labels[epoch, start : start + batch_size]
            n = len(batch)
            items, of_items = all_items[:n], all_of_items[:n]
            for i in range(n):
                items[i] = table[batch[i]]
            loss += _gradients(
                user, items, theta, label, pairwise, gradient_map, sizes, outputs,
                errors, of_user, of_items, of_theta,
            )  # fmt: skip
            if sharpness_aware:
                high_user, high_theta = _ascend(
                    user, items, theta, of_user, of_items, of_theta, batch, rho_shared,
                    rho_private, of_rows,
                )  # fmt: skip
                _gradients(
                    high_user, items, high_theta, label, pairwise, gradient_map, sizes,
                    outputs, errors, of_user, of_items, of_theta,
                )  # fmt: skip
            for i in range(n):
                item = table[batch[i]]
                for j in range(dim):
                    item[j] -= rate * of_items[i, j]
            count = 1 if upload_gradient else n // 2 if pairwise else n
            theta -= np.float32(theta_learning_rate / count) * of_theta
            user -= user_rate * of_user
    return loss


@_compiled
def _train_clients(  # type: ignore[no-untyped-def]
    sizes, users, table, theta, changes, theta_changes, ids, row_offsets, rows, labels,
    sample_offsets, n_epochs, batch_size, learning_rate, user_learning_rate,
    theta_learning_rate, gradient_map, rho_shared, rho_private, pairwise,
    upload_gradient,
):  # fmt: skip
    """Train clients one by one; see ``FederatedRecommender.train_clients``."""
    loss = 0.0
    for c in range(len(users)):
        own = slice(row_offsets[c], row_offsets[c + 1])
        samples = slice(sample_offsets[c], sample_offsets[c + 1])
        local, own_ids, network = changes[own], ids[own], theta_changes[c]
        for i in range(len(own_ids)):
            local[i] = table[own_ids[i]]
        network[:] = theta
        loss += _train_client(
            sizes, users[c], local, network, rows[samples].reshape(n_epochs, -1),
            labels[samples].reshape(n_epochs, -1), batch_size, learning_rate,
            user_learning_rate, theta_learning_rate, gradient_map, rho_shared,
            rho_private, pairwise, upload_gradient,
        )  # fmt: skip
        for i in range(len(own_ids)):
            local[i] -= table[own_ids[i]]
        network -= theta
    return loss


class NCF(FederatedRecommender):
    """FedNCF: an MLP on ``[p_u, q_i]``; the network is shared and averaged.

    Source: Perifanis and Efraimidis, "Federated Neural Collaborative Filtering"
    (Knowledge-Based Systems 2022); FedRAS (KDD 2025, section 5.1). With dim 32 and
    ``mlp_hidden_size: [32, 16]`` the layers are 64-32-16-1, ReLU between them.

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
        self._sizes = np.array(sizes)
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            rng = generator(self.seed, Stream.INITIALISATION, 2 + layer)
            values = rng.standard_normal((fan_in, fan_out)) * (2 / fan_in) ** 0.5
            self.weights.append(nn.Parameter(torch.from_numpy(values).float()))
            self.biases.append(nn.Parameter(torch.zeros(fan_out)))

    def train_clients(self, *group: Any) -> float:
        """Train a group's clients by compiled code; see the base class."""
        return float(_train_clients(self._sizes, *group))

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
