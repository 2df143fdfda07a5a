"""How much of what replicas lack is sent: as much as all clients' bytes pay for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from recbole_fedras.errors import NonFiniteError
from recbole_fedras.wire.columns import Table, expected_size

Floats = NDArray[np.float64]

#: Rounds until a threshold has found its place: until then it may change by ``_FREELY``
#: in each, and by ``_SLOWLY`` afterwards. A threshold that follows every round's cost
#: spends on details in quiet rounds what then is short in others.
_SETTLING, _FREELY, _SLOWLY = 15, 4.0, 1.025

#: Rounds in which what was not spent, or was too much, is made up for.
_HORIZON = 50

#: A step is a power of two, from two thirds of the threshold to twice as much.
_FINEST, _COARSEST = 0.75, 1.5


class Rate(NamedTuple):
    """What a tier's downlinks may cost, and how fine they are.

    Attributes
    ----------
    threshold : float
        Entries that lack less wait; 0 before the first round. In units of the grid.
    shift : int
        Entries move to multiples of 2^shift units.
    credit : float
        Bytes that were not spent.
    rounds : int
        How often the threshold has been chosen.
    """

    threshold: float = 0.0
    shift: int = 0
    credit: float = 0.0
    rounds: int = 0

    def allowance(self, n_bytes: int, n_messages: int) -> float:
        """Return what a participant's message may take, of ``n_bytes`` in the mean."""
        extra = self.credit / (_HORIZON * max(n_messages, 1))
        return max(n_bytes / 2, n_bytes + extra)

    def shift_of(self, threshold: float) -> int:
        """Return the step of a threshold: as it is, while that fits."""
        shift = self.shift
        while threshold > _COARSEST * 2.0**shift:
            shift += 1
        while shift and threshold < _FINEST * 2.0**shift:
            shift -= 1
        return shift


class Held(NamedTuple):
    """What clients hold who are about to be sent something.

    Attributes
    ----------
    missed : sequence of ndarray of int32, shape (n_items, dim)
        What leads from a version that some of them hold to the newest.
    shares : sequence of float
        How many they are, of all.
    """

    missed: Sequence[Table]
    shares: Sequence[float]


def choose_moves(
    rate: Rate, target: Floats, units: Table, held: Held, limit: float
) -> tuple[Table, Rate]:
    """Choose the next moves: as many as ``limit`` bytes in the mean pay for.

    Those entries move that lack more than a threshold; it is found by bisection on the
    expected size of a message. Entries that have waited go the whole way, so what is
    sent is rarely sent again: a message that leads over many versions does not cost
    much more than its last.

    Parameters
    ----------
    rate : Rate
        Of the round before.
    target : ndarray of float64, shape (n_items, dim)
        Where the table should be, in units.
    units : ndarray of int32, shape (n_items, dim)
        Where it is.
    held : Held
    limit : float
        Bytes.

    Returns
    -------
    moves : ndarray of int32, shape (n_items, dim)
    rate : Rate
        With the threshold of this round.
    """
    most = float(np.abs(target - units).max())
    if not np.isfinite(most):
        raise NonFiniteError("the server's table is not finite any more")
    if not most:
        return np.zeros_like(units), rate
    if rate.rounds:
        slack = _FREELY if rate.rounds < _SETTLING else _SLOWLY
        low, high = rate.threshold / slack, rate.threshold * slack
        # What no slow change pays for: a run whose updates grow would never catch up.
        if _cheapest(rate, high, target, units, held)[0] > 2 * limit:
            high = rate.threshold * _FREELY
    else:
        low, high = most * 2.0**-16, 2 * most
    while high > 1.005 * low:
        threshold = float(np.sqrt(low * high))
        cost, moves, shift = _cheapest(rate, threshold, target, units, held)
        if cost > limit:
            low = threshold
        else:
            high = threshold
    return moves, rate._replace(
        threshold=threshold, shift=shift, rounds=rate.rounds + 1
    )


def _cheapest(
    rate: Rate, threshold: float, target: Floats, units: Table, held: Held
) -> tuple[float, Table, int]:
    """Return the mean size of messages, the moves and the step of a threshold."""
    shift = rate.shift_of(threshold)
    ways = [
        (_mean_size(moves, units, held), moves)
        for moves in _ways(threshold, shift, shift > rate.shift, target, units)
    ]
    cost, moves = min(ways, key=lambda way: way[0])
    return cost, moves, shift


def _ways(
    threshold: float, shift: int, coarser: bool, target: Floats, units: Table
) -> Iterator[Table]:
    yield _moves(target, units, threshold, shift, False)
    if coarser:  # to give up finer details may pay
        yield _moves(target, units, threshold, shift, True)


def _mean_size(moves: Table, units: Table, held: Held) -> float:
    """Return the mean size of a message that leads to after the moves."""
    whole = expected_size(units, moves)
    sizes = [min(expected_size(missed, moves), whole) for missed in held.missed]
    return float(np.dot(sizes, held.shares))


@njit(nogil=True, cache=True)
def _moves(
    target: Floats, units: Table, threshold: float, shift: int, snap: bool
) -> Table:
    """Move entries that lack more than a threshold to the nearest multiple of a step.

    With ``snap`` those move too that are at no multiple of it.
    """
    moves = np.zeros_like(units)
    step = 1 << shift
    for i in range(len(units)):
        for j in range(units.shape[1]):
            here = units[i, j]
            off = snap and here & (step - 1) != 0
            if off or abs(target[i, j] - here) > threshold:
                moves[i, j] = np.int64(np.rint(target[i, j] / step)) * step - here
    return moves
