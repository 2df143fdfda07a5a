"""FedRAS's adaptive clustering: split the worst group until the groups are good."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

# Rows of a group up to which all pairs are compared: 2,048 take a float32 matrix of
# 16 MB, and time grows with the square.
_EXACT = 2048


@dataclass(frozen=True, slots=True)
class NestedGroups:
    """Groups for every count between the first clustering and the last split.

    A split leaves all other groups as they are, so the groups that there were at any
    smaller count are found again by following each group to its parent.

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

    Examples
    --------
    Four rows, one group at first; the rows that differ most part first:

    >>> rows = np.array([[1, 0], [1, 0.1], [-1, 0], [0, 1]], np.float32)
    >>> groups = split_groups(rows, np.zeros(4, np.int64), None, n_recorded=3, n_max=3)
    >>> for count in (1, 2, 3):
    ...     print(groups.snapshot(count)[1])
    [0 0 0 0]
    [0 0 1 0]
    [0 0 1 2]
    """

    rows: Floats
    assignments: Ints
    parents: Ints
    n_adaptive: int
    worst_quality: float

    def snapshot(self, n_groups: int) -> tuple[Floats, Ints]:
        """Centroids and assignments as they were with ``n_groups`` groups."""
        # The group that each of today's groups was part of when there were n_groups.
        # Parents have smaller numbers, so one pass upwards finds them all.
        ancestors = self.parents.copy()
        for group in range(len(ancestors)):
            if group < n_groups:
                ancestors[group] = group
            else:
                ancestors[group] = ancestors[self.parents[group]]
        # Means by group: sort rows by group, sum up each stretch. In float64, so that
        # large groups round no worse than small ones.
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
    exact: int = _EXACT,
) -> NestedGroups:
    """Split the worst group in two, again and again.

    Source: FedRAS (KDD 2025), section 4.3. The quality of a group is
    the mean cosine of its rows with its centroid. The two rows of lowest mutual cosine
    of the worst group are the seeds, each other row joins the seed of higher cosine.
    In groups above ``exact`` rows the seeds are found by sweeps: each is then the row
    of lowest cosine with the other, but another pair's may be lower.
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
    exact : int
        Rows of a group up to which all pairs are compared.
    """
    # Unit rows, for cosines. Rows are first scaled by their largest magnitude, as the
    # squares of very small or large ones leave float32. A row of zeros has no direction
    # and stays zero: ``tiny`` only spares it the division by zero.
    tiny = np.finfo(np.float32).tiny
    scaled = rows / np.maximum(np.abs(rows).max(axis=1, keepdims=True), tiny)
    units = scaled / np.maximum(np.linalg.norm(scaled, axis=1, keepdims=True), tiny)
    # The rows of each group, and a heap with the worst group on top: a split changes
    # the qualities of two groups only.
    order = np.argsort(assignments, kind="stable")
    bounds = np.cumsum(np.bincount(assignments))[:-1]
    members = np.split(order, bounds)
    parents = list(range(len(members)))
    heap = [(_quality(rows, units, rows_of), g) for g, rows_of in enumerate(members)]
    heapq.heapify(heap)

    n_adaptive: int | None = None
    worst_quality = np.nan
    while True:
        worst, group = heap[0]
        count = len(members)
        # What thresholds of later rounds are the mean of. Infinite, if every group is
        # a single row; then it counts as the best cosine there is.
        if count == n_recorded:
            worst_quality = min(worst, 1.0)
        # The count that is sent is the first that is good enough, or the limit ...
        if n_adaptive is None:
            good = count >= n_recorded if threshold is None else worst >= threshold
            if good or count >= n_max:
                n_adaptive = count
        # ... but splitting goes on until the quality at n_recorded is known.
        if n_adaptive is not None and count >= n_recorded:
            break
        # One half keeps the group's number, the other gets the next.
        halved = members[group]
        first, second = _split(units[halved], exact)
        members[group] = halved[first]
        members.append(halved[second])
        parents.append(group)
        heapq.heapreplace(heap, (_quality(rows, units, members[group]), group))
        heapq.heappush(heap, (_quality(rows, units, members[-1]), count))

    final = np.empty(len(rows), np.int64)
    for group, rows_of_group in enumerate(members):
        final[rows_of_group] = group
    return NestedGroups(
        rows, final, np.array(parents), n_adaptive, float(worst_quality)
    )


def _quality(rows: Floats, units: Floats, members: Ints) -> float:
    """Mean cosine of a group's rows with their centroid; 0 if that is zero.

    Infinite for a single row, which cannot be split.
    """
    if len(members) == 1:
        return np.inf
    # The centroid has the direction of the sum, and the mean of cosines is the product
    # of the mean unit row with that direction: no pass over rows and centroid together.
    total = rows[members].sum(axis=0, dtype=np.float64)
    norm = np.linalg.norm(total)
    if norm == 0:
        return 0.0
    directions = units[members].sum(axis=0, dtype=np.float64)
    return float(directions @ total / norm / len(members))


def _split(units: Floats, exact: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Masks of the two halves around the pair of lowest cosine."""
    first, second = (_opposite if len(units) <= exact else _nearly_opposite)(units)
    # Ties stay with the first, as in the paper. The seeds themselves are set by hand:
    # two rows of zeros tie everywhere, and neither half may be empty.
    joins_second = units @ units[second] > units @ units[first]
    joins_second[first], joins_second[second] = False, True
    return ~joins_second, joins_second


def _opposite(units: Floats) -> tuple[int, int]:
    """Find the pair of lowest cosine."""
    cosines = units @ units.T
    np.fill_diagonal(cosines, np.inf)  # no row is a pair with itself
    first, second = divmod(int(cosines.argmin()), len(units))
    return first, second


def _nearly_opposite(units: Floats) -> tuple[int, int]:
    """Find a pair each of which has the lowest cosine with the other, in O(n d)."""
    # Start from the row that is least like all, and go to the row least like that one,
    # and on, as long as the cosine falls. It falls at every step, so this ends.
    first = int((units @ units.sum(axis=0)).argmin())
    lowest = np.inf
    while True:
        cosines = units @ units[first]
        cosines[first] = np.inf
        second = int(cosines.argmin())
        if not cosines[second] < lowest:
            return first, second
        lowest, first = cosines[second], second
