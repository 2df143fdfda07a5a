"""NCF: a small network on the concatenated embeddings (FedNCF)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn

from recbole_fedras.data.clients import Samples
from recbole_fedras.data.local import Descent, Floats, LocalParameters
from recbole_fedras.errors import ConfigError
from recbole_fedras.model.base import FederatedRecommender
from recbole_fedras.model.decay import decay_rows, shrink
from recbole_fedras.model.settings import ModelConfig
from recbole_fedras.numeric.rng import Stream, generator
from recbole_fedras.numeric.theta import Theta

Rows = NDArray[np.int32]
Ints = NDArray[np.int64]

_compiled = njit(nogil=True, cache=True, error_model="numpy")

# Arrays are written by loops: each kind of assignment between them, ``a[i] = b[j]`` or
# ``a[i] += b[j]``, costs numba seconds to compile, most for the text of an error.


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
        weight, output = _weight(theta, layer, sizes), _layer(outputs, n, layer, sizes)
        shift = _bias(theta, layer, sizes)
        if layer == 0:  # its two halves
            shift = shift + np.dot(user, weight[:dim])
            weight = weight[dim:]
        np.dot(below, weight, output)
        for i in range(n):
            for j in range(len(shift)):
                value = output[i, j] + shift[j]
                linear = layer == n_layers - 1 or not value < 0  # NaN stays NaN
                output[i, j] = value if linear else np.float32(0)
        below = output


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


class _Point(NamedTuple):
    """Parameters that a batch's loss depends on, or its gradients with respect to them.

    Attributes
    ----------
    user : ndarray of float32, shape (dim,)
    items : ndarray of float32, shape (n, dim)
        Of each sample.
    theta : ndarray of float32, shape (n_theta,)
    """

    user: Floats
    items: Floats
    theta: Floats


class _Room(NamedTuple):
    """Memory that a client's batches use again and again.

    Attributes
    ----------
    outputs, errors : ndarray of float32
        For each layer's outputs, and for their gradients before ReLU; see ``_layer``.
    of_rows : ndarray of float32, shape (n_rows, dim)
        Sums of gradients of each row; zero but within ``_ascend``. Empty without SAM.
    seen : ndarray of bool, shape (n_rows,)
        False but within ``decay_rows``; empty without weight decay.
    """

    outputs: Floats
    errors: Floats
    of_rows: Floats
    seen: NDArray[np.bool_]


@_compiled
def _gradients(
    at: _Point, labels: Floats, sizes: Ints, descent: Descent, room: _Room, of: _Point
) -> float:
    """Write gradients ``of`` the loss, summed over samples; return the loss."""
    n, dim = at.items.shape
    n_layers = len(sizes) - 1
    # Forward: every layer's outputs, and at the last the slopes of the loss.
    _forward(at.user, at.items, at.theta, sizes, room.outputs)
    error = _layer(room.errors, n, n_layers - 1, sizes)
    logits = _layer(room.outputs, n, n_layers - 1, sizes)
    loss = _losses(logits, labels, descent.pairwise, error)
    # Backward: ``error`` is the gradient of a layer's outputs before ReLU.
    for layer in range(n_layers - 1, -1, -1):
        weight = _weight(at.theta, layer, sizes)
        of_weight = _weight(of.theta, layer, sizes)
        of_bias = _bias(of.theta, layer, sizes)
        of_bias[:] = 0
        for i in range(n):
            for j in range(len(of_bias)):
                of_bias[j] += error[i, j]
        if layer == 0:
            # Its inputs are the user, alike in all samples, so that the sum of errors
            # (of_bias) is enough, and the items.
            np.dot(at.items.T, error, of_weight[dim:])
            for j in range(dim):
                for k in range(len(of_bias)):
                    of_weight[j, k] = at.user[j] * of_bias[k]
            np.dot(weight[:dim], of_bias, of.user)
            np.dot(error, weight[dim:].T, of.items)
        else:
            below = _layer(room.outputs, n, layer - 1, sizes)
            np.dot(below.T, error, of_weight)
            lower = _layer(room.errors, n, layer - 1, sizes)
            np.dot(error, weight.T, lower)
            # ReLU lets through where its output is positive.
            for i in range(n):
                for j in range(sizes[layer]):
                    if not below[i, j] > 0:
                        lower[i, j] = 0
            error = lower
    if len(descent.gradient_map):
        mapped = np.dot(of.items, descent.gradient_map)
        for i in range(n):
            for j in range(dim):
                of.items[i, j] = mapped[i, j]
    return loss


@_compiled
def _ascend(
    at: _Point, of: _Point, rows: Rows, descent: Descent, of_rows: Floats
) -> _Point:
    """Return what lies uphill, items in place; see ``sam.ascend``."""
    tiny, items = np.float32(1e-12), at.items  # TINY of ``sam.ascend``
    # An item that stands in a batch twice has one gradient: the sum.
    for i in range(len(rows)):
        for j in range(items.shape[1]):
            of_rows[rows[i], j] += of.items[i, j]
    # Its square, row by row: each sample's gradient times its row's.
    square = np.float32(0)
    for i in range(len(rows)):
        for j in range(items.shape[1]):
            square += of.items[i, j] * of_rows[rows[i], j]
    square += np.dot(of.theta, of.theta)
    # How far to go, for a gradient of one.
    shared = np.float32(descent.rho_shared) / (np.sqrt(square) + tiny)
    norm = np.sqrt(np.dot(of.user, of.user))
    private = np.float32(descent.rho_private) / (norm + tiny)
    for i in range(len(rows)):
        for j in range(items.shape[1]):
            items[i, j] += shared * of_rows[rows[i], j]
    # Only the batch's rows are cleared: a client may have many more.
    for i in range(len(rows)):
        of_rows[rows[i]] = 0
    return _Point(at.user + private * of.user, items, at.theta + shared * of.theta)


@_compiled
def _train_client(
    start: _Point, rows: Rows, labels: Floats, sizes: Ints, descent: Descent
) -> float:
    """Train one client in place, its table being ``start.items``; return its loss.

    A batch's items are copied out of the table, for products of matrices.
    """
    user, table, theta = start
    dim, batch_size = len(user), min(descent.batch_size, rows.shape[1])
    rate = np.float32(descent.learning_rate)
    user_rate = np.float32(descent.user_learning_rate)
    sharpness_aware = descent.rho_shared > 0 or descent.rho_private > 0
    decays = descent.weight_decay > 0
    all_items = np.empty((batch_size, dim), np.float32)
    all_of_items = np.empty((batch_size, dim), np.float32)
    of_user, of_theta = np.empty_like(user), np.empty_like(theta)
    size = batch_size * sizes[1:].sum()
    room = _Room(
        np.empty(size, np.float32),
        np.empty(size, np.float32),
        np.zeros((len(table) if sharpness_aware else 0, dim), np.float32),
        np.zeros(len(table) if decays else 0, np.bool_),
    )
    loss = 0.0
    for epoch in range(len(rows)):
        for first in range(0, rows.shape[1], batch_size):
            batch = rows[epoch, first : first + batch_size]
            label = labels[epoch, first : first + batch_size]
            n = len(batch)
            items, of_items = all_items[:n], all_of_items[:n]
            for i in range(n):
                for j in range(dim):
                    items[i, j] = table[batch[i], j]
            at, of = _Point(user, items, theta), _Point(of_user, of_items, of_theta)
            loss += _gradients(at, label, sizes, descent, room, of)
            # SAM: the step is taken from here, with the gradient found uphill.
            if sharpness_aware:
                uphill = _ascend(at, of, batch, descent, room.of_rows)
                _gradients(uphill, label, sizes, descent, room, of)
            # No gradient is taken any more: what decays can do so before its step.
            if decays:
                decay_rows(table, batch, descent, room.seen)
                shrink(user, descent.user_learning_rate * descent.weight_decay)
                shrink(theta, descent.theta_learning_rate * descent.weight_decay)
            for i in range(n):
                item = table[batch[i]]
                for j in range(dim):
                    item[j] -= rate * of_items[i, j]
            # The network follows the mean over samples, or pairs, unless its gradient
            # is what is sent.
            count = 1 if descent.upload_gradient else n // 2 if descent.pairwise else n
            theta -= np.float32(descent.theta_learning_rate / count) * of_theta
            user -= user_rate * of_user
    return loss


@_compiled
def _train_clients(
    sizes: Ints, parameters: LocalParameters, samples: Samples, descent: Descent
) -> NDArray[np.float64]:
    """Train clients one by one; see :data:`recbole_fedras.data.local.TrainClients`.

    A client's rows and network are copied to where their changes are wanted, so that
    it works in a compact table; the old values are taken off again at the end.
    """
    table, theta = parameters.table, parameters.theta
    losses = np.empty(len(parameters.users))
    for c in range(len(losses)):
        part = slice(samples.row_offsets[c], samples.row_offsets[c + 1])
        local, ids = parameters.changes[part], samples.ids[part]
        network = parameters.theta_changes[c]
        for i in range(len(ids)):
            for j in range(table.shape[1]):
                local[i, j] = table[ids[i], j]
        for j in range(len(theta)):
            network[j] = theta[j]
        part = slice(samples.sample_offsets[c], samples.sample_offsets[c + 1])
        losses[c] = _train_client(
            _Point(parameters.users[c], local, network),
            samples.rows[part].reshape(samples.n_epochs, -1),
            samples.labels[part].reshape(samples.n_epochs, -1),
            sizes,
            descent,
        )
        for i in range(len(ids)):
            for j in range(table.shape[1]):
                local[i, j] -= table[ids[i], j]
        for j in range(len(theta)):
            network[j] -= theta[j]
    return losses


class NCF(FederatedRecommender):
    """FedNCF: an MLP on ``[p_u, q_i]``; the network is shared and averaged.

    Source: Perifanis and Efraimidis, "Federated Neural Collaborative Filtering"
    (Knowledge-Based Systems 2022); FedRAS (KDD 2025, section 5.1). With dim 32 and
    ``mlp_hidden_size: [32, 16]`` the layers are 64-32-16-1, ReLU between them.

    Parameters
    ----------
    config, dataset
        As for the base class.
    mlp_hidden_size : list of int
        Sizes of the hidden layers.
    """

    def __init__(
        self, config: ModelConfig, dataset: Any, mlp_hidden_size: Sequence[int]
    ) -> None:
        super().__init__(config, dataset)
        hidden = mlp_hidden_size
        if not isinstance(hidden, list | tuple) or not all(
            type(size) is int and size > 0 for size in hidden
        ):
            raise ConfigError(
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

    def train_clients(
        self, parameters: LocalParameters, samples: Samples, descent: Descent
    ) -> NDArray[np.float64]:
        """Train a group's clients by compiled code; see the base class."""
        losses: NDArray[np.float64] = _train_clients(
            self._sizes, parameters, samples, descent
        )
        return losses

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
