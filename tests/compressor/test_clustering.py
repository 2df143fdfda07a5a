"""K-means against scikit-learn, and splitting against its definition."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_info, threadpool_limits

from recbole_fedras.compressor.fedras import kmeans as module
from recbole_fedras.compressor.fedras import splitting
from recbole_fedras.compressor.fedras.kmeans import kmeans
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


@pytest.mark.parametrize(
    ("rows", "n_groups"),
    [(heavy_tailed(3000, 16), 150), (nearly_rank_one(700, 32), 150)],
    ids=["heavy-tailed", "rank one"],
)
def test_fast_kmeans_is_as_good_as_scikit_learns_default(rows, n_groups):
    reference = KMeans(n_groups, random_state=0).fit(rows).inertia_
    errors = [
        error(rows, *kmeans(rows, n_groups, np.random.default_rng(seed), 10))
        for seed in range(3)
    ]
    assert np.mean(errors) < 1.1 * reference


@pytest.mark.parametrize("backend", module.BACKENDS)
@pytest.mark.parametrize(("n", "dim", "n_groups"), [(1, 1, 1), (7, 3, 7), (300, 5, 17)])
def test_every_group_has_rows_and_every_row_its_nearest_centroid(
    n, dim, n_groups, backend
):
    rows = heavy_tailed(n, dim)
    found, nearest = kmeans(rows, n_groups, np.random.default_rng(0), 300, backend)
    assert len(found) == n_groups
    assert sorted(set(nearest)) == list(range(n_groups))
    distances = ((rows[:, None].astype(float) - found) ** 2).sum(-1)
    own = np.take_along_axis(distances, nearest[:, None], 1)[:, 0]
    assert (own <= distances.min(1) + 1e-5 * (rows**2).sum(1)).all()


def test_scikit_learn_adds_up_in_one_thread(monkeypatch):
    """More would add up in no certain order, and give other bits."""
    fit, counts = KMeans.fit, []

    def counted(self, rows, *others, **named):
        found = threadpool_info()
        counts.extend(p["num_threads"] for p in found if p["user_api"] == "openmp")
        return fit(self, rows, *others, **named)

    monkeypatch.setattr(KMeans, "fit", counted)
    with threadpool_limits(3, "openmp"):
        kmeans(heavy_tailed(50, 4), 5, np.random.default_rng(0), 10, "sklearn")
        residual_kmeans(heavy_tailed(50, 4), 2, 5, 1)
    assert set(counts) == {1}


def test_nested_clustering_is_nearly_as_good_and_keeps_to_the_budget():
    rows = heavy_tailed(4000, 8)
    flat = kmeans(rows, 200, np.random.default_rng(0), 10)
    nested = kmeans(rows, 200, np.random.default_rng(0), 10, flat=4000 * 8 * 20)
    assert 190 <= len(nested[0]) <= 200
    assert sorted(set(nested[1])) == list(range(len(nested[0])))
    assert error(rows, *nested) < 1.3 * error(rows, *flat)


def test_nested_clustering_of_coinciding_rows_ends():
    rows = np.repeat(heavy_tailed(5, 4), 100, axis=0)
    found, nearest = kmeans(rows, 60, np.random.default_rng(0), 10, flat=64)
    np.testing.assert_allclose(found[nearest], rows, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 4, 9, 10])
def test_samples_are_distinct_and_the_heaviest_certain(count):
    weights = np.array([1, 1, 50, 1, 1, 1, 30, 1, 1, 1], np.float32)
    rng = np.random.default_rng(0)
    drawn = [module._sample(weights, count, rng) for _ in range(200)]
    assert all(len(set(places)) == count for places in drawn)
    if count >= 4:
        assert all({2, 6} <= set(places) for places in drawn)
        light = np.bincount(np.concatenate(drawn), minlength=10)[
            [0, 1, 3, 4, 5, 7, 8, 9]
        ]
        expected = 200 * (count - 2) / 8
        assert np.abs(light - expected).max() < 5 * np.sqrt(expected) + 1


@pytest.mark.parametrize("exact", [10**6, 1])
def test_splits_are_those_of_the_definition(exact):
    """Against a loop that scores every group anew; sweeps find an opposite pair."""
    rows = heavy_tailed(120, 6)
    _, nearest = kmeans(rows, 5, np.random.default_rng(0), 10)
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
