"""Replica policies, versions and error feedback, each against its definition."""

from __future__ import annotations

import copy
import shutil
import tempfile

import numpy as np
import pytest
import torch
from methods import NAMES, make
from population import DIM, N_CLIENTS, N_ITEMS, mf, ncf, simulate
from recbole_fedras.federation.client.store import ClientTables

from recbole_fedras.compressor.fedras.fedras import FedRAS
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.compressor.topk import TopK
from recbole_fedras.errors import (
    ConfigError,
    NonFiniteError,
    PayloadError,
    VersionError,
)
from recbole_fedras.federation import personal
from recbole_fedras.federation.server.selection import select_cohort
from recbole_fedras.federation.settings import LocalTraining
from recbole_fedras.numeric.memory import mapped_zeros
from recbole_fedras.wire.message import Message
from recbole_fedras.wire.payload import Payload

LOSSY = ("TopK", "FedRAS", "SVD")


def cohort_of(data, round):
    return torch.from_numpy(select_cohort(data.eligible, 3, 1, round))


def held_by(model, client):
    return model.tables[model.replica[client]]


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


# Versions.


def test_a_message_on_another_base_is_refused():
    payload = Payload().put_floats("values", np.zeros(3, np.float32))
    message = Message(Message.of(payload, 7, 6).data)
    assert message.open(6, 1000).floats("values", 3).shape == (3,)
    with pytest.raises(VersionError, match=r"from version 6 to 7.*holds version 4"):
        message.open(4, 1000)
    with pytest.raises(PayloadError, match=f"{len(message.data)} bytes, of at most 9"):
        message.open(6, 9)
    anywhere = Message(Message.of(payload, 7, None).data)
    assert anywhere.base is None
    assert anywhere.open(4, 1000).floats("values", 3).shape == (3,)


@pytest.mark.parametrize(
    "header", [(-1, None), (1, -1), (1, 2.0), ("1", 0), (2**63, 0)]
)
def test_versions_are_counts(header):
    import msgpack

    with pytest.raises(PayloadError):
        Message(msgpack.packb((*header, ()))).open(0, 1000)


def test_personal_downlinks_lead_from_what_the_client_holds(data, monkeypatch):
    simulation = simulate(mf(), data, TopK(), replica="personal")
    sent, send = [], simulation._channel.send

    def note(direction, message, receivers=1):
        if direction == "downlink":
            sent.append(message)
        return send(direction, message, receivers)

    monkeypatch.setattr(simulation._channel, "send", note)
    held: dict[int, int] = {}
    for round in range(8):
        sent.clear()
        simulation.run_round()
        cohort = cohort_of(data, round).tolist()
        assert [message.version for message in sent] == [round] * 3
        assert [message.base for message in sent] == [held.get(c, 0) for c in cohort]
        held |= dict.fromkeys(cohort, round)
    simulation.replicas.held[:] += 1  # clients and server disagree
    monkeypatch.setattr(
        simulation.replicas, "_message", lambda payload, *_: Message.of(payload, 8, 99)
    )
    with pytest.raises(VersionError, match="from version 99 to 8"):
        simulation.run_round()


# Policies.


@pytest.mark.parametrize("make_model", [mf, ncf])
def test_stale_participants_alone_apply_what_is_sent(make_model, data):
    model = make_model()
    start = model.tables[0].clone()
    simulation = simulate(model, data, NoCompression(), replica="stale")
    expected = {client: start.clone() for client in range(N_CLIENTS)}
    network = {client: simulation.server.theta.clone() for client in range(N_CLIENTS)}
    newest = None
    for round in range(8):
        before, theta = simulation.server.item_table.clone(), simulation.server.theta
        theta = theta.clone()
        report = simulation.run_round()
        for client in cohort_of(data, round).tolist():
            if newest is not None:
                expected[client] += newest
            network[client] = theta
        newest = simulation.server.item_table - before
        assert report.bytes["catch_up_bytes"] == 0
        assert report.bytes["downlink_messages"] == 3
    for client, table in expected.items():
        torch.testing.assert_close(held_by(model, client), table)
        assert torch.equal(model.networks[model.replica[client]], network[client])


@pytest.mark.parametrize("name", NAMES)
def test_personal_replicas_and_what_they_lack_are_the_servers_table(name, data):
    """Law: what is decoded and what is still owed are what was to be sent."""
    model = mf()
    simulation = simulate(model, data, make(name), replica="personal")
    for round in range(8):
        table = simulation.server.item_table.clone()
        cohort = cohort_of(data, round).tolist()
        before = {client: held_by(model, client).clone() for client in cohort}
        others = {
            client: held_by(model, client).clone()
            for client in set(range(N_CLIENTS)) - set(cohort)
        }
        report = simulation.run_round()
        for client in cohort:
            held = held_by(model, client)
            if name == "none":
                torch.testing.assert_close(held, table)
            elif name not in ("CoLR", "CE"):  # random subspaces, whole tables
                due = (table - before[client]).norm()
                assert (table - held).norm() <= 1.1 * due + 1e-6
        for client, held in others.items():
            assert torch.equal(held_by(model, client), held)
        assert report.bytes["downlink_messages"] == 3
        assert report.bytes["catch_up_bytes"] == 0


