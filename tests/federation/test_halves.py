"""Server and shards share nothing but messages: processes, silence, bad answers."""

from __future__ import annotations

import copy
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import nullcontext

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
    POLICIES,
    TRAINING,
    Catalogue,
    Keys,
    federation,
    make_data,
    mf,
    ncf,
    note_messages,
    ready_methods,
    simulate,
)

from recbole_fedras.compressor.base import RowUpdate
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.data.clients import ClientData
from recbole_fedras.embedding.base import introduction
from recbole_fedras.embedding.hashing import Hash
from recbole_fedras.embedding.rq import RQ
from recbole_fedras.errors import FederationError
from recbole_fedras.federation import protocol
from recbole_fedras.federation.client.node import Node
from recbole_fedras.federation.client.shard import Shard, Start
from recbole_fedras.federation.client.training import LocalModel
from recbole_fedras.federation.protocol import Agreement
from recbole_fedras.federation.round import run_round
from recbole_fedras.federation.server import intake
from recbole_fedras.federation.server.aggregation import InverseFrequency
from recbole_fedras.federation.server.intake import UNKNOWN
from recbole_fedras.federation.settings import LocalTraining, SecureAggregation
from recbole_fedras.federation.sharded import share_out
from recbole_fedras.federation.simulation import Simulation, make_server
from recbole_fedras.model import MF
from recbole_fedras.numeric.theta import flatten
from recbole_fedras.wire.ledger import Ledger
from recbole_fedras.wire.links import PipeLinks, serve
from recbole_fedras.wire.message import Kind, Message
from recbole_fedras.wire.payload import PayloadError
from recbole_fedras.wire.transport import Answer, LinkTransport, MemoryTransport

ADAM = LocalTraining(0.1, 0.07, 0.2, 2, 16, 4, user_optimizer="adam")

#: Clients of two shards; groups are of six numbers, see ``_small_groups``.
CLIENTS_OF = dict(zip("01", share_out(N_CLIENTS, 6, 2), strict=True))


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch):
    """Let a shard hold whole groups of clients, as it must."""
    monkeypatch.setattr(protocol, "GROUP", 3)  # of half of the clients


def items(kind, fitted: bool):
    """Items made of the rows of a smaller table; only the server knows codes."""
    keys = {"rq_codes": 5, "rq_levels": 2} if kind is RQ else {"hash_rows": 11}
    embedding = kind(N_ITEMS, DIM, None, 7, **keys)
    if fitted and embedding.fitted:
        source = np.random.default_rng(0).standard_normal((N_ITEMS, DIM))
        embedding.fit(source.astype(np.float32), features=True)
    return embedding


class WithItems(Keys):
    """Keys of a model whose items are made of an embedding."""

    def __init__(self, embedding) -> None:
        super().__init__(0.5)
        self._embedding = embedding

    def item_embedding_of(self, dataset):
        return self._embedding


def model_of(name: str, fitted: bool = False):
    if name in ("MF", "NCF"):
        return {"MF": mf, "NCF": ncf}[name]()
    return MF(WithItems(items({"hash": Hash, "rq": RQ}[name], fitted)), Catalogue())


def agree(model, settings, compressor):
    n_theta = len(flatten(model.theta()))
    downlink = None if POLICIES[settings.replica].on_grid else compressor
    return Agreement.of(
        settings, N_CLIENTS, model.item_table(), n_theta, compressor, downlink
    )


def shard_of(model, data, settings, compressor, training, clients=None):
    """Make a shard from nothing but what everybody knows, and its own interactions."""
    clients = np.arange(N_CLIENTS) if clients is None else clients
    rows = model.initial_users(clients)
    start = Start(clients, rows, model.item_table(), model.theta())
    local = LocalModel(model.score, model.theta(), model.train_clients, model.embedding)
    methods = ready_methods(compressor, settings).on_clients()
    agreement = agree(model, settings, compressor)
    return Shard(agreement, data, local, start, methods, training)


def only(data: ClientData, clients) -> ClientData:
    """Leave a shard the interactions of its own clients."""
    users = np.repeat(np.arange(N_CLIENTS), np.diff(data.offsets))
    kept = np.isin(users, clients)
    return ClientData.from_pairs(users[kept], data.items[kept], N_CLIENTS, N_ITEMS)


def state_of(shard: Shard, clients) -> list[torch.Tensor]:
    replicas = shard.replicas
    places = replicas.table_of(clients.tolist())
    return [shard.user_rows_of(clients), replicas.tables[places], replicas.theta]


