"""CoLR: clients train and send a low-rank factor of the update."""

from copy import copy
from dataclasses import replace
from functools import lru_cache
from math import sqrt

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.compressor.base import (
    SERVER,
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    put_update_rows,
    row_update,
)
from recbole_fedras.errors import PayloadError
from recbole_fedras.wire.payload import Layout, Payload


class CoLR(Compressor):
    """Correlated low-rank structure: Q + A B with a fresh fixed B in every round.

    Source: Nguyen et al., "Towards Efficient Communication and Secure Federated
    Recommendation System via Low-rank Training" (WWW 2024), and its released code.
    ``B`` (r x d) has orthogonal rows with ``B B' = (d / r) I`` and is
    drawn by everybody from the shared seed, so it never travels. Clients train ``A``
    (N x r) only, from zero, with its gradient scaled by ``sqrt(r / d)``; the server
    averages ``A``. The rank is ``r = floor(d (1 - CR))``.

    Notes
    -----
    With ``Q = Q_0 + A B`` the gradient for A is ``g B'``, so one step changes Q by
    ``-lr sqrt(r / d) g B' B``. Local training therefore runs on Q with its gradient
    multiplied by ``sqrt(r / d) B' B`` (:meth:`gradient_map`), the same iterates to
    rounding, and ``A = (r / d) dQ B'`` is recovered exactly before it is sent.

    **Wire**: ``rows`` the n changed rows, ``factor`` float32 (n, r):
    ``4 n r + rows_size(n, N)`` bytes and framing. Where all bytes are budgeted, r is
    the largest rank that always fits; it must be one for all, so bytes are left over.

    **Departures**: the released code counts the elements of the upload only; here ids
    and the downlink are sent and counted too. Weight decay (5e-4 in the code) is not
    applied. A cohort with unequal ranks is refused, as one B must serve all: that is
    what :class:`~recbole_fedras.compressor.scolr.SCoLR` is for.

    Examples
    --------
    An update in the span of B, as training under :meth:`gradient_map` leaves it,
    arrives exactly: 64 rows, 4 floats each.

    >>> import numpy as np
    >>> from recbole_fedras.compressor.base import Budget, RoundContext, row_update
    >>> budget, ctx = Budget(64, 32, 0.875), RoundContext(0, 2020, 64, 32)
    >>> rows = torch.ones(64, 32) @ CoLR().gradient_map(budget, ctx)
    >>> payload = CoLR().encode(RowUpdate(torch.arange(64), rows), budget, ctx)
    >>> payload.part_bytes()["items"]
    1024
    >>> torch.allclose(CoLR().decode(payload, ctx).rows, rows, atol=1e-6)
    True
    """

    heterogeneous = False
    linear = True

    def validate(self, budget: Budget) -> None:
        """Require a rank of at least one."""
        budget.require("rank", common_rank(budget))

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Send A, the coordinates of the update in the rows of B."""
        # B B' = (d / r) I, so A = (r / d) (A B) B' for an update that is A B.
        basis = shared_basis(common_rank(budget), ctx, update.rows)
        factor = update.rows @ basis.T * (len(basis) / ctx.dim)
        payload = put_update_rows(Payload(), update, ctx.n_items)
        return payload.put_floats("factor", factor.numpy())

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Multiply A by B."""
        ids = payload.rows("rows", ctx.n_items)
        factor = torch.from_numpy(payload.floats("factor", len(ids), None).copy())
        if not 1 <= factor.shape[1] <= ctx.dim:
            raise PayloadError(f"rank {factor.shape[1]} is not in [1, {ctx.dim}]")
        basis = shared_basis(factor.shape[1], ctx, factor)
        return row_update(ids, (factor @ basis).numpy())

    def gradient_map(self, budget: Budget, ctx: RoundContext) -> Tensor:
        """Return ``sqrt(r / d) B' B``."""
        # A step of A by -lr sqrt(r / d) g B', seen in Q = Q_0 + A B.
        basis = shared_basis(common_rank(budget), ctx, torch.empty(0))
        return basis.T @ basis * sqrt(len(basis) / ctx.dim)


def common_rank(budget: Budget) -> int:
    """Return everybody's rank: what fits if all rows change, or all but one."""

    def rank_of(n: int) -> int:
        ids = Layout().rows("rows", n, budget.n_items)

        def layout(rank: int) -> Layout:
            return copy(ids).floats("factor", n, rank)

        return budget.most(budget.columns, budget.dim, layout)

    return budget.least(rank_of)


def shared_basis(rank: int, ctx: RoundContext, like: Tensor) -> Tensor:
    """Return B of the round, shape (rank, dim)."""
    # Sender and receiver make no difference to B: without them one entry of the cache
    # serves the whole cohort.
    shared = replace(ctx, sender=SERVER, receiver=None, base=None, downlink=None)
    return _draw_basis(rank, shared).to(like)


@lru_cache(maxsize=4)
def _draw_basis(rank: int, ctx: RoundContext) -> Tensor:
    """Draw B, which a cohort shares: an orthonormalised Gaussian times sqrt(d / r)."""
    # U V' of the SVD is the nearest matrix with orthonormal rows, and favours none of
    # them. The factor sqrt(d / r) makes up for the length that a projection loses.
    gaussian = ctx.shared_generator().standard_normal((rank, ctx.dim))
    left, _, right = np.linalg.svd(gaussian, full_matrices=False)
    return torch.from_numpy(left @ right * sqrt(ctx.dim / rank))
