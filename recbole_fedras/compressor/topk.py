"""TopK: only the entries of largest magnitude travel."""

import numpy as np
import torch

from recbole_fedras.compressor.base import (
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    put_update_rows,
    row_update,
)
from recbole_fedras.wire.payload import Payload


class TopK(Compressor):
    """Keep the largest entries of each row, or of the whole update.

    Source: the TopK baseline of FedRAS (KDD 2025, section 5.1), after Aji and Heafield
    (EMNLP 2017). Entries dropped in a round are lost; there is no error feedback.

    Parameters
    ----------
    topk_scope : {'row', 'global'}
        ``row`` keeps ``k = floor(d (1 - CR))`` entries of every changed row, as the
        FedRAS paper does; ``global`` the ``floor(N d (1 - CR))`` largest of all.

    Notes
    -----
    **Wire**, row: ``rows`` the n changed rows, ``values`` float32 (n, k), ``columns``
    (n, k) at ceil(log2 d) bits. Global: ``values`` float32 (m,), ``rows`` the rows
    that keep an entry, ``counts`` how many each keeps at ceil(log2(d + 1)) bits, and
    ``columns`` (m,) at ceil(log2 d) bits. Within a row, columns increase.

    **Departures**: papers count the values only; here the indices are sent and counted.
    """

    def __init__(self, topk_scope: str = "row") -> None:
        if topk_scope not in ("row", "global"):
            raise ValueError(f"topk_scope={topk_scope!r} must be 'row' or 'global'")
        self.topk_scope = topk_scope

    def validate(self, budget: Budget) -> None:
        """Require at least one entry."""
        if self.topk_scope == "row":
            budget.require("number of entries per row", budget.columns)
        else:
            budget.require("number of entries", budget.values)

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Select the entries and send them with their places."""
        if self.topk_scope == "row":
            columns = _largest(update.rows, budget.columns)  # (n, k)
            payload = put_update_rows(Payload(), update, ctx.n_items)
            values = update.rows.gather(1, columns)
            payload.put_floats("values", values.cpu().numpy())
            return payload.put_ints("columns", columns.cpu().numpy(), ctx.dim)

        flat = update.rows.reshape(1, -1)
        places = _largest(flat, min(budget.values, flat.shape[1]))[0]  # (m,)
        row, columns = places // ctx.dim, places % ctx.dim
        kept, counts = torch.unique_consecutive(row, return_counts=True)
        payload = Payload().put_floats("values", flat[0, places].cpu().numpy())
        payload.put_rows("rows", update.ids[kept.cpu()].numpy(), ctx.n_items)
        payload.put_ints("counts", counts.cpu().numpy(), ctx.dim + 1)
        return payload.put_ints("columns", columns.cpu().numpy(), ctx.dim)

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Put the entries into rows of zeros."""
        ids = payload.rows("rows", ctx.n_items)
        rows = np.zeros((len(ids), ctx.dim), np.float32)
        if "counts" not in payload:
            values = payload.floats("values", len(ids), None)
            columns = payload.ints("columns", ctx.dim, *values.shape)
            np.put_along_axis(rows, columns, values, axis=1)
        else:
            counts = payload.ints("counts", ctx.dim + 1, len(ids))
            values = payload.floats("values", int(counts.sum()))
            columns = payload.ints("columns", ctx.dim, len(values))
            rows[np.repeat(np.arange(len(ids)), counts), columns] = values
        return row_update(ids, rows)


def _largest(rows: torch.Tensor, k: int) -> torch.Tensor:
    """Columns of the k entries of largest magnitude in each row, increasing."""
    return rows.abs().topk(k, dim=1).indices.sort(dim=1).values
