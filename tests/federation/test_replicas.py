"""Replica policies, versions and error feedback, each against its definition."""

from __future__ import annotations

import copy
import shutil
import tempfile

import msgpack
import numpy as np
import pytest
import torch
from conftest import slow
from methods import NAMES, make
from population import (
    DIM,
    N_CLIENTS,
    N_ITEMS,
    held_by,
    mf,
    ncf,
    note_messages,
    simulate,
    tables,
)

from recbole_fedras.compressor.base import RowUpdate
from recbole_fedras.compressor.fedras.fedras import FedRAS
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.compressor.topk import TopK
from recbole_fedras.errors import (
    ConfigError,
    NonFiniteError,
    PayloadError,
    VersionError,
)
from recbole_fedras.federation.client.states import part_of
from recbole_fedras.federation.server import personal
from recbole_fedras.federation.server.selection import select_cohort
from recbole_fedras.federation.settings import LocalTraining
from recbole_fedras.federation.store import ClientTables
from recbole_fedras.numeric.memory import mapped_zeros
from recbole_fedras.wire.message import Header, Kind, Message
from recbole_fedras.wire.payload import Payload

LOSSY = ("TopK", "FedRAS", "SVD")


def cohort_of(data, round):
    return select_cohort(data.eligible, 3, 1, round)


def network_of(simulation, client):
    replicas = simulation.shard.replicas
    if replicas.networks is None:
        return replicas.theta
    return replicas.networks[int(replicas.table_of([client])[0])]


def server_table(simulation):
    return simulation.server.parameters.item_table


# Versions.


def header(base, **keys):
    return Header(Kind.DOWNLINK, 7, 0, 7, base)._replace(**keys)


def test_a_message_on_another_base_is_refused():
    payload = Payload().put_floats("values", np.zeros(3, np.float32))
    message = Message.from_bytes(Message.of(payload, header(6)).data)
    message.require_base(6)
    assert message.payload.floats("values", 3).shape == (3,)
    with pytest.raises(VersionError, match=r"from version 6 to 7.*holds version 4"):
        message.require_base(4)
    with pytest.raises(PayloadError, match=f"{len(message)} bytes, of at most 9"):
        message.require_size(9)
    anywhere = Message.from_bytes(Message.of(payload, header(None)).data)
    assert anywhere.header.base is None
    anywhere.require_base(4)


@pytest.mark.parametrize(
    "fields",
    [
        (-1, 0, 0, 1, None, None),
        (1, 0, 0, 1, -1, None),
        (1, 0, 0, 1, 2.0, None),
        (1, 0, 0, "1", 0, None),
        (1, 0, 0, 2**63, 0, None),
        (99, 0, 0, 1, 0, None),
        (5, 0, 0, 1, 0, ()),
        (5, 0, 0, 1, 0, (1, float("nan"))),
        (5, 0, 0, 1, 0, (1, 0.5, 2)),
        (5, 0, 0, 1, 0, "report"),
        (5, 0, 0, 1, 0),
    ],
)
def test_headers_are_counts(fields):
    with pytest.raises(PayloadError):
        Message.from_bytes(msgpack.packb((*fields, ())))


@pytest.mark.parametrize("data", [b"", b"\x97", b"\x00", b"\x97\x01\x00", b"\xc1" * 9])
def test_what_is_no_message_is_refused(data):
    with pytest.raises(PayloadError):
        Message.from_bytes(data)


def test_personal_downlinks_lead_from_what_the_client_holds(data, monkeypatch):
    simulation = simulate(mf(), data, TopK(), replica="personal")
    held: dict[int, int] = {}
    booked = note_messages(simulation, monkeypatch)
    for round in range(8):
        booked.clear()
        simulation.run_round()
        cohort = cohort_of(data, round).tolist()
        sent = [own.header for own in booked if own.header.kind is Kind.PERSONAL]
        assert [header.version for header in sent] == [round] * 3
        assert [header.base for header in sent] == [held.get(c, 0) for c in cohort]
        held |= dict.fromkeys(cohort, round)
    simulation.server.policy.version_of[:] += 1  # clients and server disagree
    with pytest.raises(VersionError, match=r"but its receiver holds version"):
        simulation.run_round()
    simulation.server.policy.version_of[:] -= 1
    simulation.run_round()


