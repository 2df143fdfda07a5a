"""Weight decay in compiled training: what a step touches is pulled towards zero."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from recbole_fedras.data.local import Descent, Floats

_compiled = njit(nogil=True, cache=True, error_model="numpy")


@_compiled
def shrink(values: Floats, strength: float) -> None:
    """Take a share of each value off, in place."""
    for j in range(len(values)):
        values[j] -= np.float32(strength) * values[j]


@_compiled
def decay_rows(
    table: Floats,
    rows: NDArray[np.int32],
    descent: Descent,
    seen: NDArray[np.bool_],
) -> None:
    """Decay each of a batch's rows once, however often it stands there.

    Where gradients are mapped, the decay is too: it must stay in the subspace that
    the update is sent in.

    Parameters
    ----------
    table : ndarray of float32, shape (n_rows, dim)
        Changed in place.
    rows : ndarray of int32, shape (n,)
    descent : Descent
    seen : ndarray of bool, shape (n_rows,)
        False everywhere, before and after.
    """
    strength = descent.learning_rate * descent.weight_decay
    mapping, pull = descent.gradient_map, np.empty(table.shape[1], np.float32)
    for i in range(len(rows)):
        if seen[rows[i]]:
            continue
        seen[rows[i]] = True
        row = table[rows[i]]
        if not len(mapping):
            shrink(row, strength)
            continue
        for j in range(len(row)):
            pull[j] = 0
            for k in range(len(row)):
                pull[j] += row[k] * mapping[k, j]
        for j in range(len(row)):
            row[j] -= np.float32(strength) * pull[j]
    # Only the batch's rows are cleared: a client may have many more.
    for i in range(len(rows)):
        seen[rows[i]] = False
