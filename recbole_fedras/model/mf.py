"""MF: matrix factorisation, the dot product of user and item (FedMF)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.data.clients import Samples
from recbole_fedras.data.local import Descent, Floats, LocalParameters
from recbole_fedras.model.base import FederatedRecommender
from recbole_fedras.model.decay import decay_rows, shrink
from recbole_fedras.numeric.theta import Theta

Rows = NDArray[np.int32]


_fast = njit(
    nogil=True,
    cache=True,
    forceinline=True,  # one copy of the code: another one may round differently
    error_model="numpy",
    fastmath={"reassoc", "contract", "arcp", "nsz"},  # NaN and infinity stay so
)


class _Room(NamedTuple):
    """Memory that a client's batches use again and again.

    Attributes
    ----------
    slopes : ndarray of float32, shape (batch_size,)
        Of the loss at each sample's logit.
    user_gradient : ndarray of float32, shape (dim,)
    step : ndarray of float32, shape (dim,)
        What an item's gradient is for a slope of one.
    slope_of_row : ndarray of float32, shape (n_rows,)
        Sums of slopes; zero but within ``_ascend``. Empty without SAM, as the next.
    high_user, high_table : ndarray of float32
        The parameters uphill.
    seen : ndarray of bool, shape (n_rows,)
        False but within ``decay_rows``; empty without weight decay.
    """

    slopes: Floats
    user_gradient: Floats
    step: Floats
    slope_of_row: Floats
    high_user: Floats
    high_table: Floats
    seen: NDArray[np.bool_]


@_fast
def _pair_slopes(user: Floats, table: Floats, rows: Rows, room: _Room) -> float:
    """Do the same for pairs of an item and a negative, and BPR's loss."""
    slopes, user_gradient = room.slopes, room.user_gradient
    dim = len(user)
    loss = 0.0
    user_gradient[:] = 0
    for i in range(0, len(rows), 2):
        item, negative = table[rows[i]], table[rows[i + 1]]
        # How far the item's logit is ahead of the negative's.
        ahead = np.float32(0)
        for j in range(dim):
            ahead += user[j] * (item[j] - negative[j])
        # log(1 + exp(-ahead)) and its slope, from exp(-|ahead|), which cannot overflow.
        decay = np.exp(-abs(ahead))
        loss += np.log1p(decay) - min(ahead, np.float32(0))
        behind = np.float32(1) / (np.float32(1) + decay)  # sigmoid of |ahead|
        slope = decay * behind if ahead >= 0 else behind
        slopes[i], slopes[i + 1] = -slope, slope
        for j in range(dim):
            user_gradient[j] += slope * (negative[j] - item[j])
    return float(loss)


@_fast
def _slopes(
    user: Floats,
    table: Floats,
    rows: Rows,
    labels: Floats,
    pairwise: bool,
    room: _Room,
) -> float:
    """Write each sample's slope and the user's gradient; return the loss."""
    if pairwise:
        return _pair_slopes(user, table, rows, room)
    slopes, user_gradient = room.slopes, room.user_gradient
    dim = len(user)
    loss = 0.0
    user_gradient[:] = 0
    product = 1.0  # of 1 + exp(-|logit|): one logarithm for many
    for i in range(len(rows)):
        item = table[rows[i]]
        logit = np.float32(0)
        for j in range(dim):
            logit += user[j] * item[j]
        # The loss is max(logit, 0) - logit label + log(1 + exp(-|logit|)).
        decay = np.exp(-abs(logit))
        loss += max(logit, np.float32(0)) - logit * labels[i]
        product *= np.float32(1) + decay
        if product > 1e300:  # a factor is at most 2: the next still fits a float64
            loss += np.log(product)
            product = 1.0
        # The slope is sigmoid(logit) - label.
        positive = np.float32(1) / (np.float32(1) + decay)
        slopes[i] = (positive if logit >= 0 else decay * positive) - labels[i]
        for j in range(dim):
            user_gradient[j] += slopes[i] * item[j]
    return float(loss + np.log(product))


@_fast
def _step(user: Floats, gradient_map: Floats, step: Floats) -> None:
    """Write what an item's gradient is for a slope of one: the user's row, mapped.

    It is the same for all items of a batch, so the map costs one product a batch.
    """
    if not len(gradient_map):
        for j in range(len(user)):
            step[j] = user[j]
        return
    step[:] = 0
    for k in range(len(user)):
        for j in range(len(user)):
            step[j] += user[k] * gradient_map[k, j]


@_fast
def _ascend(
    user: Floats, table: Floats, rows: Rows, descent: Descent, room: _Room
) -> None:
    """Write the parameters that lie uphill, those of a batch's items; see ``ascend``.

    An item's gradient is the sum of its slopes times ``step``, so that all norms come
    from the slopes and two norms of vectors: no gradient of an item is written.
    """
    slopes, user_gradient, step = room.slopes, room.user_gradient, room.step
    slope_of_row = room.slope_of_row
    high_user, high_table = room.high_user, room.high_table
    dim, tiny = len(user), np.float32(1e-12)  # TINY of ``ascend``
    square, norm, user_norm = np.float32(0), np.float32(0), np.float32(0)
    # An item that stands in a batch twice has one gradient.
    for i in range(len(rows)):
        slope_of_row[rows[i]] += slopes[i]
    for i in range(len(rows)):
        square += slopes[i] * slope_of_row[rows[i]]  # of rows' slopes, in all
    # How far to go, for a gradient of one.
    for j in range(dim):
        norm += step[j] * step[j]
        user_norm += user_gradient[j] * user_gradient[j]
    shared = np.float32(descent.rho_shared) / (np.sqrt(norm * square) + tiny)
    private = np.float32(descent.rho_private) / (np.sqrt(user_norm) + tiny)
    # Uphill; a row that stands twice is written twice, to the same effect.
    for i in range(len(rows)):
        slope = shared * slope_of_row[rows[i]]
        item, high = table[rows[i]], high_table[rows[i]]
        for j in range(dim):
            high[j] = item[j] + slope * step[j]
    # Only the batch's rows are cleared: the table may be much larger.
    for i in range(len(rows)):
        slope_of_row[rows[i]] = 0
    for j in range(dim):
        high_user[j] = user[j] + private * user_gradient[j]