def test_personal_replicas_get_the_budget_of_their_tier(data):
    model = mf()
    simulation = simulate(
        model, data, TopK(), replica="personal", rates=(0.0, 0.875), fraction=1.0
    )
    for _ in range(3):
        simulation.run_round()
    tiers = simulation._tier_of_client
    drift = [
        simulation.server.drift(held_by(model, client)) for client in range(N_CLIENTS)
    ]
    drift = torch.tensor(drift)
    assert drift[tiers == 0].max() < drift[tiers == 1].min()


def test_personal_replicas_do_not_depend_on_the_chunks(data, monkeypatch):
    tables = []
    for size in (2**27, 1):
        monkeypatch.setattr(personal, "CHUNK_BYTES", size)
        model = mf()
        simulation = simulate(model, data, FedRAS(), replica="personal")
        for _ in range(4):
            simulation.run_round()
        tables.append([held_by(model, client) for client in range(N_CLIENTS)])
    for one, other in zip(*tables, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "keys", [{"replica": "stale"}, {"rates": (0.5, 0.75)}], ids=["stale", "tiers"]
)
def test_a_method_of_tables_needs_one_that_all_hold(keys, data):
    with pytest.raises(ValueError, match="needs to know the receiver's table"):
        simulate(mf(), data, make("CE"), **keys)


def test_ce_sends_groups_of_embeddings(data):
    """Every client's replica has C_m different rows at most; updates' would add up."""
    model = mf()
    simulation = simulate(model, data, make("CE"), downlink_feedback=True, fraction=1.0)
    for _ in range(4):
        simulation.run_round()
        rows = model.tables[0][simulation.server.item_table.ne(0).any(1)]
        assert len(torch.unique(rows.round(decimals=4), dim=0)) <= 12  # C_m of C_e = 10


# Feedback.


@pytest.mark.parametrize("rates", [(0.75,), (0.5, 0.75)])
@pytest.mark.parametrize("name", NAMES)
def test_downlink_feedback_sends_all_that_replicas_lack(name, rates, data, monkeypatch):
    """Law: what is decoded and what is still owed are what was to be sent."""
    compressor = make(name)
    if not compressor.heterogeneous or name == "CE":
        rates = (0.75,)
    drift = {}
    encode = type(compressor).encode_broadcast
    for feedback in (False, True):
        model, sent = mf(), []

        def note(self, update, budgets, ctx, sent=sent):
            sent.append(update)
            return encode(self, update, budgets, ctx)

        monkeypatch.setattr(type(compressor), "encode_broadcast", note)
        simulation = simulate(
            model, data, compressor, rates=rates, downlink_feedback=feedback
        )
        for _ in range(8):
            sent.clear()
            before = model.tables.clone()
            report = simulation.run_round()
            table = simulation.server.item_table
            for tier, update in enumerate(sent if feedback else []):
                due = torch.zeros(N_ITEMS, DIM)
                due[update.ids] = update.rows
                torch.testing.assert_close(due, table - before[tier])
                decoded = model.tables[tier] - before[tier]
                owed = table - model.tables[tier]
                torch.testing.assert_close(decoded + owed, due)
        drift[feedback] = report.metrics["drift"]
    if name in LOSSY:
        assert drift[True] < 0.9 * drift[False]


@pytest.mark.parametrize("name", NAMES)
def test_uplink_feedback_keeps_what_was_not_sent(name, data, monkeypatch):
    """Law: sent plus residual are the update plus the residual before."""
    model, compressor = mf(), make(name)
    simulation = simulate(model, data, compressor, uplink_feedback=True)
    trained = {}
    add_to = simulation.feedback.add_to

    def note(updates):
        for index, client in enumerate(updates.clients.tolist()):
            own = updates[index]
            trained[client] = (own.ids.clone(), own.rows.clone())
        add_to(updates)

    monkeypatch.setattr(simulation.feedback, "add_to", note)
    decode, decoded = compressor.decode, []

    def note_decoded(payload, ctx):
        decoded.append((ctx.sender, decode(payload, ctx)))
        return decoded[-1][1]

    monkeypatch.setattr(compressor, "decode", note_decoded)
    kept = 0.0
    for _ in range(8):
        decoded.clear()
        residuals = torch.stack(
            [simulation.feedback.residual(client) for client in range(N_CLIENTS)]
        ).clone()
        simulation.run_round()
        for client, update in decoded:
            ids, rows = trained[client]
            due = residuals[client].clone()
            due[ids] += rows
            arrived = torch.zeros(N_ITEMS, DIM)
            arrived[update.ids] = update.rows
            after = simulation.feedback.residual(client)
            torch.testing.assert_close(arrived + after, due, rtol=1e-4, atol=1e-5)
            untouched = torch.ones(N_ITEMS, dtype=torch.bool)
            untouched[ids] = False
            assert torch.equal(after[untouched], residuals[client][untouched])
            kept += float(after.norm())
    assert (kept > 0) == (name != "none")


