"""Rounds against their definition: what is averaged, booked, held and caught up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from methods import NAMES
from population import N_CLIENTS, TRAINING, federation, mf, ncf, samples_of
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from recbole_fedras.compressor import Compressor, RowUpdate
from recbole_fedras.compressor.fedras.fedras import FedRAS
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.config import registry
from recbole_fedras.errors import NonFiniteError
from recbole_fedras.federation import simulation as rounds
from recbole_fedras.federation.server.aggregation import RowMean
from recbole_fedras.federation.server.selection import select_cohort
from recbole_fedras.federation.settings import LocalTraining
from recbole_fedras.federation.simulation import Simulation


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