def hold(pipe, name, settings, compressor, training, clients) -> None:
    """Be a process that holds some of the clients, and says what they hold."""
    torch.set_num_threads(1)
    data = only(make_data(), clients)
    shard = shard_of(model_of(name), data, settings, compressor, training, clients)

    def holds(phase):
        return [value.numpy().tobytes() for value in state_of(shard, clients)]

    with torch.no_grad():
        whole = Node(shard, holds).handle
        serve(lambda request: [whole(request)], pipe)


CASES = [
    *((name, "MF", {}, TRAINING) for name in NAMES[::3]),
    *(slow(name, "MF", {}, TRAINING) for name in [*NAMES[1::3], *NAMES[2::3]]),
    slow("FedRAS", "NCF", {}, TRAINING),
    ("SVD", "NCF", {"uplink_feedback": True}, ADAM),
    ("FedRAS", "MF", {"replica": "stale"}, TRAINING),
    slow("TopK", "NCF", {"replica": "stale"}, TRAINING),
    ("FedRAS", "NCF", {"replica": "personal", "uplink_feedback": True}, TRAINING),
    ("KLT", "MF", {"replica": "personal"}, TRAINING),
    ("KLT", "MF", {"downlink_feedback": True, "rates": (0.5, 0.75)}, TRAINING),
    ("KLT", "NCF", {"replica": "grid", "compress_network": True}, TRAINING),
    slow("TopK", "MF", {"replica": "grid", "rates": (0.5, 0.75)}, TRAINING),
    slow("FedRAS", "MF", {"rates": (0.5, 0.75)}, TRAINING),
    slow("SCoLR", "MF", {"rates": (0.5, 0.75)}, TRAINING),
    slow("PowerSGD", "NCF", {"uplink_feedback": True}, TRAINING),
    ("FedRAS", "MF", {"uplink_feedback": True, "downlink_feedback": True}, TRAINING),
    ("TopK", "hash", {}, TRAINING),
    ("FedRAS", "rq", {"uplink_feedback": True}, TRAINING),
    ("none", "MF", {"secure": SecureAggregation(4, 8.0)}, TRAINING),
]


@pytest.mark.parametrize(("name", "model", "keys", "training"), CASES)
def test_two_processes_end_with_the_simulations_bits(name, model, keys, training, data):
    """And book the same bytes; each loads its own clients' interactions only."""
    keys = dict(keys)
    settings = federation(0.5, keys.pop("rates", (0.5,)), **keys)
    compressor = make(name)
    simulated = Simulation(
        network := model_of(model, fitted=True),
        data,
        ready_methods(compressor, settings),
        settings,
        training,
        introduction=introduced(network),
    )
    for _ in range(5):
        expected = simulated.run_round()

    context = multiprocessing.get_context("fork")
    pipes, processes = {}, []
    for shard, clients in CLIENTS_OF.items():
        here, there = context.Pipe()
        arguments = (there, model, settings, make(name), training, clients)
        process = context.Process(target=hold, args=arguments, daemon=True)
        process.start()
        there.close()
        pipes[shard] = here
        processes.append(process)
    fresh = model_of(model, fitted=True)
    start = Start(np.arange(0), torch.zeros(0, DIM), fresh.item_table(), fresh.theta())
    methods = ready_methods(make(name), settings)
    server = make_server(
        agree(fresh, settings, compressor), data.eligible, start, methods
    )
    server.introduction = introduced(fresh)
    ledger, transport = Ledger(), LinkTransport(PipeLinks(pipes), CLIENTS_OF)
    with torch.no_grad():
        for _ in range(5):
            report = run_round(server, transport, ledger)
        found = transport.ask_each("evaluate", "test", server.policy.newest)
    transport.close()
    for shard, clients in CLIENTS_OF.items():
        held = state_of(simulated.shard, clients)
        assert [value.numpy().tobytes() for value in held] == found[shard]
    for process in processes:
        process.join()
    assert torch.equal(
        server.parameters.item_table, simulated.server.parameters.item_table
    )
    assert torch.equal(server.parameters.theta, simulated.server.parameters.theta)
    assert ledger.totals == simulated.ledger.totals
    assert report.loss == expected.loss
    assert report.metrics == expected.metrics


def introduced(model):
    embedding = model.embedding
    return None if embedding is None else introduction(embedding, base_known=True)


