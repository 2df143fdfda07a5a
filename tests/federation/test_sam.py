"""Sharpness-aware minimisation: its step uphill, its keys, its zero."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import rounds_of
from population import DIM, N_ITEMS, TRAINING, mf, naive_client, samples_of, train

from recbole_fedras.compressor import Budget, RoundContext
from recbole_fedras.compressor.colr import CoLR
from recbole_fedras.config import Config
from recbole_fedras.federation.client.sam import ascend


def test_each_group_of_a_client_moves_by_rho_along_its_gradient():
    rng = torch.Generator().manual_seed(0)
    users, table = torch.randn(2, 4, generator=rng), torch.randn(5, 4, generator=rng)
    network = {"weight": torch.randn(2, 3, 2, generator=rng)}
    row = torch.tensor([[0, 1, 0], [3, 4, 3]])  # row 2 is nobody's in this batch
    of_user, of_item = (
        torch.randn(2, 4, generator=rng),
        torch.randn(6, 4, generator=rng),
    )
    of_network = [torch.randn(2, 3, 2, generator=rng)]
    high_users, high_table, high_network = ascend(
        (users, table, network), (of_user, of_item, of_network), row, 0.5, 0.25
    )
    for client, own in enumerate(([0, 1, 2], [3, 4])):
        step = high_users[client] - users[client]
        assert step.norm() == pytest.approx(0.25, rel=1e-5)
        assert torch.cosine_similarity(step, of_user[client], 0) > 1 - 1e-5
        shared = torch.cat(
            [
                (high_table - table)[own].flatten(),
                (high_network["weight"] - network["weight"])[client].flatten(),
            ]
        )
        assert shared.norm() == pytest.approx(0.5, rel=1e-5)
    climbed = high_table - table
    assert torch.cosine_similarity(climbed[0], of_item[0] + of_item[2], 0) > 1 - 1e-5
    assert not climbed[2].any()


def test_a_gradient_of_zero_moves_nothing():
    users, table = torch.ones(1, 4), torch.ones(1, 4)
    slopes = torch.zeros(1, 4), torch.zeros(1, 4), []
    high_users, high_table, _ = ascend(
        (users, table, {}), slopes, torch.zeros(1, 1, dtype=torch.int64), 1.0, 1.0
    )
    assert torch.equal(high_users, users)
    assert torch.equal(high_table, table)


@pytest.mark.parametrize("compiled", [False, True])
def test_colr_climbs_within_its_subspace(compiled, data):
    budget, ctx = Budget(N_ITEMS, DIM, 0.75), RoundContext(0, 1, N_ITEMS, DIM)
    mapping = CoLR().gradient_map(budget, ctx)
    training = replace(TRAINING, rho_shared=0.4, rho_private=0.1)
    model = mf()
    trained = train(model, data, [5], compiled, training, mapping)
    sample = samples_of(data, [5])[0]
    user, change, _ = naive_client(model, 5, sample, training, mapping)
    torch.testing.assert_close(trained.user_rows[0], user, rtol=1e-4, atol=1e-5)
    expected = change[torch.from_numpy(sample.ids)]
    torch.testing.assert_close(trained.updates[0].rows, expected, rtol=1e-3, atol=1e-5)
    assert np.linalg.matrix_rank(trained.updates[0].rows.numpy(), tol=1e-5) == 2


@pytest.mark.parametrize("model", ["MF", "NCF"])
def test_rho_of_zero_is_plain_training_to_the_bit(run, model):
    plain = run(model)
    zero = run(model, local_objective="sam", rho_shared=0, rho_private=0.0)
    sharp = run(model, local_objective="sam", rho_shared=0.1, rho_private=0.1)
    assert zero["test_result"] == plain["test_result"]
    assert zero["communication"] == plain["communication"]
    losses = [[row["loss"] for row in rounds_of(own)] for own in (plain, zero, sharp)]
    assert losses[0] == losses[1]
    assert losses[0][1:] != losses[2][1:]


@pytest.mark.parametrize("model", ["MF", "NCF"])
def test_bpr_trains_on_pairs(run, model):
    """The mean loss of a pair of equal scores is log 2, and falls."""
    keys = {"epochs": 12, "eval_step": 1, "client_fraction": 1.0}
    result = run(model, local_loss="bpr", learning_rate=0.1, **keys)
    losses = [float(row["loss"]) for row in rounds_of(result)]
    assert losses[0] == pytest.approx(np.log(2), abs=0.05)
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"local_loss": "hinge"}, "local_loss='hinge' is not allowed; it must be one"),
        ({"local_loss": "bpr", "train_batch_size": 15}, "even with local_loss=bpr"),
        ({"model": "LightFR", "local_loss": "bpr"}, "must be bce with model=LightFR"),
        ({"local_objective": "sharp"}, "local_objective='sharp' .* one of sgd, sam"),
        ({"rho_shared": -0.1}, "rho_shared=-0.1 is not allowed"),
        ({"rho_private": "far"}, "rho_private='far' is not allowed"),
        (
            {"model": "LightFR", "local_objective": "sam"},
            "must be sgd with model=LightFR",
        ),
    ],
)
def test_bad_objectives_are_refused(workspace, keys, said):
    with pytest.raises(ValueError, match=said):
        Config(config_dict={"model": "MF", "dataset": "tiny"} | keys)
