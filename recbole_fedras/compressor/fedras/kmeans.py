"""K-means of update rows: ours, and scikit-learn's as the reference."""

from __future__ import annotations

import numpy as np

from recbole_fedras.compressor.fedras.coordinates import coordinates, means, scale_of
from recbole_fedras.compressor.fedras.division import Floats, Ints, divide
from recbole_fedras.compressor.fedras.exchange import (
    Groups,
    exchange,
    merge,
    on_line,
)
from recbole_fedras.numeric.parallel import single_threaded

BACKENDS = ("fast", "sklearn")

# Passes stop where one gains less than this share of the error. Ours: with it, updates
# take two or three passes, and more of them gain less than 1 %.
_TOLERANCE = 0.02
# Up to so many multiplications (rows x groups x dim) all groups exchange rows: a pass
# of that size takes some hundredths of a second on one core. Beyond, they do in cells.
_FLAT = 2**30
_CELL = 256
# A line of groups is searched as long as a row meets less than this share of them, as
# the first rows tell. Beyond, a product of matrices with all of them is faster.
_WIDE, _PROBE = 1 / 8, 256
# Numbers in one block of such products, 1 MB: they stay in the second-level cache.
_BLOCK = 2**18


def kmeans(
    rows: Floats,
    n_groups: int,
    n_passes: int,
    tolerance: float = _TOLERANCE,
    flat: int = _FLAT,
) -> tuple[Floats, Ints]:
    """Cluster rows into at most ``n_groups`` non-empty groups.

    The group of largest error is cut in two until there are a tenth more groups than
    asked for; the cheapest merges take these back; then rows are exchanged between
    groups, one by one, as long as that lowers the error. Nothing is drawn at random.

    Parameters
    ----------
    rows : ndarray of float32, shape (n, dim)
        Finite.
    n_groups : int
        Between 1 and n.
    n_passes : int
        Passes of exchange over all rows at most.
    tolerance : float
        A pass that gains less than this share of the error is the last.
    flat : int
        Rows x groups x dim up to which all groups exchange rows.

    Returns
    -------
    centroids : ndarray of float32, shape (k, dim)
        Means of the groups. ``k <= n_groups``: fewer where rows coincide.
    assignments : ndarray of int64, shape (n,)
        With passes enough and no tolerance, the nearest of the centroids for each row.

    Raises
    ------
    ValueError
        If a row is not finite.

    Examples
    --------
    >>> rows = np.array([[1, 0], [9, 0], [9, 1], [1, 1]], np.float32)
    >>> kmeans(rows, n_groups=2, n_passes=10)
    (array([[1. , 0.5],
           [9. , 0.5]], dtype=float32), array([0, 1, 1, 0]))
    """
    scale = scale_of(rows)
    points = coordinates(rows, scale)
    if points.size * n_groups <= flat:
        groups = _cluster(points, n_groups, n_passes, tolerance)
    else:
        groups = _cluster_in_cells(points, n_groups, n_passes, tolerance)
    return means(rows, scale, groups, int(groups.max()) + 1), groups


def _cluster(points: Floats, n_groups: int, n_passes: int, tolerance: float) -> Ints:
    """Divide, merge, exchange."""
    n_divided = min(n_groups + -(-n_groups // 10), len(points))
    groups, _, centroids, sizes = divide(points, n_divided)
    state = merge(groups, on_line(centroids, sizes), n_groups)
    _exchange(points, groups, state, n_passes, tolerance)
    return groups


def _cluster_in_cells(
    points: Floats, n_groups: int, n_passes: int, tolerance: float
) -> Ints:
    """Divide, and exchange within cells of up to ``_CELL`` groups."""
    groups, parents, centroids, sizes = divide(points, n_groups)
    cell_of_row = _cells(parents)[groups]
    order = np.argsort(cell_of_row, kind="stable")
    ends = np.flatnonzero(np.diff(cell_of_row[order])) + 1
    for members in np.split(order, ends):
        inside, local = np.unique(groups[members], return_inverse=True)
        state = on_line(centroids[inside], sizes[inside])
        _exchange(points[members], local, state, n_passes, tolerance)
        groups[members] = inside[local]
    return groups


def _cells(parents: Ints) -> Ints:
    """Put groups into cells: what was one group before, up to ``_CELL`` of them."""
    n = len(parents)
    sizes, cells = np.ones(n, np.int64), np.arange(n)
    # Undo the cuts, from the last on. Two halves that do not fit into a cell are cells,
    # and what they are part of is full.
    for group in range(n - 1, 0, -1):
        parent = parents[group]
        if sizes[parent] + sizes[group] <= _CELL:
            sizes[parent] += sizes[group]
            cells[group] = parent
        else:
            sizes[parent] = _CELL
    for group in range(n):  # parents come first
        cells[group] = cells[cells[group]]
    return cells


def _exchange(
    points: Floats, groups: Ints, state: Groups, n_passes: int, tolerance: float
) -> None:
    """Pass over all points, in place, until a pass gains too little."""
    n, n_groups = len(points), len(state.sizes)
    proposals: Ints | None = None
    wide, size = False, _PROBE
    for _ in range(n_passes):
        error, gain, start = 0.0, 0.0, 0
        while start < n:
            block = slice(start, start + size)
            part, current = points[block], groups[block]
            if wide:
                proposals = _propose(part, current, state)
            before, gained, n_compared = exchange(part, current, proposals, state)
            error, gain, start = error + before, gain + gained, start + len(part)
            wide = wide or n_compared > _WIDE * len(part) * n_groups
            size = max(_BLOCK // n_groups, 64) if wide else n
        if gain <= tolerance * error:
            break


def _propose(points: Floats, groups: Ints, state: Groups) -> Ints:
    """Find the other group that each point would join at the least error."""
    # m / (m + 1) (|x|^2 - 2 x.c + |c|^2), as one product of matrices. Rounding may
    # propose another than the best; whether it lowers the error is looked at again.
    joins = (state.sizes / (state.sizes + 1)).astype(np.float32)[:, None]
    squares = np.einsum("ij,ij->i", state.centroids, state.centroids)[:, None]
    factors = [-2 * joins * state.centroids, joins * squares, joins]
    norms = np.einsum("ij,ij->i", points, points)[:, None]
    terms = [points, np.ones_like(norms), norms]
    costs = np.concatenate(terms, axis=1) @ np.concatenate(factors, axis=1).T
    costs[np.arange(len(points)), groups] = np.inf
    return np.asarray(costs.argmin(axis=1))


def sklearn_kmeans(
    rows: Floats, n_groups: int, n_iterations: int, rng: np.random.Generator
) -> tuple[Floats, Ints]:
    """Cluster by :class:`sklearn.cluster.KMeans`, as :func:`kmeans` does.

    Seeds are those of its greedy k-means++, and so is its default tolerance.
    """
    # A tenth of a second to import, for who uses it only.
    from sklearn.cluster import KMeans

    scale, seed = scale_of(rows), int(rng.integers(2**31))
    model = KMeans(n_groups, n_init=1, max_iter=n_iterations, random_state=seed)
    with single_threaded():
        model.fit(rows * scale)
    used, assignments = np.unique(model.labels_, return_inverse=True)
    return model.cluster_centers_[used] / scale, assignments
