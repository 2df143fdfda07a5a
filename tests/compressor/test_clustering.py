"""K-means against scikit-learn, and splitting against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info, threadpool_limits

from recbole_fedras.compressor.fedras import kmeans as module
from recbole_fedras.compressor.fedras import splitting
from recbole_fedras.compressor.fedras.division import divide
from recbole_fedras.compressor.fedras.exchange import exchange, merge, on_line
from recbole_fedras.compressor.fedras.kmeans import kmeans, sklearn_kmeans
from recbole_fedras.compressor.fedras.splitting import split_groups
from recbole_fedras.embedding.quantizer import residual_kmeans


def heavy_tailed(n: int, dim: int, seed: int = 0) -> np.ndarray:
    """Rows like those of an aggregate: norms of many magnitudes."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, dim)) * rng.lognormal(0, 1.5, (n, 1))).astype("f4")


def nearly_rank_one(n: int, dim: int) -> np.ndarray:
    """Rows like those of a client of MF: multiples of its user row, and a little."""
    rng = np.random.default_rng(1)
    rows = rng.lognormal(0, 1, (n, 1)) * rng.standard_normal((1, dim))
    return (rows + 0.02 * rng.standard_normal((n, dim))).astype("f4")


def error(rows, centroids, nearest) -> float:
    return float(((rows.astype(float) - centroids[nearest]) ** 2).sum())


