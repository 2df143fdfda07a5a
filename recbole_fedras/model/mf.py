"""MF: matrix factorisation, the dot product of user and item (FedMF)."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.model.base import FederatedRecommender
from recbole_fedras.theta import Theta

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]


@njit(
    nogil=True,
    cache=True,
    error_model="numpy",
    fastmath={"reassoc", "contract", "arcp", "nsz"},  # NaN and infinity stay so
)
def _train_client(
    user: Floats,
    table: Floats,
    rows: Ints,
    labels: Floats,
    batch_size: int,
    learning_rate: float,
    user_learning_rate: float,
    gradient_map: Floats,
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
    loss = 0.0
    for epoch in range(len(rows)):
        for start in range(0, rows.shape[1], batch_size):
            size = min(batch_size, rows.shape[1] - start)
            user_gradient[:] = 0
            product = 1.0  # of 1 + exp(-|logit|): one logarithm for many
            for i in range(size):
                item = table[rows[epoch, start + i]]
                logit = np.float32(0)
                for j in range(dim):
                    logit += user[j] * item[j]
                label = labels[epoch, start + i]
                decay = np.exp(-abs(logit))
                loss += max(logit, np.float32(0)) - logit * label
                product *= np.float32(1) + decay
                if product > 1e300:
                    loss += np.log(product)
                    product = 1.0
                positive = np.float32(1) / (np.float32(1) + decay)
                slopes[i] = (positive if logit >= 0 else decay * positive) - label
                for j in range(dim):
                    user_gradient[j] += slopes[i] * item[j]
            loss += np.log(product)
            if len(gradient_map):
                step[:] = 0
                for k in range(dim):
                    for j in range(dim):
                        step[j] += user[k] * gradient_map[k, j]
            else:
                step[:] = user
            for i in range(size):
                item = table[rows[epoch, start + i]]
                slope = rate * slopes[i]
                for j in range(dim):
                    item[j] -= slope * step[j]
            for j in range(dim):
                user[j] -= user_rate * user_gradient[j]
    return loss


@njit(nogil=True, cache=True)
def _train_clients(  # type: ignore[no-untyped-def]
    users, table, changes, ids, row_offsets, rows, labels, sample_offsets, n_epochs,
    batch_size, learning_rate, user_learning_rate, gradient_map,
):  # fmt: skip
    """Train clients one by one; see ``FederatedRecommender.train_clients``.

    A client's rows are copied to where their changes are wanted, so that he works in
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
            user_learning_rate, gradient_map,
        )  # fmt: skip
        for i in range(len(own_ids)):
            row, held = local[i], table[own_ids[i]]
            for j in range(len(row)):
                row[j] -= held[j]
    return loss


class MF(FederatedRecommender):
    """FedMF: private user vectors, a shared item table, no network.

    Source: Chai et al., "Secure Federated Matrix Factorization" (2020), with implicit
    feedback and logits as in FedRAS (KDD 2025, section 3).
    """

    train_clients = staticmethod(_train_clients)

    @staticmethod
    def score(user_rows: Tensor, item_rows: Tensor, theta: Theta) -> Tensor:
        """Return ``p_u . q_i``."""
        return (user_rows * item_rows).sum(-1)

    @classmethod
    def score_all(cls, user_rows: Tensor, item_table: Tensor, theta: Theta) -> Tensor:
        """Return ``P Q'``."""
        return user_rows @ item_table.T
