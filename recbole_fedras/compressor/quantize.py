"""Quantize: every value of a row rounded at random to a few levels."""

import numpy as np

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
from recbole_fedras.wire.payload import Payload, PayloadError

_MOST_BITS = 16


class Quantize(Compressor):
    """Unbiased stochastic quantisation of each row.

    Source: QSGD (Alistarh et al., NeurIPS 2017), with the row's largest magnitude as
    its scale, as in TernGrad (Wen et al., NeurIPS 2017), which it is at two bits. A
    value is sent at ``b = floor(32 (1 - CR))`` bits: 8 at 75 %, 4 at 87.5 %, 2 at
    93.75 %. With ``L = 2^(b - 1) - 1`` levels to each side, x of scale s becomes
    ``floor(L x / s + u)``, u uniform in [0, 1), so that its expectation is exact.

    Notes
    -----
    **Wire**: ``rows`` the n changed rows, ``bits`` b, ``scales`` float32 (n,),
    ``levels`` (n, d) at b bits: ``1 + 4 n + ceil(n d b / 8) + rows_size(n, N)`` bytes
    and framing. Levels and scales are booked as items. Above 16 bits rows travel as
    they are (``values``).

    **Departures**: QSGD scales by the Euclidean norm of the whole gradient and
    entropy-codes; here each row has a scale of its own and levels are packed.
    """

    def validate(self, budget: Budget) -> None:
        """Require two bits a value, for a sign and zero."""
        budget.require("number of bits a value, less one,", _bits(budget) - 1)

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Scale each row and round it at random."""
        n_bits = _bits(budget)
        if n_bits > _MOST_BITS:
            return raw_payload(update, ctx.n_items)
        n_levels = 2 ** (n_bits - 1) - 1
        rows = update.rows.cpu().numpy().astype(np.float64)
        scales = np.abs(rows).max(axis=1, initial=0).astype(np.float32)  # (n,)
        shares = rows / np.where(scales, scales, 1)[:, None]
        chance = ctx.generator().random(rows.shape)
        levels = np.floor(n_levels * shares + chance).astype(np.int64) + n_levels
        payload = put_update_rows(Payload(), update, ctx.n_items)
        payload.put_ints("bits", np.array([n_bits]), _MOST_BITS + 1)
        payload.put_floats("scales", scales)
        return payload.put_ints("levels", levels, 2 * n_levels + 1, "items")

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Multiply the levels by their row's scale."""
        if "values" in payload:
            return raw_update(payload, ctx)
        ids = payload.rows("rows", ctx.n_items)
        n_bits = int(payload.ints("bits", _MOST_BITS + 1, 1)[0])
        if n_bits < 2:
            raise PayloadError(f"field 'bits': {n_bits}, not 2 to {_MOST_BITS}")
        n_levels = 2 ** (n_bits - 1) - 1
        scales = payload.floats("scales", len(ids))
        levels = payload.ints("levels", 2 * n_levels + 1, len(ids), ctx.dim)
        shares = (levels - n_levels) / n_levels
        with np.errstate(over="ignore", invalid="ignore"):  # whatever was received
            return row_update(ids, (shares * scales[:, None]).astype(np.float32))


def _bits(budget: Budget) -> int:
    return int(32 * (1 - budget.compression_rate) + 1e-9)
