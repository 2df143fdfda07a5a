"""LightFR against its definition, and what of the wire and the round is its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CTX, DIM, N_ITEMS, budget, slow

from recbole_fedras.compressor import RowUpdate
from recbole_fedras.config import Config
from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.data.clients import ClientData, draw_samples
from recbole_fedras.data.local import LocalParameters
from recbole_fedras.lightfr.aggregation import CodeDescent
from recbole_fedras.lightfr.codes import BinaryCodes
from recbole_fedras.lightfr.descent import descend
from recbole_fedras.lightfr.model import LightFR, _train_clients
from recbole_fedras.numeric.rng import Stream, counter_key


def random_codes(n: int, f: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice([-1, 1], (n, f)).astype(np.float32)


def naive_descent(code, others, wanted, inertia):
    """Follow the source's rule, every product computed anew."""
    code = code.astype(int).copy()
    while True:
        before = code.copy()
        for k in range(len(code)):
            error = wanted - others @ code
            argument = (error * others[:, k]).sum() + inertia * code[k]
            code[k] = np.sign(argument) if argument else code[k]
        if (code == before).all():
            return code


@pytest.mark.parametrize("regularization", [0.5, 0.6, 2.0])
@pytest.mark.parametrize("n", [1, 7, 40])
def test_descent_follows_the_rule_and_never_gains_error(n, regularization):
    for seed in range(20):
        code, others = random_codes(1, 24, seed)[0], random_codes(n, 24, seed + 100)
        wanted = 24 * random_codes(1, n, seed + 200)[0]
        inertia = 2 * regularization * n
        expected = naive_descent(code, others, wanted, inertia)
        before = float(((wanted - others @ code) ** 2).sum())
        error = wanted - others @ code
        descend(code, others, error, inertia)
        assert code.tolist() == expected.tolist()
        assert error.tolist() == (wanted - others @ code).tolist()
        assert float((error**2).sum()) <= before


def test_local_training_finds_the_users_code_and_sends_what_would_suit_it():
    rng = np.random.default_rng(0)
    users = rng.integers(0, 6, 60)
    data = ClientData.from_pairs(users, rng.integers(0, 40, 60), 6, 40)
    samples = draw_samples(data, np.arange(6), 4, 2, counter_key(1, Stream.SAMPLES, 0))
    table, codes = random_codes(40, 16, 1), random_codes(6, 16, 2)
    trained, changes = codes.copy(), np.empty((len(samples.ids), 16), np.float32)
    theta, moved = np.empty(0, np.float32), np.empty((6, 0), np.float32)
    parameters = LocalParameters(trained, table, theta, changes, moved)
    losses = _train_clients(0.6, parameters, samples)
    for client in range(6):
        ids, rows, labels = samples.of(client)
        items = set(data.of(client).tolist())
        wanted = np.array([16 if item in items else -16 for item in ids])
        expected = naive_descent(codes[client], table[ids], wanted, 1.2 * len(ids))
        assert trained[client].tolist() == expected.tolist()
        own = changes[slice(*samples.row_offsets[client : client + 2])]
        suits = np.sign(wanted)[:, None] * expected
        assert (own == suits - table[ids]).all()
        score = 0.5 + table[ids][rows] @ expected / 32
        expected_loss = float(((labels - score) ** 2).sum())
        assert losses[client] == pytest.approx(expected_loss)


def test_the_server_descends_on_the_cohorts_error():
    """Equal to the source's sums over users, their codes and ratings."""
    table, users = random_codes(30, 12, 0), random_codes(9, 12, 1)
    rng = np.random.default_rng(2)
    ratings = rng.choice([-12, 0, 12], (9, 30))  # 0: not masked in
    ratings[:, 5] = 0
    combined = CodeDescent()
    combined.begin(torch.from_numpy(table.copy()))
    for client, (user, own) in enumerate(zip(users, ratings, strict=True)):
        ids = np.flatnonzero(own)
        rows = np.sign(own[ids])[:, None] * user - table[ids]
        change = RowUpdate(torch.from_numpy(ids), torch.from_numpy(rows).float())
        combined.add(client, change, torch.zeros(0))
    update, _ = combined.result()
    table[update.ids] += update.rows.numpy()
    start = random_codes(30, 12, 0)
    for item in range(30):
        rated = ratings[:, item] != 0
        wanted, others = ratings[rated, item], users[rated]
        expected = naive_descent(start[item], others, wanted, rated.sum())
        assert table[item].tolist() == expected.tolist()
        assert (item in update.ids.tolist()) == (expected != start[item]).any()


def test_wishes_are_codes_whatever_is_sent():
    table = torch.from_numpy(random_codes(N_ITEMS, DIM, seed=1))
    flips = torch.from_numpy(random_codes(N_ITEMS, DIM, seed=2)) < 0
    change = -2 * table * flips
    found = []
    for factor in (1, 100):
        descent = CodeDescent()
        descent.begin(table)
        for client in range(3):
            rows = RowUpdate(torch.arange(N_ITEMS), factor * change)
            descent.add(client, rows, torch.zeros(0))
        update, _ = descent.result()
        moved = table.clone()
        moved[update.ids] += update.rows
        assert moved.abs().unique().tolist() == [1]
        found.append(moved)
    assert torch.equal(*found)


