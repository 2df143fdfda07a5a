"""SVD: the update's best approximation of a given rank travels as two factors."""

import torch
from torch import Tensor

from recbole_fedras.compressor.base import (
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    put_update_rows,
    raw_payload,
    raw_update,
    row_update,
)
from recbole_fedras.wire.payload import Payload


class SVD(Compressor):
    """Truncated singular value decomposition of the changed rows.

    Source: the SVD baseline of FedRAS (KDD 2025, section 5.1) and of CoLR (WWW 2024,
    section 5). The rank is ``r = floor(d (1 - CR))``.

    Notes
    -----
    The right factor holds the r leading eigenvectors V of the Gram matrix X'X
    (d x d, float64) and the left one is X V, which equals U S exactly: O(n d^2) time
    instead of a full decomposition.

    **Wire**: ``rows`` the n changed rows, ``left`` float32 (n, r), ``right`` float32
    (r, d): ``4 r (n + d) + rows_size(n, N)`` bytes and framing. Updates for which the
    factors would be no smaller travel as they are (``values``).

    **Departures**: the papers' cost ``r / d`` leaves out the right factor, here it is
    sent and counted.
    """

    def validate(self, budget: Budget) -> None:
        """Require a rank of at least one."""
        budget.require("rank", budget.columns)

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Factorise and send both factors."""
        rank, n = budget.columns, len(update)
        if rank * (n + ctx.dim) >= n * ctx.dim:
            return raw_payload(update, ctx.n_items)
        right = _leading_right_vectors(update.rows, rank)  # (r, d)
        payload = put_update_rows(Payload(), update, ctx.n_items)
        payload.put_floats("left", (update.rows @ right.T).cpu().numpy())
        return payload.put_floats("right", right.cpu().numpy())

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Multiply the factors."""
        if "values" in payload:
            return raw_update(payload, ctx)
        ids = payload.rows("rows", ctx.n_items)
        right = payload.floats("right", None, ctx.dim)
        left = payload.floats("left", len(ids), len(right))
        return row_update(ids, left @ right)


def _leading_right_vectors(rows: Tensor, rank: int) -> Tensor:
    """Return the ``rank`` leading right singular vectors, shape (rank, dim)."""
    exact = rows.double()
    _, vectors = torch.linalg.eigh(exact.T @ exact)  # eigenvalues increase
    leading: Tensor = vectors[:, -rank:].flip(1).T
    return leading.to(rows.dtype)
