"""Pseudo-items: rows of items that a client has nothing to do with, among its own."""

from __future__ import annotations

import numpy as np

from recbole_fedras.compressor.base import REAL, RoundContext, row_update
from recbole_fedras.federation.transforms import SharedUpdate, Transform
from recbole_fedras.numeric.rng import Stream, generator


class PseudoItems(Transform):
    """Adds rows of random items, drawn to look like those that the client trained.

    Source: Wu et al., "A federated graph neural network framework for
    privacy-preserving personalization" (FedPerGNN, Nature Communications 2022): M items
    that the user has not interacted with get gradients from a Gaussian distribution of
    the mean and covariance of the real ones. Read: the abstract, notes on the preprint
    (FedGNN, arXiv 2102.04925), the released code (github wuch15/FedPerGNN), which adds
    noise of that size to the whole table at the server, and another implementation
    (github Aeolian2001/FedGNNRec), which draws by one mean and one deviation.

    Parameters
    ----------
    n_pseudo_items : int
        Rows added, as far as there are so many. At least 1.

    Notes
    -----
    **Wire**: they are rows like any other, compressed and counted; a receiver cannot
    tell, and averages them in.

    **Departures**: the client draws among all items that it has not trained, not those
    that it was shown; real rows are of its items and of negatives, where the paper's
    users send rows of rated items alone. They are drawn anew in each round; the sources
    do not say whether the paper's are.

    Examples
    --------
    >>> import torch
    >>> ctx = RoundContext(round=0, seed=1, n_items=9, dim=2, sender=5)
    >>> items = row_update(np.array([1, 4]), np.ones((2, 2), np.float32))
    >>> update = SharedUpdate(items, torch.zeros(0))
    >>> changed = PseudoItems(n_pseudo_items=3).on_client(update, ctx).items
    >>> len(changed), changed.rows.unique().tolist()
    (5, [1.0])
    """

    table_values = (REAL,)

    def __init__(self, n_pseudo_items: int = 100) -> None:
        if type(n_pseudo_items) is not int or n_pseudo_items < 1:
            raise ValueError(
                f"n_pseudo_items={n_pseudo_items!r} must be an integer from 1"
            )
        self.n_pseudo_items = n_pseudo_items

    def on_client(self, update: SharedUpdate, ctx: RoundContext) -> SharedUpdate:
        """Return the update with more rows; those that there were stay as they are."""
        ids = update.items.ids.numpy()
        if not len(ids):
            return update
        rows = update.items.rows.numpy()
        rng = generator(ctx.seed, Stream.PSEUDO_ITEMS, ctx.round, ctx.sender + 1)
        others = np.setdiff1d(np.arange(ctx.n_items), ids, assume_unique=True)
        size = min(self.n_pseudo_items, len(others))
        drawn = rng.choice(others, size, replace=False)
        # A triangle R with R'R = n times the rows' covariance, of whatever rank.
        mean = rows.mean(axis=0, dtype=np.float64)
        triangle = np.linalg.qr(rows - mean, mode="r") / len(rows) ** 0.5
        pseudo = mean + rng.standard_normal((size, len(triangle))) @ triangle
        together = np.concatenate([ids, drawn])
        order = np.argsort(together)
        values = np.concatenate([rows, pseudo])[order]
        items = row_update(together[order], values.astype(np.float32))
        return SharedUpdate(items, update.theta)