# Clients that do not answer, or answer badly.


class Faulty(MemoryTransport):
    """Loses, changes and shuffles answers."""

    def __init__(self, shard, change) -> None:
        super().__init__(shard)
        self._change = change

    def exchange(self, messages, deadline=None) -> Iterator[Answer]:
        for answer in super().exchange(messages):
            message = Message.from_parts(answer.head, answer.body)
            for changed in self._change(message):
                if isinstance(changed, Message):
                    yield Answer(changed.head, changed.body)
                else:
                    yield changed


def faulty(simulation, change) -> None:
    simulation._transport = Faulty(simulation.shard, change)


def test_who_does_not_answer_is_left_out_and_keeps_its_state(data):
    simulation = simulate(ncf(), data, make("FedRAS"), fraction=0.5)
    silent = set()

    def lose(message):
        if message.header.client in silent:
            return []
        return [message]

    faulty(simulation, lose)
    for round in range(4):
        silent.clear()
        invited = [m.header.client for m in simulation.server.invite()]
        silent.update(invited[:2])
        before = simulation.shard.user_rows.clone()
        report = simulation.run_round()
        assert (report.n_invited, report.n_clients) == (6, 6 - len(silent))
        changed = (simulation.shard.user_rows != before).any(1).nonzero().flatten()
        assert changed.tolist() == sorted(set(invited) - silent)
        assert simulation.round == round + 1
    assert report.bytes["uplink_messages"] == 6 - len(silent)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"replica": "grid"},
        {"replica": "personal"},
        {"replica": "stale"},
        {"uplink_feedback": True},
    ],
    ids=str,
)
def test_absences_end_alike_whenever_answers_are_lost(keys, data):
    """A client whose answer is lost ends as one that never trained."""
    ended = []
    lost = 5
    for deaf in (True, False):
        simulation = simulate(mf(), data, make("FedRAS"), fraction=0.5, **keys)

        class Deaf(MemoryTransport):
            def exchange(self, messages, deadline=None, deaf=deaf):
                heard = (m for m in messages if not (deaf and m.header.client == lost))
                for answer in super().exchange(heard):
                    message = Message.from_parts(answer.head, answer.body)
                    if message.header.client != lost:
                        yield answer

        simulation._transport = Deaf(simulation.shard)
        for _ in range(6):
            simulation.run_round()
        everybody = np.arange(N_CLIENTS)
        ended.append(state_of(simulation.shard, everybody))
    for one, other in zip(*ended, strict=True):
        assert torch.equal(one, other)


def test_the_order_of_answers_changes_no_bit(data):
    ended = []
    for order in (1, -1):
        simulation = simulate(ncf(), data, make("FedRAS"), fraction=1.0)

        class Shuffled(MemoryTransport):
            def exchange(self, messages, deadline=None, order=order):
                yield from list(super().exchange(messages))[::order]

        simulation._transport = Shuffled(simulation.shard)
        reports = [simulation.run_round() for _ in range(4)]
        ended.append((simulation, reports))
    (one, first), (other, second) = ended
    table, theta = one.server.parameters.item_table, one.server.parameters.theta
    assert torch.equal(table, other.server.parameters.item_table)
    assert torch.equal(theta, other.server.parameters.theta)
    assert [report.loss for report in first] == [report.loss for report in second]


def with_values(message: Message, value: float) -> Message:
    payload = message.payload
    ids = payload.rows("rows", N_ITEMS)
    rows = payload.floats("values", len(ids), DIM).copy()
    rows[0, 0] = value
    forged = type(payload)().put_rows("rows", ids, N_ITEMS)
    return Message.of(forged.put_floats("values", rows), message.header)


def with_header(message: Message, **fields) -> Message:
    return Message(message.header._replace(**fields), message.body)


def with_head(message: Message, *fields) -> Answer:
    return Answer(msgpack.packb((*fields, None))[:-1], message.body)


