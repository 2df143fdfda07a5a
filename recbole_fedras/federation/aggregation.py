"""How the server combines the updates of a cohort."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import RowUpdate, row_update


class RowMean:
    """Running mean of row-sparse updates.

    Source: FedRAS (KDD 2025), section 4.1. With S the cohort and S_i the clients that
    changed row i, ``inverse_frequency`` weighs every update of row i by |S| / |S_i| in
    the mean over S: ``(1 / |S_i|) sum_u delta_i^u``. ``fedavg`` is the plain mean over
    S, ``(1 / |S|) sum_u delta_i^u`` (the paper's FedRAS-T).

    Parameters
    ----------
    n_items, dim : int
    aggregation : {'inverse_frequency', 'fedavg'}
    """

    def __init__(self, n_items: int, dim: int, aggregation: str) -> None:
        self._aggregation = aggregation
        self._total = np.zeros((n_items, dim), np.float32)
        self._counts = np.zeros(n_items, np.float32)
        self._n_clients = 0

    def add(self, update: RowUpdate) -> None:
        """Add the update of one more client, as decoded."""
        _add_rows(self._total, self._counts, update.ids.numpy(), update.rows.numpy())
        self._n_clients += 1

    def update(self) -> RowUpdate:
        """Return the mean, of the rows where it is not zero."""
        counts = np.maximum(self._counts, 1)
        if self._aggregation == "fedavg":
            counts[:] = self._n_clients
        mean = self._total / counts[:, None]
        ids = np.flatnonzero(mean.any(axis=1))  # a network may pass no gradient on
        return row_update(ids, mean[ids])


@njit(nogil=True, cache=True)
def _add_rows(
    total: NDArray[np.float32],
    counts: NDArray[np.float32],
    ids: NDArray[np.int64],
    rows: NDArray[np.float32],
) -> None:
    for i in range(len(ids)):
        counts[ids[i]] += 1
        mine, row = total[ids[i]], rows[i]
        for j in range(len(mine)):
            mine[j] += row[j]


def mean_theta(changes: list[Tensor]) -> Tensor:
    """Plain mean of the networks' changes, each of shape (n_theta,)."""
    total = sum(changes[1:], start=changes[0])
    return total / len(changes)
