"""Discrete coordinate descent: the code whose products with others are as wanted."""

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@njit(nogil=True, cache=True)
def descend(code: Floats, others: Floats, error: Floats, inertia: float) -> None:
    """Change bit after bit of a code until none changes, in place.

    ``code_k <- sgn(sum_i error_i others_ik + inertia code_k)``; a bit stays where that
    is 0. With an inertia of ``len(others)`` it is coordinate descent on the sum of
    ``error^2``; a larger one keeps bits that gain little. Source: LightFR (TOIS 2023).

    Parameters
    ----------
    code : ndarray of float32, shape (f,)
        Of -1 and 1; overwritten.
    others : ndarray of float32, shape (n, f)
    error : ndarray of float32, shape (n,)
        Wanted products less ``others @ code``, whole numbers; kept up to date.
    inertia : float
        At least n: less need not end.
    """
    changed = True
    while changed:
        changed = False
        for k in range(len(code)):
            slope = 0.0
            for i in range(len(others)):
                slope += error[i] * others[i, k]
            if code[k] * slope + inertia < 0:
                for i in range(len(others)):
                    error[i] += 2 * code[k] * others[i, k]
                code[k] = -code[k]
                changed = True
