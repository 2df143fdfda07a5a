"""LightFR: users and items are binary codes, found by discrete optimisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.data.clients import Samples
from recbole_fedras.data.local import Descent, LocalParameters
from recbole_fedras.embedding.full import Full
from recbole_fedras.errors import ConfigError
from recbole_fedras.lightfr.codes import CODES
from recbole_fedras.lightfr.descent import descend
from recbole_fedras.model.base import FederatedRecommender
from recbole_fedras.model.settings import ModelConfig
from recbole_fedras.numeric.theta import Theta


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
    (:class:`~recbole_fedras.lightfr.aggregation.CodeDescent`).

    Parameters
    ----------
    config, dataset
        As for the base class.
    code_regularization : float
        Lambda.

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

    table_values = CODES

    requires: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "use_gpu": (False,),  # its kernel is the only trainer there is
        "local_loss": ("bce",),  # which stands for its own
        "local_objective": ("sgd",),
        "upload": ("delta",),
        "user_optimizer": ("sgd",),
        "weight_decay": (0,),
        "server_optimizer": ("sgd",),  # the aggregate as it is: anything else ...
        "server_learning_rate": (1,),
        "replica": ("broadcast", "personal"),  # ... or half of it leaves no codes
        "item_embedding": ("full",),
        "item_embedding_class": (f"{Full.__module__}.{Full.__qualname__}",),
        "use_base": (False,),
    }

    def __init__(
        self, config: ModelConfig, dataset: Any, code_regularization: float
    ) -> None:
        super().__init__(config, dataset)
        if self.train_clients is None:  # of a subclass with another score
            raise ConfigError(
                f"model={type(self).__name__!r}: codes need train_clients of their own"
            )
        regularization = code_regularization
        if type(regularization) not in (int, float) or not regularization >= 0.5:
            raise ConfigError(
                f"code_regularization={regularization!r} is not allowed; it must be a "
                "number >= 0.5"
            )
        self._regularization = float(regularization)

    def initial_users(self, clients: NDArray[np.int64]) -> Tensor:
        """Return the signs of what other models draw."""
        return _signs(super().initial_users(clients))

    def initial_table(self) -> Tensor:
        """Return the signs of what other models draw."""
        return _signs(super().initial_table())

    def train_clients(
        self, parameters: LocalParameters, samples: Samples, descent: Descent
    ) -> NDArray[np.float64]:
        """Train a group's clients by discrete descent; see the base class."""
        losses: NDArray[np.float64] = _train_clients(
            self._regularization, parameters, samples
        )
        return losses

    def score(self, user_rows: Tensor, item_rows: Tensor, theta: Theta) -> Tensor:
        """Return ``1/2 + b_u . d_i / (2 f)``, between 0 and 1."""
        return 0.5 + (user_rows * item_rows).sum(-1) / (2 * user_rows.shape[-1])

    def score_all(self, user_rows: Tensor, item_table: Tensor, theta: Theta) -> Tensor:
        """Return ``1/2 + B D' / (2 f)``."""
        return 0.5 + user_rows @ item_table.T / (2 * user_rows.shape[-1])

    def calculate_loss(self, interaction: Any) -> NoReturn:
        """Refuse: codes have no gradient for RecBole's central training."""
        raise NotImplementedError("LightFR is trained by federated rounds only")


def _signs(values: Tensor) -> Tensor:
    return torch.where(values < 0, -1.0, 1.0)


@njit(nogil=True, cache=True)
def _train_clients(
    regularization: float, parameters: LocalParameters, samples: Samples
) -> NDArray[np.float64]:
    """Train clients one by one; see :data:`recbole_fedras.data.local.TrainClients`.

    The loss is the squared error of the score, summed over samples.
    """
    users, table, changes = parameters.users, parameters.table, parameters.changes
    rows, labels = samples.rows, samples.labels
    dim, losses = users.shape[1], np.zeros(len(users))
    for c in range(len(users)):
        part = slice(samples.row_offsets[c], samples.row_offsets[c + 1])
        first, last = samples.sample_offsets[c], samples.sample_offsets[c + 1]
        local, ids, user = changes[part], samples.ids[part], users[c]
        # An item counts once, however often it was drawn.
        target = np.empty(len(ids), np.float32)
        for sample in range(first, last):
            target[rows[sample]] = dim if labels[sample] > 0 else -dim
        # Copy the item codes, and see how far their products are from the target.
        error = np.empty(len(ids), np.float32)  # whole numbers, so exact
        for i in range(len(ids)):
            product = np.float32(0)
            for k in range(dim):
                local[i, k] = table[ids[i], k]
                product += user[k] * local[i, k]
            error[i] = target[i] - product
        # Find the user's code; descent keeps the error up to date.
        descend(user, local, error, 2 * regularization * len(ids))
        for sample in range(first, last):
            losses[c] += (error[rows[sample]] / (2 * dim)) ** 2
        # What would suit this user alone, less the code that the client was sent.
        for i in range(len(ids)):
            for k in range(dim):
                wanted = user[k] if target[i] > 0 else -user[k]
                local[i, k] = wanted - local[i, k]
    return losses
