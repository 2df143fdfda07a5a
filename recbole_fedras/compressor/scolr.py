"""SCoLR: CoLR for clients of unequal bandwidth, which send a part of one factor."""

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
from recbole_fedras.compressor.colr import common_rank, shared_basis
from recbole_fedras.errors import ConfigError, PayloadError
from recbole_fedras.wire.payload import Payload


class SCoLR(Compressor):
    """CoLR with a rank for each bandwidth tier: columns of A drawn by each client.

    Source: the variant for heterogeneous clients in Nguyen et al., "Towards Efficient
    Communication and Secure Federated Recommendation System via Low-rank Training" (WWW
    2024), of which we could read a summary only; the released code does not have it.
    All share one ``B`` (r x d), as in :class:`~recbole_fedras.compressor.colr.CoLR`,
    and train in its span. Who may send ``r_u < r`` values for a row sends that many
    columns of ``A``, drawn anew for each client in each round; the others count as
    zero. ``r_u = floor(d (1 - CR))`` of the client's own rate, r at most.

    Parameters
    ----------
    shared_rank : int
        r, d at most; rates that allow more gain nothing.
    unbiased : bool
        Whether columns that a client sends count r / r_u times, so that the mean over
        clients is that of all columns, as random sparsification does; else those not
        sent count as zero. What arrives then is no contraction of what was sent, so
        that ``uplink_feedback`` is refused.

    Notes
    -----
    Everybody knows from the shared seed which columns these are, so they cost
    nothing. Of a downlink, tiers get the first r_u columns in one random order.
    What arrives is a projection of what was sent; ``uplink_feedback`` keeps the
    rest. Columns that are not sent count as zero in the mean over clients, if not
    ``unbiased``, so r should then be no more than what the widest tier sends: with
    8 columns of which all send 2, steps are a quarter as long, and a quarter of
    that where 2 go down too, which costs HR@10 0.17 on ML-100K
    (docs/differences.md). With r = r_u for all it is CoLR.

    **Wire**: ``rows`` the n changed rows, ``factor`` float32 (n, r_u): ``4 n r_u +
    rows_size(n, N)`` bytes and framing.

    **Departures**: a client trains all r columns, not only those that it sends. In the
    first local step that is the same, as columns of A do not depend on each other; it
    costs time, not bytes.

    Examples
    --------
    Two tiers of one broadcast in the span of B, at 4 and 2 floats a row: the wider one
    holds all of it, the other one a part.

    >>> rows = torch.ones(64, 32)
    >>> budgets, ctx = [Budget(64, 32, 0.875), Budget(64, 32, 0.9375)], RoundContext(
    ...     round=0, seed=2020, n_items=64, dim=32
    ... )
    >>> compressor = SCoLR(shared_rank=4)
    >>> update = RowUpdate(
    ...     torch.arange(64), rows @ compressor.gradient_map(budgets[0], ctx)
    ... )
    >>> payloads = compressor.encode_broadcast(update, budgets, ctx)
    >>> [payload.part_bytes()["items"] for payload in payloads]
    [1024, 512]
    >>> wide, narrow = (compressor.decode(payload, ctx).rows for payload in payloads)
    >>> torch.allclose(wide, update.rows, atol=1e-6), torch.equal(narrow, wide)
    (True, False)
    """

    def __init__(self, shared_rank: int = 8, unbiased: bool = False) -> None:
        if type(shared_rank) is not int or shared_rank < 1:
            raise ConfigError(f"shared_rank={shared_rank!r} must be an integer from 1")
        if type(unbiased) is not bool:
            raise ConfigError(f"unbiased={unbiased!r} must be True or False")
        self.shared_rank, self.unbiased = shared_rank, unbiased
        self.contracting = not unbiased

    def validate(self, budget: Budget) -> None:
        """Require a rank of at least one."""
        budget.require("rank", common_rank(budget))

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Send the sender's columns of A."""
        # |b|^2 = d / r for each row b of B, so that A = (r / d) (A B) B'.
        rank = self._rank(ctx.dim)
        basis = self._part(min(common_rank(budget), rank), ctx, update.rows)
        factor = update.rows @ basis.T * (rank / ctx.dim)
        if self.unbiased and ctx.sender != SERVER:
            factor *= rank / len(basis)
        payload = put_update_rows(Payload(), update, ctx.n_items)
        return payload.put_floats("factor", factor.numpy())

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Multiply these columns by their rows of B."""
        ids = payload.rows("rows", ctx.n_items)
        factor = torch.from_numpy(payload.floats("factor", len(ids), None).copy())
        rank = self._rank(ctx.dim)
        if not 1 <= factor.shape[1] <= rank:
            raise PayloadError(f"rank {factor.shape[1]} is not in [1, {rank}]")
        basis = self._part(factor.shape[1], ctx, factor)
        return row_update(ids, (factor @ basis).numpy())

    def gradient_map(self, budget: Budget, ctx: RoundContext) -> Tensor:
        """Return ``sqrt(r / d) B' B``, the same for all."""
        rank = self._rank(ctx.dim)
        basis = shared_basis(rank, ctx, torch.empty(0))
        return basis.T @ basis * sqrt(rank / ctx.dim)

    def _rank(self, dim: int) -> int:
        return min(self.shared_rank, dim)

    def _part(self, rank: int, ctx: RoundContext, like: Tensor) -> Tensor:
        """Return the sender's ``rank`` rows of B, in the order of B."""
        shared = self._rank(ctx.dim)
        chosen = np.sort(ctx.generator().permutation(shared)[:rank])
        return shared_basis(shared, ctx, like)[torch.from_numpy(chosen)]