# Rounds that fail, checkpoints.


def state_of(simulation):
    """Everything in force; slots that nobody holds may have changed."""
    state = copy.deepcopy(simulation.state_dict())
    clients = range(N_CLIENTS)
    state["feedback"] = [simulation.feedback.residual(u).clone() for u in clients]
    return state


def fail(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["training", "decoding", "publishing", "committing"])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"replica": "stale"},
        {"replica": "personal"},
        {"downlink_feedback": True, "rates": (0.5, 0.75)},
    ],
)
def test_a_round_that_fails_leaves_nothing(keys, where, data, monkeypatch):
    model = ncf()
    simulation = simulate(
        model, data, FedRAS(), uplink_feedback=True, fraction=0.5, **dict(keys)
    )
    for _ in range(4):
        simulation.run_round()
    before = state_of(simulation)
    held = [held_by(model, client).clone() for client in range(N_CLIENTS)]
    users, theta = model.users.clone(), copy.deepcopy(model.theta())
    with monkeypatch.context() as patch:
        if where == "training":
            bad = LocalTraining(1e30, 1e30, 1.0, 2, 16, 4)
            patch.setattr(simulation, "training", bad)
        elif where == "decoding":
            patch.setattr(simulation.uplink, "decode", fail)
        elif where == "publishing":
            publish = simulation.replicas.publish

            def publish_and_fail(update):
                publish(update)
                fail()

            patch.setattr(simulation.replicas, "publish", publish_and_fail)
        else:
            patch.setattr(simulation, "_commit", fail)
        with pytest.raises((NonFiniteError, KeyboardInterrupt)):
            simulation.run_round()
    torch.testing.assert_close(state_of(simulation), before, rtol=0, atol=0)
    assert torch.equal(model.users, users)
    for name, value in model.theta().items():
        assert torch.equal(value, theta[name])
    for client, table in enumerate(held):
        assert torch.equal(held_by(model, client), table)
    simulation.run_round()


@pytest.mark.parametrize("make_model", [mf, ncf])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"replica": "stale"},
        {"replica": "personal"},
        {"downlink_feedback": True, "rates": (0.5, 0.75)},
        {"uplink_feedback": True},
        {"budget": "wire", "rates": (0.5,), "downlink_feedback": True},
    ],
)
def test_state_restores_to_the_bit(keys, make_model, data):
    def fresh():
        model = make_model()
        return model, simulate(model, data, FedRAS(), fraction=0.5, **dict(keys))

    model, simulation = fresh()
    for _ in range(6):
        simulation.run_round()
    half_model, half = fresh()
    for _ in range(3):
        half.run_round()
    resumed_model, resumed = fresh()
    for name in ("tables", "users", "replica", "networks"):
        if getattr(half_model, name) is not None:
            getattr(resumed_model, name).copy_(getattr(half_model, name))
    for name, value in half_model.theta().items():
        resumed_model.theta()[name].copy_(value)
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    for _ in range(3):
        resumed.run_round()
    for client in range(N_CLIENTS):
        assert torch.equal(held_by(resumed_model, client), held_by(model, client))
    assert torch.equal(resumed_model.users, model.users)
    assert resumed.ledger.totals == simulation.ledger.totals


def test_client_tables_change_all_or_none():
    slots = mapped_zeros(1 + 3 + 2, 2, 2)
    slots[0] = 5.0
    owner = torch.zeros(3, dtype=torch.int64)
    store = ClientTables(slots, owner)
    for _ in range(4):  # slots are used again
        store.slots[store.renew(1)] += 1
        store.rollback()
    assert owner.tolist() == [0, 0, 0]
    for value in range(1, 5):
        new = [store.renew(1), store.renew(2)]
        store.slots[new] += 1
        assert store.slots_of(torch.tensor([0, 1])).tolist() == [0, new[0]]
        store.commit()
        assert store.slots[owner[1]].unique().tolist() == [5.0 + value]
        assert store.slots[owner[2]].unique().tolist() == [5.0 + value]
    assert store.slots[0].unique().tolist() == [5.0]


def test_mapped_memory_takes_no_space_until_it_is_written():
    before = shutil.disk_usage(tempfile.gettempdir()).free
    tables = mapped_zeros(2000, 1000, 100)  # 0.8 GB
    tables[1999, 3, 7] = 2.0
    assert float(tables[1999, 3].sum()) == 2.0
    assert float(tables[1234].abs().sum()) == 0.0
    assert before - shutil.disk_usage(tempfile.gettempdir()).free < 0.4e9


def test_a_disk_too_small_is_refused_before_any_work():
    with pytest.raises(ConfigError, match=r"may grow to 40000\.00 GB.*TMPDIR"):
        mapped_zeros(10**5, 10**6, 100)