BAD = [
    ("its values are not all finite", lambda own: with_values(own, np.nan)),
    ("its values are not all finite", lambda own: with_values(own, np.inf)),
    ("norm 1e+38 exceeds max_update_norm=1e+06", lambda own: with_values(own, 1e38)),
    ("it is of round 7, not", lambda own: with_header(own, round=7)),
    ("leads from version 3 to 1", lambda own: with_header(own, base=3)),
    ("leads from version None to 1", lambda own: with_header(own, base=None)),
    ("leads from version 0 to 99", lambda own: with_header(own, version=99)),
    ("RECEIPT is no update", lambda own: with_header(own, kind=Kind.RECEIPT)),
    ("it rests on no samples", lambda own: with_header(own, n_samples=0)),
    ("not a payload", lambda own: Message(own.header, b"\xc1")),
    ("no field", lambda own: Message(own.header, b"\x90")),
    ("bytes, of at most", lambda own: Message(own.header, bytes(10**6))),
    ("its loss is nan", lambda own: with_header(own, loss=float("nan"))),
    ("its loss is inf", lambda own: with_header(own, loss=float("inf"))),
    ("its numbers are", lambda own: with_head(own, 5, -1, 3, 1, 0, (1,))),
    ("its numbers are", lambda own: with_head(own, 5, 0, 3, 1, 0, (-1,))),
    ("its numbers are", lambda own: with_head(own, 5, 0, 3, 1, 0, (2**63,))),
    ("its kind is 99", lambda own: with_head(own, 99, 0, 3, 1, 0, (1,))),
    ("seven parts", lambda own: Answer(b"\x91\x00", own.body)),
    ("not a message", lambda own: Answer(b"", b"")),
    (
        "shard 1 does not hold the client",
        lambda own: Answer(own.head, own.body, 1, frozenset()),
    ),
]


@pytest.mark.parametrize(("reason", "forge"), BAD)
def test_a_bad_message_costs_its_sender_the_round_and_nobody_else(reason, forge, data):
    good, bad = (
        simulate(mf(), data, NoCompression(), fraction=0.5, rates=(0.0,))
        for _ in range(2)
    )
    victim = next(bad.server.invite()).header.client
    faulty(good, lambda own: [] if own.header.client == victim else [own])
    faulty(bad, lambda own: [forge(own) if own.header.client == victim else own])
    good.run_round()
    report = bad.run_round()
    ((client, said),) = report.refusals
    assert client in (victim, UNKNOWN)
    assert reason in said
    sent = ("uplink_bytes", "uplink_messages")
    assert all(report.bytes[key] > 0 for key in sent)
    assert report.bytes["uplink_messages"] == 6
    assert report.n_clients == 5
    assert torch.equal(
        good.server.parameters.item_table, bad.server.parameters.item_table
    )
    assert torch.equal(good.shard.user_rows, bad.shard.user_rows)


@pytest.mark.parametrize(
    ("values", "most", "bounded"),
    [
        ([2e19, 0], 1e20, True),  # whose square is beyond float32
        ([2e19, 0], 1e19, False),
        ([3e38, 3e38], 1e200, True),  # whose square is beyond float64
        ([3, 4], 5, True),
        ([3, 4], 5 * (1 - 1e-12), False),  # float32 would not tell them apart
        ([np.inf, 0], 1e300, False),
    ],
)
def test_norms_are_compared_exactly(values, most, bounded):
    settings = federation(max_update_norm=most)
    agreement = agree(mf(), settings, NoCompression())
    mean = InverseFrequency()
    taken = intake.Intake(agreement, NoCompression(), mean.add, 0, {0: 0}, None)
    update = RowUpdate(torch.tensor([1]), torch.tensor([values[:1]]).float())
    theta = torch.tensor(values[1:]).float()
    if bounded:
        taken._require_bounded(update, theta)
        return
    with pytest.raises(PayloadError, match=r"not all finite|exceeds max_update_norm="):
        taken._require_bounded(update, theta)


def test_who_was_not_invited_or_answers_twice_is_refused(data):
    simulation = simulate(mf(), data, NoCompression(), fraction=0.5, rates=(0.0,))
    invited = {message.header.client for message in simulation.server.invite()}
    stranger = min(set(range(N_CLIENTS)) - invited)
    first = min(invited)

    def forge(message):
        if message.header.client != first:
            return [message]
        return [message, message, with_header(message, client=stranger)]

    faulty(simulation, forge)
    report = simulation.run_round()
    assert report.n_clients == len(invited)
    assert sorted(report.refusals) == sorted(
        [
            (first, "the client has answered already"),
            (stranger, "the client was not invited"),
        ]
    )


