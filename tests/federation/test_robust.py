"""Defences: what each makes of one, two and many contributors, of rows and networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from population import make_data, mf, ncf, simulate

from recbole_fedras.compressor.base import RoundContext, RowUpdate
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.errors import FederationError
from recbole_fedras.federation.clipping import ClipRows, ClipToQuantile
from recbole_fedras.federation.server.aggregation import InverseFrequency
from recbole_fedras.federation.server.krum import Krum
from recbole_fedras.federation.server.robust import (
    GeometricMedian,
    Median,
    TrimmedMean,
)
from recbole_fedras.federation.transforms import SharedUpdate, Transform

N_ITEMS, DIM, N_THETA = 30, 4, 5
ROW_WISE = [Median, TrimmedMean, GeometricMedian]


def updates_of(n_clients: int, seed: int = 0, mean: float = 0.0):
    """Make updates of different rows, with noise about a mean, and of networks."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n_clients):
        n = int(rng.integers(8, 20))
        ids = torch.from_numpy(np.sort(rng.choice(N_ITEMS, n, replace=False)))
        rows = torch.from_numpy(mean + rng.standard_normal((n, DIM))).float()
        theta = torch.from_numpy(mean + rng.standard_normal(N_THETA)).float()
        made.append((RowUpdate(ids, rows), theta))
    return made


def combined(aggregator, updates):
    aggregator.begin(torch.zeros(N_ITEMS, DIM))
    for client, (update, theta) in enumerate(updates):
        aggregator.add(client, update, theta)
    return aggregator.result()


def rows_at(updates, item: int) -> np.ndarray:
    return np.array(
        [
            update.rows[update.ids == item][0].numpy()
            for update, _ in updates
            if (update.ids == item).any()
        ]
    )


def trimmed(values: np.ndarray, share: float) -> np.ndarray:
    n = len(values)
    cut = min(int(np.ceil(share * n - 1e-9)), (n - 1) // 2)
    return np.sort(values, axis=0)[cut : n - cut].mean(axis=0)


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (Median, lambda values: np.median(values, axis=0)),
        (lambda: TrimmedMean(0.2), lambda values: trimmed(values, 0.2)),
        (lambda: TrimmedMean(0.0), lambda values: values.mean(axis=0)),
    ],
)
@pytest.mark.parametrize("n_clients", [1, 2, 3, 7, 20])
def test_coordinate_wise_rules_are_numpys(make, rule, n_clients):
    updates = updates_of(n_clients)
    update, theta = combined(make(), updates)
    trained = np.unique(np.concatenate([one.ids.numpy() for one, _ in updates]))
    assert np.array_equal(update.ids, trained)
    for place, item in enumerate(trained):
        expected = rule(rows_at(updates, item))
        np.testing.assert_allclose(update.rows[place], expected, atol=1e-6)
    thetas = np.array([theta.numpy() for _, theta in updates])
    np.testing.assert_allclose(theta, rule(thetas), atol=1e-6)


@pytest.mark.slow
def test_the_geometric_median_has_the_least_sum_of_distances():
    updates = updates_of(20)
    update, theta = combined(GeometricMedian(), updates)
    rng = np.random.default_rng(1)
    cases = [
        (rows_at(updates, item), update.rows[place].numpy())
        for place, item in enumerate(update.ids.tolist())
        if len(rows_at(updates, item)) > 2
    ]
    cases.append((np.array([theta.numpy() for _, theta in updates]), theta.numpy()))
    for values, found in cases:

        def cost(point, values=values):
            return np.linalg.norm(values - point, axis=1).sum()

        for step in 0.05 * rng.standard_normal((20, len(found))):
            assert cost(found) < cost(found + step) + 1e-4
    far = [*updates_of(9), *updates_of(4, 1, mean=1e4)]
    _, theta = combined(GeometricMedian(), far)
    assert float(theta.norm()) < 20


