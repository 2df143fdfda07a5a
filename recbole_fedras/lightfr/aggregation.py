"""How the server combines what clients would have item codes be."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import RowUpdate, row_update
from recbole_fedras.federation.server.aggregation import Aggregator, ThetaMean
from recbole_fedras.lightfr.codes import CODES
from recbole_fedras.lightfr.descent import descend


class CodeDescent(Aggregator):
    """Item codes with the least squared error for a cohort's users.

    Source: LightFR (TOIS 2023). With ``c_u`` what client u would have item i be, its
    code or its complement, the server descends by coordinates on
    ``sum_u (f - c_u . d_i)^2`` from the code that it has: the error of i's users, as
    ``(sgn(r') f - sgn(r') b_u . d)^2`` is the error of ``b_u . d`` against r'.
    """

    table_values = (CODES,)

    def begin(self, table: Tensor) -> None:
        """Begin a round from the server's codes."""
        self._table = table
        self._ids: list[NDArray[np.int64]] = []
        self._changes: list[NDArray[np.int8]] = []
        self._theta = ThetaMean()

    def add(self, client: int, update: RowUpdate, theta_change: Tensor) -> None:
        """Add one more client's update."""
        self._ids.append(update.ids.numpy())
        changes = update.rows.clamp(-2, 2).numpy()  # a bit has no further to go
        self._changes.append(changes.astype(np.int8))
        self._theta.add(theta_change)

    def result(self) -> tuple[RowUpdate, Tensor]:
        """Return the change of the codes, of the rows where there is one."""
        ids, changes = np.concatenate(self._ids), np.concatenate(self._changes)
        order = np.argsort(ids, kind="stable")
        items, starts = np.unique(ids[order], return_index=True)
        table = self._table.numpy()
        codes = table[items]
        _descend_all(codes, changes, order, np.append(starts, len(order)))
        codes -= table[items]
        moved = codes.any(axis=1)
        return row_update(items[moved], codes[moved]), self._theta.result()


@njit(nogil=True, cache=True)
def _descend_all(
    codes: NDArray[np.float32],
    changes: NDArray[np.int8],
    order: NDArray[np.int64],
    starts: NDArray[np.int64],
) -> None:
    """Descend for each item, from its code and with its clients' wishes.

    ``order`` has the changes of one item after the other; those of the i-th begin at
    ``starts[i]``. A wish is the sign of the code plus the change, and the code where
    that is 0: whatever is sent, wishes are codes, or the descent need not end. Products
    of codes are whole numbers, so the error kept up to date is exact.
    """
    dim = codes.shape[1]
    for item in range(len(codes)):
        senders = order[starts[item] : starts[item + 1]]
        wishes = np.empty((len(senders), dim), np.float32)
        error = np.full(len(senders), dim, np.float32)
        for c in range(len(senders)):
            for k in range(dim):
                wish = np.sign(codes[item, k] + changes[senders[c], k])
                wishes[c, k] = wish if wish else codes[item, k]
                error[c] -= wishes[c, k] * codes[item, k]
        descend(codes[item], wishes, error, len(senders))
