"""K-means of update rows: a compiled kernel, and scikit-learn as the reference."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from sklearn.cluster import KMeans

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

BACKENDS = ("fast", "sklearn")


def kmeans(
    rows: Floats,
    n_groups: int,
    rng: np.random.Generator,
    n_iterations: int,
    backend: str = "fast",
) -> tuple[Floats, Ints]:
    """Cluster rows into at most ``n_groups`` non-empty groups.

    Parameters
    ----------
    rows : ndarray of float32, shape (n, dim)
        Finite.
    n_groups : int
        Between 1 and n.
    rng : numpy.random.Generator
    n_iterations : int
        Lloyd iterations at most.
    backend : {'fast', 'sklearn'}
        ``fast`` seeds by D^2-sampling in ten blocks and iterates in compiled code that
        holds no interpreter lock; ``sklearn`` is :class:`sklearn.cluster.KMeans` with
        its greedy k-means++ and default tolerance.

    Returns
    -------
    centroids : ndarray of float32, shape (k, dim)
        ``k <= n_groups``: fewer where rows coincide.
    assignments : ndarray of int64, shape (n,)
        The nearest of these very centroids for each row.

    Raises
    ------
    ValueError
        If a row is not finite.
    """
    if not np.isfinite(rows).all():
        raise ValueError("k-means: a row is not finite")
    # Squares of tiny or huge rows leave float32's range; a power of two is exact.
    scale = np.float32(2.0 ** -np.frexp(np.abs(rows).max(initial=0.0))[1])
    scaled = np.ascontiguousarray(rows * scale)
    if backend == "sklearn":
        model = KMeans(
            n_groups,
            n_init=1,
            max_iter=n_iterations,
            random_state=int(rng.integers(2**31)),
        ).fit(scaled)
        centroids = model.cluster_centers_
        assignments = model.labels_.astype(np.int64)
    else:
        centroids, assignments = _lloyd(scaled, n_groups, n_iterations, rng)
    used, assignments = np.unique(assignments, return_inverse=True)
    return centroids[used] / scale, assignments


@njit(nogil=True, cache=True)
def _lloyd(
    rows: Floats, n_groups: int, n_iterations: int, rng: np.random.Generator
) -> tuple[Floats, Ints]:
    n, dim = rows.shape
    centroids = _seed(rows, n_groups, rng)
    k = len(centroids)
    assignments = np.full(n, -1, np.int64)
    sizes = np.empty(k, np.int64)
    for _ in range(n_iterations):
        if not _assign(rows, centroids, assignments):
            return centroids, assignments
        sums = np.zeros((k, dim), np.float32)
        sizes[:] = 0
        for i in range(n):
            sizes[assignments[i]] += 1
            for j in range(dim):
                sums[assignments[i], j] += rows[i, j]
        for group in range(k):
            if sizes[group]:  # an empty group keeps its centroid
                for j in range(dim):
                    centroids[group, j] = sums[group, j] / sizes[group]
    _assign(rows, centroids, assignments)
    return centroids, assignments


@njit(nogil=True, cache=True)
def _seed(rows: Floats, n_groups: int, rng: np.random.Generator) -> Floats:
    """Sample distinct rows as seeds, by squared distance, in about ten blocks.

    A block is drawn without replacement: the rows of smallest ``Exp(1) / D^2``.
    """
    n, dim = rows.shape
    seeds = np.empty((n_groups, dim), np.float32)
    seeds[0] = rows[min(int(rng.random() * n), n - 1)]
    distances = np.full(n, np.inf, np.float32)
    _shrink_distances(rows, seeds[:1], distances)
    k = 1
    block = max((n_groups + 9) // 10, 1)
    keys = np.empty(n, np.float64)
    while k < n_groups:
        positive = 0
        for i in range(n):
            keys[i] = np.inf
            draw = rng.random()
            if distances[i] > 0:
                positive += 1
                keys[i] = -np.log1p(-draw) / distances[i]
        size = min(block, n_groups - k, positive)
        if size == 0:
            break
        order = np.argsort(keys)[:size]
        for i in order:
            seeds[k] = rows[i]
            k += 1
        _shrink_distances(rows, seeds[k - size : k], distances)
    return seeds[:k].copy()


@njit(nogil=True, cache=True, fastmath=True)
def _shrink_distances(rows: Floats, seeds: Floats, distances: Floats) -> None:
    """Lower each row's squared distance to that of its nearest new seed."""
    n, dim = rows.shape
    for i in range(n):
        for s in range(len(seeds)):
            total = np.float32(0)
            for j in range(dim):
                difference = rows[i, j] - seeds[s, j]
                total += difference * difference
            distances[i] = min(distances[i], total)


@njit(nogil=True, cache=True, fastmath=True)
def _assign(rows: Floats, centroids: Floats, assignments: Ints) -> bool:
    """Assign each row to its nearest centroid; tell whether anything changed.

    ``argmin |x - c|^2 = argmax (x.c - |c|^2 / 2)``, for four rows at a time so that a
    centroid column is loaded once for all of them.
    """
    n, dim = rows.shape
    k = len(centroids)
    columns = np.ascontiguousarray(centroids.T)  # (dim, k)
    half_norms = np.zeros(k, np.float32)
    for j in range(dim):
        for c in range(k):
            half_norms[c] += np.float32(0.5) * columns[j, c] * columns[j, c]
    a, b = np.empty(k, np.float32), np.empty(k, np.float32)
    e, f = np.empty(k, np.float32), np.empty(k, np.float32)
    changed = False
    for start in range(0, n, 4):
        i1, i2 = min(start + 1, n - 1), min(start + 2, n - 1)
        i3 = min(start + 3, n - 1)
        for c in range(k):
            a[c] = b[c] = e[c] = f[c] = -half_norms[c]
        for j in range(dim):
            x0, x1, x2, x3 = rows[start, j], rows[i1, j], rows[i2, j], rows[i3, j]
            column = columns[j]
            for c in range(k):
                a[c] += x0 * column[c]
                b[c] += x1 * column[c]
                e[c] += x2 * column[c]
                f[c] += x3 * column[c]
        for i, scores in ((start, a), (i1, b), (i2, e), (i3, f)):
            best = _argmax(scores)
            if assignments[i] != best:
                assignments[i] = best
                changed = True
    return changed


@njit(nogil=True, cache=True, fastmath=True)
def _argmax(scores: Floats) -> int:
    """First index of the largest score: a vectorised maximum, then a short search."""
    best = scores[0]
    for c in range(1, len(scores)):
        best = max(best, scores[c])
    for c in range(len(scores)):
        if scores[c] == best:
            return c
    return 0
