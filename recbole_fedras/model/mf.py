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


# Training is one piece of compiled code: numba would compile its parts on their own
# too, which takes seconds, and another copy may round differently.
_inlined = njit(inline="always")


class _Room(NamedTuple):
    """Memory that batches use again and again.

    Attributes
    ----------
    slopes : ndarray of float32, shape (batch_size,)
        Of the loss at each sample's logit.
    user_gradient : ndarray of float32, shape (dim,)
    step : ndarray of float32, shape (dim,)
        What an item's gradient is for a slope of one.
    """

    slopes: Floats
    user_gradient: Floats
    step: Floats


class _Uphill(NamedTuple):
    """More of it, for SAM.

    Attributes
    ----------
    slope_of_row : ndarray of float32, shape (n_rows,)
        Sums of slopes; zero but within ``_ascend``.
    user, table : ndarray of float32, shape (dim,) and (n_rows, dim)
        The parameters uphill.
    """

    slope_of_row: Floats
    user: Floats
    table: Floats


@_inlined
def _pair_slopes(user: Floats, table: Floats, rows: Rows, room: _Room) -> float:
    """Do the same for pairs of an item and a negative, and BPR's loss."""
    slopes, user_gradient = room.slopes, room.user_gradient
    dim = len(user)
    loss = 0.0
    for j in range(dim):
        user_gradient[j] = 0
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


@_inlined
def _slopes(
    user: Floats, table: Floats, rows: Rows, labels: Floats, room: _Room
) -> float:
    """Write each sample's slope and the user's gradient; return the loss."""
    slopes, user_gradient = room.slopes, room.user_gradient
    dim = len(user)
    loss = 0.0
    for j in range(dim):
        user_gradient[j] = 0
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


@_inlined
def _map(user: Floats, gradient_map: Floats, step: Floats) -> None:
    """Write what an item's gradient is for a slope of one: the user's row, mapped.

    It is the same for all items of a batch, so the map costs one product a batch.
    """
    for j in range(len(user)):
        step[j] = 0
    for k in range(len(user)):
        for j in range(len(user)):
            step[j] += user[k] * gradient_map[k, j]


@_inlined
def _ascend(
    user: Floats,
    table: Floats,
    rows: Rows,
    descent: Descent,
    room: _Room,
    uphill: _Uphill,
) -> None:
    """Write the parameters that lie uphill, those of a batch's items; see ``ascend``.

    An item's gradient is the sum of its slopes times ``step``, so that all norms come
    from the slopes and two norms of vectors: no gradient of an item is written.
    """
    slopes, user_gradient, step = room.slopes, room.user_gradient, room.step
    slope_of_row = uphill.slope_of_row
    high_user, high_table = uphill.user, uphill.table
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


@njit(
    nogil=True,
    cache=True,
    forceinline=True,
    error_model="numpy",
    fastmath={"reassoc", "contract", "arcp", "nsz"},  # NaN and infinity stay so
)
def _train(  # type: ignore[no-untyped-def]
    parameters: LocalParameters,
    samples: Samples,
    descent: Descent,
    room: _Room,
    pairwise,
    gradient_map,
    uphill,
    seen,
    losses: NDArray[np.float64],
) -> None:
    """Train clients one by one, in place; what is None is not even compiled.

    A client's rows are copied to where their changes are wanted, so that it works in
    a compact table which the cache holds. Every sample's slope is taken at the
    parameters from before the batch. An item's gradient is its slopes times the old
    user row, so items can be updated in passing.
    """
    slopes, user_gradient, step = room.slopes, room.user_gradient, room.step
    rate = np.float32(descent.learning_rate)
    user_rate = np.float32(descent.user_learning_rate)
    for c in range(len(losses)):
        first_row, last_row = samples.row_offsets[c], samples.row_offsets[c + 1]
        user, table = parameters.users[c], parameters.changes[first_row:last_row]
        ids = samples.ids[first_row:last_row]
        for i in range(len(ids)):
            row, before = table[i], parameters.table[ids[i]]
            for j in range(len(user)):
                row[j] = before[j]
        loss = 0.0
        end = samples.sample_offsets[c]
        size = (samples.sample_offsets[c + 1] - end) // samples.n_epochs
        for _ in range(samples.n_epochs):
            start, end = end, end + size
            while start < end:
                stop = start + descent.batch_size
                if stop > end:
                    stop = end
                rows, labels = samples.rows[start:stop], samples.labels[start:stop]
                start = stop
                if pairwise is None:
                    loss += _slopes(user, table, rows, labels, room)
                else:
                    loss += _pair_slopes(user, table, rows, room)
                if gradient_map is None:
                    for j in range(len(user)):
                        step[j] = user[j]
                else:
                    _map(user, gradient_map, step)
                # SAM: the step is taken from here, with the gradient found uphill.
                if uphill is not None:
                    _ascend(user, table, rows, descent, room, uphill)
                    if pairwise is None:
                        _slopes(uphill.user, uphill.table, rows, labels, room)
                    else:
                        _pair_slopes(uphill.user, uphill.table, rows, room)
                    if gradient_map is None:
                        for j in range(len(user)):
                            step[j] = uphill.user[j]
                    else:
                        _map(uphill.user, gradient_map, step)
                # No gradient is taken any more: what decays can do so before its step.
                if seen is not None:
                    decay_rows(table, rows, descent, seen)
                    shrink(user, descent.user_learning_rate * descent.weight_decay)
                for i in range(len(rows)):
                    item, slope = table[rows[i]], rate * slopes[i]
                    for j in range(len(user)):
                        item[j] -= slope * step[j]
                for j in range(len(user)):
                    user[j] -= user_rate * user_gradient[j]
        losses[c] = loss
        # What is left of the copies when the old rows are taken off is the change.
        for i in range(len(ids)):
            row, before = table[i], parameters.table[ids[i]]
            for j in range(len(user)):
                row[j] -= before[j]


def _train_clients(
    parameters: LocalParameters, samples: Samples, descent: Descent
) -> NDArray[np.float64]:
    """Train clients one by one; see :data:`recbole_fedras.data.local.TrainClients`."""
    dim = parameters.users.shape[1]
    n_rows = int(np.diff(samples.row_offsets).max())
    n_samples = int(np.diff(samples.sample_offsets).max()) // samples.n_epochs
    batch_size = min(descent.batch_size, n_samples)
    room = _Room(*(np.empty(size, np.float32) for size in (batch_size, dim, dim)))
    uphill = seen = None
    if descent.rho_shared > 0 or descent.rho_private > 0:
        uphill = _Uphill(
            np.zeros(n_rows, np.float32),
            np.empty(dim, np.float32),
            np.empty((n_rows, dim), np.float32),
        )
    if descent.weight_decay > 0:
        seen = np.zeros(n_rows, np.bool_)
    gradient_map = descent.gradient_map if len(descent.gradient_map) else None
    losses = np.empty(len(parameters.users))
    pairwise = True if descent.pairwise else None
    ways = (pairwise, gradient_map, uphill, seen)
    _train(parameters, samples, descent, room, *ways, losses)
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
