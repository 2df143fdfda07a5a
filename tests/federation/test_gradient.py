"""Clients that send gradients, users with an Adam of their own, and FedRecGEL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import COMMON
from population import DIM, N_CLIENTS, draw, mf, ncf, samples_of, train_groups
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from recbole_fedras.config import Config
from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.federation.client.adam import adam_step
from recbole_fedras.federation.settings import LocalTraining
from recbole_fedras.quick_start import run_recbole_fedras

BATCH = 16
GRADIENT = LocalTraining(
    1 / BATCH, 0.07, 1 / BATCH, local_epochs=1, batch_size=2**62, n_negatives=4,
    upload_gradient=True,
)  # fmt: skip


@pytest.mark.parametrize("rho", [0.0, 0.3])
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("make", [mf, ncf])
def test_what_is_sent_is_minus_the_gradient(make, compiled, rho, data):
    """Of the loss that FedRecGEL has: the mean of each batch, added up."""
    model, clients = make(), [0, 3, 7]
    training = replace(GRADIENT, rho_shared=rho)
    groups = [draw(data, clients, GRADIENT)]
    trained = train_groups(model, clients, groups, compiled, training)
    for index, client in enumerate(clients):
        sample = samples_of(data, [client], GRADIENT)[0]
        items = torch.from_numpy(sample.ids[sample.rows[0]])
        label = torch.from_numpy(sample.labels[0])
        leaves = [
            model.user_rows()[client],
            model.item_table(),
            *model.theta().values(),
        ]

        def gradients(at, items=items, label=label):
            leaves = [leaf.clone().requires_grad_() for leaf in at]
            theta = dict(zip(model.theta(), leaves[2:], strict=True))
            logits = model.score(
                leaves[0][None, None], leaves[1][items][None],
                {name: value[None] for name, value in theta.items()},
            )[0]  # fmt: skip
            return torch.autograd.grad(bce(logits, label, reduction="sum"), leaves)

        slopes = gradients(leaves)
        norm = torch.cat([slope.flatten() for slope in slopes[1:]]).norm()
        uphill = [
            leaf + rho / norm * slope
            for leaf, slope in zip(leaves[1:], slopes[1:], strict=True)
        ]
        user, table, *network = gradients([leaves[0], *uphill])
        expected = leaves[0] - 0.07 * user
        torch.testing.assert_close(
            trained.user_rows[index], expected, rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            trained.updates[index].rows, -table[sample.ids] / BATCH, rtol=1e-3,
            atol=1e-5,
        )  # fmt: skip
        if network:
            flat = torch.cat([slope.flatten() for slope in network])
            torch.testing.assert_close(
                trained.updates.theta[index], -flat / BATCH, rtol=1e-3, atol=1e-5
            )


def test_adam_is_torchs():
    rng = torch.Generator().manual_seed(0)
    start = torch.randn(4, 6, generator=rng)
    leaf = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=0.1)
    state, values = torch.zeros(4, 2 * 6 + 1), start.clone()
    for _ in range(20):
        leaf.grad = torch.randn(4, 6, generator=rng)
        optimizer.step()
        values -= adam_step(state, leaf.grad, 0.1)
    torch.testing.assert_close(values, leaf.detach(), rtol=1e-4, atol=1e-5)


def test_each_users_adam_goes_on_where_it_was(data):
    """With steps of several batches, of clients that have fewer batches than others."""
    model = ncf()
    training = replace(
        GRADIENT, batch_size=BATCH, upload_gradient=False, user_optimizer="adam"
    )
    rng = torch.Generator().manual_seed(0)
    states = torch.rand(N_CLIENTS, 2 * DIM + 1, generator=rng).round(decimals=2)
    states[:, -1] = 3
    clients = list(range(N_CLIENTS))

    def train(some):
        groups = [draw(data, some, training)]
        return train_groups(model, some, groups, True, training, states=states[some])

    together = train(clients)
    before = states.clone()
    for client in clients:
        alone = train([client])
        torch.testing.assert_close(together.user_rows[client], alone.user_rows[0])
        torch.testing.assert_close(together.user_states[client], alone.user_states[0])
        size = samples_of(data, [client], training)[0].labels.size
        assert alone.user_states[0, -1] == 3 + -(-size // BATCH)
    assert torch.equal(states, before)
    one = train_groups(
        model,
        [2],
        [draw(data, [2], GRADIENT)],
        True,
        replace(GRADIENT, user_optimizer="adam"),
        states=torch.zeros(1, 2 * DIM + 1),
    )
    moved = (one.user_rows[0] - model.user_rows()[2]).abs()
    torch.testing.assert_close(moved, torch.full((DIM,), 0.07), rtol=1e-3, atol=1e-5)


def test_the_preset_is_fedrecgel(run):
    keys = {"preset": "FedRecGEL", "epochs": 3, "eval_step": 1, "embedding_size": 160}
    result = run(None, **keys)
    config = Config(config_dict={"preset": "FedRecGEL"}, argv=COMMON[:1])
    training, federation = config.local_training(), config.federation()
    assert config.model_class.__name__ == "FedNeuMF"
    assert training.upload_gradient
    assert training.user_optimizer == "adam"
    assert training.rho_shared == training.rho_private == 0.02
    assert federation.optimization.optimizer == "adam"
    assert federation.optimization.learning_rate == 1e-3
    assert federation.aggregation == "fedavg"
    assert result["model"] == "FedNeuMF"
    state = read_checkpoint(Path(result["run_folder"]) / "last.pth")["simulation"][
        "shard"
    ]
    steps = state["user_states"][:, -1]
    assert int(steps.sum()) == 3 * 10  # a step each time that a user takes part


def test_gradients_are_scaled_by_samples_or_pairs_of_a_batch(workspace):
    keys = {"upload": "gradient", "local_epochs": 1, "train_batch_size": 64}
    for loss, size in (("bce", 64), ("bpr", 32)):
        own = keys | {"local_loss": loss}
        training = Config("NCF", "tiny", config_dict=own).local_training()
        assert training.learning_rate == training.theta_learning_rate == 1 / size


def test_a_resumed_run_ends_like_the_whole(run):
    keys = {"user_optimizer": "adam", "upload": "gradient", "local_epochs": 1}
    keys |= {"server_optimizer": "adam", "server_learning_rate": 0.01}
    whole = run("GMF", epochs=6, **keys)
    half = run("GMF", epochs=4, **keys)
    last = str(Path(half["run_folder"]) / "last.pth")
    resumed = run("GMF", epochs=6, resume=last)
    assert resumed["test_result"] == whole["test_result"]
    assert resumed["communication"] == whole["communication"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"upload": "gradients"}, "upload='gradients' is not allowed"),
        ({"upload": "gradient"}, "local_epochs=2 is not allowed; it must be 1 with"),
        (
            {"upload": "gradient", "local_epochs": 1, "weight_decay": 0.1},
            "weight_decay=0.1 is not allowed; it must be 0 with upload=gradient",
        ),
        ({"model": "LightFR", "weight_decay": 0.1}, "must be 0 with model=LightFR"),
        ({"user_optimizer": "yogi"}, "it must be one of sgd, adam"),
        (
            {"model": "LightFR", "user_optimizer": "adam"},
            "must be sgd with model=LightFR",
        ),
        (
            {"model": "LightFR", "upload": "gradient", "local_epochs": 1},
            "must be delta with model=LightFR",
        ),
        ({"preset": "FedRecGel"}, "did you mean 'FedRecGEL'"),
        (
            {"preset": "FedRecGEL", "embedding_size": 32},
            "it must be 160, the user embeddings of NeuMF together",
        ),
    ],
)
def test_bad_keys_are_refused(workspace, keys, said):
    argv = [argument for argument in COMMON if "embedding_size" not in argument]
    with pytest.raises(ValueError, match=said):
        run_recbole_fedras(config_dict={"dataset": "tiny"} | keys, argv=argv)
