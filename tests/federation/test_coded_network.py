"""Coded networks: within their bytes, nearly exact in the mean, both ends alike."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import slow
from methods import make
from population import mf, ncf, note_messages, simulate

from recbole_fedras.compressor.base import RoundContext
from recbole_fedras.errors import BudgetError, PayloadError
from recbole_fedras.federation.budgets import make_budgets
from recbole_fedras.federation.network import get_coded, put_coded
from recbole_fedras.federation.settings import Federation
from recbole_fedras.wire.message import Kind
from recbole_fedras.wire.payload import Payload


def of(sender: int) -> RoundContext:
    return RoundContext(round=3, seed=2020, n_items=100, dim=32, sender=sender)


def change(n: int, scale: float = 1e-3) -> torch.Tensor:
    """Return a change as training makes it: most values small, a third zero."""
    rng = np.random.default_rng(n)
    values = rng.standard_normal(n) * rng.random(n) ** 4 * scale
    values[::3] = 0
    return torch.from_numpy(values.astype(np.float32))


def sent(values: torch.Tensor, n_bytes: int, sender: int = 0) -> torch.Tensor:
    payload = put_coded(Payload(), values, n_bytes, of(sender))
    assert payload.size - Payload().size <= n_bytes
    assert payload.part_bytes()["theta"] <= n_bytes
    received = Payload.from_bytes(payload.to_bytes())
    return get_coded(received, len(values))


@pytest.mark.parametrize(("n", "n_bytes"), [(2625, 64), (2625, 300), (40, 64), (1, 64)])
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e29])
def test_the_mean_over_clients_is_nearly_exact(n, n_bytes, scale):
    values = change(n + 3, scale)[1:-2].double()
    arrived = torch.stack([sent(values.float(), n_bytes, k) for k in range(200)])
    assert not arrived[:, values == 0].any()
    # Of the small half and of the large one, which to the nearest would vanish or grow.
    for half in values.abs().argsort()[values.eq(0).sum() :].chunk(2):
        signed = (arrived[:, half].double() * values[half].sign()).sum(1)
        error = signed.mean() - values[half].abs().sum()
        assert abs(error) <= 4 * signed.std() / 200**0.5 + 1e-6 * values.abs().max()


def test_more_bytes_lose_less():
    values = change(2625)
    errors = [float((sent(values, n) - values).norm()) for n in (64, 164, 600, 3000)]
    assert all(few > 2 * more for few, more in pairwise(errors))
    assert errors[-1] < 1e-3 * float(values.norm())


@pytest.mark.parametrize(
    ("value", "least"), [(0.0, 0.0), (3e38, 1e29), (-1e20, 1e19), (-1e-45, 0.0)]
)
def test_extremes_are_sent(value, least):
    """Beyond what honest clients send they are cut, or are nothing."""
    arrived = sent(torch.full((100,), value), 64)
    assert arrived.isfinite().all()
    assert (arrived.abs() >= least).all()
    assert (arrived.abs() <= 2 * abs(value)).all()


@pytest.mark.parametrize("n", [1, 13, 1024, 100_000])
def test_the_least_bytes_say_something_of_any_network(n):
    values = change(n + 2)[1:-1]
    arrived = sent(values, 64)
    assert 0 < int((arrived != 0).sum()) <= n
    assert float(arrived.double() @ values.double()) > 0


def test_what_is_not_finite_is_no_change():
    with pytest.raises(ValueError, match="the network's change is not finite"):
        put_coded(Payload(), torch.tensor([1.0, np.nan]), 64, of(0))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x00\x80",
        np.float32(0).tobytes(),
        np.float32(-1).tobytes(),
        np.float32(np.nan).tobytes(),
        np.float32(np.inf).tobytes() + b"\xf0",
        np.float32(1).tobytes() + bytes(60),
    ],
)
def test_forged_networks_are_refused(data):
    data = np.frombuffer(data, np.uint8)
    payload = Payload().put_ints("theta", data, 256, "theta")
    with pytest.raises(PayloadError, match="field 'theta'"):
        get_coded(payload, 100)


def test_the_rate_is_the_networks_too():
    """And what it does not take is left to items."""
    keys = {"budget": "wire", "compress_network": True, "uplink_share": 0.25}
    settings = Federation(1, 0.5, (0.9, 0.99), "fedavg", **keys)
    made = make_budgets(settings, 2000, 32, 2625, make("KLT"), None)
    # A quarter of both directions together is half of one: rates of 0.95 and 0.995.
    assert made.uplink_network == (525, 64)
    assert made.downlink_network == 157  # 0.985: of the tier that has least
    n_values, rates = 2000 * 32 + 2625, (0.95, 0.995, 0.85, 0.985)
    of_network = (*made.uplink_network, 157, 157)
    for rate, budget, network in zip(
        rates, (*made.uplink, *made.downlink), of_network, strict=True
    ):
        left = int(4 * n_values * (1 - rate)) - network - budget.n_bytes
        assert 20 < left < 60  # a header
    settings = Federation(1, 0.5, (0.9,), "fedavg", **keys)
    made = make_budgets(settings, 2000, 32, 2625, make("KLT"), make("KLT"))
    assert made.downlink_network is None  # no compressor's downlinks have it
    none = make_budgets(settings, 2000, 32, 0, make("KLT"), None)
    assert (none.uplink_network, none.downlink_network) == ((), None)


@pytest.mark.parametrize(
    ("hidden", "rates"), [((16, 8), (0.9,)), ((1,), (0.9,)), slow((16, 8), (0.8, 0.9))]
)
def test_both_ends_hold_one_network(hidden, rates, data, monkeypatch):
    """Whatever version clients come from; and each part keeps to its bytes."""
    simulation = simulate(
        ncf(hidden),
        data,
        make("KLT"),
        replica="grid",
        rates=rates,
        compress_network=True,
    )
    booked = note_messages(simulation, monkeypatch)
    policy, exact = simulation.server.policy, simulation.server.parameters.theta
    began = exact.clone()
    for _ in range(160):
        simulation.run_round()
    simulation.shard.refresh(policy.newest([0] * len(rates)))
    assert torch.equal(simulation.shard.replicas.theta, policy.network)
    assert (policy.network - exact).norm() < 0.5 * (began - exact).norm()
    budgets = simulation.agreement.budgets
    ups = [one for one in booked if one.header.kind is Kind.UPDATE]
    assert max(one.part_bytes()["theta"] for one in ups) <= max(budgets.uplink_network)
    downs = [one.part_bytes() for one in booked if one.header.kind is Kind.DOWNLINK]
    assert np.mean([one["theta"] for one in downs]) < 1.1 * budgets.downlink_network
    if len(rates) == 1:
        items = np.mean([one["items"] for one in downs])
        assert items < 1.1 * 4 * budgets.downlink[0].values


def test_a_model_without_a_network_has_none(data):
    runs = [
        simulate(mf(), data, make("KLT"), replica="grid", compress_network=compressed)
        for compressed in (False, True)
    ]
    reports = [[one.run_round().bytes for _ in range(3)] for one in runs]
    assert reports[0] == reports[1]


def test_a_network_that_leaves_no_bytes_is_refused_with_the_remedy():
    settings = Federation(1, 0.5, (0.99,), "fedavg", budget="wire")
    with pytest.raises(BudgetError, match="or compress_network=True with replica=grid"):
        make_budgets(settings, 2000, 32, 2625, make("KLT"), None)
    coded = replace(settings, compress_network=True)
    assert make_budgets(coded, 2000, 32, 2625, make("KLT"), None).downlink_network
    with pytest.raises(BudgetError, match="with replica=grid"):
        make_budgets(coded, 2000, 32, 2625, make("KLT"), make("KLT"))
