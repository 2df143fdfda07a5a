"""How the server combines the updates of a cohort."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_fedras.compressor.base import RowUpdate


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
    ids = torch.cat([update.ids for update in updates])
    rows = torch.cat([update.rows for update in updates])
    changed, inverse, counts = torch.unique(
        ids, return_inverse=True, return_counts=True
    )
    total = torch.zeros(len(changed), dim, dtype=rows.dtype)
    total.index_add_(0, inverse, rows)
    weights = counts[:, None] if aggregation == "inverse_frequency" else len(updates)
    mean = total / weights
    nonzero = mean.any(1)  # a network may pass no gradient to an item
    return RowUpdate(changed[nonzero], mean[nonzero])


def aggregate_theta(changes: Tensor) -> Tensor:
    """Plain mean of the networks' changes, shape (n_clients, n_theta)."""
    return changes.mean(0)
