"""SVD: the update's best approximation of a given rank travels as two factors."""

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.compressor.base import (
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    fits_raw,
    largest,
    put_update_rows,
    raw_payload,
    raw_update,
    row_update,
)
from recbole_fedras.errors import PayloadError
from recbole_fedras.wire.payload import Layout, Payload


class SVD(Compressor):
    """Truncated singular value decomposition of the changed rows.

    Source: the SVD baseline of FedRAS (KDD 2025, section 5.1) and of CoLR's released
    code (WWW 2024). The rank is ``r = floor(d (1 - CR))``.

    Notes
    -----
    The right factor holds the r leading eigenvectors V of the Gram matrix X'X
    (d x d, float64) and the left one is X V, which equals U S exactly: O(n d^2) time
    instead of a full decomposition.

    **Wire**: ``rows`` the n changed rows, ``left`` float32 (n, r), ``right`` float32
    (r, d): ``4 r (n + d) + rows_size(n, N)`` bytes and framing. Updates for which the
    factors would be no smaller travel as they are (``values``). Where all bytes are
    budgeted, r is the largest rank that fits; what is left goes to column r + 1 for the
    m rows where it is largest: ``extra`` which they are, ``extra_values`` float32 (m,),
    and ``right`` has one more row.

    **Departures**: the papers' cost ``r / d`` leaves out the right factor, here it is
    sent and counted.

    Examples
    --------
    Rank 4, ``4 r (n + d)`` bytes of factors:

    >>> import numpy as np
    >>> from recbole_fedras.compressor.base import Budget, RoundContext, row_update
    >>> rows = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    >>> update, budget = row_update(np.arange(64), rows), Budget(64, 32, 0.875)
    >>> ctx = RoundContext(round=0, seed=2020, n_items=64, dim=32)
    >>> payload = SVD().encode(update, budget, ctx)
    >>> payload.part_bytes()["items"], SVD().decode(payload, ctx).rows.shape
    (1536, torch.Size([64, 32]))
    """

    threaded = True
    deterministic = True

    _right: ClassVar[str] = "right"  # name of the right factor's field

    def validate(self, budget: Budget) -> None:
        """Require a rank of at least one, of one row where all bytes are budgeted."""

        # Where no whole rank fits, some rows of a first column may.
        def rank(n: int) -> int:
            rows = budget.most(0, n, partial(self._layout, n, budget, 0))
            return self._rank(n, budget) or rows

        budget.require("rank", budget.least(rank))

    def _rank(self, n: int, budget: Budget) -> int:
        return budget.most(budget.columns, budget.dim, partial(self._layout, n, budget))

    def _layout(self, n: int, budget: Budget, rank: int, extra: int = 0) -> Layout:
        """Return the layout, with the number of rows that have one more column."""
        whole = Layout().rows("rows", n, budget.n_items).floats("left", n, rank)
        whole.floats(self._right, rank + bool(extra), budget.dim)
        if extra:
            whole.rows("extra", extra, n).floats("extra_values", extra)
        return whole

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Factorise and send both factors."""
        return self._encode(update, budget, ctx, _singular)

    def _encode(
        self,
        update: RowUpdate,
        budget: Budget,
        ctx: RoundContext,
        factorise: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    ) -> Payload:
        """Send factors (n, r) and (r, d), of as high a rank as there is room for."""
        # Factors that are no smaller than the rows would only lose.
        n = len(update)
        rank = self._rank(n, budget)
        if rank * (n + ctx.dim) >= n * ctx.dim or fits_raw(n, budget):
            return raw_payload(update, ctx.n_items)
        # What a whole rank leaves of the bytes goes to the rows where one more column
        # matters most. 0 where bytes are not what counts.
        extra = budget.most(0, n, partial(self._layout, n, budget, rank))
        factors = factorise(update.rows, rank + bool(extra))
        left, right = (factor.numpy() for factor in factors)
        payload = put_update_rows(Payload(), update, ctx.n_items)
        payload.put_floats("left", left[:, :rank])
        payload.put_floats(self._right, right)
        if extra:
            which = largest(left[:, rank], extra)
            payload.put_rows("extra", which, n)
            payload.put_floats("extra_values", left[which, rank])
        return payload

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Multiply the factors."""
        if "values" in payload:
            return raw_update(payload, ctx)
        ids = payload.rows("rows", ctx.n_items)
        right = payload.floats(self._right, None, ctx.dim)
        rank = len(right) - ("extra" in payload)
        if not 0 <= rank <= ctx.dim:
            raise PayloadError(f"field {self._right!r}: rank {rank} of {ctx.dim}")
        left = payload.floats("left", len(ids), rank)
        with np.errstate(over="ignore", invalid="ignore"):  # whatever was received
            rows = left @ right[:rank]
            if "extra" in payload:
                which = payload.rows("extra", len(ids))
                values = payload.floats("extra_values", len(which))
                rows[which] += values[:, None] * right[rank]
        return row_update(ids, rows)


def _singular(rows: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the factors U S and V'."""
    right = leading_right_vectors(rows, rank)
    return rows @ right.T, right


def leading_right_vectors(rows: Tensor, rank: int) -> Tensor:
    """Return the ``rank`` leading right singular vectors, shape (rank, dim)."""
    # In float64: the Gram matrix squares the rows' condition. A d x d problem, however
    # many rows there are.
    exact = rows.double()
    _, vectors = torch.linalg.eigh(exact.T @ exact)  # eigenvalues increase
    leading: Tensor = vectors.flip(1)[:, :rank].T
    return leading.to(rows.dtype)
