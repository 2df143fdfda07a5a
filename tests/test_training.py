"""Local training and rounds against naive references written from the definition."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pytest
import torch
from test_compressors import NAMES
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from recbole_fedras import registry
from recbole_fedras.compressor import Budget, Compressor, RoundContext, RowUpdate
from recbole_fedras.compressor.colr import CoLR
from recbole_fedras.compressor.fedras import FedRAS
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.data.clients import ClientData, Samples, draw_samples
from recbole_fedras.federation import simulation as rounds
from recbole_fedras.federation.aggregation import RowMean
from recbole_fedras.federation.cohort import train_cohort
from recbole_fedras.federation.sampling import select_cohort
from recbole_fedras.federation.settings import Federation, LocalTraining
from recbole_fedras.federation.simulation import NonFiniteError, Simulation
from recbole_fedras.model import MF, NCF
from recbole_fedras.model.ncf import _losses
from recbole_fedras.parallel import threads
from recbole_fedras.rng import Stream, counter_key

N_CLIENTS, N_ITEMS, DIM = 12, 40, 8
TRAINING = LocalTraining(0.1, 0.07, 0.2, local_epochs=2, batch_size=16, n_negatives=4)


class Clients:
    """What the simulation needs of a model, without RecBole."""

    def __init__(self, model: type, theta_sizes=(), std: float = 0.5) -> None:
        rng = torch.Generator().manual_seed(0)
        self.score = partial(model.score, self)
        self.train_clients = vars(model)["train_clients"].__get__(self)
        self.users = torch.randn(N_CLIENTS, DIM, generator=rng) * std
        self.tables = torch.randn(1, N_ITEMS, DIM, generator=rng) * std
        self.networks = self.embedding = None
        self.replica = torch.zeros(N_CLIENTS, dtype=torch.int64)
        self._theta = {
            name: torch.randn(size, generator=rng) * 0.5 for name, size in theta_sizes
        }

    def hold_replicas(self, n_replicas, mapped=False):
        tables = torch.zeros(n_replicas, N_ITEMS, DIM)
        tables[0] = self.tables[0]
        self.tables = tables
        n_theta = sum(value.numel() for value in self._theta.values())
        if n_replicas > 1:
            self.networks = torch.zeros(n_replicas, n_theta)

    def replica_of_client(self):
        return self.replica

    def client_rows(self):
        return self.users

    def replicas(self):
        return self.tables

    def theta(self):
        return self._theta


def mf(**keys) -> Clients:
    return Clients(MF, **keys)


def ncf(hidden=(6, 4)) -> Clients:
    sizes = [2 * DIM, *hidden, 1]
    weights = [(f"weights.{i}", size) for i, size in enumerate(pairwise(sizes))]
    biases = [(f"biases.{i}", (size,)) for i, size in enumerate(sizes[1:])]
    model = Clients(NCF, [*weights, *biases])
    model._sizes = np.array(sizes)
    return model


@pytest.fixture
def data() -> ClientData:
    rng = np.random.default_rng(3)
    pairs = [
        (user, item)
        for user in range(N_CLIENTS)
        for item in rng.choice(N_ITEMS, rng.integers(1, 12), replace=False)
    ]
    users, items = np.array(pairs).T
    return ClientData.from_pairs(users, items, N_CLIENTS, N_ITEMS)


class Sample(NamedTuple):
    """What one client trains on."""

    ids: np.ndarray
    rows: np.ndarray
    labels: np.ndarray


def draw(data: ClientData, clients, training=TRAINING, round=0) -> Samples:
    key = counter_key(1, Stream.SAMPLES, round)
    group = np.array(clients)
    counts = training.n_negatives, training.local_epochs
    return draw_samples(data, group, *counts, key, training.pairwise)


def samples_of(data: ClientData, clients, training=TRAINING) -> list[Sample]:
    return [Sample(*draw(data, [client], training).of(0)) for client in clients]


def naive_client(model, client, sample, training, mapping=None):
    """One client, one sample after the other into a batch, autograd on full tables."""
    user = model.users[client].clone().requires_grad_()
    table = model.tables[0].clone().requires_grad_()
    theta = {
        name: value.clone().requires_grad_() for name, value in model._theta.items()
    }
    leaves = [user, table, *theta.values()]
    for rows, labels in zip(sample.rows, sample.labels, strict=True):
        for start in range(0, len(rows), training.batch_size):
            own = slice(start, start + training.batch_size)
            items = torch.from_numpy(sample.ids[rows[own]])
            label = torch.from_numpy(labels[own])

            def slopes(leaves, items=items, label=label):
                user, table, *network = leaves
                named = zip(theta, network, strict=True)
                logits = model.score(
                    user[None, None],
                    table[items][None],
                    {name: value[None] for name, value in named},
                )[0]
                if training.pairwise:
                    pairs = logits.view(-1, 2)
                    loss = torch.log1p(torch.exp(pairs[:, 1] - pairs[:, 0])).sum()
                else:
                    loss = bce(logits, label, reduction="sum")
                user_slope, table_slope, *rest = torch.autograd.grad(loss, leaves)
                if mapping is not None:
                    table_slope = table_slope @ mapping
                return [user_slope, table_slope, *rest]

            gradients = slopes(leaves)
            if training.sharpness_aware:
                private, shared = gradients[:1], gradients[1:]
                uphill = [
                    training.rho_private * private[0] / (private[0].norm() + 1e-12),
                    *(
                        training.rho_shared
                        * gradient
                        / (sum(other.square().sum() for other in shared).sqrt() + 1e-12)
                        for gradient in shared
                    ),
                ]
                gradients = slopes(
                    [
                        (leaf.detach() + eps).requires_grad_()
                        for leaf, eps in zip(leaves, uphill, strict=True)
                    ]
                )
            with torch.no_grad():
                user -= training.user_learning_rate * gradients[0]
                table -= training.learning_rate * gradients[1]
                for value, gradient in zip(theta.values(), gradients[2:], strict=True):
                    count = len(label) // (1 + training.pairwise)
                    value -= training.theta_learning_rate * gradient / count
    changes = [theta[name] - model._theta[name] for name in theta]
    flat = torch.cat([change.flatten() for change in changes]) if changes else None
    return user.detach(), (table - model.tables[0]).detach(), flat


def train(
    model, data, clients, compiled, training=TRAINING, mapping=None, group=64, n_jobs=1
):
    starts = range(0, len(clients), group)
    groups = [draw(data, clients[start : start + group], training) for start in starts]
    with threads(n_jobs):
        return train_groups(model, clients, groups, compiled, training, mapping)


def train_groups(model, clients, groups, compiled, training, mapping):
    return train_cohort(
        model.score,
        torch.tensor(clients),
        groups,
        model.users[clients],
        model.tables,
        torch.zeros(len(clients), dtype=torch.int64),
        model.theta(),
        training,
        mapping,
        model.train_clients if compiled else None,
    )


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("rhos", [(0, 0), (0.3, 0.2), (0.3, 0), (0, 0.2)])
@pytest.mark.parametrize(("group", "n_jobs"), [(64, 1), (4, 1), (1, 3)])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [mf, ncf, partial(ncf, ()), partial(ncf, (5, 4, 3))])
def test_cohort_training_equals_a_naive_loop_over_clients(
    make, compiled, group, n_jobs, rhos, pairwise, data
):
    training = replace(
        TRAINING, rho_shared=rhos[0], rho_private=rhos[1], pairwise=pairwise
    )
    model, clients = make(), [0, 2, 3, 7, 8, 11]
    trained = train(
        model, data, clients, compiled, training, group=group, n_jobs=n_jobs
    )
    total = 0
    for index, client in enumerate(clients):
        sample = samples_of(data, [client], training)[0]
        total += sample.rows.size // (1 + pairwise)
        user, change, theta = naive_client(model, client, sample, training)
        update = trained.updates[index]
        torch.testing.assert_close(trained.user_rows[index], user, rtol=1e-4, atol=1e-5)
        dense = torch.zeros(N_ITEMS, DIM)
        dense[update.ids] = update.rows
        torch.testing.assert_close(dense, change, rtol=1e-4, atol=1e-5)
        assert update.ids.tolist() == sample.ids.tolist()
        if theta is not None:
            torch.testing.assert_close(
                trained.updates.theta[index], theta, rtol=1e-3, atol=1e-5
            )
    assert trained.n_samples == total


@pytest.mark.parametrize("pairwise", [False, True])
def test_slopes_are_those_of_the_loss_however_far_from_zero(pairwise):
    logits = torch.linspace(-45, 45, 92)[:, None].requires_grad_()
    labels = (torch.arange(92) % 3 == 0).float()
    if pairwise:
        order = torch.stack([torch.arange(91, 45, -1), torch.arange(46)], 1).flatten()
        logits = logits.detach()[order].requires_grad_()
        loss = -torch.nn.functional.logsigmoid(logits[::2] - logits[1::2]).sum()
    else:
        loss = bce(logits[:, 0], labels, reduction="sum")
    (expected,) = torch.autograd.grad(loss, logits)
    slopes = np.empty((92, 1), np.float32)
    own = _losses(logits.detach().numpy(), labels.numpy(), pairwise, slopes)
    assert own == pytest.approx(loss.item(), rel=1e-5)
    atol = 0 if pairwise else 1e-7
    np.testing.assert_allclose(slopes, expected.numpy(), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("rho", [0, 0.3])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [mf, ncf])
def test_gradients_of_items_are_mapped(make, compiled, rho, data):
    training, model = replace(TRAINING, rho_shared=rho, rho_private=rho), make()
    mapping = torch.randn(DIM, DIM, generator=torch.Generator().manual_seed(1))
    trained = train(model, data, [5], compiled, training, mapping)
    sample = samples_of(data, [5], training)[0]
    user, change, _ = naive_client(model, 5, sample, training, mapping)
    torch.testing.assert_close(trained.user_rows[0], user, rtol=1e-4, atol=1e-5)
    rows = trained.updates[0].rows
    torch.testing.assert_close(rows, change[sample.ids], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("make", [mf, ncf])
def test_a_client_does_not_depend_on_his_cohort(make, compiled, data):
    together = train(make(), data, [1, 4, 9], compiled)
    alone = train(make(), data, [4], compiled)
    pairs = [
        (together.user_rows[1], alone.user_rows[0]),
        (together.updates[1].rows, alone.updates[0].rows),
        (together.updates.theta[1], alone.updates.theta[0]),
    ]
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        assert torch.equal(one, other) or not compiled


@pytest.mark.parametrize("make", [mf, ncf])
def test_both_paths_send_as_many_bytes_and_learn_the_same(make, data):
    results = []
    for compiled in (True, False):
        model = make()
        model.train_clients = model.train_clients if compiled else None
        simulation = Simulation(
            model, data, NoCompression(), NoCompression(), federation(0.5), TRAINING
        )
        with torch.no_grad():
            reports = [simulation.run_round() for _ in range(3)]
        results.append((model, [report.bytes for report in reports]))
    (one, sizes), (other, other_sizes) = results
    assert sizes == other_sizes
    torch.testing.assert_close(one.tables, other.tables, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.users, other.users, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [mf, ncf])
def test_a_cohort_in_parts_and_threads_gives_the_same_bits(make, data, monkeypatch):
    """However much memory and however many cores there are."""
    results = []
    monkeypatch.setattr(rounds, "GROUP", 2)
    for part_bytes, n_jobs in ((2**28, 1), (1, 3), (4000, 2)):
        monkeypatch.setattr(rounds, "PART_BYTES", part_bytes)
        model = make()
        simulation = Simulation(
            model, data, FedRAS(), FedRAS(), federation(1.0, (0.75,)), TRAINING, n_jobs
        )
        with torch.no_grad():
            parts = len(simulation._parts(np.arange(N_CLIENTS)))
            for _ in range(3):
                report = simulation.run_round()
        state = [model.tables, model.users, *model.theta().values()]
        results.append((parts, report.bytes, report.loss, state))
    first = results[0]
    assert [parts for parts, *_ in results] == [1, 6, 4]
    for _, sizes, loss, state in results[1:]:
        assert (sizes, loss) == (first[1], pytest.approx(first[2], rel=1e-12))
        assert all(map(torch.equal, state, first[3]))


@pytest.mark.parametrize("compiled", [False, True])
def test_colr_trains_the_factor(compiled, data):
    """Training A explicitly, W = W0 + A B, gives the same iterates as the map."""
    budget, ctx = Budget(N_ITEMS, DIM, 0.75), RoundContext(0, 1, N_ITEMS, DIM)
    mapping = CoLR().gradient_map(budget, ctx)
    model, rank = mf(), 2
    trained = train(model, data, [5], compiled, mapping=mapping)
    # B up to rotation, which the iterates do not depend on: B'B = mapping sqrt(d/r).
    values, vectors = torch.linalg.eigh(mapping.double() * (DIM / rank) ** 0.5)
    basis = (vectors[:, -rank:] * values[-rank:].sqrt()).T.float()
    torch.testing.assert_close(
        basis @ basis.T, torch.eye(rank) * DIM / rank, rtol=1e-4, atol=1e-4
    )
    user = model.users[5].clone().requires_grad_()
    factor = torch.zeros(N_ITEMS, rank, requires_grad=True)
    sample = samples_of(data, [5])[0]
    for rows, labels in zip(sample.rows, sample.labels, strict=True):
        for start in range(0, len(rows), TRAINING.batch_size):
            own = slice(start, start + TRAINING.batch_size)
            items = torch.from_numpy(sample.ids[rows[own]])
            logits = ((model.tables[0] + factor @ basis)[items] * user).sum(1)
            loss = bce(logits, torch.from_numpy(labels[own]), reduction="sum")
            user_gradient, gradient = torch.autograd.grad(loss, [user, factor])
            with torch.no_grad():
                user -= TRAINING.user_learning_rate * user_gradient
                factor -= TRAINING.learning_rate * (rank / DIM) ** 0.5 * gradient
    expected = (factor @ basis).detach()[torch.from_numpy(sample.ids)]
    torch.testing.assert_close(trained.updates[0].rows, expected, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(
        trained.user_rows[0], user.detach(), rtol=1e-4, atol=1e-5
    )


def federation(fraction=1.0, rates=(0.0,), aggregation="inverse_frequency", **keys):
    return Federation(1, fraction, rates, aggregation, **keys)


def test_everybody_one_step_no_compression_is_central_descent(data):
    """FedAvg of one full-batch step each is one step on the mean of all losses."""
    training = LocalTraining(
        0.1, 0.1, 0.1, local_epochs=1, batch_size=10**6, n_negatives=4
    )
    model = mf()
    simulation = Simulation(
        model,
        data,
        NoCompression(),
        NoCompression(),
        federation(aggregation="fedavg"),
        training,
    )
    users = model.users.clone().requires_grad_()
    table = model.tables[0].clone().requires_grad_()
    loss = torch.zeros(())
    for client, sample in enumerate(samples_of(data, range(N_CLIENTS), training)):
        items = torch.from_numpy(sample.ids[sample.rows[0]])
        logits = table[items] @ users[client]
        loss = loss + bce(logits, torch.from_numpy(sample.labels[0]), reduction="sum")
    loss.backward()
    with torch.no_grad():
        simulation.run_round()
    torch.testing.assert_close(
        model.users, users.detach() - 0.1 * users.grad, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        model.tables[0], (table - 0.1 * table.grad / N_CLIENTS).detach(),
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip


def mean_of(updates, aggregation):
    mean = RowMean(5, 1, aggregation)
    for update in updates:
        mean.add(update)
    return mean.update()


def test_inverse_frequency_is_the_mean_over_those_who_trained_the_item():
    updates = [
        RowUpdate(torch.tensor([0, 2]), torch.tensor([[1.0], [2.0]])),
        RowUpdate(torch.tensor([2, 3]), torch.tensor([[4.0], [8.0]])),
        RowUpdate(torch.tensor([2]), torch.tensor([[6.0]])),
    ]
    mean = mean_of(updates, "inverse_frequency")
    assert mean.ids.tolist() == [0, 2, 3]
    assert mean.rows.flatten().tolist() == [1.0, 4.0, 8.0]
    plain = mean_of(updates, "fedavg")
    torch.testing.assert_close(plain.rows.flatten(), torch.tensor([1 / 3, 4.0, 8 / 3]))


def test_fedras_with_room_for_all_rows_equals_none(data):
    tables = []
    for compressor in (NoCompression(), FedRAS()):
        model = mf()
        simulation = Simulation(
            model, data, compressor, compressor, federation(0.5), TRAINING
        )
        with torch.no_grad():
            for _ in range(3):
                simulation.run_round()
        tables.append((model.tables.clone(), model.users.clone()))
    assert torch.equal(tables[0][0], tables[1][0])
    assert torch.equal(tables[0][1], tables[1][1])


@pytest.mark.parametrize("make", [mf, ncf])
@pytest.mark.parametrize("name", NAMES)
def test_rounds_change_only_the_cohorts_private_rows_and_book_every_byte(
    name, make, data
):
    path = registry.read_properties("compressor", name)["compressor_class"]
    compressor = registry.load_class("compressor_class", path, Compressor)()
    model = make()
    simulation = Simulation(
        model, data, compressor, compressor, federation(0.25, (0.75,)), TRAINING
    )
    n_theta = sum(value.numel() for value in model.theta().values())
    with torch.no_grad():
        for round in range(3):
            users = model.users.clone()
            sent_down = simulation.replicas.messages[0]
            report = simulation.run_round()
            chosen = select_cohort(data.eligible, 3, 1, round)
            changed = (model.users != users).any(1).nonzero().flatten()
            assert changed.tolist() == chosen.tolist()
            booked = report.bytes
            assert booked["downlink_bytes"] == 3 * len(sent_down.data)
            assert booked["uplink_theta_bytes"] == 3 * 4 * n_theta
            for direction in ("uplink", "downlink"):
                parts = ("items", "ids", "theta", "framing")
                assert booked[f"{direction}_bytes"] == sum(
                    booked[f"{direction}_{part}_bytes"] for part in parts
                )
    flat = [value.flatten() for value in model.theta().values()]
    if flat:
        assert torch.equal(torch.cat(flat), simulation.server.theta)


def test_replica_of_an_exact_compressor_is_the_servers_table(data):
    model = mf()
    simulation = Simulation(
        model, data, NoCompression(), NoCompression(), federation(0.5), TRAINING
    )
    with torch.no_grad():
        for _ in range(4):
            report = simulation.run_round()
    assert torch.equal(model.tables[0], simulation.server.item_table)
    assert report.metrics["drift"] == 0


def test_catch_up_is_what_a_client_missed_but_at_most_the_table(data):
    """A participant of round t who last took part in s missed downlinks s to t - 2."""
    model = mf()
    simulation = Simulation(
        model, data, FedRAS(), FedRAS(), federation(0.25, (0.75,)), TRAINING
    )
    dense = simulation.replicas.dense_bytes
    sizes, last = [], {}
    with torch.no_grad():
        for round in range(12):
            expected = 0
            for client in select_cohort(data.eligible, 3, 1, round).tolist():
                missed = sum(sizes[last.get(client, 0) : max(round - 1, 0)])
                expected += min(missed, dense)
                last[client] = round
            report = simulation.run_round()
            sizes.append(len(simulation.replicas.messages[0].data))
            assert report.bytes["catch_up_bytes"] == expected
    assert simulation.ledger.totals["catch_up_bytes"] > 0


def test_tiers_hold_their_own_replicas(data):
    model = mf()
    rates = (0.2, 0.6, 0.9)
    simulation = Simulation(
        model, data, FedRAS(), FedRAS(), federation(0.5, rates), TRAINING
    )
    with torch.no_grad():
        for _ in range(3):
            simulation.run_round()
    drift = [simulation.server.drift(table) for table in model.tables]
    assert len(model.tables) == 3
    assert drift == sorted(drift)
    assert drift[0] < drift[2]


def test_divergence_stops_before_anything_changes(data):
    model = mf(std=50.0)
    training = LocalTraining(1e30, 1e30, 1.0, 2, 16, 4)
    simulation = Simulation(
        model, data, NoCompression(), NoCompression(), federation(0.5), training
    )
    users, table = model.users.clone(), model.tables.clone()
    with torch.no_grad(), pytest.raises(NonFiniteError, match="round 0"):
        simulation.run_round()
    assert torch.equal(model.users, users)
    assert torch.equal(model.tables, table)
    assert simulation.round == 0


def test_another_score_does_not_inherit_compiled_training():
    class Halved(MF):
        def score(self, user_rows, item_rows, theta):
            return super().score(user_rows, item_rows, theta) / 2

    class Renamed(MF):
        pass

    class Half:
        score = Halved.score

    class Mixed(Half, MF):
        pass

    class Larger(NCF):
        def __init__(self, config, dataset):
            super().__init__(config, dataset)
            self.scale = torch.nn.Parameter(torch.ones(1))

    class Claimed(Larger):
        train_clients = NCF.train_clients

    assert Halved.train_clients is None
    assert Mixed.train_clients is None
    assert Larger.train_clients is None
    assert Claimed.train_clients is NCF.train_clients
    assert Renamed.train_clients is MF.train_clients


@pytest.mark.parametrize("compiled", [False, True])
def test_a_batch_larger_than_all_samples_is_the_whole_epoch(compiled, data):
    whole = LocalTraining(0.01, 0.01, 0.01, 2, 10**12, 4)
    exact = LocalTraining(0.01, 0.01, 0.01, 2, 5 * N_ITEMS, 4)
    pairs = [train(mf(), data, [1, 4], compiled, own) for own in (whole, exact)]
    assert torch.equal(*(trained.updates.rows for trained in pairs))
