"""K-means of update rows: a compiled kernel, and scikit-learn as the reference."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from recbole_fedras.numeric.parallel import single_threaded

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

BACKENDS = ("fast", "sklearn")

_TOLERANCE = 0.005  # relative gain in error below which iterations stop
_RESOLUTION = 1e-7  # of the rows' energy: what float32 distances resolve
_FLAT = 2**30  # rows x groups x dim up to which all rows meet all centroids
_MOST = 4096  # groups up to which all candidates of seeds are compared


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
        ``fast`` is compiled code that holds no interpreter lock: k-means|| seeding
        (Bahmani et al., VLDB 2012), then Lloyd, nested in cells where rows and groups
        are many. ``sklearn`` is :class:`sklearn.cluster.KMeans` with its greedy
        k-means++ and default tolerance.

    Returns
    -------
    centroids : ndarray of float32, shape (k, dim)
        ``k <= n_groups``: fewer where rows coincide to a thousandth of their norm, and
        about 1 % fewer where clustering is nested.
    assignments : ndarray of int64, shape (n,)
        The nearest of these very centroids for each row; nested, the nearest of its
        cell.

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
        )
        with single_threaded():
            model.fit(scaled)
        centroids = model.cluster_centers_
        assignments = model.labels_.astype(np.int64)
    else:
        centroids, assignments = _cluster(scaled, n_groups, n_iterations, rng)
    used, assignments = np.unique(assignments, return_inverse=True)
    return centroids[used] / scale, assignments


def _cluster(
    rows: Floats, n_groups: int, n_iterations: int, rng: np.random.Generator
) -> tuple[Floats, Ints]:
    """Cluster at once where that is cheap, else in ``2 sqrt(n_groups)`` cells.

    Rows sampled by norm are clustered into the cells. A cell gets as many groups as a
    sample by squared distance to the cells takes rows of it, and is clustered on its
    own: an iteration over all cells takes O(n sqrt(n_groups) dim) time.
    """
    n = len(rows)
    flat = rows.size * n_groups <= _FLAT and n_groups <= _MOST
    if flat or n_groups < 16:
        return _lloyd(rows, n_groups, n_iterations, rng)
    n_cells = int(2 * np.sqrt(n_groups))
    norms = np.einsum("ij,ij->i", rows, rows)
    samples = rows[_sample(np.sqrt(norms), n_groups, rng)]
    cells, _ = _lloyd(samples, n_cells, n_iterations, rng)
    cell_of_row, distances = np.empty(n, np.int64), np.empty_like(norms)
    find_nearest(rows, norms, cells, cell_of_row, distances)
    sampled = cell_of_row[_sample(distances, n_groups - n_cells, rng)]
    counts = 1 + np.bincount(sampled, minlength=len(cells))
    order = np.argsort(cell_of_row, kind="stable")
    ends = np.cumsum(np.bincount(cell_of_row, minlength=len(cells)))

    centroids, assignments, n_found = [], np.empty(n, np.int64), 0
    for own, count in zip(np.split(order, ends[:-1]), counts, strict=True):
        if len(own):
            size = min(int(count), len(own))
            found, nearest = _cluster(rows[own], size, n_iterations, rng)
            assignments[own] = n_found + nearest
            centroids.append(found)
            n_found += len(found)
    return np.concatenate(centroids), assignments


def _sample(weights: Floats, count: int, rng: np.random.Generator) -> Ints:
    """Sample distinct places of positive weight; the heaviest are certain."""
    order = np.argsort(-weights)
    ordered = weights[order].astype(np.float64)
    left = np.cumsum(ordered[::-1])[::-1]
    certain = ordered[:count] * np.arange(count, 0, -1) >= left[:count]
    n_certain = count if certain.all() else int(certain.argmin())
    rest = order[n_certain:]
    if n_certain == count or left[n_certain] == 0:
        return order[:n_certain]
    passed = np.cumsum(ordered[n_certain:])
    drawn = rest[_systematic(passed, count - n_certain, rng.random())]
    return np.concatenate([order[:n_certain], drawn])


@njit(nogil=True, cache=True)
def _lloyd(
    rows: Floats, n_groups: int, n_iterations: int, rng: np.random.Generator
) -> tuple[Floats, Ints]:
    """Seed, then iterate; a group that loses all rows keeps its centroid."""
    n, dim = rows.shape
    norms = np.zeros(n, np.float32)
    for i in range(n):
        for j in range(dim):
            norms[i] += rows[i, j] * rows[i, j]
    energy = np.float64(0)
    for i in range(n):
        energy += norms[i]
    centroids = _seed(rows, norms, n_groups, rng)
    k = len(centroids)
    nearest = np.empty(n, np.int64)
    distances = np.empty(n, np.float32)
    sizes = np.empty(k, np.int64)
    sums = np.empty((k, dim), np.float32)
    error = np.inf
    for _ in range(n_iterations):
        find_nearest(rows, norms, centroids, nearest, distances)
        previous, error = error, np.float64(0)
        for i in range(n):
            error += distances[i]
        if error > min((1 - _TOLERANCE) * previous, previous - _RESOLUTION * energy):
            return centroids, nearest
        sizes[:] = 0
        sums[:] = 0
        for i in range(n):
            sizes[nearest[i]] += 1
            for j in range(dim):
                sums[nearest[i], j] += rows[i, j]
        for group in range(k):
            if sizes[group]:
                for j in range(dim):
                    centroids[group, j] = sums[group, j] / sizes[group]
    find_nearest(rows, norms, centroids, nearest, distances)
    return centroids, nearest


@njit(nogil=True, cache=True)
def _seed(
    rows: Floats, norms: Floats, n_groups: int, rng: np.random.Generator
) -> Floats:
    """k-means||: twice as many candidates as seeds, reduced by greedy k-means++.

    Candidates are sampled by squared distance to those before them, in about ten
    blocks, each a systematic sample.
    """
    n = len(rows)
    n_candidates = min(2 * n_groups, n)
    chosen = np.empty(n_candidates, np.int64)
    chosen[0] = min(int(rng.random() * n), n - 1)
    closest = np.full(n, np.inf, np.float32)
    owner = np.zeros(n, np.int64)
    nearest = np.empty(n, np.int64)
    distances = np.empty(n, np.float32)
    passed = np.empty(n, np.float64)
    block = (n_candidates + 9) // 10
    first, k = 0, 1
    while True:
        find_nearest(rows, norms, rows[chosen[first:k]], nearest, distances)
        total = 0.0
        for i in range(n):
            if distances[i] <= np.float32(1e-6) * norms[i]:  # alike, but for rounding
                distances[i] = np.float32(0)
            if distances[i] < closest[i]:
                closest[i] = distances[i]
                owner[i] = first + nearest[i]
            total += closest[i]
            passed[i] = total
        if k == n_candidates or total == 0:
            break
        sample = _systematic(passed, min(block, n_candidates - k), rng.random())
        first = k
        for i in range(len(sample)):
            if i == 0 or sample[i] != sample[i - 1]:
                chosen[k] = sample[i]
                k += 1
    weights = np.zeros(k, np.float32)
    for i in range(n):
        weights[owner[i]] += 1
    candidates = rows[chosen[:k]]
    if k <= n_groups:
        return candidates
    return candidates[_greedy(candidates, weights, n_groups, rng)]


@njit(nogil=True, cache=True)
def _greedy(
    points: Floats, weights: Floats, n_groups: int, rng: np.random.Generator
) -> Ints:
    """Greedy k-means++ of weighted points: of a few samples, the best joins the seeds.

    Source: Arthur and Vassilvitskii (SODA 2007), with ``2 + log(n_groups)`` trials a
    seed like scikit-learn.
    """
    n = len(points)
    gains = np.dot(points, np.ascontiguousarray(points.T))  # weighted distances
    norms = np.empty(n, np.float32)
    for i in range(n):
        norms[i] = gains[i, i]
    for i in range(n):
        row, norm = gains[i], norms[i]
        for j in range(n):
            square = norms[j] - 2 * row[j] + norm
            row[j] = weights[j] * max(square, np.float32(0))
    chosen = np.empty(n_groups, np.int64)
    closest = weights.copy()  # the first is drawn by weight
    nearer, ones = np.empty_like(closest), np.ones_like(closest)
    passed = np.empty(n, np.float64)
    for k in range(n_groups):
        total = 0.0
        for i in range(n):
            total += closest[i]
            passed[i] = total
        if total == 0:
            return chosen[:k]
        least = np.float32(3e38)
        for _ in range(2 + int(np.log(n_groups))):
            point = rng.random() * total
            trial = min(int(np.searchsorted(passed, point, side="right")), n - 1)
            row = gains[trial]
            for i in range(n):
                nearer[i] = row[i] if row[i] < closest[i] or not k else closest[i]
            left = np.dot(nearer, ones)
            if left <= least:
                least = left
                chosen[k] = trial
        row = gains[chosen[k]]
        for i in range(n):
            closest[i] = min(closest[i], row[i]) if k else row[i]
    return chosen


@njit(nogil=True, cache=True)
def _systematic(passed: NDArray[np.float64], count: int, start: float) -> Ints:
    """Sample by weight: places of points spaced evenly along cumulative weights.

    A place whose weight exceeds the spacing may stand several times.
    """
    gap = passed[-1] / count
    points = (start + np.arange(count)) * gap
    places = np.searchsorted(passed, points, side="right")
    return np.minimum(places, len(passed) - 1)  # type: ignore[no-any-return]


@njit(nogil=True, cache=True)
def find_nearest(
    rows: Floats, norms: Floats, centroids: Floats, nearest: Ints, distances: Floats
) -> None:
    """Find each row's nearest centroid and the squared distance to it.

    Matrix products of blocks that stay in the cache; the loops after them vectorise.
    For that the minimum is taken over the bits of the distances as integers: floats
    that are not negative are in the same order.
    """
    k = len(centroids)
    columns = np.ascontiguousarray(centroids.T)  # (dim, k)
    squares = np.zeros(k, np.float32)
    for j in range(len(columns)):
        for c in range(k):
            squares[c] += columns[j, c] * columns[j, c]
            columns[j, c] *= np.float32(-2)
    block = min(max(min(64, 2**18 // k), 16), len(rows))
    products, last = np.empty((block, k), np.float32), np.int32(k - 1)
    bits = products.view(np.int32)
    for start in range(0, len(rows), block):
        first = min(start, len(rows) - block)  # the last block may repeat some rows
        np.dot(rows[first : first + block], columns, products)
        for i in range(block):
            row, row_bits, norm = products[i], bits[i], norms[first + i]
            for c in range(k):
                distance = row[c] + squares[c] + norm
                row[c] = distance if distance > 0 else np.float32(0)
            least = row_bits[0]
            for c in range(k):
                least = min(least, row_bits[c])
            place = last
            for c in range(last):
                place = min(place, np.int32(c) if row_bits[c] == least else last)
            nearest[first + i] = place
            distances[first + i] = row[place]
