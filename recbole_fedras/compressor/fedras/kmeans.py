"""K-means of update rows: a compiled kernel, and scikit-learn as the reference."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from recbole_fedras.numeric.parallel import single_threaded

# All kernels are in this one file: numba's cache does not see that a function which
# another file defines has changed.

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

BACKENDS = ("fast", "sklearn")

# Iterations stop where one gains less than this share of the error. Ours: with it,
# k-means is 18 times faster than scikit-learn's, at 2.6 % more error
# (docs/performance.md).
_TOLERANCE = 0.005
# Nor does a gain count that is below this share of the rows' energy: float32 keeps
# 24 bits, 6e-8, so distances of rows that nearly coincide are rounding.
_RESOLUTION = 1e-7
# Up to so many multiplications (rows x groups x dim) all rows meet all centroids. An
# iteration of that size takes some hundredths of a second on one core.
_FLAT = 2**30
# Up to so many groups all pairs of seed candidates are compared: 8,192 candidates are a
# float32 matrix of 256 MB.
_MOST = 4096


def kmeans(
    rows: Floats,
    n_groups: int,
    rng: np.random.Generator,
    n_iterations: int,
    backend: str = "fast",
    flat: int = _FLAT,
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
        (Bahmani et al., "Scalable K-Means++", VLDB 2012), then Lloyd, nested in cells
        where rows and groups are many. ``sklearn`` is :class:`sklearn.cluster.KMeans`
        with its greedy k-means++ and default tolerance.
    flat : int
        Rows x groups x dim up to which all rows meet all centroids.

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
        centroids, assignments = _cluster(scaled, n_groups, n_iterations, rng, flat)
    used, assignments = np.unique(assignments, return_inverse=True)
    return centroids[used] / scale, assignments


def _cluster(
    rows: Floats, n_groups: int, n_iterations: int, rng: np.random.Generator, flat: int
) -> tuple[Floats, Ints]:
    """Cluster at once where that is cheap, else in ``2 sqrt(n_groups)`` cells.

    Rows sampled by norm are clustered into the cells. A cell gets as many groups as a
    sample by squared distance to the cells takes rows of it, and is clustered alone: an
    iteration over all cells takes O(n sqrt(n_groups) dim) time.
    """
    n = len(rows)
    at_once = rows.size * n_groups <= flat and n_groups <= _MOST
    if at_once or n_groups < 16:  # fewer are too few to spread over cells
        return _lloyd(rows, n_groups, n_iterations, rng)

    # Cells come from a sample, as many rows as there will be groups. Sampling by norm
    # finds the few large rows, which make up most of the error.
    n_cells = int(2 * np.sqrt(n_groups))
    norms = np.einsum("ij,ij->i", rows, rows)
    samples = rows[_sample(np.sqrt(norms), n_groups, rng)]
    cells, _ = _lloyd(samples, n_cells, n_iterations, rng)
    cell_of_row, distances = np.empty(n, np.int64), np.empty_like(norms)
    find_nearest(rows, norms, cells, cell_of_row, distances)

    # Every cell gets one group; the rest go where rows are far from their cell, as
    # k-means++ would put its next seeds.
    sampled = cell_of_row[_sample(distances, n_groups - n_cells, rng)]
    counts = 1 + np.bincount(sampled, minlength=len(cells))

    # Cluster cell by cell; a cell that is still too large is split into cells again.
    order = np.argsort(cell_of_row, kind="stable")
    ends = np.cumsum(np.bincount(cell_of_row, minlength=len(cells)))
    centroids, assignments, n_found = [], np.empty(n, np.int64), 0
    for cell_rows, count in zip(np.split(order, ends[:-1]), counts, strict=True):
        if len(cell_rows):
            size = min(int(count), len(cell_rows))
            found, nearest = _cluster(rows[cell_rows], size, n_iterations, rng, flat)
            assignments[cell_rows] = n_found + nearest
            centroids.append(found)
            n_found += len(found)
    return np.concatenate(centroids), assignments


def _sample(weights: Floats, count: int, rng: np.random.Generator) -> Ints:
    """Sample distinct places of positive weight; the heaviest are certain."""
    order = np.argsort(-weights)
    ordered = weights[order].astype(np.float64)
    # A systematic sample takes a place twice if it weighs more than the spacing, the
    # weight left over the number still to draw. Such places are taken first, once each.
    left = np.cumsum(ordered[::-1])[::-1]
    certain = ordered[:count] * np.arange(count, 0, -1) >= left[:count]
    n_certain = count if certain.all() else int(certain.argmin())
    rest = order[n_certain:]
    if n_certain == count or left[n_certain] == 0:
        return order[:n_certain]
    # All that remain weigh less than the spacing: no place can come twice.
    passed = np.cumsum(ordered[n_certain:])
    drawn = rest[_systematic(passed, count - n_certain, rng.random())]
    return np.concatenate([order[:n_certain], drawn])


@njit(nogil=True, cache=True)
def _lloyd(
    rows: Floats, n_groups: int, n_iterations: int, rng: np.random.Generator
) -> tuple[Floats, Ints]:
    """Seed, then iterate; a group that loses all rows keeps its centroid."""
    # Squared norms of the rows, once: every distance needs them.
    n, dim = rows.shape
    norms = np.zeros(n, np.float32)
    for i in range(n):
        for j in range(dim):
            norms[i] += rows[i, j] * rows[i, j]
    energy = np.float64(0)
    for i in range(n):
        energy += norms[i]

    # All buffers are made here, and used again by every iteration.
    centroids = _seed(rows, norms, n_groups, rng)
    k = len(centroids)
    nearest = np.empty(n, np.int64)
    distances = np.empty(n, np.float32)
    sizes = np.empty(k, np.int64)
    sums = np.empty((k, dim), np.float32)
    error = np.inf
    for _ in range(n_iterations):
        # Assign rows to the nearest centroid, and stop where that gains too little:
        # the assignments then belong to these very centroids, which are sent.
        find_nearest(rows, norms, centroids, nearest, distances)
        previous, error = error, np.float64(0)
        for i in range(n):
            error += distances[i]
        if error > min((1 - _TOLERANCE) * previous, previous - _RESOLUTION * energy):
            return centroids, nearest
        # Move every centroid to the mean of its rows. Sums run in the order of rows, so
        # that they round the same in every run.
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
    # Out of iterations: centroids moved after the last assignment, so assign once more.
    find_nearest(rows, norms, centroids, nearest, distances)
    return centroids, nearest


@njit(nogil=True, cache=True)
def _seed(
    rows: Floats, norms: Floats, n_groups: int, rng: np.random.Generator
) -> Floats:
    """k-means||: twice as many candidates as seeds, reduced by greedy k-means++.

    Candidates are sampled by squared distance to those before them, in about ten
    blocks, each a systematic sample. Why not k-means++ alone: it passes over all rows
    for every seed, this once for every block.
    """
    # The first candidate is drawn uniformly, the others in about ten blocks.
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
        # Compare all rows with the newest block only. ``closest`` keeps the squared
        # distance to the nearest candidate so far, ``owner`` which one it is, and
        # ``passed`` the cumulative sum that the next block is drawn from.
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
        if k == n_candidates or total == 0:  # enough, or every row is a candidate
            break
        # A row far from all may be drawn several times in a block: keep it once. Places
        # come in increasing order, so equal ones are neighbours.
        sample = _systematic(passed, min(block, n_candidates - k), rng.random())
        first = k
        for i in range(len(sample)):
            if i == 0 or sample[i] != sample[i - 1]:
                chosen[k] = sample[i]
                k += 1
    # A candidate weighs as many rows as are nearest to it, and stands for them in what
    # follows, which no longer looks at the rows.
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

    Source: Arthur and Vassilvitskii, "k-means++: The Advantages of Careful Seeding"
    (SODA 2007), with ``2 + log(n_groups)`` trials a seed like scikit-learn.
    """
    # All squared distances at once, row i those to point i, column j times the weight
    # of point j: |a - b|^2 = |a|^2 - 2 a.b + |b|^2. One matrix product, changed in
    # place, as the matrix is the largest thing here. Rounding may leave less than 0.
    n = len(points)
    gains = np.dot(points, np.ascontiguousarray(points.T))
    norms = np.empty(n, np.float32)
    for i in range(n):
        norms[i] = gains[i, i]
    for i in range(n):
        row, norm = gains[i], norms[i]
        for j in range(n):
            square = norms[j] - 2 * row[j] + norm
            row[j] = weights[j] * max(square, np.float32(0))
    # ``closest`` is what each point adds to the error, as its weight times the squared
    # distance to the nearest seed. Before any, it is the weight: the first is drawn by
    # weight.
    chosen = np.empty(n_groups, np.int64)
    closest = weights.copy()
    nearer, ones = np.empty_like(closest), np.ones_like(closest)
    passed = np.empty(n, np.float64)
    for k in range(n_groups):
        total = 0.0
        for i in range(n):
            total += closest[i]
            passed[i] = total
        if total == 0:  # every point coincides with a seed
            return chosen[:k]
        # Draw some points by their error, and keep the one that would leave the least.
        least = np.float32(3e38)  # near the largest float32
        for _ in range(2 + int(np.log(n_groups))):
            point = rng.random() * total
            trial = min(int(np.searchsorted(passed, point, side="right")), n - 1)
            row = gains[trial]
            for i in range(n):
                nearer[i] = row[i] if row[i] < closest[i] or not k else closest[i]
            left = np.dot(nearer, ones)  # a sum, by the vectorised product
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
    # |x - c|^2 = |x|^2 - 2 x.c + |c|^2. The factor -2 goes into the centroids once, so
    # that a block's distances are one matrix product and two additions.
    k = len(centroids)
    columns = np.ascontiguousarray(centroids.T)  # (dim, k)
    squares = np.zeros(k, np.float32)
    for j in range(len(columns)):
        for c in range(k):
            squares[c] += columns[j, c] * columns[j, c]
            columns[j, c] *= np.float32(-2)
    # 64 rows a block; fewer where k is large, so that block x k distances, 1 MB, stay
    # in the second-level cache; 16 at least, for the sake of the matrix product.
    block = min(max(min(64, 2**18 // k), 16), len(rows))
    products, last = np.empty((block, k), np.float32), np.int32(k - 1)
    bits = products.view(np.int32)
    for start in range(0, len(rows), block):
        first = min(start, len(rows) - block)  # the last block may repeat some rows
        np.dot(rows[first : first + block], columns, products)
        for i in range(block):
            row, row_bits, norm = products[i], bits[i], norms[first + i]
            # Finish the distances. Rounding may leave one below 0.
            for c in range(k):
                distance = row[c] + squares[c] + norm
                row[c] = distance if distance > 0 else np.float32(0)
            # The least distance, then the first place that has it: two loops without a
            # branch, which compilers vectorise, where one that keeps both is not.
            least = row_bits[0]
            for c in range(k):
                least = min(least, row_bits[c])
            place = last
            for c in range(last):
                place = min(place, np.int32(c) if row_bits[c] == least else last)
            nearest[first + i] = place
            distances[first + i] = row[place]
