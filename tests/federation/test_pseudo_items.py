"""Pseudo-items are what is said of them; clients may have a seed of their own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import COMMON, CTX, make_update
from population import federation, mf, simulate

from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.config import Config
from recbole_fedras.errors import ConfigError
from recbole_fedras.federation.pseudo_items import PseudoItems
from recbole_fedras.federation.transforms import SharedUpdate, Transform

THETA = torch.ones(3)


def changed(update, n, ctx=CTX):
    return PseudoItems(n).on_client(SharedUpdate(update, THETA), ctx)


def test_rows_of_other_items_stand_among_the_real_ones():
    update = make_update(25)
    items, theta = changed(update, 10)
    assert theta is THETA
    assert len(items) == 35
    assert (items.ids.diff() > 0).all()
    real = torch.isin(items.ids, update.ids)
    assert torch.equal(items.ids[real], update.ids)
    assert torch.equal(items.rows[real], update.rows)
    assert items.rows.dtype == torch.float32
    assert len(changed(update, 1000).items) == CTX.n_items  # as far as there are any


def test_they_have_mean_and_covariance_of_the_real_rows():
    """Of lower rank than columns, too: they lie in the span of the real ones."""
    wide = replace(CTX, n_items=40_000)
    for n_rows in (25, 3):
        update = make_update(n_rows)
        items, _ = changed(update, 30_000, wide)
        pseudo = items.rows[~torch.isin(items.ids, update.ids)].double()
        real = update.rows.double()
        scale = real.std(0, correction=0)
        gap = (pseudo.mean(0) - real.mean(0)).abs() / scale
        assert (gap < 0.03).all()
        spreads = [torch.cov(rows.T, correction=0) for rows in (pseudo, real)]
        error = (spreads[0] - spreads[1]).norm() / spreads[1].norm()
        assert error < 0.03
    centred = pseudo - real.mean(0)
    assert torch.linalg.matrix_rank(centred, rtol=1e-4) == 2


def test_each_client_and_round_draws_its_own_again_and_again():
    update = make_update(25)
    first = changed(update, 10).items
    assert torch.equal(first.rows, changed(update, 10).items.rows)
    for other in ({"round": 4}, {"sender": 6}, {"seed": 8}):
        ids = changed(update, 10, replace(CTX, **other)).items.ids
        assert not torch.equal(ids, first.ids)


@pytest.mark.parametrize("n", [0, 1.5, True, "9"])
def test_only_a_positive_number_will_do(n):
    with pytest.raises(
        ValueError, match=r"n_pseudo_items=.* must be an integer from 1"
    ):
        PseudoItems(n)


def after_two_rounds(data, seed=None, transforms=()):
    """Return the table, and the bytes that clients have sent."""
    keys = {"rates": (0.0,), "client_seed": seed, "transforms": transforms}
    simulation = simulate(mf(), data, NoCompression(), **keys)
    simulation.run_round(), simulation.run_round()
    sent = simulation.ledger.totals["uplink_bytes"]
    return simulation.server.parameters.item_table, sent


def test_in_a_run_they_are_counted(data):
    plain, few = after_two_rounds(data)
    mixed, many = after_two_rounds(data, transforms=(PseudoItems(5),))
    assert many > few
    assert not torch.equal(mixed, plain)


def test_clients_may_draw_by_a_seed_of_their_own(data):
    """What they draw changes, of negatives and of pseudo-items; nothing else does."""
    for transforms in ((), (PseudoItems(5),)):
        same = federation().seed
        tables = [
            after_two_rounds(data, seed, transforms)[0] for seed in (None, same, 99)
        ]
        assert torch.equal(tables[0], tables[1])
        assert not torch.equal(tables[0], tables[2])


def test_transforms_draw_by_the_clients_seed(data):
    seeds = set()

    class Note(Transform):
        def on_client(self, update, ctx):
            seeds.add(ctx.seed)
            return update

        def __deepcopy__(self, memo):
            return self

    after_two_rounds(data, 99, (Note(),))
    assert seeds == {99}


@pytest.mark.parametrize(
    ("name", "key"), [("pseudo_items", "n_pseudo_items=3"), ("local_dp", "clip_norm=1")]
)
def test_codes_are_no_place_for_real_numbers(name, key):
    argv = [*COMMON, f"--transforms={name}", f"--{key}", "--report_loss=False"]
    with pytest.raises(ConfigError, match=f"transforms='{name}' does not go with"):
        Config("LightFR", argv=[*argv, "--compressor=none"])