@pytest.mark.parametrize("n", [0, 7, N_ITEMS])
def test_codes_arrive_as_they_are_at_a_bit_each(n):
    base = torch.from_numpy(random_codes(N_ITEMS, DIM, 0))
    after = torch.from_numpy(random_codes(N_ITEMS, DIM, 1))
    ids = torch.from_numpy(np.sort(np.random.default_rng(2).permutation(N_ITEMS)[:n]))
    ctx = type(CTX)(3, 7, N_ITEMS, DIM, base=base)
    update = RowUpdate(ids, (after - base)[ids])
    payload = BinaryCodes().encode(update, budget(0.9), ctx)
    decoded = BinaryCodes().decode(payload, ctx)
    assert torch.equal(decoded.ids, ids)
    assert torch.equal(decoded.rows, update.rows)
    assert payload.part_bytes()["items"] == (n * DIM + 7) // 8
    with pytest.raises(ValueError, match="needs to know the receiver's table"):
        BinaryCodes().encode(update, budget(0.9), type(CTX)(3, 7, N_ITEMS, DIM))


@pytest.mark.parametrize("replica", ["broadcast", slow("personal")])
def test_a_run_learns_codes_and_sends_no_more_than_its_rate(run, replica):
    keys = {"epochs": 12, "client_fraction": 0.5, "replica": replica}
    result = run("LightFR", compression_rate=0.75, **keys)
    assert result["compressor"] == "BinaryCodes"
    # 21 candidates, two groups of 30 items: chance is 10/21.
    assert result["best_valid_result"]["hit@10"] > 0.6
    state = read_checkpoint(Path(result["run_folder"]) / "best.pth")["state_dict"]
    for side in ("user", "item"):
        codes = state[f"{side}_embedding.weight"]
        assert codes.shape[1] == 64  # f = 32 d (1 - CR), d = 8
        assert set(codes.unique().tolist()) <= {-1.0, 0.0, 1.0}
        assert (codes[1:61] != 0).all()
    cost = result["communication"]
    assert cost["dense_bytes"] == 12 * 20 * 2 * 60 * 8 * 4
    assert cost["nominal_compression_rate"] >= 0.75
    exact = run("LightFR", compressor="none", embedding_size=64, **keys)
    assert exact["test_result"] == result["test_result"]


def test_a_resumed_run_ends_like_the_whole(run, workspace):
    whole = run("LightFR", epochs=8)
    half = run("LightFR", epochs=4)
    last = str(Path(half["run_folder"]) / "last.pth")
    resumed = run("LightFR", epochs=8, resume=last)
    assert resumed["test_result"] == whole["test_result"]
    assert resumed["communication"] == whole["communication"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"compressor": "SVD"},
            "^compressor='SVD' does not go with model='LightFR', whose tables hold "
            "codes of -1 and 1; those that do: BinaryCodes, none$",
        ),
        ({"downlink_compressor": "FedRAS"}, "downlink_compressor='FedRAS' does not go"),
        (
            {"model": "MF", "compressor": "BinaryCodes"},
            "compressor='BinaryCodes' does not go with model='MF', .*: CE, CoLR, ",
        ),
        (
            {"aggregation": "fedavg"},
            "aggregation='fedavg' does not go with model='LightFR', .*: discrete$",
        ),
        (
            {"model": "MF", "aggregation": "discrete"},
            "aggregation='discrete' does not go .*: dp_fedavg, fedavg, ",
        ),
        ({"transforms": ["clip"]}, "clip.* does not go with model='LightFR'"),
        ({"replica": "stale"}, "BinaryCodes needs to know the receiver's table"),
        (
            {"replica": "stale", "compressor": "none"},
            "replica='stale' is not .* broadcast or personal with model=LightFR",
        ),
        ({"preset": "best", "compressor": "KLT"}, "compressor='KLT' does not go with"),
        ({"use_gpu": True}, "use_gpu=True is not .* False with model=LightFR"),
        ({"local_loss": "bpr"}, "local_loss='bpr' is not .* bce with model=LightFR"),
        ({"upload": "gradient", "local_epochs": 1}, "delta with model=LightFR"),
        ({"user_optimizer": "adam"}, "sgd with model=LightFR"),
        ({"server_optimizer": "adam"}, "sgd with model=LightFR"),
        ({"server_learning_rate": 0.5}, "server_learning_rate=0.5 .* 1 with model=L"),
        ({"downlink_compressor": "none"}, "both ways, not BinaryCodes and none"),
    ],
)
def test_what_does_not_go_together_is_refused(workspace, keys, said):
    with pytest.raises(ValueError, match=said):
        Config(config_dict={"model": "LightFR", "dataset": "tiny"} | keys)


def test_codes_of_another_score_need_their_own_training(run):
    class Doubled(LightFR):
        def score(self, user_rows, item_rows, theta):
            return 2 * super().score(user_rows, item_rows, theta)

    keys = {"compressor": "BinaryCodes", "aggregation": "discrete", "use_gpu": False}
    with pytest.raises(ValueError, match="'Doubled': codes need train_clients of th"):
        run(Doubled, code_regularization=0.6, **keys)


@pytest.mark.parametrize("regularization", [0.4, "much", float("nan")])
def test_a_regularization_that_need_not_end_is_refused(run, regularization):
    with pytest.raises(ValueError, match=r"code_regularization=.* a number >= 0\.5"):
        run("LightFR", code_regularization=regularization)