def spots(n: int, dim: int) -> np.ndarray:
    """Rows in well separated groups of twenty."""
    rng = np.random.default_rng(2)
    centres = 3 * rng.standard_normal((n // 20, dim))
    rows = centres[rng.integers(n // 20, size=n)] + rng.standard_normal((n, dim))
    return rows.astype("f4")


@pytest.mark.parametrize(
    ("rows", "limit"),
    [
        (heavy_tailed(3000, 16), 1.05),
        (nearly_rank_one(700, 32), 1.0),
        (spots(3000, 16), 1.15),
    ],
    ids=["heavy-tailed", "rank one", "separated"],
)
def test_kmeans_is_about_as_good_as_scikit_learns_default(rows, limit):
    reference = KMeans(150, random_state=0).fit(rows).inertia_
    assert error(rows, *kmeans(rows, 150, 10)) < limit * reference


def groups_of(backend: str, rows, n_groups: int):
    if backend == "fast":
        return kmeans(rows, n_groups, 300, tolerance=0)
    return sklearn_kmeans(rows, n_groups, 300, np.random.default_rng(0))


@pytest.mark.parametrize("backend", module.BACKENDS)
@pytest.mark.parametrize(("n", "dim", "n_groups"), [(1, 1, 1), (7, 3, 7), (300, 5, 17)])
def test_every_group_has_rows_and_every_row_its_nearest_centroid(
    n, dim, n_groups, backend
):
    rows = heavy_tailed(n, dim)
    found, nearest = groups_of(backend, rows, n_groups)
    assert len(found) == n_groups
    assert sorted(set(nearest)) == list(range(n_groups))
    distances = ((rows[:, None].astype(float) - found) ** 2).sum(-1)
    own = np.take_along_axis(distances, nearest[:, None], 1)[:, 0]
    assert (own <= distances.min(1) + 1e-5 * (rows**2).sum(1)).all()


@pytest.mark.parametrize("proposed", [False, True])
def test_an_exchange_moves_points_to_where_the_error_is_least(proposed):
    """Against the definition; the state that it keeps is that of the groups."""
    rows = heavy_tailed(40, 4)
    groups, _, centroids, sizes = divide(rows, 12)
    state = on_line(centroids, sizes)
    for i in range(40):
        costs = []
        for other in range(12):
            moved = groups.copy()
            moved[i] = other
            kept = np.bincount(moved, minlength=12) > 0
            errors = [
                ((rows[moved == g] - rows[moved == g].mean(0)) ** 2).sum()
                for g in np.flatnonzero(kept)
            ]
            costs.append(sum(errors) if kept.all() else np.inf)
        best, before = int(np.argmin(costs)), groups[i]
        wanted = module._propose(rows[[i]], groups[[i]], state)
        proposals = wanted if proposed else None
        _, gain, _ = exchange(rows[i : i + 1], groups[i : i + 1], proposals, state)
        assert groups[i] == best
        assert gain == pytest.approx(costs[before] - costs[best], rel=1e-3, abs=1e-4)
    means = [rows[groups == group].mean(0) for group in range(12)]
    np.testing.assert_allclose(state.centroids, means, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(state.sizes, np.bincount(groups))
    assert (np.diff(state.centroids[state.line, 0]) >= 0).all()
    np.testing.assert_array_equal(state.line[state.slots], range(12))


def test_the_first_merge_is_the_cheapest_of_all():
    rows = heavy_tailed(60, 4)
    groups, _, centroids, sizes = divide(rows, 12)
    weights = np.outer(sizes, sizes) / np.add.outer(sizes, sizes)
    costs = weights * ((centroids[:, None] - centroids) ** 2).sum(-1)
    np.fill_diagonal(costs, np.inf)
    pair = set(np.unravel_index(costs.argmin(), costs.shape))
    merged = groups.copy()
    state = merge(merged, on_line(centroids, sizes), 11)
    for group in range(11):
        of = set(groups[merged == group])
        assert of == pair or len(of) == 1
        np.testing.assert_allclose(
            state.centroids[group], rows[merged == group].mean(0), rtol=1e-4, atol=1e-5
        )
    np.testing.assert_array_equal(state.sizes, np.bincount(merged))


@pytest.mark.parametrize("n_groups", [1, 2, 9, 39, 40])
def test_groups_that_are_left_after_merges_stand_in_order(n_groups):
    rows = heavy_tailed(200, 4)
    groups, _, centroids, sizes = divide(rows, 40)
    before, merged = groups.copy(), groups
    state = merge(merged, on_line(centroids, sizes), n_groups)
    assert [len(part) for part in state] == [n_groups] * 4
    np.testing.assert_array_equal(state.sizes, np.bincount(merged))
    means = [rows[merged == group].mean(0) for group in range(n_groups)]
    np.testing.assert_allclose(state.centroids, means, rtol=1e-4, atol=1e-5)
    assert (np.diff(state.centroids[state.line, 0]) >= 0).all()
    np.testing.assert_array_equal(state.line[state.slots], range(n_groups))
    for group in range(40):  # who was together still is
        assert len(set(merged[before == group])) == 1


@pytest.mark.parametrize("scale", [1e-30, 1, 1e30])
def test_the_size_of_rows_does_not_matter(scale):
    rows = nearly_rank_one(300, 8)
    found, nearest = kmeans((rows * scale).astype("f4"), 40, 10)
    assert error(rows, found / scale, nearest) < 1.001 * error(
        rows, *kmeans(rows, 40, 10)
    )


def test_rows_in_directions_of_their_own_are_not_lost():
    """More of them than directions are looked for."""
    rows = np.outer(np.linspace(1, 2, 300), np.ones(32)).astype("f4")
    rows[:20] += 0.5 * np.eye(32)[:20]
    found, nearest = kmeans(rows, 60, 10)
    assert len(set(nearest[:20])) == 20
    assert error(rows[:20], found, nearest[:20]) < 1e-6


def test_scikit_learn_adds_up_in_one_thread(monkeypatch):
    """More would add up in no certain order, and give other bits."""
    fit, counts = KMeans.fit, []

    def counted(self, rows, *others, **named):
        found = threadpool_info()
        counts.extend(p["num_threads"] for p in found if p["user_api"] == "openmp")
        return fit(self, rows, *others, **named)

    monkeypatch.setattr(KMeans, "fit", counted)
    with threadpool_limits(3, "openmp"):
        sklearn_kmeans(heavy_tailed(50, 4), 5, 10, np.random.default_rng(0))
        residual_kmeans(heavy_tailed(50, 4), 2, 5, 1)
    assert set(counts) == {1}


def test_cells_are_nearly_as_good_as_a_flat_clustering(monkeypatch):
    monkeypatch.setattr(module, "_CELL", 40)
    rows = heavy_tailed(4000, 8)
    flat = kmeans(rows, 200, 10)
    found, nearest = kmeans(rows, 200, 10, flat=0)
    assert sorted(set(nearest)) == list(range(200))
    assert error(rows, found, nearest) < 1.25 * error(rows, *flat)


@pytest.mark.parametrize("flat", [0, 2**30])
def test_rows_that_coincide_share_a_group(flat):
    rows = np.repeat(heavy_tailed(5, 4), 100, axis=0)
    found, nearest = kmeans(rows, 60, 10, flat=flat)
    assert len(found) == 5
    np.testing.assert_allclose(found[nearest], rows, rtol=1e-5, atol=1e-6)


def test_cells_are_whole_subtrees_of_cuts(monkeypatch):
    monkeypatch.setattr(module, "_CELL", 3)
    parents = np.array([0, 0, 1, 0, 1, 4])
    # First 0 | 1, then 1 | 2, 0 | 3, 1 | 4, 4 | 5: all of {1, 2, 4, 5} are too many.
    cells = module._cells(parents)
    assert cells.tolist() == [0, 1, 2, 0, 1, 1]


@pytest.mark.parametrize("exact", [10**6, 1])
def test_splits_are_those_of_the_definition(exact):
    """Against a loop that scores every group anew; sweeps find an opposite pair."""
    rows = heavy_tailed(120, 6)
    _, nearest = kmeans(rows, 5, 10)
    groups = split_groups(rows, nearest, 2.0, 8, 12, exact)
    assert groups.n_adaptive == 12
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def quality(own):
        centroid = rows[own].mean(0)
        cosines = units[own] @ centroid / np.linalg.norm(centroid)
        return cosines.mean() if len(own) > 1 else np.inf

    for count in range(5, 12):
        before = groups.snapshot(count)[1]
        after = groups.snapshot(count + 1)[1]
        members = [np.flatnonzero(before == group) for group in range(count)]
        worst = int(np.argmin([quality(own) for own in members]))
        assert set(after[before != worst]) == set(range(count)) - {worst}
        own = members[worst]
        cosines = units[own] @ units[own].T
        np.fill_diagonal(cosines, np.inf)
        if exact > 1:
            first, second = np.unravel_index(cosines.argmin(), cosines.shape)
        else:
            first, second = splitting._nearly_opposite(units[own])
            assert cosines[first].min() == cosines[first, second]
            assert cosines[second].min() == cosines[first, second]
        np.fill_diagonal(cosines, 1)
        joined = cosines[:, first] >= cosines[:, second]
        halves = {tuple(own[joined]), tuple(own[~joined])}
        assert halves == {tuple(own[after[own] == group]) for group in (worst, count)}
        if count == 8:
            expected = min(quality(own) for own in members)
            assert groups.worst_quality == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("exact", [10**6, 1])
def test_rows_of_zeros_have_no_direction(exact):
    rows = heavy_tailed(50, 4)
    rows[::7] = 0
    groups = split_groups(rows, np.zeros(50, np.int64), 2.0, 5, 8, exact)
    centroids, nearest = groups.snapshot(8)
    assert np.isfinite(centroids).all()
    assert sorted(set(nearest)) == list(range(8))