@pytest.mark.parametrize(
    "keys",
    [{}, {"downlink_feedback": True}, {"replica": "personal"}, {"replica": "stale"}],
)
def test_a_round_that_nobody_answers_counts_and_changes_nothing(data, keys):
    simulation = simulate(mf(), data, make("FedRAS"), fraction=0.5, **keys)
    simulation.run_round()
    before = simulation.server.parameters.item_table.clone()
    rows = simulation.shard.user_rows.clone()
    faulty(simulation, lambda own: [])
    report = simulation.run_round()
    assert (simulation.round, report.n_invited, report.n_clients) == (2, 6, 0)
    assert (report.loss, report.refusals) == (None, [])
    assert report.bytes["uplink_bytes"] == 0
    assert all(np.isfinite(list(report.metrics.values())))
    assert torch.equal(simulation.server.parameters.item_table, before)
    assert torch.equal(simulation.shard.user_rows, rows)
    faulty(simulation, lambda own: [own])
    assert simulation.run_round().n_clients == 6


def test_a_round_of_which_all_is_refused_does_not_count(data):
    simulation = simulate(mf(), data, NoCompression(), fraction=0.5, rates=(0.0,))
    faulty(simulation, lambda own: [with_values(own, np.nan)])
    with pytest.raises(FederationError, match=r"of 6 clients invited, none .* client"):
        simulation.run_round()
    assert simulation.round == 0
    faulty(simulation, lambda own: [own])
    assert simulation.run_round().n_clients == 6


def test_a_loss_is_reported_by_a_key(data, monkeypatch):
    told = simulate(mf(), data, NoCompression(), rates=(0.0,))
    silent = simulate(mf(), data, NoCompression(), rates=(0.0,), report_loss=False)
    booked = note_messages(silent, monkeypatch)
    reports = [told.run_round(), silent.run_round()]
    assert reports[0].loss > 0
    assert reports[1].loss is None
    updates = [own.header for own in booked if own.header.kind is Kind.UPDATE]
    assert all(header.loss is None for header in updates)
    assert all(header.n_samples > 0 for header in updates)
    assert reports[0].bytes["uplink_bytes"] == reports[1].bytes["uplink_bytes"] + 27


class Counting(InverseFrequency):
    """Scales by the number of rounds that it has seen."""

    def __init__(self) -> None:
        self.rounds = 0

    def result(self):
        self.rounds += 1
        update, theta = super().result()
        return type(update)(update.ids, update.rows * self.rounds), theta

    def state_dict(self):
        return {"rounds": self.rounds}

    def load_state_dict(self, state):
        self.rounds = state["rounds"]


def test_what_an_aggregator_keeps_is_of_rounds_that_counted_and_is_saved(data):
    def fresh():
        simulation = simulate(mf(), data, NoCompression(), rates=(0.0,))
        simulation.server.aggregator = Counting()
        simulation.server._states = simulation.server._states_of_parts()
        return simulation

    simulation, resumed = fresh(), fresh()
    simulation.run_round()
    publish = simulation.server.policy.publish
    simulation.server.policy.publish = None
    with pytest.raises(TypeError):
        simulation.run_round()
    simulation.server.policy.publish = publish
    assert simulation.server.aggregator.rounds == 1
    resumed.load_state_dict(copy.deepcopy(simulation.state_dict()))
    assert resumed.server.aggregator.rounds == 1
    for own in (simulation, resumed):
        own.run_round()
        assert own.server.aggregator.rounds == 2
    tables = [own.server.parameters.item_table for own in (simulation, resumed)]
    assert torch.equal(*tables)


def test_a_refused_claim_does_not_release_a_turn(data, monkeypatch):
    """Whoever claims to be the first client changes no bit, as it answers later."""
    monkeypatch.setattr(intake, "WAITING_BYTES", 1)  # add what can be, at once
    ended = []
    for forged in (True, False):
        simulation = simulate(ncf(), data, make("FedRAS"), fraction=1.0)

        class Claimed(MemoryTransport):
            def exchange(self, messages, deadline=None, forged=forged):
                first, *others = super().exchange(messages)
                if forged:
                    message = Message.from_parts(first.head, first.body)
                    lie = with_header(message, round=99)
                    yield Answer(lie.head, lie.body)
                yield from others
                yield first

        simulation._transport = Claimed(simulation.shard)
        for _ in range(2):
            simulation.run_round()
        ended.append(simulation.server.parameters.item_table)
    assert torch.equal(*ended)


