"""How the server combines the updates of a cohort."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import RowUpdate, row_update
from recbole_fedras.numeric.descent import descend


class RowMean:
    """Running mean of row-sparse updates.

    Source: FedRAS (KDD 2025), section 4.4. With S the cohort and S_i the clients that
    changed row i, ``inverse_frequency`` weighs every update of row i by |S| / |S_i| in
    the mean over S: ``(1 / |S_i|) sum_u delta_i^u``. ``fedavg`` is the plain mean over
    S, ``(1 / |S|) sum_u delta_i^u`` (the paper's FedRAS-T, section 5.4.1).

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


class CodeDescent:
    """Item codes with the least squared error for a cohort's users.

    Source: LightFR (TOIS 2023). With ``c_u`` what client u would have item i be, its
    user code or the complement, the server descends by coordinates on
    ``sum_u (f - c_u . d_i)^2`` from the code that it has: the error of i's users, as
    ``(sgn(r') f - sgn(r') b_u . d)^2`` is the error of ``b_u . d`` against r'.

    Parameters
    ----------
    table : Tensor, shape (n_items, dim)
        The server's codes.
    """

    def __init__(self, table: Tensor) -> None:
        self._table = table
        self._ids: list[NDArray[np.int64]] = []
        self._changes: list[NDArray[np.int8]] = []

    def add(self, update: RowUpdate) -> None:
        """Add one more client's update, as decoded."""
        self._ids.append(update.ids.numpy())
        self._changes.append(update.rows.numpy().astype(np.int8))

    def update(self) -> RowUpdate:
        """Return the change of the codes, of the rows where there is one."""
        ids, changes = np.concatenate(self._ids), np.concatenate(self._changes)
        order = np.argsort(ids, kind="stable")
        items, starts = np.unique(ids[order], return_index=True)
        table = self._table.numpy()
        codes = table[items]
        _descend_all(codes, changes, order, np.append(starts, len(order)))
        codes -= table[items]
        moved = codes.any(axis=1)
        return row_update(items[moved], codes[moved])


Aggregate = RowMean | CodeDescent


def aggregate(aggregation: str, table: Tensor) -> Aggregate:
    """Start the aggregation of a round, of updates to the server's ``table``."""
    if aggregation == "discrete":
        return CodeDescent(table)
    n_items, dim = table.shape
    return RowMean(n_items, dim, aggregation)


@njit(nogil=True, cache=True)
def _descend_all(
    codes: NDArray[np.float32],
    changes: NDArray[np.int8],
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
) -> None:
    """Descend for each item, from its code and with its clients' wishes."""
    dim = codes.shape[1]
    for item in range(len(codes)):
        own = order[starts[item] : starts[item + 1]]
        wishes = np.empty((len(own), dim), np.float32)
        error = np.full(len(own), dim, np.float32)
        for c in range(len(own)):
            for k in range(dim):
                wishes[c, k] = codes[item, k] + changes[own[c], k]
                error[c] -= wishes[c, k] * codes[item, k]
        descend(codes[item], wishes, error, len(own))


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
