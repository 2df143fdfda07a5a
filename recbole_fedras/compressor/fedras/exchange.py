"""Groups merged, and points exchanged between groups: where k-means ends."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from recbole_fedras.compressor.fedras.division import Floats, Ints, compiled

# All kernels are in this one file: numba's cache does not see that a function which
# another file defines has changed.


class Groups(NamedTuple):
    """Groups of points while these are exchanged.

    Attributes
    ----------
    centroids : ndarray of float32, shape (n_groups, dim)
    sizes : ndarray of int64, shape (n_groups,)
    line : ndarray of int64, shape (n_groups,)
        Groups by increasing first coordinate of their centroids.
    slots : ndarray of int64, shape (n_groups,)
        Place of each group on the line.
    """

    centroids: Floats
    sizes: Ints
    line: Ints
    slots: Ints


def on_line(centroids: Floats, sizes: Ints) -> Groups:
    """Put groups on the line."""
    line = np.argsort(centroids[:, 0].copy(), kind="stable")
    slots = np.empty_like(line)
    slots[line] = np.arange(len(line))
    return Groups(centroids, sizes, line, slots)


@compiled
def _cheapest(
    point: Floats, size: np.float32, place: int, most: np.float32, state: Groups
) -> tuple[int, np.float32, int]:
    """Find the group that some points, alike, join at the least error.

    ``size`` of them at squared distance d raise the error of a group of m by d size m /
    (size + m): exact, as the centroid moves. Groups are met along the line, away from a
    place on it in both directions; -1 if all cost ``most`` or more.
    """
    least, target, n_compared = most, -1, 0
    # What points cost at least: to join a single one.
    share = size / (size + np.float32(1))
    for way in range(-1, 2, 2):
        slot = place + way
        while 0 <= slot < len(state.line):
            group = state.line[slot]
            # Along the first coordinate alone it is further off already, and so are
            # all behind it.
            away = point[0] - state.centroids[group, 0]
            square = away * away
            if square * share >= least:
                break
            for j in range(1, len(point)):
                away = point[j] - state.centroids[group, j]
                square += away * away
            m = np.float32(state.sizes[group])
            cost = square * size * m / (size + m)
            if cost < least:
                least, target = cost, group
            n_compared += 1
            slot += way
    return target, least, n_compared


def merge(groups: Ints, state: Groups, n_groups: int) -> Groups:
    """Merge the cheapest pairs until ``n_groups`` are left.

    Groups are renumbered in place. The state is used up: what is returned is in its
    memory.
    """
    n = len(state.sizes)
    into, partners = np.empty((2, n), np.int64)
    costs = np.empty(n, np.float32)
    while n > n_groups:
        n = _merge(groups, state, n - n_groups, into, partners, costs)
        centroids, sizes, line, slots = state
        state = Groups(centroids[:n], sizes[:n], line[:n], slots[:n])
    return state


@compiled
def _merge(
    groups: Ints,
    state: Groups,
    n_merges: int,
    into: Ints,
    partners: Ints,
    costs: Floats,
) -> int:
    """Merge disjoint pairs; return how many groups are left, the first of the state."""
    centroids, sizes, line, slots = state
    n, dim = centroids.shape
    done = np.float32(3e38)  # beyond any cost, near the largest float32
    for place in range(n):
        group = line[place]
        into[group] = group
        partners[group], costs[group], _ = _cheapest(
            centroids[group], np.float32(sizes[group]), place, done, state
        )
    for _ in range(n_merges):
        best, least = 0, done
        for group in range(n):
            if costs[group] < least and costs[partners[group]] < done:
                best, least = group, costs[group]
        if least == done:
            break
        other = partners[best]
        share = np.float32(sizes[other] / (sizes[best] + sizes[other]))
        for j in range(dim):
            away = centroids[other, j] - centroids[best, j]
            centroids[best, j] += share * away
        sizes[best] += sizes[other]
        sizes[other] = 0
        into[other] = best
        costs[best] = costs[other] = done

    # Those that are left move up, in their order; so does who is in them.
    left = 0
    for group in range(n):
        partners[group] = left
        if sizes[group]:
            sizes[left] = sizes[group]
            for j in range(dim):
                centroids[left, j] = centroids[group, j]
            left += 1
    for i in range(len(groups)):
        groups[i] = partners[into[groups[i]]]
    # Put the line in order again, by insertion: few centroids have moved, and not far.
    place = 0
    for slot in range(n):
        group = line[slot]
        if into[group] != group:
            continue
        group = partners[group]
        back = place
        while back > 0 and centroids[line[back - 1], 0] > centroids[group, 0]:
            line[back] = line[back - 1]
            back -= 1
        line[back] = group
        place += 1
    for slot in range(left):
        slots[line[slot]] = slot
    return left


@compiled
def exchange(
    points: Floats, groups: Ints, proposals: Ints | None, state: Groups
) -> tuple[float, float, int]:
    """Move each point, one after the other, to where it lowers the error most.

    Source: Hartigan's method, as in Telgarsky and Vattani, "Hartigan's Method: k-means
    Clustering without Voronoi" (AISTATS 2010), of which we have read the abstract. A
    point that leaves a group of m at squared distance d lowers the error by d m /
    (m - 1); :func:`_cheapest` says what it costs to join another. Lloyd's step, which
    compares the distances alone, stops earlier, above all in groups of few points.

    Parameters
    ----------
    points : ndarray of float32, shape (n, dim)
    groups : ndarray of int64, shape (n,)
        Changed in place, and so is the state.
    proposals : ndarray of int64, shape (n,), or None
        The only group that each point may move to; None: any, and numba leaves out
        what is for proposals.
    state : Groups

    Returns
    -------
    error, gain : float
        Sum of squared distances before, and what it fell by.
    n_compared : int
        Distances taken to groups other than a point's own.
    """
    centroids, sizes, line, slots = state
    dim, n_groups = points.shape[1], len(sizes)
    error, gain, one = np.float64(0), np.float64(0), np.float32(1)
    n_compared = 0
    for i in range(len(points)):
        group = groups[i]
        square = np.float32(0)
        for j in range(dim):
            away = points[i, j] - centroids[group, j]
            square += away * away
        error += square
        if sizes[group] == 1:  # it would leave an empty group
            continue
        m = np.float32(sizes[group])
        own = square * m / (m - one)
        if proposals is not None:
            target, square = proposals[i], np.float32(0)
            for j in range(dim):
                away = points[i, j] - centroids[target, j]
                square += away * away
            m = np.float32(sizes[target])
            cost = square * m / (m + one)
            if cost >= own:
                continue
        else:
            target, cost, n = _cheapest(points[i], one, slots[group], own, state)
            n_compared += n
            if target < 0:
                continue

        # Both centroids move, and may pass others on the line.
        groups[i] = target
        gain += own - cost
        for change in range(-1, 2, 2):
            moved = target if change > 0 else group
            sizes[moved] += change
            for j in range(dim):
                away = points[i, j] - centroids[moved, j]
                centroids[moved, j] += away * np.float32(change / sizes[moved])
            place, slot = centroids[moved, 0], slots[moved]
            while slot > 0 and centroids[line[slot - 1], 0] > place:
                line[slot] = line[slot - 1]
                slots[line[slot]] = slot
                slot -= 1
            while slot < n_groups - 1 and centroids[line[slot + 1], 0] < place:
                line[slot] = line[slot + 1]
                slots[line[slot]] = slot
                slot += 1
            line[slot], slots[moved] = moved, slot
    return error, gain, n_compared