# Policies.


@pytest.mark.parametrize("make_model", [mf, ncf])
def test_stale_participants_alone_apply_what_is_sent(make_model, data):
    model = make_model()
    start = model.item_table().clone()
    simulation = simulate(model, data, NoCompression(), replica="stale")
    expected = {client: start.clone() for client in range(N_CLIENTS)}
    first = simulation.server.parameters.theta.clone()
    network = dict.fromkeys(range(N_CLIENTS), first)
    newest = None
    for round in range(8):
        before = server_table(simulation).clone()
        theta = simulation.server.parameters.theta.clone()
        report = simulation.run_round()
        for client in cohort_of(data, round).tolist():
            if newest is not None:
                expected[client] += newest
            network[client] = theta
        newest = server_table(simulation) - before
        assert report.bytes["catch_up_bytes"] == 0
        assert report.bytes["downlink_messages"] == 3 + 3  # and receipts
    for client, table in expected.items():
        torch.testing.assert_close(held_by(simulation, client), table)
        assert torch.equal(network_of(simulation, client), network[client])


@pytest.mark.parametrize("name", NAMES)
def test_personal_replicas_and_what_they_lack_are_the_servers_table(name, data):
    """Law: what is decoded and what is still owed are what was to be sent."""
    model = mf()
    simulation = simulate(model, data, make(name), replica="personal")
    for round in range(8):
        table = server_table(simulation).clone()
        cohort = cohort_of(data, round).tolist()
        before = {client: held_by(simulation, client).clone() for client in cohort}
        others = {
            client: held_by(simulation, client).clone()
            for client in set(range(N_CLIENTS)) - set(cohort)
        }
        report = simulation.run_round()
        for client in cohort:
            held = held_by(simulation, client)
            if name == "none":
                torch.testing.assert_close(held, table)
            elif name not in ("CoLR", "CE"):  # random subspaces, whole tables
                due = (table - before[client]).norm()
                assert (table - held).norm() <= 1.1 * due + 1e-6
        for client, held in others.items():
            assert torch.equal(held_by(simulation, client), held)
        assert report.bytes["downlink_messages"] == 3 + 3  # and receipts
        assert report.bytes["catch_up_bytes"] == 0


def test_personal_replicas_get_the_budget_of_their_tier(data):
    model = mf()
    simulation = simulate(
        model, data, TopK(), replica="personal", rates=(0.0, 0.875), fraction=1.0
    )
    for _ in range(3):
        simulation.run_round()
    tiers = torch.from_numpy(simulation.agreement.tier_of_client)
    drift_of = simulation.server.parameters.drift
    drift = [drift_of(held_by(simulation, client)) for client in range(N_CLIENTS)]
    drift = torch.tensor(drift)
    assert drift[tiers == 0].max() < drift[tiers == 1].min()


def test_personal_replicas_do_not_depend_on_the_parts(data, monkeypatch):
    ended = []
    for size in (2**23, 1):
        monkeypatch.setattr(personal, "PART_BYTES", size)
        simulation = simulate(mf(), data, FedRAS(), replica="personal")
        for _ in range(4):
            simulation.run_round()
        ended.append([held_by(simulation, client) for client in range(N_CLIENTS)])
    for one, other in zip(*ended, strict=True):
        assert torch.equal(one, other)


