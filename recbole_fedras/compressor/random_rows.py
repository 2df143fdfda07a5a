"""RandomRows: the server draws which rows are exchanged, both ways."""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from recbole_fedras.compressor.base import (
    SERVER,
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    row_update,
)
from recbole_fedras.wire.bits import Ints
from recbole_fedras.wire.payload import Layout, Payload

Floats = NDArray[np.float64]


class RandomRows(Compressor):
    """Rows drawn anew in every round travel as they are, all others wait.

    The control of :class:`~recbole_fedras.compressor.fcf_bts.FCFBTS`: it differs in the
    choice alone. Of the N rows, ``C_e = floor(N (1 - CR))`` are chosen. The downlink
    says which, and brings those of them that have changed; clients send of what they
    trained those rows only. Its YAML file turns ``downlink_feedback`` on, so that a row
    brings all that has changed since it was last chosen.

    Notes
    -----
    **Wire**, down: ``selected`` the k chosen rows, ``rows`` which m of them have
    changed, ``values`` float32 (m, d): ``4 m d + rows_size(k, N) + rows_size(m, k)``
    bytes and framing. Up: ``rows`` and ``values`` (m, d) of the m chosen rows that were
    trained: ``4 m d + rows_size(m, N)``. Where all bytes are budgeted, k is the largest
    number that fits both ways.

    **Departures**: no method of a paper; random selection is what FCF-BTS (RecSys 2021)
    is compared with there. Clients keep the rows that they have, and train on them.

    Examples
    --------
    8 of 64 rows, as they are:

    >>> import numpy as np
    >>> rows = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    >>> update, budget = row_update(np.arange(64), rows), Budget(64, 32, 0.875)
    >>> ctx = RoundContext(round=0, seed=2020, n_items=64, dim=32)
    >>> payload = RandomRows().encode(update, budget, ctx)
    >>> payload.part_bytes()["items"], len(RandomRows().decode(payload, ctx))
    (1024, 8)
    """

    follows_downlink = True
    linear = True  # whoever is sent one downlink sends the same rows

    def validate(self, budget: Budget) -> None:
        """Require at least one row."""
        budget.require("number of rows", _count(budget))

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Send the rows that the sender was told, or that everybody draws."""
        if ctx.downlink is not None and "selected" in ctx.downlink:
            chosen = ctx.downlink.rows("selected", ctx.n_items)
        else:
            chosen = _best(ctx.shared_generator().standard_normal(ctx.n_items), budget)
        return _payload(update, chosen, ctx, announced=ctx.sender == SERVER)

    def encode_broadcast(
        self, update: RowUpdate, budgets: Sequence[Budget], ctx: RoundContext
    ) -> list[Payload]:
        """Choose, say which, and send what has changed of them."""
        scores = self._scores(ctx)
        return [
            _payload(update, _best(scores, budget), ctx, announced=True)
            for budget in budgets
        ]

    def _scores(self, ctx: RoundContext) -> Floats:
        """Return what rows are ranked by, shape (n_items,)."""
        return ctx.generator().standard_normal(ctx.n_items)

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Return the rows."""
        if "selected" in payload:
            selected = payload.rows("selected", ctx.n_items)
            ids = selected[payload.rows("rows", len(selected))]
        else:
            ids = payload.rows("rows", ctx.n_items)
        return row_update(ids, payload.floats("values", len(ids), ctx.dim))


def _count(budget: Budget) -> int:
    """How many rows are chosen: as many as always fit."""

    # Of a downlink, if all that are chosen have changed, or all but one: then it says
    # which. An update names its rows once, and so is never larger.
    def layout(unchanged: int, count: int) -> Layout:
        changed = max(count - unchanged, 0)
        whole = Layout().rows("selected", count, budget.n_items)
        whole.rows("rows", changed, count)
        return whole.floats("values", changed, budget.dim)

    return min(
        budget.most(budget.rows, budget.n_items, partial(layout, unchanged))
        for unchanged in (0, 1)
    )


def _best(scores: Floats, budget: Budget) -> Ints:
    """Rows of the highest scores, increasing; those of a lower rate have them too."""
    return np.sort(np.argsort(-scores, kind="stable")[: _count(budget)])


def _payload(
    update: RowUpdate, chosen: Ints, ctx: RoundContext, announced: bool
) -> Payload:
    """Send what an update has of the chosen rows; the server says which those are."""
    ids = update.ids.numpy()
    kept = np.isin(ids, chosen)
    payload = Payload()
    if announced:
        payload.put_rows("selected", chosen, ctx.n_items)
        payload.put_rows("rows", np.searchsorted(chosen, ids[kept]), len(chosen))
    else:
        payload.put_rows("rows", ids[kept], ctx.n_items)
    return payload.put_floats("values", update.rows.numpy()[kept])
