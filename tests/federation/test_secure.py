"""Secure aggregation in rounds: the plain run's result, and nothing of one client."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, budget, slow
from methods import NAMES, make
from population import N_ITEMS, mf, ncf, note_messages, simulate

from recbole_fedras.compressor.contract import _Check, check_compressor
from recbole_fedras.config import Config
from recbole_fedras.config.private import check_deployed
from recbole_fedras.errors import ConfigError, FederationError
from recbole_fedras.federation.settings import SecureAggregation
from recbole_fedras.run.report import round_row
from recbole_fedras.secure.protocol import SecureServer
from recbole_fedras.wire.message import Kind, Message

SECURE = SecureAggregation(neighbours=16, bound=8.0)
LINEAR = [name for name in NAMES if make(name).linear]


def run(model, data, name="none", n_rounds=3, silent=None, monkeypatch=None, **keys):
    """Run rounds; clients are silent where the kind of an answer says so."""
    keys |= {"report_loss": False, "fraction": 0.75, "rates": (0.5,)}
    simulation = simulate(model, data, make(name), **keys)
    if silent:
        lose(simulation, silent, monkeypatch)
    for _ in range(n_rounds):
        simulation.run_round()
    return simulation


def lose(simulation, silent, monkeypatch):
    """Lose the answers of some clients, by kind."""
    exchange = simulation._transport.exchange

    def losing(messages, deadline=None):
        for answer in exchange(messages, deadline):
            header = Message.from_parts(answer.head, answer.body).header
            if header.client not in silent.get(header.kind, ()):
                yield answer

    monkeypatch.setattr(simulation._transport, "exchange", losing)


def require_near(found, expected):
    for one, other in [
        (found.server.parameters.item_table, expected.server.parameters.item_table),
        (found.server.parameters.theta, expected.server.parameters.theta),
        (found.shard.user_rows, expected.shard.user_rows),
    ]:
        assert torch.allclose(one, other, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "model", "aggregation"),
    [
        ("none", ncf, "inverse_frequency"),
        slow("none", mf, "fedavg"),
        slow("CoLR", mf, "inverse_frequency"),  # of each row alone, as few or all
        ("FCF-BTS", mf, "inverse_frequency"),  # of the rows that its downlink names
        slow("RandomRows", mf, "fedavg"),
    ],
)
def test_it_ends_where_the_plain_run_does(name, model, aggregation, data):
    keys = {"aggregation": aggregation}
    found = run(model(), data, name, secure=SECURE, **keys)
    plain = run(model(), data, name, **keys)
    require_near(found, plain)
    moved = plain.server.parameters.item_table - model().item_table()
    assert float(moved.abs().max()) > 0.01  # far more than what may differ


def test_the_server_learns_exactly_the_sum_of_the_words(data, monkeypatch):
    totals = []

    def noted(self, total=SecureServer.total):
        totals.append(total(self))
        return totals[-1]

    monkeypatch.setattr(SecureServer, "total", noted)
    found = run(mf(), data, n_rounds=1, secure=SECURE)
    words = found.shard._maskers._words
    assert len(words) == 9
    assert (np.sum(list(words.values()), 0, dtype=np.uint32) == totals[0]).all()


def test_messages_tell_nothing_but_who_takes_part(data, monkeypatch):
    simulation = run(mf(), data, n_rounds=0, secure=SECURE)
    booked = note_messages(simulation, monkeypatch)
    report = simulation.run_round()
    updates = [one for one in booked if one.header.kind is Kind.UPDATE]
    assert len(updates) == report.n_clients == 9
    assert len({len(one.body) for one in updates}) == 1
    assert {(one.header.n_samples, one.header.loss) for one in updates} == {(1, None)}
    trained = np.array([one.payload.ints("trained", 2**32, N_ITEMS) for one in updates])
    assert len(np.unique(trained)) == trained.size  # no zeros and ones
    up = {Kind.UPDATE, Kind.KEYS, Kind.SHARES, Kind.REVEALED}
    sizes = [len(one) for one in booked if one.header.kind in up]
    assert len(sizes) == 4 * 9
    assert report.bytes["uplink_bytes"] == sum(sizes)
    assert report.bytes["uplink_messages"] == 9
    parts = [f"uplink_{part}_bytes" for part in ("items", "ids", "theta", "framing")]
    assert sum(report.bytes[part] for part in parts) == sum(sizes)


def test_it_survives_those_who_fall_silent_at_any_stage(data, monkeypatch):
    cohort = sorted(run(mf(), data, n_rounds=1).server._invited)
    no_keys, no_shares, no_words, unrevealed = (
        cohort[1],
        cohort[3],
        cohort[4],
        cohort[7],
    )
    silent = {
        Kind.KEYS: [no_keys],
        Kind.SHARES: [no_shares],
        Kind.UPDATE: [no_words],
        Kind.REVEALED: [unrevealed],
    }
    keys = {"n_rounds": 1, "monkeypatch": monkeypatch}
    found = run(mf(), data, silent=silent, secure=SECURE, **keys)
    absent = {Kind.UPDATE: [no_keys, no_shares, no_words]}
    plain = run(mf(), data, silent=absent, **keys)
    assert found.server._counted.tolist() == plain.server._counted.tolist()
    require_near(found, plain)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Kind.REVEALED, "raise secure_neighbours"),
        slow(Kind.KEYS, "0 clients sent keys, of 3 needed"),
    ],
)
def test_a_round_of_too_few_is_one_of_nobody_and_several_end_the_run(
    kind, said, data, monkeypatch
):
    found, plain = (run(mf(), data, n_rounds=1, secure=way) for way in (SECURE, None))
    lose(found, {kind: range(12)}, monkeypatch)
    lose(plain, {Kind.UPDATE: range(12)}, monkeypatch)
    for _ in range(2):
        plain.run_round()
        report = found.run_round()
        assert report.n_clients == 0
        assert said in round_row(1, report)["refused"]
    require_near(found, plain)
    with pytest.raises(FederationError, match="nor in the 2 rounds before"):
        found.run_round()
    monkeypatch.undo()
    for simulation in (found, plain):  # and goes on
        simulation.run_round()
    require_near(found, plain)


def damaged(body, rng):
    """Change a few bytes, and leave some out now and then."""
    changed = bytearray(body)
    for at in rng.integers(len(body), size=rng.integers(1, 5)):
        changed[at] ^= int(rng.integers(1, 256))
    return bytes(changed[: len(body) - int(rng.integers(40)) * int(rng.integers(2))])


@pytest.mark.slow
def test_damaged_talks_cost_a_round_at_most(data, monkeypatch):
    """One client's bytes of one kind are damaged in each round."""
    simulation = run(mf(), data, n_rounds=0, secure=SECURE)
    exchange = simulation._transport.exchange
    rng = np.random.default_rng(0)
    kinds = [Kind.KEYS, Kind.SHARES, Kind.UPDATE, Kind.REVEALED]
    hurt = {}

    def damaging(messages, deadline=None):
        for answer in exchange(messages, deadline):
            header = Message.from_parts(answer.head, answer.body).header
            kind = kinds[simulation.round % len(kinds)]
            if header.kind is kind and hurt.get(simulation.round) is None:
                hurt[simulation.round] = header.client
                answer = answer._replace(body=damaged(answer.body, rng))
            yield answer

    monkeypatch.setattr(simulation._transport, "exchange", damaging)
    counted = [simulation.run_round().n_clients for _ in range(24)]
    assert len(hurt) == 24
    assert {*counted[2::4], *counted[3::4]} == {8, 9}
    assert {*counted} == {0, 8, 9}  # who damages its keys or notes can lose all a round


