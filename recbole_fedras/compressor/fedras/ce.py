"""CE: what is clustered are embeddings, not their updates (FedRAS-E)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from recbole_fedras.compressor.base import Budget, RoundContext, RowUpdate
from recbole_fedras.compressor.fedras.fedras import FedRAS
from recbole_fedras.wire.payload import Payload


class CE(FedRAS):
    """Clustering of embeddings: FedRAS with rows of the table in place of updates.

    Source: Lu et al. (FedRAS, KDD 2025), "CE" in section 5.3 and Table 3, "FedRAS-E" in
    section 5.4.1: what the paper argues against. Rows as they are after the update are
    clustered and sent, and the receiver, which knows them as they were, takes the
    difference.

    Notes
    -----
    **Wire**: as :class:`~recbole_fedras.compressor.fedras.fedras.FedRAS`.

    **Departures**: ``downlink_feedback`` is on in its YAML, so that the server clusters
    its own table and not the replica after the newest aggregate; without, errors would
    add up. As there, rows that are where they should be are not sent.

    Examples
    --------
    8 actions, and 3 bits for the action of each of 64 rows:

    >>> import numpy as np
    >>> from recbole_fedras.compressor.base import Budget, RoundContext, row_update
    >>> rows = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    >>> update, budget = row_update(np.arange(64), rows), Budget(64, 32, 0.875)
    >>> ctx = RoundContext(0, 2020, 64, 32, base=torch.zeros(64, 32))
    >>> payload = CE().encode(update, budget, ctx)
    >>> payload.part_bytes()["items"], payload.part_bytes()["ids"]
    (1024, 24)
    >>> CE().decode(payload, ctx).rows.shape
    torch.Size([64, 32])
    """

    needs_base = True

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Cluster the rows as they are after the update."""
        return super().encode(_moved(update, ctx, 1), budget, ctx)

    def encode_broadcast(
        self, update: RowUpdate, budgets: Sequence[Budget], ctx: RoundContext
    ) -> list[Payload]:
        """Cluster the rows of the server's table."""
        return super().encode_broadcast(_moved(update, ctx, 1), budgets, ctx)

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Subtract the rows as they were."""
        return _moved(super().decode(payload, ctx), ctx, -1)


def _moved(update: RowUpdate, ctx: RoundContext, sign: int) -> RowUpdate:
    """Add (1) or subtract (-1) the rows as both ends knew them."""
    base = ctx.base_rows(update.ids).to(update.rows)
    return RowUpdate(update.ids, torch.add(update.rows, base, alpha=sign))
