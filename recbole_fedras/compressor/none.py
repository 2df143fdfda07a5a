"""No compression: every changed row travels as it is."""

from recbole_fedras.compressor.base import (
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    raw_payload,
    raw_update,
)
from recbole_fedras.wire.payload import Payload


class NoCompression(Compressor):
    """The lossless baseline: FedAvg that sends changed rows only.

    **Wire**: ``rows`` the changed rows (row set), ``values`` float32 (n, d):
    ``4 n d + rows_size(n, N)`` bytes and framing.

    A compression rate changes nothing, however it is budgeted.

    **Departures**: plain FedAvg sends the whole table both ways; a run's
    ``dense_bytes`` says what that would have been.

    Examples
    --------
    >>> import numpy as np
    >>> from recbole_fedras.compressor.base import Budget, RoundContext, row_update
    >>> rows = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    >>> update, budget = row_update(np.arange(64), rows), Budget(64, 32, 0.875)
    >>> ctx = RoundContext(round=0, seed=2020, n_items=64, dim=32)
    >>> payload = NoCompression().encode(update, budget, ctx)
    >>> decoded = NoCompression().decode(payload, ctx)
    >>> payload.part_bytes()["items"], bool((decoded.rows == update.rows).all())
    (8192, True)
    """

    lossless = True
    deterministic = True
    linear = True
    table_values = None

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Send ids and rows."""
        return raw_payload(update, ctx.n_items)

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Read ids and rows."""
        return raw_update(payload, ctx)
