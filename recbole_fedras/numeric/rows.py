"""Rows added up by where they belong."""

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(nogil=True, cache=True)
def add_rows(
    total: NDArray[np.float32],
    counts: NDArray[np.float32],
    ids: NDArray[np.int64],
    rows: NDArray[np.float32],
) -> None:
    """Add rows to those of a table, in their order, and count each; in one pass.

    Parameters
    ----------
    total : ndarray of float32, shape (n_rows, dim)
        Changed in place.
    counts : ndarray of float32, shape (n_rows,)
        Changed in place. Exact up to 16,777,216.
    ids : ndarray of int64, shape (n,)
        The row of the table that each belongs to.
    rows : ndarray of float32, shape (n, dim)
    """
    for i in range(len(ids)):
        counts[ids[i]] += 1
        mine, row = total[ids[i]], rows[i]
        for j in range(len(mine)):
            mine[j] += row[j]