def test_clients_that_hold_the_same_table_share_the_work(data, monkeypatch):
    """Encoded as often as their pasts differ, and as if for each of them."""
    counts = []

    def run(shared):
        keys = {"replica": "personal", "rates": (0.5, 0.75)}
        simulation = simulate(mf(), data, TopK(), fraction=0.5, **keys)
        policy, tier_of = simulation.server.policy, simulation.agreement.tier_of_client
        alike, rounds_of = policy._alike, dict.fromkeys(range(N_CLIENTS), ())

        def note(clients):
            made = alike(clients)
            pasts = {(rounds_of[client], int(tier_of[client])) for client in clients}
            counts.append((len(made), len(pasts) if shared else len(clients)))
            for client in clients:
                rounds_of[client] += (simulation.round,)
            return made

        monkeypatch.setattr(policy, "_alike", note)
        monkeypatch.setattr(policy._compressor, "deterministic", shared)
        monkeypatch.setattr(simulation.shard.methods.downlink, "deterministic", shared)
        for _ in range(4):
            simulation.run_round()
        held = [held_by(simulation, client) for client in range(N_CLIENTS)]
        n_slots = len(
            set(simulation.shard.replicas.table_of(range(N_CLIENTS)).tolist())
        )
        pasts = {
            (rounds_of[c], int(tier_of[c])) for c in range(N_CLIENTS) if rounds_of[c]
        }
        assert n_slots <= 1 + len(pasts) if shared else n_slots > N_CLIENTS // 2
        return held, simulation.ledger.totals

    (shared, cost), (apart, cost_apart) = run(True), run(False)
    assert all(made == expected for made, expected in counts)
    assert counts[0][0] == 2 < counts[4][0]
    assert all(map(torch.equal, shared, apart))
    assert cost == cost_apart


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
        rows = tables(simulation)[0][server_table(simulation).ne(0).any(1)]
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
            before = tables(simulation).clone()
            report = simulation.run_round()
            table = server_table(simulation)
            for tier, update in enumerate(sent if feedback else []):
                due = torch.zeros(N_ITEMS, DIM)
                due[update.ids] = update.rows
                torch.testing.assert_close(due, table - before[tier])
                decoded = tables(simulation)[tier] - before[tier]
                owed = table - tables(simulation)[tier]
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
    add_to = simulation.shard.feedback.add_to

    def note(updates):
        for index, client in enumerate(updates.clients.tolist()):
            own = updates[index]
            trained[client] = (own.ids.clone(), own.rows.clone())
        add_to(updates)

    monkeypatch.setattr(simulation.shard.feedback, "add_to", note)
    decode, decoded = compressor.decode, []

    def note_decoded(payload, ctx):
        decoded.append((ctx.sender, decode(payload, ctx)))
        return decoded[-1][1]

    monkeypatch.setattr(compressor, "decode", note_decoded)  # the server's
    kept = 0.0
    for _ in range(8):
        decoded.clear()
        residuals = torch.stack(
            [simulation.shard.feedback.residual(client) for client in range(N_CLIENTS)]
        ).clone()
        simulation.run_round()
        for client, update in decoded:
            ids, rows = trained[client]
            due = residuals[client].clone()
            due[ids] += rows
            arrived = torch.zeros(N_ITEMS, DIM)
            arrived[update.ids] = update.rows
            after = simulation.shard.feedback.residual(client)
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
    for key in ("invitations", "begun"):  # what was asked cannot be taken back
        del state["server"][key]
    clients = range(N_CLIENTS)
    state["held"] = [held_by(simulation, client).clone() for client in clients]
    if simulation.shard.feedback is not None:
        residual = simulation.shard.feedback.residual
        state["residuals"] = [residual(client).clone() for client in clients]
    for half, key in (
        ("shard", "feedback"),
        ("shard", "replicas"),
        ("server", "policy"),
    ):
        tables = state[half][key]
        for name in (
            "tables",
            "networks",
            "mirrors",
            "slots",
            "theta",
            "theta_version",
        ):
            tables.pop(name, None)
        tables.pop("versions", None)
    return state


def fail(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "where", ["training", "encoding", "decoding", "publishing", "receipts"]
)
@pytest.mark.parametrize(
    "keys",
    [
        {},
        slow({"replica": "stale"}),
        {"replica": "personal"},
        slow({"replica": "grid", "rates": (0.5, 0.75), "compress_network": True}),
        slow({"downlink_feedback": True, "rates": (0.5, 0.75)}),
    ],
)
def test_a_round_that_fails_leaves_nothing(keys, where, data, monkeypatch):
    def fresh():
        model = ncf()
        keys_of_all = {"uplink_feedback": True, "fraction": 0.5, **keys}
        simulation = simulate(model, data, FedRAS(), **keys_of_all)
        for _ in range(4):
            simulation.run_round()
        return simulation

    simulation, untouched = fresh(), fresh()
    before = state_of(simulation)
    with monkeypatch.context() as patch:
        if where == "training":
            bad = LocalTraining(1e30, 1e30, 1.0, 2, 16, 4)
            patch.setattr(simulation.shard, "training", bad)
        elif where == "encoding":
            patch.setattr(simulation.shard.methods.uplink, "encode", fail)
        elif where == "decoding":
            patch.setattr(simulation.server._uplink, "decode", fail)
        elif where == "publishing":
            publish = simulation.server.policy.publish

            def publish_and_fail(update):
                publish(update)
                fail()

            patch.setattr(simulation.server.policy, "publish", publish_and_fail)
        else:
            patch.setattr(simulation.server, "receipts", fail)
        with pytest.raises((NonFiniteError, KeyboardInterrupt)):
            simulation.run_round()
    torch.testing.assert_close(state_of(simulation), before, rtol=0, atol=0)
    assert simulation.server.invitations.sum() == 5 * N_CLIENTS // 2
    reports = [own.run_round() for own in (simulation, untouched)]
    assert reports[0].bytes == reports[1].bytes
    assert reports[0].loss == reports[1].loss
    torch.testing.assert_close(
        state_of(simulation), state_of(untouched), rtol=0, atol=0
    )


