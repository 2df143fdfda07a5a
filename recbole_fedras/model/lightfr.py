"""LightFR: users and items are binary codes, found by discrete optimisation."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.model.base import FederatedRecommender
from recbole_fedras.numeric.descent import descend
from recbole_fedras.numeric.theta import Theta

Floats = NDArray[np.float32]


class LightFR(FederatedRecommender):
    """LightFR: codes of f = ``embedding_size`` bits; scores ``1/2 + b_u . d_i / 2f``.

    Source: Zhang et al., "LightFR: Lightweight Federated Recommendation with
    Privacy-preserving Matrix Factorization" (TOIS 2023), and the released code. A
    participant descends by coordinates, bit after bit until none changes, on the
    squared error between ``r'`` (f for its items, -f for negatives) and ``b . d``::

        b_k <- sgn(sum_i (r'_i - b . d_i) d_ik + 2 lambda n b_k)

    with n its items and negatives; a bit stays where the argument is 0. The item code
    that would suit it alone is ``sgn(r'_i) b``; the change to it is its update, and
    the server descends on the cohort's squared error in the same way
    (:class:`~recbole_fedras.federation.server.aggregation.CodeDescent`).

    Parameters
    ----------
    config : recbole.config.Config
        Also reads ``code_regularization``, lambda.
    dataset : recbole.data.dataset.Dataset

    Notes
    -----
    **Privacy**: every row that a client sends is its user code or the complement, so
    the server learns the code and, up to one sign, which items are the client's. That
    is the source's own message: its released server works on users' codes and ratings.

    **Departures**: the released mask drops low ratings and knows no negatives, so that
    codes collapse on implicit data; here what counts is its items and the negatives
    sampled in this participation, each once, and n counts only these. Only lambda of
    at least 1/2 is allowed: below, descent need not end. Items descend without lambda
    (1/2 makes no difference to the error), as in the released code; there the weight
    of an item's old bit is the size of the cohort, here the number of clients that
    sent a row. Equal scores, which are frequent, count by their average rank.
    """

    binary = True

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        regularization = config["code_regularization"]
        if type(regularization) not in (int, float) or not regularization >= 0.5:
            raise ValueError(
                f"code_regularization={regularization!r} is not allowed; it must be a "
                "number >= 0.5"
            )
        self._regularization = float(regularization)
        for table in (self.user_embedding, self.item_embedding):
            negative = table.weight.data < 0
            table.weight.data.fill_(1).masked_fill_(negative, -1)

    def train_clients(self, *group: Any) -> float:
        """Train a group's clients by discrete descent; see the base class."""
        return float(_train_clients(self._regularization, *group))

    def score(self, user_rows: Tensor, item_rows: Tensor, theta: Theta) -> Tensor:
        """Return ``1/2 + b_u . d_i / (2 f)``, between 0 and 1."""
        return 0.5 + (user_rows * item_rows).sum(-1) / (2 * user_rows.shape[-1])

    def score_all(self, user_rows: Tensor, item_table: Tensor, theta: Theta) -> Tensor:
        """Return ``1/2 + B D' / (2 f)``."""
        return 0.5 + user_rows @ item_table.T / (2 * user_rows.shape[-1])

    def calculate_loss(self, interaction: Any) -> NoReturn:
        """Refuse: codes have no gradient for RecBole's central training."""
        raise NotImplementedError("LightFR is trained by federated rounds only")


@njit(nogil=True, cache=True)
def _train_clients(  # type: ignore[no-untyped-def]
    regularization, users, table, theta, changes, theta_changes, ids, row_offsets,
    rows, labels, sample_offsets, n_epochs, batch_size, learning_rate,
    user_learning_rate, theta_learning_rate, gradient_map, rho_shared, rho_private,
    pairwise, upload_gradient,
):  # fmt: skip
    """Train clients one by one; see ``FederatedRecommender.train_clients``.

    The loss is the squared error of the score, summed over samples.
    """
    dim, loss = users.shape[1], 0.0
    for c in range(len(users)):
        own = slice(row_offsets[c], row_offsets[c + 1])
        samples = slice(sample_offsets[c], sample_offsets[c + 1])
        local, own_ids, user = changes[own], ids[own], users[c]
        target = np.empty(len(own_ids), np.float32)
        for sample in range(samples.start, samples.stop):
            target[rows[sample]] = dim if labels[sample] > 0 else -dim
        error = np.empty(len(own_ids), np.float32)  # whole numbers, so exact
        for i in range(len(own_ids)):
            product = np.float32(0)
            for k in range(dim):
                local[i, k] = table[own_ids[i], k]
                product += user[k] * local[i, k]
            error[i] = target[i] - product
        descend(user, local, error, 2 * regularization * len(own_ids))
        for sample in range(samples.start, samples.stop):
            loss += (error[rows[sample]] / (2 * dim)) ** 2
        for i in range(len(own_ids)):
            for k in range(dim):
                wanted = user[k] if target[i] > 0 else -user[k]
                local[i, k] = wanted - local[i, k]
    return loss
