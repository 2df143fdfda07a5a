"""TopK: only the entries of largest magnitude travel."""

from collections.abc import Callable
from functools import partial

import numpy as np
from numba import njit
from numpy.typing import NDArray

from recbole_fedras.compressor.base import (
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    largest,
    put_update_rows,
    row_update,
)
from recbole_fedras.errors import ConfigError
from recbole_fedras.wire.payload import Layout, Payload


class TopK(Compressor):
    """Keep the largest entries of each row, or of the whole update.

    Source: the TopK baseline of FedRAS (KDD 2025, section 5.1), after Aji and Heafield,
    "Sparse Communication for Distributed Gradient Descent" (EMNLP 2017). Entries
    dropped in a round are lost, but for error feedback.

    Parameters
    ----------
    topk_scope : {'row', 'global'}
        ``row`` keeps ``k = floor(d (1 - CR))`` entries of every changed row, as the
        FedRAS paper does; ``global`` the ``floor(N d (1 - CR) / 2)`` largest of all, as
        CoLR's released code does, which counts an entry as two numbers; all at a rate
        of 0. Where all bytes are budgeted, either keeps as many as fit.

    Notes
    -----
    **Wire**, row: ``rows`` the n changed rows, ``values`` float32 (n, k), ``columns``
    (n, k) at ceil(log2 d) bits. Within a row, columns increase. Where all bytes are
    budgeted, k is the largest number that fits; what is left goes to entry k + 1 of the
    m rows where it is largest: ``extra`` which they are, ``extra_values`` and
    ``extra_columns`` (m,). Global: ``values`` float32 (m,), ``rows`` the rows
    that keep an entry, ``counts`` how many each keeps at ceil(log2(d + 1)) bits, and
    ``columns`` (m,) at ceil(log2 d) bits.

    **Departures**: CoLR's code keeps ``ceil(ratio N d)`` entries; its ratio is read as
    (1 - CR) / 2, as it counts each index as one number. The FedRAS paper counts none.
    Here indices are packed, sent and counted in ``wire`` rates.

    Examples
    --------
    4 of 32 values of every row, in float32, and 5 bits for the place of each:

    >>> import numpy as np
    >>> from recbole_fedras.compressor.base import Budget, RoundContext, row_update
    >>> rows = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    >>> update, budget = row_update(np.arange(64), rows), Budget(64, 32, 0.875)
    >>> ctx = RoundContext(round=0, seed=2020, n_items=64, dim=32)
    >>> payload = TopK().encode(update, budget, ctx)
    >>> payload.part_bytes()["items"], payload.part_bytes()["ids"]
    (1024, 160)
    >>> int((TopK().decode(payload, ctx).rows != 0).sum())
    256
    """

    threaded = True
    deterministic = True

    def __init__(self, topk_scope: str = "row") -> None:
        if topk_scope not in ("row", "global"):
            raise ConfigError(f"topk_scope={topk_scope!r} must be 'row' or 'global'")
        self.topk_scope = topk_scope

    def validate(self, budget: Budget) -> None:
        """Require at least one entry."""
        if self.topk_scope == "global":
            one = self._entries(1, lambda count: count, budget)
            budget.require("number of entries", one)
            return

        def entries(n: int) -> int:
            rows = budget.most(0, n, partial(self._layout, n, budget, 0))
            return self._columns(n, budget) or rows

        budget.require("number of entries per row", budget.least(entries))

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Select the entries and send them with their places."""
        if self.topk_scope == "global":
            return self._encode_global(update, budget, ctx)
        # k entries of every row; what is left of the bytes gives some rows one more.
        n, rows = len(update), update.rows.numpy()
        k = self._columns(n, budget)
        extra = (
            budget.most(0, n, partial(self._layout, n, budget, k)) if k < ctx.dim else 0
        )
        # Find k + 1 entries of each row at once; the first k go in order of columns.
        order = _leading(rows, k + 1)
        columns, values = _by_column(rows, order[:, :k])
        payload = put_update_rows(Payload(), update, ctx.n_items)
        payload.put_floats("values", values)
        payload.put_ints("columns", columns, ctx.dim)
        # Entry k + 1 travels for the rows where it is largest.
        if extra:
            next_values = rows[np.arange(n), order[:, k]]
            which = largest(next_values, extra)
            payload.put_rows("extra", which, n)
            payload.put_floats("extra_values", next_values[which])
            payload.put_ints("extra_columns", order[which, k], ctx.dim)
        return payload

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Put the entries into rows of zeros."""
        ids = payload.rows("rows", ctx.n_items)
        rows = np.zeros((len(ids), ctx.dim), np.float32)
        if "counts" in payload:
            counts = payload.ints("counts", ctx.dim + 1, len(ids))
            values = payload.floats("values", int(counts.sum()))
            columns = payload.ints("columns", ctx.dim, len(values))
            rows[np.repeat(np.arange(len(ids)), counts), columns] = values
            return row_update(ids, rows)
        values = payload.floats("values", len(ids), None)
        columns = payload.ints("columns", ctx.dim, *values.shape)
        rows[np.arange(len(ids))[:, None], columns] = values
        if "extra" in payload:
            which = payload.rows("extra", len(ids))
            columns = payload.ints("extra_columns", ctx.dim, len(which))
            rows[which, columns] = payload.floats("extra_values", len(which))
        return row_update(ids, rows)

    def _encode_global(
        self, update: RowUpdate, budget: Budget, ctx: RoundContext
    ) -> Payload:
        """Rank all entries of all rows together; rows that keep none are not sent."""
        flat = update.rows.numpy().ravel()

        def n_rows(count: int) -> int:
            return len(np.unique(largest(flat, count) // ctx.dim))

        # Places are increasing, so entries come row by row, and a count for each row
        # says whose they are.
        places = largest(flat, self._entries(len(flat), n_rows, budget))  # (m,)
        kept, counts = np.unique(places // ctx.dim, return_counts=True)
        payload = Payload().put_floats("values", flat[places])
        payload.put_rows("rows", update.ids.numpy()[kept], ctx.n_items)
        payload.put_ints("counts", counts, ctx.dim + 1)
        return payload.put_ints("columns", places % ctx.dim, ctx.dim)

    @staticmethod
    def _entries(limit: int, n_rows: Callable[[int], int], budget: Budget) -> int:
        """How many of all entries to keep; ``n_rows`` counts the rows they lie in."""

        def layout(count: int) -> Layout:
            n = n_rows(count)
            whole = Layout().floats("values", count).rows("rows", n, budget.n_items)
            whole.ints("counts", budget.dim + 1, n)
            return whole.ints("columns", budget.dim, count)

        numbers = 2 if budget.compression_rate else 1  # all need no indices
        return budget.most(budget.values // numbers, limit, layout)

    def _columns(self, n: int, budget: Budget) -> int:
        return budget.most(budget.columns, budget.dim, partial(self._layout, n, budget))

    @staticmethod
    def _layout(n: int, budget: Budget, k: int, extra: int = 0) -> Layout:
        """Return the layout, with the number of rows that have one more entry."""
        whole = Layout().rows("rows", n, budget.n_items).floats("values", n, k)
        whole.ints("columns", budget.dim, n, k)
        if extra:
            whole.rows("extra", extra, n).floats("extra_values", extra)
            whole.ints("extra_columns", budget.dim, extra)
        return whole


@njit(nogil=True, cache=True)
def _leading(rows: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """Columns of the ``count`` entries of largest magnitude in each row, by rank.

    Ties go to the first column.
    """
    # One pass over a row keeps its ``count`` largest magnitudes in decreasing order, by
    # insertion: count is small, most values fail the comparison with the last of them,
    # and nothing is sorted or allocated for a row.
    n, dim = rows.shape
    count = min(count, dim)
    found = np.zeros((n, count), np.int64)
    largest = np.empty(count, np.float32)
    for i in range(n):
        n_found = 0
        for column in range(dim):
            magnitude = abs(rows[i, column])
            if n_found == count and magnitude <= largest[-1]:
                continue
            # Move smaller ones down a place; equal ones stay, the first column wins.
            n_found = min(n_found + 1, count)
            place = n_found - 1
            while place and magnitude > largest[place - 1]:
                largest[place] = largest[place - 1]
                found[i, place] = found[i, place - 1]
                place -= 1
            largest[place] = magnitude
            found[i, place] = column
    return found


@njit(nogil=True, cache=True)
def _by_column(
    rows: NDArray[np.float32], order: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Put each row's chosen columns in increasing order; return their values too."""
    n, count = order.shape
    columns, values = np.empty((n, count), np.int64), np.empty((n, count), np.float32)
    for i in range(n):
        for found in range(count):  # by insertion: count is small
            column, place = order[i, found], found
            while place and columns[i, place - 1] > column:
                columns[i, place] = columns[i, place - 1]
                place -= 1
            columns[i, place] = column
        for place in range(count):
            values[i, place] = rows[i, columns[i, place]]
    return columns, values
