"""Networks that are coded: within their bytes, exact in the mean, both ends alike."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from conftest import slow
from methods import make
from population import mf, ncf, note_messages, simulate

from recbole_fedras.compressor.base import RoundContext
from recbole_fedras.errors import PayloadError
from recbole_fedras.federation.budgets import make_budgets
from recbole_fedras.federation.network import as_rows, get_coded, put_coded
from recbole_fedras.federation.settings import Federation
from recbole_fedras.wire.columns import pack_table
from recbole_fedras.wire.message import Kind
from recbole_fedras.wire.payload import Payload

DIM = 32


def of(sender: int) -> RoundContext:
    return RoundContext(round=3, seed=2020, n_items=100, dim=DIM, sender=sender)


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
    return get_coded(received, len(values), DIM)


@pytest.mark.parametrize(("n", "n_bytes"), [(2625, 64), (2625, 300), (40, 64), (1, 64)])
@pytest.mark.parametrize("scale", [1e-20, 1e-3, 1e29])
def test_the_mean_over_clients_is_exact(n, n_bytes, scale):
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


@pytest.mark.parametrize("value", [0.0, 3e38, -1e-45])
def test_extremes_are_sent(value):
    arrived = sent(torch.full((100,), value), 64)
    assert arrived.isfinite().all()
    assert (arrived.sign() == np.sign(value)).all() or abs(value) < 1e-30


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
        get_coded(payload, 100, DIM)


def test_rows_hold_a_network_and_zeros():
    rows = as_rows(change(70), DIM)
    assert rows.shape == (3, DIM)
    assert torch.equal(rows.flatten()[:70], change(70))
    assert not rows.flatten()[70:].any()
    assert len(pack_table(np.zeros((3, DIM), np.int32))) == 0


def test_the_rate_is_the_networks_too():
    """And what it does not take is left to items."""
    keys = {"budget": "wire", "compress_network": True, "uplink_share": 0.25}
    settings = Federation(1, 0.5, (0.9, 0.99), "fedavg", **keys)
    made = make_budgets(settings, 2000, 32, 2625, make("KLT"), None)
    # A quarter of both directions together is half of one: rates of 0.95 and 0.995.
    assert made.network.uplink == (525, 64)
    assert made.network.downlink == 157  # 0.985: of the tier that has least
    n_values = 2000 * 32 + 2625
    for rate, budget, network in zip(
        (0.95, 0.995), made.uplink, made.network.uplink, strict=True
    ):
        left = int(4 * n_values * (1 - rate)) - network - budget.n_bytes
        assert 20 < left < 60  # a header
    settings = Federation(1, 0.5, (0.9,), "fedavg", **keys)
    assert make_budgets(settings, 2000, 32, 0, make("KLT"), None).network is None


@pytest.mark.parametrize("rates", [(0.9,), slow((0.8, 0.9))])
def test_both_ends_hold_one_network(rates, data, monkeypatch):
    """Whatever version clients come from; it follows the server's, and takes little."""
    simulation = simulate(
        ncf((16, 8)),
        data,
        make("KLT"),
        replica="grid",
        rates=rates,
        compress_network=True,
    )
    booked = note_messages(simulation, monkeypatch)
    for _ in range(20):
        simulation.run_round()
    exact = simulation.server.parameters.theta
    simulation.shard.refresh(simulation.server.policy.newest([0] * len(rates)))
    held = simulation.shard.replicas.theta
    (network,) = simulation.server.policy._followers()[len(rates) :]
    assert torch.equal(held, network.values().flatten()[: len(exact)])
    start = ncf((16, 8)).theta()
    began = torch.cat([value.detach().flatten() for value in start.values()])
    assert (held - exact).norm() < 0.5 * (began - exact).norm()
    own = simulation.agreement.budgets.network
    ups = [one for one in booked if one.header.kind is Kind.UPDATE]
    assert max(one.part_bytes()["theta"] for one in ups) <= max(own.uplink)
    downs = [one for one in booked if one.header.kind is Kind.DOWNLINK]
    assert np.mean([one.part_bytes()["theta"] for one in downs]) < 1.2 * own.downlink
    assert 4 * len(exact) > 2 * own.downlink


def test_a_model_without_a_network_has_none(data):
    runs = [
        simulate(mf(), data, make("KLT"), replica="grid", compress_network=compressed)
        for compressed in (False, True)
    ]
    reports = [[one.run_round().bytes for _ in range(3)] for one in runs]
    assert reports[0] == reports[1]
