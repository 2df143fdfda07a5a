"""Rounds against their definition: what is averaged, booked, held and caught up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from methods import NAMES, make
from population import (
    N_CLIENTS,
    N_ITEMS,
    TRAINING,
    mf,
    ncf,
    note_messages,
    samples_of,
    simulate,
    tables,
)
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from recbole_fedras.compressor import RowUpdate
from recbole_fedras.compressor.fedras.fedras import FedRAS
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.errors import NonFiniteError
from recbole_fedras.federation import protocol
from recbole_fedras.federation.client import cohort
from recbole_fedras.federation.server.aggregation import FedAvg, InverseFrequency
from recbole_fedras.federation.server.selection import select_cohort
from recbole_fedras.federation.settings import LocalTraining
from recbole_fedras.wire.message import Kind


@pytest.mark.parametrize("make_model", [mf, ncf])
def test_both_paths_send_as_many_bytes_and_learn_the_same(make_model, data):
    results = []
    for compiled in (True, False):
        model = make_model()
        model.train_clients = model.train_clients if compiled else None
        simulation = simulate(model, data, NoCompression(), fraction=0.5, rates=(0.0,))
        reports = [simulation.run_round() for _ in range(3)]
        results.append((simulation, [report.bytes for report in reports]))
    (one, sizes), (other, other_sizes) = results
    assert sizes == other_sizes
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(tables(one), tables(other), **close)
    torch.testing.assert_close(one.shard.user_rows, other.shard.user_rows, **close)


@pytest.mark.parametrize("make_model", [mf, ncf])
def test_a_cohort_in_parts_and_threads_gives_the_same_bits(
    make_model, data, monkeypatch
):
    """However much memory and however many cores there are."""
    results = []
    monkeypatch.setattr(protocol, "GROUP", 2)
    for part_bytes, n_jobs in ((2**28, 1), (1, 3), (4000, 2)):
        monkeypatch.setattr(cohort, "PART_BYTES", part_bytes)
        model = make_model()
        simulation = simulate(model, data, FedRAS(), fraction=1.0, n_jobs=n_jobs)
        invitations = simulation.server.invite()
        agreement = simulation.agreement
        parts = len(list(cohort.parts(invitations, agreement, data, TRAINING, 1)))
        for _ in range(3):
            report = simulation.run_round()
        state = [
            tables(simulation),
            model.user_rows(),
            simulation.server.parameters.theta,
        ]
        results.append((parts, report.bytes, report.loss, state))
    first = results[0]
    assert [parts for parts, *_ in results] == [1, 6, 5]
    for _, sizes, loss, state in results[1:]:
        assert (sizes, loss) == (first[1], first[2])
        assert all(map(torch.equal, state, first[3]))


def test_everybody_one_step_no_compression_is_central_descent(data):
    """FedAvg of one full-batch step each is one step on the mean of all losses."""
    training = LocalTraining(
        0.1, 0.1, 0.1, local_epochs=1, batch_size=10**6, n_negatives=4
    )
    model = mf()
    users = model.user_rows().clone().requires_grad_()
    table = model.item_table().clone().requires_grad_()
    simulation = simulate(
        model, data, NoCompression(), training, 1.0, aggregation="fedavg", rates=(0.0,)
    )
    loss = torch.zeros(())
    for client, sample in enumerate(samples_of(data, range(N_CLIENTS), training)):
        items = torch.from_numpy(sample.ids[sample.rows[0]])
        logits = table[items] @ users[client]
        loss = loss + bce(logits, torch.from_numpy(sample.labels[0]), reduction="sum")
    loss.backward()
    report = simulation.run_round()
    close = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(
        model.user_rows(), users.detach() - 0.1 * users.grad, **close
    )
    torch.testing.assert_close(
        tables(simulation)[0], (table - 0.1 * table.grad / N_CLIENTS).detach(), **close
    )
    n_samples = 5 * len(data.items)
    assert report.loss == pytest.approx(float(loss.detach()) / n_samples)


def mean_of(updates, aggregator):
    aggregator.begin(torch.zeros(5, 1))
    for client, update in enumerate(updates):
        aggregator.add(client, update, torch.full((2,), float(client)))
    return aggregator.result()


def test_inverse_frequency_is_the_mean_over_those_who_trained_the_item():
    updates = [
        RowUpdate(torch.tensor([0, 2]), torch.tensor([[1.0], [2.0]])),
        RowUpdate(torch.tensor([2, 3]), torch.tensor([[4.0], [8.0]])),
        RowUpdate(torch.tensor([2]), torch.tensor([[6.0]])),
    ]
    mean, theta = mean_of(updates, InverseFrequency())
    assert mean.ids.tolist() == [0, 2, 3]
    assert mean.rows.flatten().tolist() == [1.0, 4.0, 8.0]
    assert theta.tolist() == [1.0, 1.0]
    plain, theta = mean_of(updates, FedAvg())
    torch.testing.assert_close(plain.rows.flatten(), torch.tensor([1 / 3, 4.0, 8 / 3]))
    assert theta.tolist() == [1.0, 1.0]


def test_fedras_with_room_for_all_rows_equals_none(data):
    ended = []
    for compressor in (NoCompression(), FedRAS()):
        simulation = simulate(mf(), data, compressor, fraction=0.5, rates=(0.0,))
        for _ in range(3):
            simulation.run_round()
        ended.append((tables(simulation), simulation.shard.user_rows))
    assert torch.equal(ended[0][0], ended[1][0])
    assert torch.equal(ended[0][1], ended[1][1])


@pytest.mark.parametrize("make_model", [mf, ncf])
@pytest.mark.parametrize("name", NAMES)
def test_rounds_change_only_the_cohorts_private_rows_and_book_every_byte(
    name, make_model, data
):
    model = make_model()
    simulation = simulate(model, data, make(name))
    n_theta = len(simulation.server.parameters.theta)
    for round in range(3):
        users = model.user_rows().clone()
        sent_down = simulation.server.policy.messages[0]
        report = simulation.run_round()
        chosen = select_cohort(data.eligible, 3, 1, round)
        changed = (model.user_rows() != users).any(1).nonzero().flatten()
        assert changed.tolist() == chosen.tolist()
        booked, receipts = report.bytes, simulation.server.receipts()
        newest = [len(sent_down.to(client)) for client in chosen.tolist()]
        assert booked["downlink_bytes"] == sum(newest) + sum(map(len, receipts))
        assert booked["downlink_messages"] == 2 * 3
        assert booked["uplink_messages"] == 3
        assert booked["uplink_theta_bytes"] == 3 * 4 * n_theta
        for direction in ("uplink", "downlink"):
            parts = ("items", "ids", "theta", "framing")
            assert booked[f"{direction}_bytes"] == sum(
                booked[f"{direction}_{part}_bytes"] for part in parts
            )
    assert torch.equal(
        simulation.shard.replicas.theta, simulation.server.parameters.theta
    )


@pytest.mark.parametrize("replica", ["broadcast", "stale", "personal"])
def test_clients_send_of_the_rows_that_they_were_told(replica, data, monkeypatch):
    """A client encodes with what it was sent in this very round at hand."""
    simulation = simulate(mf(), data, make("RandomRows"), replica=replica)
    for _ in range(4):
        booked = note_messages(simulation, monkeypatch)
        simulation.run_round()
        told, n_rows = {}, 0
        for message in booked:
            client, payload = message.header.client, message.payload
            if message.header.kind in (Kind.DOWNLINK, Kind.PERSONAL):
                told[client] = set(payload.rows("selected", N_ITEMS).tolist())
            elif message.header.kind is Kind.UPDATE:
                rows = payload.rows("rows", N_ITEMS).tolist()
                assert set(rows) <= told.pop(client)
                n_rows += len(rows)
        assert not told
        assert n_rows


def test_replica_of_an_exact_compressor_is_the_servers_table(data):
    simulation = simulate(mf(), data, NoCompression(), fraction=0.5, rates=(0.0,))
    for _ in range(4):
        report = simulation.run_round()
    assert torch.equal(tables(simulation)[0], simulation.server.parameters.item_table)
    assert report.metrics["drift"] == 0


def test_catch_up_is_what_a_client_missed_but_at_most_the_table(data):
    """Who takes part in round t and last did in s has missed s + 1 to t - 1."""
    simulation = simulate(mf(), data, FedRAS())
    policy = simulation.server.policy
    sizes, last, tables_sent = [], {}, 0
    for round in range(24):
        expected = messages = 0
        for client in select_cohort(data.eligible, 3, 1, round).tolist():
            missed = [
                size + len(policy.messages[0].to(client).head)
                for size in sizes[last.get(client, 0) : max(round - 1, 0)]
            ]
            whole = policy._size_of_table
            if sum(missed) > whole:
                message = policy._table(0).to(client)
                expected, messages = expected + len(message), messages + 1
                tables_sent += 1
            else:
                expected, messages = expected + sum(missed), messages + len(missed)
            last[client] = round
        report = simulation.run_round()
        sizes.append(len(policy.messages[0].body))
        assert report.bytes["catch_up_bytes"] == expected
        assert report.bytes["catch_up_messages"] == messages
    assert simulation.ledger.totals["catch_up_bytes"] > 0
    assert tables_sent > 0


def test_tiers_hold_their_own_replicas(data):
    simulation = simulate(mf(), data, FedRAS(), fraction=0.5, rates=(0.2, 0.6, 0.9))
    for _ in range(3):
        simulation.run_round()
    server = simulation.server.parameters
    drift = [server.drift(table) for table in tables(simulation)]
    assert len(drift) == 3
    assert drift == sorted(drift)
    assert drift[0] < drift[2]


def test_divergence_stops_before_anything_changes(data):
    model = mf(std=50.0)
    training = LocalTraining(1e30, 1e30, 1.0, 2, 16, 4)
    simulation = simulate(model, data, NoCompression(), training, rates=(0.0,))
    users, before = model.user_rows().clone(), tables(simulation).clone()
    with pytest.raises(NonFiniteError, match="round 0"):
        simulation.run_round()
    assert torch.equal(model.user_rows(), users)
    assert torch.equal(tables(simulation), before)
    assert simulation.round == 0


def test_a_client_draws_its_private_row_of_its_own_number():
    """So a shard draws its own clients' only."""
    model = mf()
    everybody = model.initial_users(np.arange(N_CLIENTS))
    some = model.initial_users(np.array([3, 7]))
    assert torch.equal(everybody[[3, 7]], some)
    assert torch.equal(everybody, model.user_rows())
    many = mf(std=1.0).initial_users(np.arange(40_000)).numpy()
    assert abs(many.mean()) < 5e-3
    assert abs(many.std() - 1) < 5e-3
    correlated = np.corrcoef(many.T) - np.eye(many.shape[1])
    assert abs(correlated).max() < 0.03
    assert abs(np.corrcoef(many[1:, 0], many[:-1, 0])[0, 1]) < 0.03