@pytest.mark.parametrize("make", ROW_WISE)
def test_a_row_of_one_or_two_is_their_mean(make):
    """No rule can tell which of two is honest: nothing defends such rows."""
    ids = torch.tensor([3]), torch.tensor([3, 4])
    rows = torch.full((1, DIM), 2.0), torch.full((2, DIM), -1000.0)
    update, theta = combined(
        make(),
        [
            (RowUpdate(*one), torch.full((N_THETA,), value))
            for *one, value in zip(ids, rows, (1.0, 3.0), strict=True)
        ],
    )
    assert update.ids.tolist() == [3, 4]
    torch.testing.assert_close(update.rows[0], torch.full((DIM,), -499.0))
    torch.testing.assert_close(update.rows[1], torch.full((DIM,), -1000.0))
    torch.testing.assert_close(theta, torch.full((N_THETA,), 2.0))


@pytest.mark.parametrize(
    "make", [Median, lambda: TrimmedMean(0.45), GeometricMedian, Krum]
)
def test_a_fifth_far_away_moves_little(make):
    """A rare row may have far more than a fifth: 0.2 would not be trimmed enough."""
    honest, hostile = updates_of(40), updates_of(10, 1, mean=1000.0)
    clean, theta = combined(InverseFrequency(), honest)
    update, found = combined(make(), [*honest, *hostile])
    assert float((found - theta).abs().max()) < 1.5
    assert torch.equal(update.ids, clean.ids)
    assert float((update.rows - clean.rows).abs().max()) < 2.5
    spoilt, _ = combined(InverseFrequency(), [*honest, *hostile])
    assert float((spoilt.rows - clean.rows).abs().max()) > 100


def test_krum_leaves_out_the_furthest_and_takes_the_mean_of_the_rest():
    honest, hostile = updates_of(16), updates_of(4, 1, mean=9.0)
    mixed = [*hostile[:2], *honest, *hostile[2:]]
    expected, theta = combined(InverseFrequency(), honest)
    found, change = combined(Krum(0.2), mixed)
    assert torch.equal(found.ids, expected.ids)
    torch.testing.assert_close(found.rows, expected.rows)
    torch.testing.assert_close(change, theta)


def test_with_a_factor_krum_leaves_out_what_stands_out_only():
    honest, hostile = updates_of(16), updates_of(4, 1, mean=9.0)
    plain, theta = combined(InverseFrequency(), honest)
    update, change = combined(Krum(0.2, outlier_factor=3.0), honest)
    torch.testing.assert_close(update.rows, plain.rows)
    torch.testing.assert_close(change, theta)
    update, change = combined(Krum(0.2, outlier_factor=3.0), [*honest, *hostile])
    torch.testing.assert_close(update.rows, plain.rows)
    torch.testing.assert_close(change, theta)
    assert not torch.allclose(combined(Krum(0.2), honest)[1], theta)
    for factor in (0.9, float("nan")):
        with pytest.raises(ValueError, match=r"outlier_factor=.* must be at least 1"):
            Krum(0.2, outlier_factor=factor)


def test_krum_does_not_take_a_client_alone_with_its_rows_for_an_attacker():
    honest, hostile = updates_of(16), updates_of(2, 1, mean=1e4)
    alone = RowUpdate(torch.tensor([N_ITEMS]), torch.ones(1, DIM))
    updates = [update for update, _ in [*honest, (alone, None), *hostile]]
    krum = Krum(0.2, outlier_factor=5.0)  # three may go
    krum.begin(torch.zeros(N_ITEMS + 1, DIM))
    for client, update in enumerate(updates):
        krum.add(client, update, torch.zeros(0))
    assert N_ITEMS in krum.result()[0].ids


