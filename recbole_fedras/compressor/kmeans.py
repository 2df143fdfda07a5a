"""K-means of update rows: a compiled kernel, and scikit-learn as the reference."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from sklearn.cluster import KMeans

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

BACKENDS = ("fast", "sklearn")

_BLOCK = 256  # rows compared with all centroids at a time
_TOLERANCE = 0.005  # relative gain in error below which iterations stop


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
        ``fast`` seeds by D^2-sampling in blocks and iterates in compiled code that
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
    exponent = int(np.frexp(np.abs(rows).max(initial=0.0))[1])
    scale = np.float32(2.0 ** min(max(-exponent, -120), 120))
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
    nearest = np.empty(n, np.int64)
    scores = np.empty(n, np.float32)
    sizes = np.empty(k, np.int64)
    sums = np.empty((k, dim), np.float32)
    energy = np.float64((rows * rows).sum())
    error = np.inf
    for _ in range(n_iterations):
        _find_nearest(rows, centroids, nearest, scores)
        previous, error = error, energy - 2 * np.float64(scores.sum())
        if error >= (1 - _TOLERANCE) * previous:
            return centroids, nearest
        sizes[:] = 0
        sums[:] = 0
        for i in range(n):
            sizes[nearest[i]] += 1
            for j in range(dim):
                sums[nearest[i], j] += rows[i, j]
        for group in range(k):
            if sizes[group]:  # an empty group keeps its centroid
                for j in range(dim):
                    centroids[group, j] = sums[group, j] / sizes[group]
    _find_nearest(rows, centroids, nearest, scores)
    return centroids, nearest


@njit(nogil=True, cache=True)
def _seed(rows: Floats, n_groups: int, rng: np.random.Generator) -> Floats:
    """Sample distinct rows as seeds, by squared distance, in about ten blocks.

    A block is a systematic sample: points evenly spaced, from a random start, along
    the cumulative squared distances to the seeds so far.
    """
    n, dim = rows.shape
    norms = np.zeros(n, np.float32)
    for i in range(n):
        for j in range(dim):
            norms[i] += rows[i, j] * rows[i, j]
    seeds = np.empty((n_groups, dim), np.float32)
    seeds[0] = rows[min(int(rng.random() * n), n - 1)]
    distances = np.full(n, np.inf, np.float32)
    nearest = np.empty(n, np.int64)
    scores = np.empty(n, np.float32)
    block = (n_groups + 9) // 10
    first, k = 0, 1
    while True:
        _find_nearest(rows, seeds[first:k], nearest, scores)
        total = 0.0
        for i in range(n):
            distance = norms[i] - 2 * scores[i]
            if distance <= np.float32(1e-6) * norms[i]:  # a seed, but for rounding
                distance = np.float32(0)
            distances[i] = min(distances[i], distance)
            total += distances[i]
        if k == n_groups or total == 0:
            return seeds[:k].copy()
        first = k
        gap = total / min(block, n_groups - k)
        point = rng.random() * gap
        passed = 0.0
        for i in range(n):
            passed += distances[i]
            if point < passed and k < n_groups:
                seeds[k] = rows[i]
                k += 1
                point += gap * np.ceil((passed - point) / gap)
        if k == first:  # the point lies beyond the sum by rounding
            seeds[k] = rows[np.argmax(distances)]
            k += 1


@njit(nogil=True, cache=True, fastmath=True)
def _find_nearest(
    rows: Floats, centroids: Floats, nearest: Ints, scores: Floats
) -> None:
    """Find each row's nearest centroid and its score ``x.c - |c|^2 / 2``, the largest.

    Matrix products of blocks that stay in the cache; the loops after them vectorise.
    """
    n, k = len(rows), len(centroids)
    columns = np.ascontiguousarray(centroids.T)  # (dim, k)
    half_norms = np.zeros(k, np.float32)
    for j in range(len(columns)):
        for c in range(k):
            half_norms[c] += np.float32(0.5) * columns[j, c] * columns[j, c]
    for start in range(0, n, _BLOCK):
        products = np.dot(rows[start : start + _BLOCK], columns)
        for i in range(len(products)):
            row = products[i]
            best = np.float32(-3e38)
            for c in range(k):
                row[c] -= half_norms[c]
                best = max(best, row[c])
            place = np.int32(0)
            for c in range(k):
                place = max(place, np.int32(c) if row[c] == best else np.int32(0))
            nearest[start + i] = place
            scores[start + i] = best
