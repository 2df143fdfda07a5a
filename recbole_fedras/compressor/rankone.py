"""RankOne: the update's leading direction, and how far each row goes along it."""

from dataclasses import replace

from recbole_fedras.compressor.base import Budget
from recbole_fedras.compressor.svd import SVD


class RankOne(SVD):
    """SVD of rank one at any compression rate: n + d values.

    A client's update of MF is nearly of rank one: in every step the rows of its items
    move along its user embedding, by the residuals of its predictions. So this is what
    an uplink of MF needs at most; the server's aggregate is not of that kind.

    Notes
    -----
    **Privacy**: what is sent is the direction of the client's user embedding and, in
    the signs of the coefficients, which items it has: positives move with the
    embedding, negatives against it. The uncompressed update says the same to whoever
    factorises it; the compressor only makes it plain.

    **Wire**: as :class:`~recbole_fedras.compressor.svd.SVD` with r = 1. Where all bytes
    are budgeted and too few, only the rows with the largest coefficients have one.

    **Departures**: no method of a paper.

    Examples
    --------
    64 coefficients and a direction of 32, in float32; the update was of rank one:

    >>> import numpy as np
    >>> from recbole_fedras.compressor.base import RoundContext, row_update
    >>> rows = np.outer(np.arange(64), np.ones(32)).astype(np.float32)
    >>> update, budget = row_update(np.arange(64), rows), Budget(64, 32, 0.875)
    >>> ctx = RoundContext(round=0, seed=2020, n_items=64, dim=32)
    >>> payload = RankOne().encode(update, budget, ctx)
    >>> decoded = RankOne().decode(payload, ctx).rows.numpy()
    >>> payload.part_bytes()["items"], np.allclose(decoded, rows, atol=1e-4)
    (384, True)
    """

    def _rank(self, n: int, budget: Budget) -> int:
        # One, whatever the nominal rate; none, where not all rows of it fit the bytes.
        return min(super()._rank(n, replace(budget, compression_rate=0.0)), 1)