def test_krum_bounds_rows_of_those_that_stay():
    """One row out of place is nothing in a whole update, but no longer than others."""
    honest, hostile = updates_of(16), updates_of(4, 1, mean=9.0)
    covert, theta = updates_of(1, 2)[0]
    pushed = RowUpdate(covert.ids, covert.rows.clone())
    pushed.rows[0] *= 8
    mixed = [*honest, (pushed, theta), *hostile]
    longest = [
        float(rows.norm(dim=1).max())
        for rows in (update.rows for update, _ in mixed[:17])
    ]
    bound = float(np.median(longest))
    assert longest[-1] > 3 * bound
    scaled = [
        RowUpdate(
            one.ids, one.rows * (bound / one.rows.norm(dim=1)).clamp(max=1)[:, None]
        )
        for one, _ in mixed[:17]
    ]
    expected, _ = combined(InverseFrequency(), [(one, theta) for one in scaled])
    keys = {"hostile_share": 4.5 / 21, "row_bound_quantile": 0.5}
    found, change = combined(Krum(**keys), mixed)
    torch.testing.assert_close(found.rows, expected.rows)
    of_theta = float(np.median([float(one.norm()) for _, one in mixed[:17]]))
    thetas = [one * min(1.0, of_theta / float(one.norm())) for _, one in mixed[:17]]
    torch.testing.assert_close(change, torch.stack(thetas).mean(dim=0))
    with pytest.raises(ValueError, match=r"row_bound_quantile=0 must be above 0"):
        Krum(row_bound_quantile=0)


def test_krum_compares_on_common_rows_and_networks():
    krum = Krum(0.2)
    updates = updates_of(6)
    krum.begin(torch.zeros(N_ITEMS, DIM))
    for client, (update, theta) in enumerate(updates):
        krum.add(client, update, theta)
    distances = krum._distances()
    for a, (one, of_one) in enumerate(updates):
        for b, (other, of_other) in enumerate(updates[:a]):
            common = np.intersect1d(one.ids, other.ids)
            pairs = [
                (of_one - of_other).numpy(),
                *(
                    (one.rows[one.ids == item] - other.rows[other.ids == item])[0]
                    for item in common
                ),
            ]
            expected = np.square(np.concatenate(pairs)).mean()
            assert distances[a, b] == pytest.approx(expected, rel=1e-5)
            assert distances[b, a] == distances[a, b]


def test_krum_without_anything_in_common_is_the_mean():
    updates = [
        (RowUpdate(torch.tensor([item]), torch.full((1, DIM), 5.0)), torch.zeros(0))
        for item in range(5)
    ]
    update, theta = combined(Krum(0.0), updates)
    assert update.ids.tolist() == list(range(5))
    assert len(theta) == 0
    assert len(combined(Krum(0.2), updates[:1])[0]) == 1
    assert len(combined(Krum(0.4), updates)[0]) == 3


@pytest.mark.parametrize("make", [lambda s: TrimmedMean(s), lambda s: Krum(s)])
@pytest.mark.parametrize("share", [-0.1, 0.5, "0.1", True])
def test_shares_are_below_a_half(make, share):
    with pytest.raises(ValueError, match=r"_share=.* must be at least 0 and below 0.5"):
        make(share)


@pytest.mark.parametrize("make", [*ROW_WISE, Krum])
def test_a_round_leaves_nothing_behind(make):
    aggregator = make()
    first = combined(aggregator, updates_of(7))
    combined(aggregator, updates_of(9, 2, mean=50.0))
    again = combined(aggregator, updates_of(7))
    assert torch.equal(first[0].rows, again[0].rows)
    assert torch.equal(first[1], again[1])


# Bounds found from earlier rounds.

CTX = RoundContext(round=0, seed=1, n_items=N_ITEMS, dim=DIM)


def arrived(clip: Transform, updates):
    """Send a round's updates through, and close it."""
    changed = [clip.on_arrival(SharedUpdate(*one), CTX) for one in updates]
    clip.on_aggregate(changed[0], CTX)
    return changed


