"""The server's step: FedOpt's formulas, undone and continued exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import rounds_of, slow

from recbole_fedras.compressor import RowUpdate
from recbole_fedras.config import Config
from recbole_fedras.federation.server.optimizer import ServerOptimizer
from recbole_fedras.federation.server.state import SharedParameters
from recbole_fedras.federation.settings import SERVER_OPTIMIZERS, ServerOptimization

ADAPTIVE = [name for name in SERVER_OPTIMIZERS if name != "sgd"]


def naive(kind, changes, rate, betas, tau):
    """Follow the definition of FedOpt, value by value."""
    steps, mean, squares = [], 0.0, tau**2
    for change in changes:
        mean = betas[0] * mean + (1 - betas[0]) * change
        if kind == "adagrad":
            squares += change**2
        elif kind == "yogi":
            squares -= (1 - betas[1]) * change**2 * np.sign(squares - change**2)
        else:
            squares = betas[1] * squares + (1 - betas[1]) * change**2
        steps.append(rate * mean / (squares**0.5 + tau))
    return steps


@pytest.mark.parametrize("kind", ADAPTIVE)
def test_steps_are_fedopts(kind):
    settings = ServerOptimization(kind, 0.1, (0.8, 0.95), 0.01)
    optimizer = ServerOptimizer(settings)
    changes = np.random.default_rng(0).standard_normal((5, 3)) * [1, 0.01, 0]
    steps = []
    for change in changes:
        steps.append(optimizer.step(torch.tensor(change)).numpy())
        optimizer.commit()
    for column in range(3):
        expected = naive(kind, changes[:, column], 0.1, (0.8, 0.95), 0.01)
        np.testing.assert_allclose(np.array(steps)[:, column], expected, rtol=1e-9)


def test_with_bias_correction_it_is_torchs_adam():
    settings = ServerOptimization("adam", 0.1, (0.8, 0.95), 1e-8, bias_correction=True)
    optimizer, rng = ServerOptimizer(settings), torch.Generator().manual_seed(0)
    leaf = torch.zeros(3, requires_grad=True)
    theirs = torch.optim.Adam([leaf], lr=0.1, betas=(0.8, 0.95))
    ours = torch.zeros(3)
    for _ in range(6):
        change = torch.randn(3, generator=rng)
        ours += optimizer.step(change)
        optimizer.commit()
        leaf.grad = -change
        theirs.step()
    torch.testing.assert_close(ours, leaf.detach())


def test_bias_correction_is_adams_only(workspace):
    keys = {"server_optimizer": "yogi", "server_bias_correction": True}
    with pytest.raises(ValueError, match="server_bias_correction=True is not allowed"):
        Config("MF", config_dict=keys)


@pytest.mark.parametrize("kind", SERVER_OPTIMIZERS)
def test_a_step_says_what_changed_and_can_be_undone(kind):
    rng = torch.Generator().manual_seed(0)
    table, theta = torch.randn(6, 3, generator=rng), torch.randn(4, generator=rng)
    server = SharedParameters(table, theta, ServerOptimization(kind, 0.5))
    updates = [
        (RowUpdate(torch.tensor(ids), torch.randn(2, 3, generator=rng)),
         torch.randn(4, generator=rng))
        for ids in ([0, 2], [2, 5], [1, 2])
    ]  # fmt: skip
    server.step(*updates[0])
    server.commit()
    before = server.item_table.clone()
    server.step(*updates[1])  # of a round that fails
    server.rollback()
    assert torch.equal(server.item_table, before)
    saved = {
        key: value.clone() if isinstance(value, torch.Tensor) else value
        for key, value in server.state_dict().items()
    }
    applied = server.step(*updates[2])
    change = torch.zeros(6, 3)
    change[applied.ids] = applied.rows
    torch.testing.assert_close(server.item_table - before, change)
    # What was sent once goes on moving items of which nothing is sent now.
    assert applied.ids.tolist() == ([1, 2] if kind == "sgd" else [0, 1, 2])
    again = SharedParameters(table, theta, ServerOptimization(kind, 0.5))
    again.load_state_dict(saved)
    again.step(*updates[2])
    changes = np.stack([change.numpy() for _, change in (updates[0], updates[2])])
    if kind == "sgd":
        expected = 0.5 * changes.sum(0)
    else:
        expected = sum(naive(kind, changes, 0.5, (0.9, 0.99), 1e-3))
    np.testing.assert_allclose(server.theta - theta, expected, rtol=1e-4, atol=1e-6)
    assert torch.equal(again.item_table, server.item_table)
    assert torch.equal(again.theta, server.theta)


def test_a_step_that_fails_within_leaves_round_and_tables(monkeypatch):
    server = SharedParameters(
        torch.ones(3, 2), torch.ones(2), ServerOptimization("adam")
    )
    update = RowUpdate(torch.tensor([1]), torch.ones(1, 2))
    for name in ("item_table", "theta"):
        with monkeypatch.context() as patch:
            patch.setattr(server._optimizers[name], "step", lambda change: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                server.step(update, torch.ones(2))
        server.rollback()
        assert server.round == 0
        assert torch.equal(server.item_table, torch.ones(3, 2))
        assert torch.equal(server.theta, torch.ones(2))


@pytest.mark.parametrize(
    ("kind", "model"),
    [("adam", "NCF"), slow("adagrad", "MF"), slow("yogi", "NCF")],
)
def test_runs_with_it_resume_and_replicas_follow(run, model, kind):
    keys = {"server_optimizer": kind, "server_learning_rate": 0.01}
    keys |= {"compressor": "none"}
    whole = run(model, epochs=6, **keys)
    half = run(model, epochs=4, **keys)
    last = str(Path(half["run_folder"]) / "last.pth")
    resumed = run(model, epochs=6, resume=last, **keys)
    assert resumed["test_result"] == whole["test_result"]
    assert resumed["communication"] == whole["communication"]
    assert all(float(row["drift"]) < 1e-5 for row in rounds_of(whole))
    plain = run(model, epochs=6, compressor="none")
    assert rounds_of(plain)[1]["loss"] != rounds_of(whole)[1]["loss"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"server_optimizer": "lamb"}, "server_optimizer='lamb' is not allowed; it mu"),
        ({"server_learning_rate": 0}, "server_learning_rate=0 is not allowed"),
        ({"server_betas": [0.9, 1]}, "server_betas=.0.9, 1. is not allowed"),
        ({"server_betas": 0.9}, "two numbers >= 0 and < 1"),
        ({"server_tau": 0}, "server_tau=0 is not allowed"),
        (
            {"model": "LightFR", "server_optimizer": "adam"},
            "it must be sgd with model=LightFR",
        ),
    ],
)
def test_bad_servers_are_refused(workspace, keys, said):
    with pytest.raises(ValueError, match=said):
        Config(config_dict={"model": "MF", "dataset": "tiny"} | keys)
