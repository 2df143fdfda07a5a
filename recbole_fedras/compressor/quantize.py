"""Quantize: every value of a row rounded at random to a few levels."""

from functools import partial

import numpy as np

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
from recbole_fedras.wire.bits import Ints
from recbole_fedras.wire.payload import Layout, Payload

_MOST_BITS = 16  # ours: where the rate leaves more, rows travel as they are


class Quantize(Compressor):
    """Unbiased stochastic quantisation of each row.

    Source: Alistarh et al., "QSGD: Communication-Efficient SGD via Gradient
    Quantization and Encoding" (NIPS 2017), with the row's largest magnitude as its
    scale, as in Wen et al., "TernGrad: Ternary Gradients to Reduce Communication in
    Distributed Deep Learning" (NIPS 2017), which it is at two bits. A value is sent at
    ``b = floor(32 (1 - CR))`` bits: 8 at 75 %, 4 at 87.5 %, 2 at 93.75 %. With ``L =
    2^(b - 1) - 1`` levels to each side, x of scale s becomes ``floor(L x / s + u)``, u
    uniform in [0, 1), so that its expectation is exact.

    Notes
    -----
    **Wire**: ``rows`` the n changed rows, ``bits`` b, ``scales`` float32 (n,),
    ``levels`` (n, d) at b bits: ``1 + 4 n + ceil(n d b / 8) + rows_size(n, N)`` bytes
    and framing. Levels and scales are booked as items. Above 16 bits rows travel as
    they are (``values``). Where all bytes are budgeted, b is the largest number that
    fits; what is left gives the m rows of largest scale one bit more: ``fine_levels``
    (m, d) at b + 1 bits, and ``levels`` are those of the other rows.

    **Departures**: QSGD scales by the Euclidean norm of the whole gradient and
    entropy-codes; here each row has a scale of its own and levels are packed.

    Examples
    --------
    4 bits a value, and a float for each row's scale:

    >>> import numpy as np
    >>> from recbole_fedras.compressor.base import Budget, RoundContext, row_update
    >>> rows = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    >>> update, budget = row_update(np.arange(64), rows), Budget(64, 32, 0.875)
    >>> ctx = RoundContext(round=0, seed=2020, n_items=64, dim=32)
    >>> payload = Quantize().encode(update, budget, ctx)
    >>> payload.part_bytes()["items"], Quantize().decode(payload, ctx).rows.shape
    (1280, torch.Size([64, 32]))
    """

    threaded = True

    def validate(self, budget: Budget) -> None:
        """Require two bits a value, for a sign and zero."""
        n_bits = budget.least(lambda n: self._bits(n, budget))
        budget.require("number of bits a value, less one,", n_bits - 1)

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Scale each row and round it at random."""
        n = len(update)
        n_bits = self._bits(n, budget)
        if n_bits > _MOST_BITS or fits_raw(n, budget):
            return raw_payload(update, ctx.n_items)
        # A scale for each row, in float32 as it will be received: both ends find from
        # the scales alone which rows are fine, so their places need not be sent.
        rows = update.rows.numpy().astype(np.float64)
        scales = np.abs(rows).max(axis=1, initial=0).astype(np.float32)  # (n,)
        n_fine = budget.most(0, n, partial(self._layout, n, budget, n_bits))
        fine = largest(scales, n_fine)
        n_levels = np.full((n, 1), 2 ** (n_bits - 1) - 1)
        n_levels[fine] = 2**n_bits - 1
        # Round down after adding a uniform number, so that the expectation is exact. A
        # row of zeros has scale 0 and stays zero. Levels are shifted to start from 0.
        shares = rows / np.where(scales, scales, 1)[:, None]
        chance = ctx.generator().random(rows.shape)
        levels = np.floor(n_levels * shares + chance).astype(np.int64) + n_levels
        payload = put_update_rows(Payload(), update, ctx.n_items)
        payload.put_ints("bits", np.array([n_bits]), _MOST_BITS + 1)
        payload.put_floats("scales", scales)
        coarse = np.delete(levels, fine, axis=0)
        payload.put_ints("levels", coarse, 2**n_bits - 1, "items")
        if n_fine:
            payload.put_ints(
                "fine_levels", levels[fine], 2 ** (n_bits + 1) - 1, "items"
            )
        return payload

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Multiply the levels by their row's scale."""
        if "values" in payload:
            return raw_update(payload, ctx)
        ids = payload.rows("rows", ctx.n_items)
        n_bits = int(payload.ints("bits", _MOST_BITS + 1, 1)[0])
        if n_bits < 2:
            raise PayloadError(f"field 'bits': {n_bits}, not 2 to {_MOST_BITS}")
        scales = payload.floats("scales", len(ids))
        fine_levels: Ints = np.zeros((0, ctx.dim), np.int64)
        if "fine_levels" in payload:
            bound = 2 ** (n_bits + 1) - 1
            fine_levels = payload.ints("fine_levels", bound, None, ctx.dim)
        n_coarse = len(ids) - len(fine_levels)
        levels = payload.ints("levels", 2**n_bits - 1, n_coarse, ctx.dim)
        # Put both kinds of rows back in order.
        fine = largest(scales, len(fine_levels))
        shares = np.empty((len(ids), ctx.dim))
        shares[fine] = fine_levels / (2**n_bits - 1) - 1
        shares[np.delete(np.arange(len(ids)), fine)] = (
            levels / (2 ** (n_bits - 1) - 1) - 1
        )
        with np.errstate(over="ignore", invalid="ignore"):  # whatever was received
            return row_update(ids, (shares * scales[:, None]).astype(np.float32))

    def _bits(self, n: int, budget: Budget) -> int:
        most = 32 if budget.n_bytes is None else _MOST_BITS
        return budget.most(budget.bits, most, partial(self._layout, n, budget))

    @staticmethod
    def _layout(n: int, budget: Budget, n_bits: int, n_fine: int = 0) -> Layout:
        """Return the layout, with the number of rows that have one bit more."""
        whole = Layout().rows("rows", n, budget.n_items)
        whole.ints("bits", _MOST_BITS + 1, 1).floats("scales", n)
        whole.ints("levels", 2**n_bits, n - n_fine, budget.dim)
        if n_fine:
            whole.ints("fine_levels", 2 ** (n_bits + 1), n_fine, budget.dim)
        return whole