def test_a_cohort_is_three_at_least_or_nobody_is_asked(data):
    small = {"secure": SECURE, "report_loss": False, "fraction": 2.5 / data.n_clients}
    with pytest.raises(ConfigError, match="selects 2; secure_aggregation=True needs 3"):
        simulate(mf(), data, make("none"), **small)
    drawn = simulate(mf(), data, make("none"), sampling="poisson", **small)
    reports = [drawn.run_round() for _ in range(8)]
    few = [report for report in reports if report.n_invited < 3]
    assert 0 < len(few) < 8
    assert not any(report.n_clients for report in few)


@pytest.mark.slow
def test_a_sketch_of_all_rows_trains_too(data):
    """It is another one than that of the trained rows, so the runs are not alike."""
    found = run(mf(), data, "CountSketch", secure=SECURE)
    moved = found.server.parameters.item_table - mf().item_table()
    assert 0.01 < float(moved.abs().max()) < 10


@pytest.mark.parametrize("name", NAMES)
def test_compressors_add_up_or_do_not_say_so(name):
    check = _Check(lambda: make(name), budget(0.5), 60, 0)
    if make(name).linear:
        check.adds_up()
    else:
        with pytest.raises(AssertionError):
            check.adds_up()


def test_the_contract_finds_a_compressor_that_only_says_so():
    svd = type(make("SVD"))
    with pytest.raises(AssertionError, match="linear"):
        check_compressor(type("Sure", (svd,), {"linear": True}))


def test_the_documentation_names_those_that_add_up():
    text = (ROOT / "docs" / "threat_model.md").read_text(encoding="utf-8")
    (line,) = [one for one in text.splitlines() if one.startswith("Payloads add up of")]
    assert [name for name in NAMES if f"`{name}`" in line] == LINEAR


ON = {"secure_aggregation": True, "report_loss": False, "compressor": "none"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["--compressor=SVD"], "compressor SVD, whose payloads do not add up"),
        (["--aggregation=krum"], "aggregation='krum' is not allowed"),
        (["--aggregation=dp_fedavg"], "aggregation='dp_fedavg' is not allowed"),
        (["--transforms=clip_rows"], "clip_rows is not allowed"),
        (["--report_loss=True"], "report_loss=True is not allowed"),
        (["--uplink_feedback=True"], "uplink_feedback=True is not allowed"),
        (["--max_update_norm=10"], "max_update_norm=10"),
        (["--report_contraction=True"], "report_contraction=True is not allowed"),
        (["--compress_network=True"], "compress_network=True is not allowed"),
        (["--bandwidth=[0.5,0.75]"], "bandwidth=.* is not allowed"),
        (["--compressor=CoLR", "--budget=wire"], "budget='wire' is not allowed"),
    ],
)
def test_what_a_sum_is_not_enough_for_is_refused(keys, said):
    with pytest.raises(ConfigError, match=said):
        Config(config_dict=ON, argv=[*TINY, *keys])


def test_a_deployment_has_none():
    with pytest.raises(ConfigError, match="secure_aggregation=True is not allowed"):
        check_deployed(Config(config_dict=ON, argv=TINY))
