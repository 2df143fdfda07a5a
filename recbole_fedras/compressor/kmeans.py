"""K-means of update rows: a compiled kernel, and scikit-learn as the reference."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from sklearn.cluster import KMeans

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

BACKENDS = ("fast", "sklearn")

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
    scale = np.float32(2.0 ** -np.frexp(np.abs(rows).max(initial=0.0))[1])
    padding = -rows.shape[1] % 4  # the kernel's stride; zeros change no distance
    scaled = np.pad(rows * scale, ((0, 0), (0, padding)))
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
    return centroids[used, : rows.shape[1]] / scale, assignments


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
    block = (n_groups + 79) // 80 * 8
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

    Four rows and four dimensions at a time, the inner loop over centroids: each value
    loaded serves four or more multiplications. The dimension is a multiple of four.
    """
    n, dim = rows.shape
    k = (len(centroids) + 7) // 8 * 8  # whole vectors; the padding never wins
    columns = np.zeros((dim, k), np.float32)
    half_norms = np.full(k, np.float32(1e38))
    for c in range(len(centroids)):
        half_norms[c] = 0
        for j in range(dim):
            columns[j, c] = centroids[c, j]
            half_norms[c] += np.float32(0.5) * centroids[c, j] * centroids[c, j]
    tile = np.empty((4, k), np.float32)
    t0, t1, t2, t3 = tile
    for start in range(0, n, 4):
        i1, i2 = min(start + 1, n - 1), min(start + 2, n - 1)
        r0, r1, r2, r3 = rows[start], rows[i1], rows[i2], rows[min(start + 3, n - 1)]
        for c in range(k):
            t0[c] = t1[c] = t2[c] = t3[c] = -half_norms[c]
        for j in range(0, dim, 4):
            c0, c1 = columns[j], columns[j + 1]
            c2, c3 = columns[j + 2], columns[j + 3]
            w0, w1, w2, w3 = r0[j], r0[j + 1], r0[j + 2], r0[j + 3]
            x0, x1, x2, x3 = r1[j], r1[j + 1], r1[j + 2], r1[j + 3]
            y0, y1, y2, y3 = r2[j], r2[j + 1], r2[j + 2], r2[j + 3]
            z0, z1, z2, z3 = r3[j], r3[j + 1], r3[j + 2], r3[j + 3]
            for c in range(k):
                t0[c] += w0 * c0[c] + w1 * c1[c] + w2 * c2[c] + w3 * c3[c]
                t1[c] += x0 * c0[c] + x1 * c1[c] + x2 * c2[c] + x3 * c3[c]
                t2[c] += y0 * c0[c] + y1 * c1[c] + y2 * c2[c] + y3 * c3[c]
                t3[c] += z0 * c0[c] + z1 * c1[c] + z2 * c2[c] + z3 * c3[c]
        for i in range(start, min(start + 4, n)):
            row = tile[i - start]
            best = row[0]
            for c in range(1, k):  # a vectorised maximum, then a short search
                best = max(best, row[c])
            place = 0
            while row[place] != best and place < k - 1:
                place += 1
            nearest[i] = place
            scores[i] = best
