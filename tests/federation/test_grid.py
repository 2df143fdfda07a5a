"""Replicas on a grid: whatever way leads to a version, its bits are the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from methods import make
from population import N_CLIENTS, held_by, mf, ncf, note_messages, simulate

from recbole_fedras.errors import PayloadError, VersionError
from recbole_fedras.federation.grid import (
    UNIT,
    Change,
    GridTable,
    joined_grid,
    put_change,
    read_change,
)
from recbole_fedras.federation.server.rate import Held, Rate, choose_moves
from recbole_fedras.wire.message import Kind
from recbole_fedras.wire.payload import Payload

SHAPE = (40, 8)
START = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))


def walk(n: int) -> list[Change]:
    """Return changes of some entries, each a multiple of another power of two."""
    rng = np.random.default_rng(1)
    moves = [
        np.where(rng.random(SHAPE) < 0.05, rng.integers(-3, 4, SHAPE) << step, 0)
        for step in range(n)
    ]
    return [Change(one.astype(np.int32), float(step)) for step, one in enumerate(moves)]


def walked(changes, version: int = 0) -> GridTable:
    table = GridTable(START, version)
    for step, change in enumerate(changes, start=1):
        table.move(version + step, change)
    return table


def sealed(change: Change) -> Payload:
    put_change(payload := Payload(), change)
    return payload


def test_every_way_to_a_version_ends_with_the_same_bits():
    whole = walked(walk(12))
    for base, missed in whole.since(range(12, -1, -1)):
        assert missed is not None
        late = walked(walk(12)[:base])
        received = read_change(sealed(Change(missed, whole.offset)), SHAPE)
        late.move(12, received)
        assert torch.equal(late.values(), whole.values())
    assert walked(walk(12)).values().dtype is torch.float32


def test_steps_are_kept_while_they_are_small():
    everywhere = Change(np.ones(SHAPE, np.int32), 0.0)
    table = walked([everywhere] * 5)
    since = dict(table.since([5, 4, 3, 1, 0]))
    assert since[4] is None  # a step of all entries is no shorter than the table
    assert np.array_equal(since[0], table.units)  # from the start there is a way
    assert not since[5].any()


def test_what_two_shards_know_is_joined():
    """They have come to version 6 by others; clients hold what either has been at."""
    changes = walk(6)

    def at(*versions: int) -> GridTable:
        table, before = GridTable(START, 0), 0
        for version in versions:
            moves = sum(change.moves for change in changes[before:version])
            table.move(version, Change(moves, changes[version - 1].offset))
            before = version
        return table

    joint = GridTable(START, 0)
    joint.load_state_dict(joined_grid([at(2, 6).state_dict(), at(3, 6).state_dict()]))
    exact = dict(walked(changes).since([3, 2]))
    for base, missed in joint.since([3, 2]):
        assert np.array_equal(missed, exact[base])
    assert torch.equal(joint.values(), walked(changes).values())
    fresh = [GridTable(START, 0).state_dict() for _ in range(2)]  # none has a step
    joint.load_state_dict(joined_grid(fresh))
    assert torch.equal(joint.values(), START)


@pytest.mark.parametrize(
    ("scale", "code"),
    [
        ([UNIT / 2, 0], b""),
        ([3 * UNIT, 0], b""),
        ([np.nan, 0], b""),
        ([UNIT], b""),
        ([UNIT, np.inf], b""),
        ([UNIT * 2.0**30, 0], b"\x00\x00\x00\x00\x00"),
    ],
)
def test_forged_changes_are_refused(scale, code):
    data = np.frombuffer(np.array(scale, np.float32).tobytes() + code, np.uint8)
    with pytest.raises(PayloadError, match="field 'items'"):
        read_change(Payload().put_ints("items", data, 256, "items"), SHAPE)


# How much is sent.


def test_entries_that_lack_most_move_and_no_more_than_bytes_pay_for():
    target = 2.0**12 * np.random.default_rng(2).standard_normal((400, 8))
    units = np.zeros(target.shape, np.int32)
    held = Held([units], [1.0])
    for limit in (300, 1200):
        moves, rate = choose_moves(Rate(), target, units, held, limit)
        size = len(sealed(Change(moves, 0.0)).to_bytes())
        assert 0.85 * limit < size < 1.1 * limit + 40
        assert np.array_equal(moves != 0, np.abs(target) > rate.threshold)
        assert np.abs(target - moves)[moves != 0].max() <= 2.0 ** (rate.shift - 1)
    same, unchanged = choose_moves(rate, units.astype(float), units, held, 9.0)
    assert not same.any()
    assert unchanged == rate


def test_what_was_not_spent_is_spent_later():
    assert Rate(credit=5000.0).allowance(100, 2) == 150
    assert Rate(credit=-1e9).allowance(100, 2) == 50


def test_its_budget_is_of_bytes_whatever_clients_send_by(data):
    budgets = [
        simulate(
            ncf(), data, make(name), rates=(0.3,), replica="grid", budget="wire"
        ).agreement
        for name in ("none", "KLT")
    ]
    assert budgets[0].budgets.downlink == budgets[1].budgets.downlink
    assert budgets[0].budgets.uplink[0].n_bytes is None
    assert budgets[1].budgets.uplink == budgets[1].budgets.downlink


@pytest.mark.slow
def test_participants_take_the_budget_in_the_mean(data, monkeypatch):
    """Everything counted, and each is sent one message, whatever it has missed."""
    simulation = simulate(mf(), data, make("KLT"), replica="grid", budget="wire")
    n_bytes = simulation.agreement.budgets.downlink[0].n_bytes
    booked, sizes = note_messages(simulation, monkeypatch), []
    for _ in range(120):
        booked.clear()
        report = simulation.run_round()
        sent = [own for own in booked if own.header.kind is Kind.DOWNLINK]
        assert len(sent) == report.n_clients
        assert report.bytes["catch_up_bytes"] == 0
        sizes += [len(own.payload.to_bytes()) for own in sent]
    assert np.mean(sizes[120:]) == pytest.approx(n_bytes, rel=0.08)
    assert report.metrics["drift"] < 0.2


def test_mirrors_are_what_clients_hold(data):
    simulation = simulate(
        mf(), data, make("KLT"), replica="grid", rates=(0.5, 0.75), fraction=0.5
    )
    for _ in range(6):
        simulation.run_round()
    policy, drift_of = simulation.server.policy, simulation.server.parameters.drift
    tiers = simulation.agreement.tier_of_client
    for client in range(N_CLIENTS):
        assert torch.equal(policy.mirror_of(client), held_by(simulation, client))
    fine, coarse = (
        drift_of(held_by(simulation, int(np.flatnonzero(tiers == tier)[0])))
        for tier in (0, 1)
    )
    assert fine < coarse


def test_a_version_that_a_shard_never_held_is_refused(data):
    simulation = simulate(mf(), data, make("KLT"), replica="grid", fraction=1.0)
    for _ in range(3):
        simulation.run_round()
    (message,) = simulation.server.policy.newest([2])
    stranger = simulate(mf(), data, make("KLT"), replica="grid").shard
    header = message.header._replace(base=2)
    with pytest.raises(VersionError, match=r"from version 2 to 3.*holds version 0"):
        stranger.refresh([type(message)(header, message.body)])
