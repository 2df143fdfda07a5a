"""MF: matrix factorisation, the dot product of user and item (FedMF)."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.model.base import FederatedRecommender
from recbole_fedras.numeric.theta import Theta

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


_fast = njit(
    nogil=True,
    cache=True,
    forceinline=True,  # one copy of the code: another one may round differently
    error_model="numpy",
    fastmath={"reassoc", "contract", "arcp", "nsz"},  # NaN and infinity stay so
)


@_fast
def _pair_slopes(
    user: Floats, table: Floats, rows: Ints, slopes: Floats, user_gradient: Floats
) -> float:
    """Do the same for pairs of an item and a negative, and BPR's loss."""
    dim = len(user)
    loss = 0.0
    user_gradient[:] = 0
    for i in range(0, len(rows), 2):
        item, negative = table[rows[i]], table[rows[i + 1]]
        ahead = np.float32(0)
        for j in range(dim):
            ahead += user[j] * (item[j] - negative[j])
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
    rows: Ints,
    labels: Floats,
    slopes: Floats,
    user_gradient: Floats,
    pairwise: bool,
) -> float:
    """Write each sample's slope and the user's gradient; return the loss."""
    if pairwise:
        return _pair_slopes(user, table, rows, slopes, user_gradient)
    dim = len(user)
    loss = 0.0
    user_gradient[:] = 0
    product = 1.0  # of 1 + exp(-|logit|): one logarithm for many
    for i in range(len(rows)):
        item = table[rows[i]]
        logit = np.float32(0)
        for j in range(dim):
            logit += user[j] * item[j]
        decay = np.exp(-abs(logit))
        loss += max(logit, np.float32(0)) - logit * labels[i]
        product *= np.float32(1) + decay
        if product > 1e300:
            loss += np.log(product)
            product = 1.0
        positive = np.float32(1) / (np.float32(1) + decay)
        slopes[i] = (positive if logit >= 0 else decay * positive) - labels[i]
        for j in range(dim):
            user_gradient[j] += slopes[i] * item[j]
    return float(loss + np.log(product))


@_fast
def _step(user: Floats, gradient_map: Floats, step: Floats) -> None:
    """Write what an item's gradient is for a slope of one, mapped."""
    if not len(gradient_map):
        step[:] = user
        return
    step[:] = 0
    for k in range(len(user)):
        for j in range(len(user)):
            step[j] += user[k] * gradient_map[k, j]


@_fast
def _ascend(
    user: Floats,
    table: Floats,
    rows: Ints,
    slopes: Floats,
    user_gradient: Floats,
    step: Floats,
    rho_shared: np.float32,
    rho_private: np.float32,
    slope_of_row: Floats,
    high_user: Floats,
    high_table: Floats,
) -> None:
    """Write the parameters that lie uphill, those of a batch's items; see ``ascend``.

    An item's gradient is the sum of its slopes times ``step``. ``slope_of_row`` is
    zero, before and after.
    """
    dim, tiny = len(user), np.float32(1e-12)
    square, norm, user_norm = np.float32(0), np.float32(0), np.float32(0)
    for i in range(len(rows)):
        slope_of_row[rows[i]] += slopes[i]
    for i in range(len(rows)):
        square += slopes[i] * slope_of_row[rows[i]]  # of rows' slopes, in all
    for j in range(dim):
        norm += step[j] * step[j]
        user_norm += user_gradient[j] * user_gradient[j]
    shared = rho_shared / (np.sqrt(norm * square) + tiny)
    private = rho_private / (np.sqrt(user_norm) + tiny)
    for i in range(len(rows)):
        slope = shared * slope_of_row[rows[i]]
        item, high = table[rows[i]], high_table[rows[i]]
        for j in range(dim):
            high[j] = item[j] + slope * step[j]
    for i in range(len(rows)):
        slope_of_row[rows[i]] = 0
    for j in range(dim):
        high_user[j] = user[j] + private * user_gradient[j]


@_fast
def _train_client(
    user: Floats,
    table: Floats,
    rows: Ints,
    labels: Floats,
    batch_size: int,
    learning_rate: float,
    user_learning_rate: float,
    gradient_map: Floats,
    rho_shared: float,
    rho_private: float,
    pairwise: bool,
) -> float:
    """Train one client in place.

    Every sample's slope is taken at the parameters from before the batch. An item's
    gradient is its slopes times the old user row, so items can be updated in passing.
    """
    dim, batch_size = len(user), min(batch_size, rows.shape[1])
    rate, user_rate = np.float32(learning_rate), np.float32(user_learning_rate)
    slopes = np.empty(batch_size, np.float32)
    user_gradient = np.empty(dim, np.float32)
    step = np.empty(dim, np.float32)
    sharpness_aware = rho_shared > 0 or rho_private > 0
    n_rows = len(table) if sharpness_aware else 0
    slope_of_row = np.zeros(n_rows, np.float32)
    high_table, high_user = np.empty((n_rows, dim), np.float32), np.empty_like(user)
    loss = 0.0
    for epoch in range(len(rows)):
        for start in range(0, rows.shape[1], batch_size):
            batch = rows[epoch, start : start + batch_size]
            label = labels[epoch, start : start + batch_size]
            loss += _slopes(user, table, batch, label, slopes, user_gradient, pairwise)
            _step(user, gradient_map, step)
            if sharpness_aware:
                _ascend(
                    user, table, batch, slopes, user_gradient, step,
                    np.float32(rho_shared), np.float32(rho_private), slope_of_row,
                    high_user, high_table,
                )  # fmt: skip
                _slopes(
                    high_user, high_table, batch, label, slopes, user_gradient,
                    pairwise,
                )  # fmt: skip
                _step(high_user, gradient_map, step)
            for i in range(len(batch)):
                item = table[batch[i]]
                slope = rate * slopes[i]
                for j in range(dim):
                    item[j] -= slope * step[j]
            for j in range(dim):
                user[j] -= user_rate * user_gradient[j]
    return loss


@njit(nogil=True, cache=True)
def _train_clients(  # type: ignore[no-untyped-def]
    users, table, theta, changes, theta_changes, ids, row_offsets, rows, labels,
    sample_offsets, n_epochs, batch_size, learning_rate, user_learning_rate,
    theta_learning_rate, gradient_map, rho_shared, rho_private, pairwise,
    upload_gradient,
):  # fmt: skip
    """Train clients one by one; see ``FederatedRecommender.train_clients``.

    A client's rows are copied to where their changes are wanted, so that it works in
    a compact table which the cache holds.
    """
    loss = 0.0
    for c in range(len(users)):
        own = slice(row_offsets[c], row_offsets[c + 1])
        samples = slice(sample_offsets[c], sample_offsets[c + 1])
        local, own_ids = changes[own], ids[own]
        for i in range(len(own_ids)):
            row, held = local[i], table[own_ids[i]]
            for j in range(len(row)):
                row[j] = held[j]
        loss += _train_client(
            users[c], local, rows[samples].reshape(n_epochs, -1),
            labels[samples].reshape(n_epochs, -1), batch_size, learning_rate,
            user_learning_rate, gradient_map, rho_shared, rho_private,
            pairwise,
        )  # fmt: skip
        for i in range(len(own_ids)):
            row, held = local[i], table[own_ids[i]]
            for j in range(len(row)):
                row[j] -= held[j]
    return loss


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