@pytest.mark.parametrize("replica", ["broadcast", "stale", "personal"])
def test_a_message_twice_is_as_once(replica, data):
    ended = []
    for times in (1, 2):
        simulation = simulate(mf(), data, make("TopK"), fraction=0.5, replica=replica)

        class Doubled(MemoryTransport):
            def exchange(self, messages, deadline=None, times=times):
                doubled = (message for message in messages for _ in range(times))
                yield from super().exchange(doubled)

        simulation._transport = Doubled(simulation.shard)
        for _ in range(4):
            simulation.run_round()
        ended.append(state_of(simulation.shard, np.arange(N_CLIENTS)))
    for one, other in zip(*ended, strict=True):
        assert torch.equal(one, other)


def test_what_a_commit_needs_is_taken_before_it(data, monkeypatch):
    """A compressor that fails to tell its state fails the round, not the commit."""
    simulation = simulate(mf(), data, make("FedRAS"), fraction=0.5)
    untouched = simulate(mf(), data, make("FedRAS"), fraction=0.5)
    for own in (simulation, untouched):
        own.run_round()
    downlink = simulation.server.policy._compressor
    with monkeypatch.context() as patch:
        patch.setattr(downlink, "state_dict", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            simulation.run_round()
    assert simulation.round == 1
    reports = [own.run_round() for own in (simulation, untouched)]
    assert reports[0].bytes == reports[1].bytes
    tables = [own.server.parameters.item_table for own in (simulation, untouched)]
    assert torch.equal(*tables)


def test_a_policy_that_fails_to_report_costs_nobody_a_receipt(data, monkeypatch):
    ended = []
    keys = {"fraction": 0.5, "replica": "personal"}
    for fails in (True, False):
        simulation = simulate(mf(), data, make("TopK"), **keys)
        with monkeypatch.context() as patch:
            if fails:
                patch.setattr(simulation.server.policy, "metrics", None)
            with pytest.raises(TypeError) if fails else nullcontext():
                simulation.run_round()
        assert simulation.round == 1
        simulation.run_round()
        assert simulation.ledger.totals["uplink_messages"] == 12
        ended.append(state_of(simulation.shard, np.arange(N_CLIENTS)))
    for one, other in zip(*ended, strict=True):
        assert torch.equal(one, other)


# Processes that fail.


class Failing(Shard):
    """Fails when it is told to."""

    def participate(self, messages):
        invited = list(messages)
        if invited[0].header.round == 1:
            raise RuntimeError("no room left")
        return super().participate(invited)


def hold_and_fail(pipe, settings, compressor, clients, how) -> None:
    torch.set_num_threads(1)
    data = only(make_data(), clients)
    shard = shard_of(mf(), data, settings, compressor, TRAINING, clients)
    if how == "raises":
        shard.__class__ = Failing
    with torch.no_grad():
        whole = Node(shard).handle
        serve(lambda request: [whole(request)], pipe)


@pytest.mark.parametrize("how", ["raises", "is killed", "hangs"])
def test_a_shard_that_fails_is_silent_and_the_round_goes_on(how, data):
    settings = federation(1.0, (0.5,))
    context = multiprocessing.get_context("fork")
    pipes, processes = {}, []
    for shard, clients in CLIENTS_OF.items():
        here, there = context.Pipe()
        fails = how if shard == "1" else ""
        arguments = (there, settings, make("TopK"), clients, fails)
        process = context.Process(target=hold_and_fail, args=arguments, daemon=True)
        process.start()
        there.close()
        pipes[shard] = here
        processes.append(process)
    model = mf()
    start = Start(np.arange(0), torch.zeros(0, DIM), model.item_table(), model.theta())
    server = make_server(
        agree(model, settings, make("TopK")),
        data.eligible,
        start,
        ready_methods(make("TopK"), settings),
    )
    transport, ledger = LinkTransport(PipeLinks(pipes), CLIENTS_OF), Ledger()
    counted = []
    for round in range(4):
        if round == 1 and how == "is killed":
            os.kill(processes[1].pid, signal.SIGKILL)
        if round == 1 and how == "hangs":
            os.kill(processes[1].pid, signal.SIGSTOP)
        deadline = 1.0 if how == "hangs" and round == 1 else None
        report = run_round(server, transport, ledger, deadline)
        if round == 1 and how == "hangs":
            os.kill(processes[1].pid, signal.SIGCONT)
        counted.append(report.n_clients)
    transport.close()
    for process in processes:
        process.join(10)
    back = 12 if how != "is killed" else 6
    assert counted == [12, 6, back, back]
