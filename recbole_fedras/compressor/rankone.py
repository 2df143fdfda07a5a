"""RankOne: the update's leading direction, and how far each row goes along it."""

from dataclasses import replace

from recbole_fedras.compressor.base import Budget
from recbole_fedras.compressor.svd import SVD


class RankOne(SVD):
    """SVD of rank one at any compression rate: n + d values.

    A client's update of MF is nearly of rank one: in every step the rows of his items
    move along his user embedding, by the residuals of his predictions. So this is what
    an uplink of MF needs at most; the server's aggregate is not of that kind.

    Notes
    -----
    **Privacy**: what is sent is the direction of the client's user embedding and, in
    the signs of the coefficients, which items are his: positives move with the
    embedding, negatives against it. The uncompressed update says the same to whoever
    factorises it; the compressor only makes it plain.

    **Wire**: as :class:`~recbole_fedras.compressor.svd.SVD` with r = 1. Where all bytes
    are budgeted and too few, only the rows with the largest coefficients have one.

    **Departures**: no method of a paper.
    """

    def _rank(self, n: int, budget: Budget) -> int:
        return min(super()._rank(n, replace(budget, compression_rate=0.0)), 1)
