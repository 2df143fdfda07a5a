"""How the server combines the updates of a cohort."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from recbole_fedras.compressor.base import RowUpdate, row_update


def aggregate_rows(
    updates: list[RowUpdate], n_items: int, dim: int, aggregation: str
) -> RowUpdate:
    """Combine row-sparse updates.

    Source: FedRAS (KDD 2025), section 4.1. With S the cohort and S_i the clients that
    changed row i, ``inverse_frequency`` weighs every update of row i by |S| / |S_i| in
    the mean over S: ``(1 / |S_i|) sum_u delta_i^u``. ``fedavg`` is the plain mean over
    S, ``(1 / |S|) sum_u delta_i^u`` (the paper's FedRAS-T).

    Parameters
    ----------
    updates : list of RowUpdate
        As decoded, one per client of the cohort.
    n_items, dim : int
    aggregation : {'inverse_frequency', 'fedavg'}

    Returns
    -------
    RowUpdate
        Of the rows whose mean is not zero.
    """
    total = np.zeros((n_items, dim), np.float32)
    counts = np.zeros((n_items, 1), np.float32)
    for update in updates:  # in a client's update every row stands once
        ids = update.ids.numpy()
        total[ids] += update.rows.numpy()
        counts[ids] += 1
    if aggregation == "fedavg":
        counts[:] = len(updates)
    mean = total / np.maximum(counts, 1)
    ids = np.flatnonzero(mean.any(axis=1))  # a network may pass no gradient to a row
    return row_update(ids, mean[ids])


def aggregate_theta(changes: Tensor) -> Tensor:
    """Plain mean of the networks' changes, shape (n_clients, n_theta)."""
    return changes.mean(0)
