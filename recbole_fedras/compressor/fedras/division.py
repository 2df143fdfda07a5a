"""Points cut into groups, the worst group first: where k-means starts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

# Sums may be taken in any order, so that compilers vectorise them. There is one copy of
# the code, inlined: another one might round differently, and numba's cache holds both.
compiled = njit(
    nogil=True,
    cache=True,
    forceinline=True,
    error_model="numpy",
    fastmath={"nnan", "nsz", "contract", "reassoc"},
)

# Points that coincide to this share of their squared norm are one: float32 keeps 1e-14
# of a square, and the products of matrices that points come from keep less.
_ALIKE = 1e-10
# Steps of two means on a line. Ours: one step leaves 1 to 2 % more error.
_STEPS = 3


class Division(NamedTuple):
    """Points in groups.

    Attributes
    ----------
    groups : ndarray of int64, shape (n,)
        Of each point.
    parents : ndarray of int64, shape (n_groups,)
        The group that each was cut from, of a smaller number; the first, itself.
    centroids : ndarray of float32, shape (n_groups, dim)
    sizes : ndarray of int64, shape (n_groups,)
        None is 0.
    """

    groups: Ints
    parents: Ints
    centroids: Floats
    sizes: Ints


def divide(points: Floats, n_groups: int) -> Division:
    """Cut the group of largest error in two, again and again.

    Parameters
    ----------
    points : ndarray of float32, shape (n, dim)
    n_groups : int
        Between 1 and n.

    Examples
    --------
    >>> points = np.array([[1, 0], [9, 0], [9, 3], [2, 0]], np.float32)
    >>> divide(points, 3).groups, divide(points, 3).parents
    (array([0, 1, 2, 0]), array([0, 0, 1]))
    """
    n, dim = points.shape
    n_leaves = 1 << (n_groups - 1).bit_length()
    order = np.empty((2, n), np.int64)
    cuts = np.zeros((3, n_groups), np.int64)
    worst, middles = np.zeros(2 * n_leaves), np.zeros(n_groups)
    line, moments = np.empty(n, np.float32), np.empty((2, dim))
    groups, parents = np.empty(n, np.int64), np.zeros(n_groups, np.int64)
    centroids = np.empty((n_groups, dim), np.float32)
    k = _divide(
        points,
        order,
        line,
        cuts,
        middles,
        moments,
        worst,
        groups,
        centroids,
        parents,
    )
    sizes = cuts[1, :k] - cuts[0, :k]
    return Division(groups, parents[:k], centroids[:k], sizes)


@compiled
def _divide(
    points: Floats,
    order: Ints,
    line: Floats,
    cuts: Ints,
    middles: Doubles,
    moments: Doubles,
    worst: Doubles,
    groups: Ints,
    centroids: Floats,
    parents: Ints,
) -> int:
    """Fill all arrays but points, and count the groups."""
    n, dim = points.shape
    n_groups, n_leaves = len(parents), len(worst) // 2
    for i in range(n):
        order[0, i] = i
    # A group is a stretch of the order, and will be cut across an axis at its middle:
    # the axis along which it is widest. A tree of maxima finds the group of largest
    # error; its leaves are the groups.
    count, group, newest = 1, 0, 0
    cuts[1, 0] = n
    while True:
        # Measure the two halves of the last cut (at first, the one group).
        for half in range(2):
            measured = newest if half else group
            start, stop = cuts[0, measured], cuts[1, measured]
            for j in range(dim):
                moments[0, j] = 0.0
                moments[1, j] = 0.0
            for place in range(start, stop):
                i = order[0, place]
                for j in range(dim):
                    value = np.float64(points[i, j])
                    moments[0, j] += value
                    moments[1, j] += value * value
            error, energy, widest = 0.0, 0.0, -1.0
            for j in range(dim):
                middle = moments[0, j] / (stop - start)
                centroids[measured, j] = middle
                spread = moments[1, j] - moments[0, j] * middle
                error += spread
                energy += moments[1, j]
                if spread > widest:
                    widest = spread
                    cuts[2, measured] = j
                    middles[measured] = middle
            node = n_leaves + measured
            worst[node] = error if error > _ALIKE * energy else 0.0
            while node > 1:
                node >>= 1
                left, right = worst[2 * node], worst[2 * node + 1]
                worst[node] = left if left > right else right
        if count == n_groups or worst[1] == 0.0:
            break
        node = 1
        while node < n_leaves:
            node *= 2
            if worst[node] != worst[1]:
                node += 1
        group = node - n_leaves

        # Two means on a line, seeded by a cut at the mean. The line starts there, so
        # that whatever the points, some lie on each side.
        start, size = cuts[0, group], cuts[1, group] - cuts[0, group]
        axis, middle = cuts[2, group], middles[group]
        total, cut = np.float32(0), np.float32(0)
        for i in range(size):
            line[i] = points[order[0, start + i], axis] - middle
            total += line[i]
        for _ in range(_STEPS):
            below, n_below = np.float32(0), np.int32(0)
            for i in range(size):
                below += line[i] if line[i] <= cut else np.float32(0)
                n_below += np.int32(line[i] <= cut)
            above = (total - below) / np.float32(size - n_below)
            cut = (below / np.float32(n_below) + above) / np.float32(2)

        # Those below stay in front, in their order, those above follow. Both are
        # written and one counter moves on: no branch to predict.
        front, back = start, np.int64(0)
        for i in range(size):
            member, is_below = order[0, start + i], np.int64(line[i] <= cut)
            order[0, front] = member
            order[1, back] = member
            front += is_below
            back += 1 - is_below
        for i in range(back):
            order[0, front + i] = order[1, i]
        newest = count
        parents[newest] = group
        cuts[0, newest], cuts[1, newest] = front, cuts[1, group]
        cuts[1, group] = front
        count += 1

    for number in range(count):
        for place in range(cuts[0, number], cuts[1, number]):
            groups[order[0, place]] = number
    return count