@pytest.mark.parametrize("make_model", [mf, ncf])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"replica": "stale"},
        {"replica": "personal"},
        {"replica": "grid", "compress_network": True},
        {"downlink_feedback": True, "rates": (0.5, 0.75)},
        {"uplink_feedback": True},
        {"budget": "wire", "rates": (0.5,), "downlink_feedback": True},
    ],
)
def test_state_restores_to_the_bit(keys, make_model, data):
    def fresh():
        return simulate(make_model(), data, FedRAS(), fraction=0.5, **dict(keys))

    simulation, half, resumed = fresh(), fresh(), fresh()
    for _ in range(6):
        simulation.run_round()
    for _ in range(3):
        half.run_round()
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    for _ in range(3):
        resumed.run_round()
    for client in range(N_CLIENTS):
        assert torch.equal(held_by(resumed, client), held_by(simulation, client))
    assert torch.equal(resumed.shard.user_rows, simulation.shard.user_rows)
    assert resumed.ledger.totals == simulation.ledger.totals


def test_client_tables_change_all_or_none():
    store = ClientTables(3, 2, torch.full((2, 2), 5.0))
    one = RowUpdate(torch.arange(2), torch.ones(2, 2))
    for _ in range(4):  # slots are used again
        store.add(1, one)
        store.commit(())
    assert [store.slot_of(client) for client in range(3)] == [0, 0, 0]
    for value in range(1, 5):
        for client in (1, 2):
            store.add(client, one)
        assert store.slot_of(0) == 0
        assert store.of(1).unique().tolist() == [5.0 + value]
        store.commit({1} if value == 4 else {1, 2})
        assert store.of(1).unique().tolist() == [5.0 + value]
        assert store.of(2).unique().tolist() == [5.0 + min(value, 3)]
    assert store.of(0).unique().tolist() == [5.0]
    again = ClientTables(3, 2, torch.full((2, 2), 5.0))
    again.load_state_dict(copy.deepcopy(store.state_dict()))
    for client in range(3):
        assert torch.equal(again.of(client), store.of(client))


def test_client_tables_are_shared_until_one_goes_its_own_way():
    store = ClientTables(4, 3, torch.zeros(2, 1))
    first, second = (RowUpdate(torch.tensor([row]), torch.ones(1, 1)) for row in (0, 1))
    for _ in range(9):  # more than there are slots: what nobody has is free again
        store.add(0, first)
        store.follow(1, 0)
        store.follow(2, 0)
        store.commit({0, 1})
    assert store.of(0).tolist() == store.of(1).tolist() == [[9], [0]]
    assert store.slot_of(0) == store.slot_of(1) != store.slot_of(2) == 0
    assert [store.is_shared(client) for client in range(4)] == [True] * 4
    store.add(1, second)
    store.commit({1})
    assert store.of(0).tolist() == [[9], [0]]
    assert store.of(1).tolist() == [[9], [1]]
    assert [store.is_shared(client) for client in range(4)] == [False] * 2 + [True] * 2
    states = [{"store": store.state_dict(), "user_rows": None, "user_states": None}]
    part = part_of(states[0], np.array([0, 2]))["store"]
    assert part["slot_of_client"] == {0: 1}
    assert part["slots"].tolist() == [[[0], [0]], [[9], [0]]]


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
