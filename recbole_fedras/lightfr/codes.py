"""BinaryCodes: one bit per value, the sign that it has after the update."""

from __future__ import annotations

import numpy as np
import torch

from recbole_fedras.compressor.base import (
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    put_update_rows,
)
from recbole_fedras.wire.payload import Payload

#: What tables of these models hold.
CODES = "codes of -1 and 1"


class BinaryCodes(Compressor):
    """Codes of -1 and 1 as bits: how LightFR sends what changed.

    Source: Zhang et al., "LightFR: Lightweight Federated Recommendation with
    Privacy-preserving Matrix Factorization" (TOIS 2023). A compression rate sets the
    length of the codes, ``f = 32 d (1 - CR)`` for d = ``embedding_size``, so that a
    table of codes takes ``1 - CR`` of one of d floats; nothing is compressed.

    Notes
    -----
    **Wire**: ``rows`` the n changed rows, ``codes`` (n, f) at one bit:
    ``n f / 8 + rows_size(n, N)`` bytes and framing. Bits book as ``items``.

    **Departures**: rows that did not change are not sent. Both ends know the table
    before the update.

    Examples
    --------
    64 codes of 32 bits, of which the receiver knows what they were:

    >>> from recbole_fedras.compressor.base import Budget, RoundContext, RowUpdate
    >>> codes, flips = -torch.ones(64, 32), torch.full((64, 32), 2.0)
    >>> update, budget = RowUpdate(torch.arange(64), flips), Budget(64, 32, 0.9375)
    >>> ctx = RoundContext(0, 2020, 64, 32, base=codes)
    >>> payload = BinaryCodes().encode(update, budget, ctx)
    >>> payload.part_bytes()["items"], BinaryCodes().decode(payload, ctx).rows[0, 0]
    (256, tensor(2.))
    """

    lossless = True
    value_bits = 1
    needs_base = True
    table_values = (CODES,)

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Send the signs after the update."""
        payload = put_update_rows(Payload(), update, ctx.n_items)
        positive = (ctx.base_rows(update.ids) + update.rows) > 0
        codes = positive.numpy().astype(np.int64)
        return payload.put_ints("codes", codes, 2, part="items")

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Return the difference to the rows as they were."""
        rows = payload.rows("rows", ctx.n_items)
        codes = payload.ints("codes", 2, len(rows), ctx.dim)
        ids = torch.from_numpy(rows)
        after = torch.from_numpy(codes).float() * 2 - 1
        return RowUpdate(ids, after - ctx.base_rows(ids))