@_fast
def _room(
    n_rows: int, dim: int, batch_size: int, sharpness_aware: bool, decays: bool
) -> _Room:
    """Return memory for a client with so many rows."""
    n_high = n_rows if sharpness_aware else 0
    return _Room(
        np.empty(batch_size, np.float32),
        np.empty(dim, np.float32),
        np.empty(dim, np.float32),
        np.zeros(n_high, np.float32),
        np.empty(dim, np.float32),
        np.empty((n_high, dim), np.float32),
        np.zeros(n_rows if decays else 0, np.bool_),
    )


@_fast
def _train_client(
    user: Floats, table: Floats, rows: Rows, labels: Floats, descent: Descent
) -> float:
    """Train one client in place; return its loss.

    Every sample's slope is taken at the parameters from before the batch. An item's
    gradient is its slopes times the old user row, so items can be updated in passing.
    """
    dim, batch_size = len(user), min(descent.batch_size, rows.shape[1])
    rate = np.float32(descent.learning_rate)
    user_rate = np.float32(descent.user_learning_rate)
    sharpness_aware = descent.rho_shared > 0 or descent.rho_private > 0
    decays = descent.weight_decay > 0
    room = _room(len(table), dim, batch_size, sharpness_aware, decays)
    slopes, step, user_gradient = room.slopes, room.step, room.user_gradient
    loss = 0.0
    for epoch in range(len(rows)):
        for start in range(0, rows.shape[1], batch_size):
            batch = rows[epoch, start : start + batch_size]
            label = labels[epoch, start : start + batch_size]
            loss += _slopes(user, table, batch, label, descent.pairwise, room)
            _step(user, descent.gradient_map, step)
            # SAM: the step is taken from here, with the gradient found uphill.
            if sharpness_aware:
                _ascend(user, table, batch, descent, room)
                high_user, high_table = room.high_user, room.high_table
                _slopes(high_user, high_table, batch, label, descent.pairwise, room)
                _step(high_user, descent.gradient_map, step)
            # No gradient is taken any more: what decays can do so before its step.
            if decays:
                decay_rows(table, batch, descent, room.seen)
                shrink(user, descent.user_learning_rate * descent.weight_decay)
            for i in range(len(batch)):
                item = table[batch[i]]
                slope = rate * slopes[i]
                for j in range(dim):
                    item[j] -= slope * step[j]
            for j in range(dim):
                user[j] -= user_rate * user_gradient[j]
    return loss


@njit(nogil=True, cache=True)
def _train_clients(
    parameters: LocalParameters, samples: Samples, descent: Descent
) -> NDArray[np.float64]:
    """Train clients one by one; see :data:`recbole_fedras.data.local.TrainClients`.

    A client's rows are copied to where their changes are wanted, so that it works in
    a compact table which the cache holds.
    """
    users, table, changes = parameters.users, parameters.table, parameters.changes
    losses = np.empty(len(users))
    for c in range(len(users)):
        part = slice(samples.row_offsets[c], samples.row_offsets[c + 1])
        local, ids = changes[part], samples.ids[part]
        # Copy, by loops: numba's own assignments between arrays are far slower, also
        # to compile.
        for i in range(len(ids)):
            row, before = local[i], table[ids[i]]
            for j in range(len(row)):
                row[j] = before[j]
        part = slice(samples.sample_offsets[c], samples.sample_offsets[c + 1])
        losses[c] = _train_client(
            users[c],
            local,
            samples.rows[part].reshape(samples.n_epochs, -1),
            samples.labels[part].reshape(samples.n_epochs, -1),
            descent,
        )
        # What is left of the copies when the old rows are taken off is the change.
        for i in range(len(ids)):
            row, before = local[i], table[ids[i]]
            for j in range(len(row)):
                row[j] -= before[j]
    return losses


class MF(FederatedRecommender):
    """FedMF: private user vectors, a shared item table, no network.

    Source: Chai et al., "Secure Federated Matrix Factorization" (IEEE Intelligent
    Systems 2020), with implicit feedback and binary cross-entropy as in FedRAS (KDD
    2025, section 2.1).
    """

    train_clients = staticmethod(_train_clients)

    def score(self, user_rows: Tensor, item_rows: Tensor, theta: Theta) -> Tensor:
        """Return ``p_u . q_i``."""
        return (user_rows * item_rows).sum(-1)

    def score_all(self, user_rows: Tensor, item_table: Tensor, theta: Theta) -> Tensor:
        """Return ``P Q'``."""
        return user_rows @ item_table.T
