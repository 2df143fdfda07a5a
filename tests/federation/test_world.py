"""A described world: its clock by hand, and rounds with clients late or lost."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from population import (
    N_CLIENTS,
    TRAINING,
    federation,
    make_data,
    mf,
    note_messages,
    ready_methods,
)
from scipy.stats import spearmanr

from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.errors import ConfigError, FederationError
from recbole_fedras.federation.protocol import Agreement
from recbole_fedras.federation.settings import Conditions, LocalTraining
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.federation.world.base import Device, Devices, World, draw_places
from recbole_fedras.federation.world.clock import Work, unfold
from recbole_fedras.federation.world.costs import flops_of_training, memory_of_training
from recbole_fedras.federation.world.links import Constant, Lognormal, TwoClasses
from recbole_fedras.federation.world.population import Described
from recbole_fedras.federation.world.trace import Trace
from recbole_fedras.wire.message import Kind

USUAL = Device(uplink=1e4, downlink=4e4, flops=1e6)
CONDITIONS = Conditions(*USUAL)


# The clock.


def cohort(dropped=(False, False, False)) -> tuple[Work, Devices]:
    """Three clients: 2 s to receive; 4, 2, 1 s to train; 5 s to send."""
    one = np.ones(3)
    devices = Devices(10 * one, 100 * one, np.array([1.0, 2.0, 4.0]), one)
    return Work(0 * one, 200 * one, 4 * one, 50 * one, np.array(dropped)), devices


@pytest.mark.parametrize(
    ("dropped", "wanted", "deadline", "seconds", "in_time", "sent"),
    [
        ((), 3, None, 11, [1, 1, 1], [50, 50, 50]),
        ((), 3, 9.0, 9, [0, 1, 1], [30, 50, 50]),  # at the deadline is in time
        ((), 3, 20.0, 11, [1, 1, 1], [50, 50, 50]),  # nobody waits for nothing
        ((), 1, None, 8, [0, 0, 1], [20, 40, 50]),
        ((2,), 1, None, 9, [0, 1, 0], [30, 50, 0]),
        ((0,), 3, None, 9, [0, 1, 1], [0, 50, 50]),  # lost at 6 s, which is seen
        ((0, 1), 3, None, 8, [0, 0, 1], [0, 0, 50]),
        ((1, 2), 3, 10.0, 10, [0, 0, 0], [40, 0, 0]),
    ],
)
def test_the_clock_by_hand(dropped, wanted, deadline, seconds, in_time, sent):
    work, devices = cohort([client in dropped for client in range(3)])
    found = unfold(work, devices, wanted, deadline)
    assert found.seconds == seconds
    assert found.in_time.tolist() == list(map(bool, in_time))
    assert found.sent.tolist() == sent


def test_what_has_passed_by_the_close_is_all_that_counts():
    work, devices = cohort()
    found = unfold(work, devices, 3, deadline=3.5)
    assert found.received.tolist() == [200, 200, 200]
    assert found.trained.tolist() == [1.5, 3.0, 4.0]
    assert found.sent.tolist() == [0, 0, 5]
    assert unfold(work, devices, 3, deadline=1.0).received.tolist() == [100, 100, 100]


def test_of_those_who_are_there_at_once_the_first_count():
    work, devices = cohort()
    alike = devices._replace(flops=np.ones(3))
    assert unfold(work, alike, 2).in_time.tolist() == [True, True, False]


# Links and devices.


def test_activity_and_links_go_together_as_asked():
    activity = np.random.default_rng(0).integers(5, 50, 2000)  # with ties
    for correlation in (-1.0, -0.5, 0.0, 0.8):
        places = draw_places(activity, correlation, seed=1)
        found = spearmanr(activity, places.link).statistic
        assert found == pytest.approx(correlation, abs=0.05)
        assert places.link.mean() == pytest.approx(0.5)
        assert abs(spearmanr(activity, places.device).statistic) < 0.05
    again = draw_places(activity, 0.8, seed=1)
    assert (again.link == places.link).all()


def test_worlds_are_distributed_as_they_say():
    places = draw_places(np.arange(999), 0.0, seed=1)
    links = Lognormal(link_spread=2.0).devices(places, USUAL, 0.5)
    assert np.median(links.uplink) == pytest.approx(USUAL.uplink)
    assert np.log(links.downlink).std() == pytest.approx(2.0, abs=0.05)
    assert (links.availability == 0.5).all()
    classes = TwoClasses(slow_share=1 / 3, slow_link=0.1).devices(places, USUAL, 1.0)
    slow = classes.uplink < USUAL.uplink
    assert slow.sum() == 333
    assert set(classes.downlink[slow]) == {4e3}
    assert (links.downlink[slow].max()) < np.delete(links.downlink, slow).min()


def test_a_trace_gives_each_line_to_as_many_clients(tmp_path):
    path = tmp_path / "devices.csv"
    path.write_text("uplink_mb_per_s,downlink_mb_per_s,availability\n2,8,1\n1,4,0.5\n")
    places = draw_places(np.arange(10), 1.0, seed=1)
    devices = Trace(str(path)).devices(places, USUAL, 0.9)
    assert devices.downlink.tolist() == [4e6] * 5 + [8e6] * 5  # the active are fast
    assert devices.uplink.tolist() == [1e6] * 5 + [2e6] * 5
    assert devices.availability.tolist() == [0.5] * 5 + [1.0] * 5
    assert (devices.flops == USUAL.flops).all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "uplink_mb_per_s,downlink_mb_per_s\n2,0\n",
            "line 2: downlink_mb_per_s='0' mu",
        ),
        ("uplink_mb_per_s,downlink_mb_per_s\n\n2,nan\n", "line 3: .*='nan' must be a"),
        ("uplink_mb_per_s,downlink_mb_per_s\n1,1\n2\n", "line 3: downlink.*=None must"),
        ("uplink_mb_per_s,downlink_mb_per_s\n1,1,1\n", "line 2: too many values"),
        (
            "uplink_mb_per_s,downlink_mb_per_s,availability\n1,1,1.5\n",
            "line 2: availability='1.5' must be a positive number of at most 1",
        ),
        ("uplink_mb_per_s,down\n2,1\n", "must have a line of names"),
        ("uplink_mb_per_s,uplink_mb_per_s,downlink_mb_per_s\n2,1,1\n", "line of names"),
        ("uplink_mb_per_s,downlink_mb_per_s\n", "and 0 devices"),
        ("", r"it has \[\] and 0 devices"),
        ("uplink_mb_per_s,downlink_mb_per_s\n" + "1" * 140_000, "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_trace_that_is_none_is_refused_with_its_line(tmp_path, text, said):
    path = tmp_path / "devices.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=said):
        Trace(str(path))


def test_what_no_client_can_have_is_refused():
    places = draw_places(np.arange(9), 0.0, seed=1)
    for world in (Lognormal(link_spread=10.0), TwoClasses(slow_device=1e-9)):
        with pytest.raises(ConfigError, match=r"9 clients a number from 1 to 1e\+30"):
            Described(world, CONDITIONS).devices(places)


def test_operations_and_memory_by_hand():
    settings = federation(uplink_feedback=True)
    table = torch.zeros(10, 2)
    agreement = Agreement.of(settings, 2, table, 5, *2 * [NoCompression()])
    training = LocalTraining(0.1, 0.1, 0.1, 2, 4, 3, user_optimizer="adam")
    activity = np.array([1, 2])
    # 4 samples an item and epoch, 2 epochs; 2 values and 5 weights, 6 each.
    flops = flops_of_training(activity, agreement, training, rows_of_item=1)
    assert flops.tolist() == [8 * 42, 16 * 42]
    # Table and residual; network three times; rows trained; batch; user and Adam.
    values = [2 * 20 + 15 + 2 * (n_rows + 4) + 4 + 5 for n_rows in (7, 10)]
    expected = [4 * values[0] + 8 * 8, 4 * values[1] + 8 * 16]
    memory = memory_of_training(activity, agreement, training, rows_of_item=1)
    assert memory.tolist() == expected


# Rounds.


def simulation(world: World | None, fraction=1.0, over=1.0, window=0, **conditions):
    keys = {"over_selection": over, "staleness_window": window}
    settings = federation(fraction, **keys)
    methods = ready_methods(NoCompression(), settings)
    if world is not None:
        described = Described(world, Conditions(*USUAL, **conditions))
        methods = replace(methods, world=described)
    return Simulation(mf(), make_data(), methods, settings, TRAINING)


def updates_of(made: Simulation, monkeypatch) -> dict[int, bytes]:
    """Run a round; return what the clients sent that counted."""
    messages = note_messages(made, monkeypatch)
    made.run_round()
    kind = Kind.UPDATE
    return {m.header.client: m.data for m in messages if m.header.kind is kind}


def test_a_world_without_keys_changes_no_bit(monkeypatch):
    plain, timed = simulation(None), simulation(Constant())
    for _ in range(3):
        plain.run_round()
        timed.run_round()
    ours, others = (made.server.parameters.item_table for made in (plain, timed))
    assert torch.equal(ours, others)
    assert torch.equal(plain.shard.user_rows, timed.shard.user_rows)
    assert plain.ledger.totals == timed.ledger.totals
    assert "world" not in plain.state_dict()


def test_a_round_takes_what_its_messages_take(monkeypatch):
    made = simulation(Constant(), server_seconds=7.0, uplink_joules=1.0)
    messages = note_messages(made, monkeypatch)
    report = made.run_round()
    sizes = {kind: np.zeros(N_CLIENTS) for kind in (Kind.UPDATE, Kind.DOWNLINK)}
    for message in messages:
        if message.header.kind is not Kind.RECEIPT:
            sizes[message.header.kind][message.header.client] += len(message)
    samples = np.diff(make_data().offsets) * 5 * 2
    seconds = sizes[Kind.DOWNLINK] / 4e4 + samples * 6 * 8 / 1e6
    seconds += sizes[Kind.UPDATE] / 1e4
    assert report.metrics["world_seconds"] == pytest.approx(7 + seconds.max())
    assert report.metrics["world_joules"] == report.bytes["uplink_bytes"]
    made.run_round()
    total = made.in_world()["world_seconds"]
    assert total > 14


def test_who_drops_out_is_lost_and_nobody_else_changes(monkeypatch):
    whole = updates_of(simulation(Constant()), monkeypatch)
    made = simulation(Constant(), dropout=0.4)
    before = made.shard.user_rows.clone()
    rest = updates_of(made, monkeypatch)
    assert 0 < len(rest) < len(whole) == N_CLIENTS
    assert rest.items() <= whole.items()
    changed = (made.shard.user_rows != before).any(dim=1).nonzero().flatten().tolist()
    assert changed == sorted(rest)
    totals = made.ledger.totals
    assert totals["uplink_bytes"] == sum(map(len, rest.values()))
    assert totals["downlink_messages"] == N_CLIENTS + len(rest)  # and receipts
    assert made.in_world()["dropped"] == N_CLIENTS - len(rest)


def test_who_is_late_has_sent_what_had_left_it(monkeypatch):
    whole = updates_of(simulation(Lognormal()), monkeypatch)
    made = simulation(Lognormal(), deadline=0.12)
    before = made.shard.user_rows.clone()
    rest = updates_of(made, monkeypatch)
    assert rest.items() < whole.items()
    late = sorted(whole.keys() - rest.keys())
    assert torch.equal(made.shard.user_rows[late], before[late])
    sent = made.ledger.totals["uplink_bytes"] - sum(map(len, rest.values()))
    assert 0 < sent < sum(len(whole[client]) for client in late)
    assert made.ledger.totals["uplink_messages"] == len(rest)
    columns = made.in_world()
    assert (columns["late"], columns["world_seconds"]) == (len(late), 0.12)


def test_over_selection_takes_the_first_to_answer(monkeypatch):
    whole = simulation(Lognormal())
    times = whole._world._population.devices
    made = simulation(Lognormal(), fraction=0.5, over=2.0)
    rest = updates_of(made, monkeypatch)
    assert len(rest) == N_CLIENTS // 2
    assert made.in_world()["late"] == N_CLIENTS - len(rest)
    late = [client for client in range(N_CLIENTS) if client not in rest]
    assert times.uplink[list(rest)].mean() > times.uplink[late].mean()


def test_who_is_away_is_not_invited_and_draws_are_ones_own(monkeypatch):
    made = simulation(Constant(), availability=0.5, dropout=0.5)
    population = made._world._population
    there = population.present(0)
    assert 0 < there.sum() < N_CLIENTS
    assert (population.present(1) != there).any()
    alone = [population.dropped(3, np.array([client]))[0] for client in range(5)]
    assert alone == population.dropped(3, np.arange(5)).tolist()
    report = made.run_round()
    assert report.n_invited == there.sum()
    assert report.metrics["unavailable"] == N_CLIENTS - there.sum()


def test_a_round_that_nobody_is_in_time_for_leaves_all_as_it_was():
    made = simulation(Constant(), deadline=1e-3)
    with pytest.raises(FederationError, match=r"nobody was in time.* raise deadline=0"):
        made.run_round()
    assert made.round == 0
    assert made.in_world()["world_seconds"] == 0
    assert made.ledger.totals["downlink_bytes"] == 0
    away = simulation(Constant(), availability=1e-9)
    with pytest.raises(FederationError, match="no client is available"):
        away.run_round()


def test_slower_links_have_higher_rates():
    described = Described(Lognormal(), CONDITIONS)
    settings = federation(rates=(0.5, 0.75, 0.9))
    tiers = described.tiers(make_data(), settings)
    links = described.devices(described.places(make_data(), settings.seed)).uplink
    assert np.bincount(tiers).tolist() == [4, 4, 4]
    assert (np.diff(tiers[np.argsort(links)]) <= 0).all()
    assert described.tiers(make_data(), federation()) is None


# Rounds that do not wait.


def test_who_was_invited_before_is_ahead_by_what_has_passed():
    work, devices = cohort()
    ahead = work._replace(begun=np.array([-9.0, 0.0, 0.0]))
    found = unfold(ahead, devices, wanted=2)
    assert found.arrival.tolist() == [2, 9, 8]
    assert (found.seconds, found.in_time.tolist()) == (8, [True, False, True])
    assert found.received.tolist() == [200, 200, 200]
    assert found.sent.tolist() == [50, 40, 50]
    there = work._replace(begun=np.array([-20.0, -20.0, 0.0]))
    assert unfold(there, devices, wanted=2).seconds == 0


def asynchronous(**conditions) -> Simulation:
    """Three updates a round, of nine clients at work; links differ by e^2."""
    return simulation(Lognormal(2.0), 0.25, over=3.0, window=2, **conditions)


def test_late_updates_count_within_the_window_and_are_booked(monkeypatch):
    made, before = asynchronous(), asynchronous().shard.user_rows
    messages = note_messages(made, monkeypatch)
    begun: dict[int, int] = {}  # client, and the round that it was last invited to
    staleness, n_late = [], 0
    for round in range(8):
        del messages[:]
        rows = made.shard.user_rows.clone()
        report = made.run_round()
        for message in messages:
            client, kind = message.header.client, message.header.kind
            if kind is Kind.DOWNLINK:
                begun[client] = round
            elif kind is Kind.UPDATE:
                header = message.header
                assert (
                    header.round == header.base == header.version - 1 == begun[client]
                )
                assert made.server.policy.version_of[client] == header.round
                staleness.append(round - header.round)
        counted = sorted(
            m.header.client for m in messages if m.header.kind is Kind.UPDATE
        )
        assert len(counted) == report.n_clients == 3
        told = [m.header for m in messages if m.header.kind is Kind.RECEIPT]
        assert [(h.client, h.round) for h in told] == [(c, begun[c]) for c in counted]
        changed = (made.shard.user_rows != rows).any(dim=1).nonzero().flatten().tolist()
        assert changed == counted
        n_late += report.metrics["late"]
        assert report.metrics["at_work"] == 9 - 3 - report.metrics["late"]
        of_round = sum(len(m) for m in messages if m.header.kind is Kind.UPDATE)
        broken_off = report.bytes["uplink_bytes"] - of_round
        assert broken_off >= 0 if report.metrics["late"] else broken_off == 0
    assert set(staleness) == {0, 1, 2}
    assert n_late > 0
    assert not torch.equal(made.shard.user_rows, before)


def test_an_old_update_has_less_weight(monkeypatch):
    made = asynchronous()
    added: list[tuple[int, float]] = []
    add = made.server.aggregator.add

    def note(client, update, theta_change):
        added.append((client, float(update.rows.norm())))
        add(client, update, theta_change)

    monkeypatch.setattr(made.server.aggregator, "add", note)
    messages = note_messages(made, monkeypatch)
    for round in range(4):
        del messages[:], added[:]
        made.run_round()
        for message in messages:
            if message.header.kind is Kind.UPDATE:
                ctx = made.agreement.context(message.header.round)
                whole = NoCompression().decode(message.payload, ctx).rows.norm()
                weight = (1 + round - message.header.round) ** -0.5
                expected = pytest.approx(float(whole) * weight, rel=1e-5)
                assert dict(added)[message.header.client] == expected


def test_a_run_with_clients_at_work_goes_on_with_the_same_bits(monkeypatch):
    whole, half, resumed = (asynchronous(dropout=0.2) for _ in range(3))
    for _ in range(6):
        whole.run_round()
    for _ in range(3):
        half.run_round()
    state = copy.deepcopy(half.state_dict())
    assert state["server"]["at_work"]
    assert state["world"]["flights"]
    resumed.load_state_dict(state)
    for _ in range(3):
        resumed.run_round()
    assert resumed.in_world() == whole.in_world()
    assert resumed.ledger.totals == whole.ledger.totals
    tables = [made.server.parameters.item_table for made in (whole, resumed)]
    assert torch.equal(*tables)
    assert torch.equal(whole.shard.user_rows, resumed.shard.user_rows)


def test_a_round_that_fails_leaves_those_at_work(monkeypatch):
    whole, made = asynchronous(), asynchronous()
    for _ in range(2):
        whole.run_round()
        made.run_round()
    with monkeypatch.context() as broken:
        broken.setattr(made.server, "close", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made.run_round()
    for _ in range(3):
        whole.run_round()
        made.run_round()
    assert whole.in_world() == made.in_world()
    assert torch.equal(whole.shard.user_rows, made.shard.user_rows)