def test_whole_updates_are_clipped_to_the_median_of_the_round_before():
    clip, updates = ClipToQuantile(0.5), updates_of(9)
    norms = [SharedUpdate(*one).norm() for one in updates]
    for update, one in zip(arrived(clip, updates), updates, strict=True):
        assert torch.equal(update.items.rows, one[0].rows)  # nothing is known yet
    bound = float(np.median(norms))
    louder = [
        (RowUpdate(one.ids, 10 * one.rows), 10 * theta)
        for one, theta in updates_of(9, seed=1)
    ]
    for update, (one, theta) in zip(arrived(clip, louder), louder, strict=True):
        scale = min(1.0, bound / SharedUpdate(one, theta).norm())
        torch.testing.assert_close(update.items.rows, scale * one.rows)
        torch.testing.assert_close(update.theta, scale * theta)
        assert update.norm() <= bound * (1 + 1e-6)
    after = [update.norm() for update in arrived(clip, louder)]
    assert max(after) > bound  # what was sent counts, not what was left of it


def test_rows_are_clipped_each_and_networks_by_themselves():
    clip, updates = ClipRows(0.5), updates_of(9)
    arrived(clip, updates)
    bound = np.median([float(one.rows.norm(dim=1).max()) for one, _ in updates])
    of_theta = np.median([float(theta.norm()) for _, theta in updates])
    one = RowUpdate(torch.tensor([1, 2]), torch.tensor([[9.0] * DIM, [1e-3] * DIM]))
    update = clip.on_arrival(SharedUpdate(one, torch.full((N_THETA,), 7.0)), CTX)
    assert float(update.items.rows[0].norm()) == pytest.approx(bound, rel=1e-5)
    assert torch.equal(update.items.rows[1], one.rows[1])
    assert float(update.theta.norm()) == pytest.approx(of_theta, rel=1e-5)


@pytest.mark.parametrize("make", [ClipToQuantile, ClipRows])
@pytest.mark.parametrize("quantile", [0, 1.1, "0.5", True])
def test_quantiles_are_shares(make, quantile):
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        make(quantile)


@pytest.mark.parametrize("make", [ClipToQuantile, ClipRows])
def test_bounds_are_kept_and_a_round_that_fails_leaves_them(make, monkeypatch):
    def simulation(make_model=ncf):
        clip = make(0.5)
        made = simulate(
            make_model(), make_data(), NoCompression(), fraction=0.5, rates=(0.0,),
            transforms=(clip,),
        )  # fmt: skip
        return made, clip

    (one, clip), (other, later) = simulation(), simulation()
    for _ in range(2):
        one.run_round(), other.run_round()
    bounds = clip.state_dict()
    assert all(0 < bound < np.inf for bound in bounds["bounds"])
    with monkeypatch.context() as broken:
        broken.setattr(one.server.policy, "publish", _fail)
        with pytest.raises(FederationError, match="on purpose"):
            one.run_round()
    assert clip.state_dict() == bounds
    resumed, fresh = simulation()
    resumed.load_state_dict(other.state_dict())
    assert fresh.state_dict() == bounds
    tables = []
    for each in (one, other, resumed):
        each.run_round()
        tables.append(each.server.parameters.item_table)
    assert torch.equal(tables[0], tables[1])
    assert torch.equal(tables[0], tables[2])
    assert clip.state_dict() == later.state_dict() == fresh.state_dict() != bounds


def _fail(update):
    raise FederationError("on purpose")


def test_what_arrives_passes_transforms_in_order_by_client():
    seen = []

    class Note(Transform):
        def on_arrival(self, update, ctx):
            seen.append(ctx.sender)
            return SharedUpdate(
                RowUpdate(update.items.ids, 0 * update.items.rows), update.theta
            )

    simulation = simulate(
        mf(), make_data(), NoCompression(), rates=(0.0,), fraction=1.0,
        transforms=(Note(),),
    )  # fmt: skip
    before = simulation.server.parameters.item_table.clone()
    report = simulation.run_round()
    assert seen == sorted(seen)
    assert len(seen) == report.n_clients
    assert torch.equal(simulation.server.parameters.item_table, before)
