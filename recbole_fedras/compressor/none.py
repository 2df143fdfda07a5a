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
    """

    lossless = True

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Send ids and rows."""
        return raw_payload(update, ctx.n_items)

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Read ids and rows."""
        return raw_update(payload, ctx)
