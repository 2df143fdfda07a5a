"""FedRAS's adaptive clustering: split the worst group until the groups are good."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

_EXACT = 2048  # rows up to which all pairs are compared


@dataclass(frozen=True, slots=True)
class NestedGroups:
    """Groups for every count between the first clustering and the last split.

    Attributes
    ----------
    rows : ndarray of float32, shape (n, dim)
    assignments : ndarray of int64, shape (n,)
        Group of each row after the last split.
    parents : ndarray of int64, shape (n_groups,)
        The group that group g was split from; g itself where it was there at first.
    n_adaptive : int
        Count at which splitting had reached the threshold or the limit.
    worst_quality : float
        Quality of the worst group when the count was ``n_recorded``, for thresholds.
    """

    rows: Floats
    assignments: Ints
    parents: Ints
    n_adaptive: int
    worst_quality: float

    def snapshot(self, n_groups: int) -> tuple[Floats, Ints]:
        """Centroids and assignments as they were with ``n_groups`` groups."""
        ancestors = self.parents.copy()
        for group in range(len(ancestors)):  # parents have smaller numbers
            if group < n_groups:
                ancestors[group] = group
            else:
                ancestors[group] = ancestors[self.parents[group]]
        assignments = ancestors[self.assignments]
        order = np.argsort(assignments, kind="stable")
        sizes = np.bincount(assignments, minlength=n_groups)  # none is empty
        starts = np.cumsum(sizes) - sizes
        sums = np.add.reduceat(self.rows[order], starts, axis=0, dtype=np.float64)
        return (sums / sizes[:, None]).astype(np.float32), assignments


def split_groups(
    rows: Floats,
    assignments: Ints,
    threshold: float | None,
    n_recorded: int,
    n_max: int,
) -> NestedGroups:
    """Split the worst group in two, again and again.

    Source: FedRAS (KDD 2025), section 4.2 and Algorithm 1. The quality of a group is
    the mean cosine of its rows with its centroid. The two rows of lowest mutual cosine
    of the worst group are the seeds, each other row joins the seed of higher cosine.
    In groups above 2,048 rows the seeds are found by sweeps: each is then the row of
    lowest cosine with the other, but another pair's may be lower.
    Splitting stops when the worst quality reaches the threshold or ``n_max`` groups
    exist; if that is before ``n_recorded`` groups, it goes on to that count only to
    record the worst quality there.

    Parameters
    ----------
    rows : ndarray of float32, shape (n, dim)
        n must exceed ``n_recorded``.
    assignments : ndarray of int64, shape (n,)
        A first clustering with at most ``n_recorded`` groups, none empty.
    threshold : float or None
        None in the first round: stop at ``n_recorded``.
    n_recorded, n_max : int
        C_e and C_m of the paper.
    """
    tiny = np.finfo(np.float32).tiny  # a row of zeros has no direction
    scaled = rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), tiny)
    units = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), tiny)
    order = np.argsort(assignments, kind="stable")
    bounds = np.cumsum(np.bincount(assignments))[:-1]
    members = np.split(order, bounds)
    parents = list(range(len(members)))
    heap = [(_quality(rows, units, own), group) for group, own in enumerate(members)]
    heapq.heapify(heap)

    n_adaptive: int | None = None
    worst_quality = np.nan
    while True:
        worst, group = heap[0]
        count = len(members)
        if count == n_recorded:
            worst_quality = min(worst, 1.0)
        if n_adaptive is None:
            good = count >= n_recorded if threshold is None else worst >= threshold
            if good or count >= n_max:
                n_adaptive = count
        if n_adaptive is not None and count >= n_recorded:
            break
        first, second = _split(units[members[group]])
        own = members[group]
        members[group] = own[first]
        members.append(own[second])
        parents.append(group)
        heapq.heapreplace(heap, (_quality(rows, units, members[group]), group))
        heapq.heappush(heap, (_quality(rows, units, members[-1]), count))

    final = np.empty(len(rows), np.int64)
    for group, own in enumerate(members):
        final[own] = group
    return NestedGroups(
        rows, final, np.array(parents), n_adaptive, float(worst_quality)
    )


def _quality(rows: Floats, units: Floats, own: Ints) -> float:
    """Mean cosine of a group's rows with their centroid; 0 if that is zero.

    Infinite for a single row, which cannot be split.
    """
    if len(own) == 1:
        return np.inf
    total = rows[own].sum(axis=0, dtype=np.float64)
    norm = np.linalg.norm(total)
    if norm == 0:
        return 0.0
    return float(units[own].sum(axis=0, dtype=np.float64) @ total / norm / len(own))


def _split(units: Floats) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of the two halves around the pair of lowest cosine."""
    first, second = (_opposite if len(units) <= _EXACT else _nearly_opposite)(units)
    joins_second = units @ units[second] > units @ units[first]
    joins_second[first], joins_second[second] = False, True
    return ~joins_second, joins_second


def _opposite(units: Floats) -> tuple[int, int]:
    """Find the pair of lowest cosine."""
    cosines = units @ units.T
    np.fill_diagonal(cosines, np.inf)
    first, second = divmod(int(cosines.argmin()), len(units))
    return first, second


def _nearly_opposite(units: Floats) -> tuple[int, int]:
    """Find a pair each of which has the lowest cosine with the other, in O(n d)."""
    first = int((units @ units.sum(axis=0)).argmin())
    lowest = np.inf
    while True:
        cosines = units @ units[first]
        cosines[first] = np.inf
        second = int(cosines.argmin())
        if not cosines[second] < lowest:
            return first, second
        lowest, first = cosines[second], second
