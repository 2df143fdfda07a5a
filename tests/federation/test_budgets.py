"""Budgets of all bytes: met within a hundredth, never exceeded."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from conftest import slow
from hypothesis import given
from hypothesis import strategies as st
from methods import LARGE_CTX, VARIANTS, large_update, make
from population import DIM, N_ITEMS, mf, ncf, note_messages, simulate

from recbole_fedras.compressor.base import Budget, RowUpdate
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.errors import BudgetError
from recbole_fedras.wire.message import Kind
from recbole_fedras.wire.payload import Layout, Payload

# They leave bytes over: all send alike, or what was chosen without the update.
SPARING = {
    "none", "CoLR", "CountSketch", "SCoLR", "RankOne", "JointRec", "RandomRows",
    "FCF-BTS",
}  # fmt: skip


def wire_budget(rate: float) -> Budget:
    return Budget(2000, 16, rate, int(4 * 2000 * 16 * (1 - rate)))


@given(
    n=st.integers(0, 700),
    columns=st.integers(0, 300),
    bound=st.integers(1, 70_000),
    name=st.text(st.characters(codec="ascii"), max_size=40),
)
def test_a_layout_is_as_long_as_its_payload(n, columns, bound, name):
    payload = Payload().put_floats(f"f{name}", np.zeros((n, columns), np.float32))
    payload.put_ints(f"i{name}", np.zeros(n, np.int64), bound)
    payload.put_rows(f"r{name}", np.arange(n), 700)
    layout = Layout().floats(f"f{name}", n, columns).ints(f"i{name}", bound, n)
    assert layout.rows(f"r{name}", n, 700).size == len(payload.to_bytes())


@pytest.mark.parametrize(
    ("rates", "counts"),
    [((0.8, 0.9375), (1900,)), slow((0.875, 0.9375), (1500, 2000))],
)
@pytest.mark.parametrize(("name", "keys"), VARIANTS)
def test_bytes_meet_the_budget(name, keys, rates, counts):
    for rate, n in product(rates, counts):
        own, compressor = wire_budget(rate), make(name, **keys)
        update = large_update(max(n, 1900))
        update = RowUpdate(update.ids[:n], update.rows[:n])
        # 2,000 scales are 8,000 bytes, a rank 8,000 and framing.
        too_little = {"Quantize": 16_000, "CoLR": 8_000, "SCoLR": 8_000}
        if own.n_bytes <= too_little.get(name, 0):
            with pytest.raises(ValueError, match="budget=wire leaves a"):
                compressor.validate(own)
            continue
        compressor.validate(own)
        for payload in (
            compressor.encode_broadcast(update, [own], LARGE_CTX)[0],
            compressor.encode(update, own, LARGE_CTX),
        ):
            size = len(payload.to_bytes())
            assert size <= own.n_bytes or name == "none", (rate, n)
            if name not in SPARING:
                assert size >= 0.99 * own.n_bytes, (rate, n)
            received = Payload.from_bytes(payload.to_bytes())
            decoded = make(name, **keys).decode(received, LARGE_CTX)
            assert set(decoded.ids.tolist()) <= set(update.ids.tolist())


@pytest.mark.parametrize("name", ["SVD", "TopK", "Quantize", "EDEN"])
def test_bytes_left_over_lower_the_error(name):
    """What is short of the next whole rank, entry or bit is not wasted."""
    update, compressor = large_update(2000), make(name)
    errors, sizes = [], []
    for n_bytes in range(20_000, 32_000, 1000):
        own = replace(wire_budget(0.7), n_bytes=n_bytes)
        payload = compressor.encode(update, own, LARGE_CTX)
        decoded = compressor.decode(payload, LARGE_CTX)
        dense = torch.zeros(2000, 16)
        dense[decoded.ids] = decoded.rows
        errors.append(float((dense[update.ids] - update.rows).square().sum()))
        sizes.append(len(payload.to_bytes()))
    assert len(set(errors)) == len(errors)
    assert errors == sorted(errors, reverse=True)
    assert all(
        0.99 * n_bytes < size
        for n_bytes, size in zip(range(20_000, 32_000, 1000), sizes, strict=True)
    )


@pytest.mark.parametrize("name", ["SVD", "RankOne"])
def test_less_than_one_rank_goes_to_the_rows_that_need_it(name):
    update = large_update(2000)
    own = replace(wire_budget(0.9375), n_bytes=5000)  # a rank takes 8,064
    payload = make(name).encode(update, own, LARGE_CTX)
    assert payload.floats("left", 2000, None).shape[1] == 0
    assert 4950 < len(payload.to_bytes()) <= 5000
    decoded = make(name).decode(payload, LARGE_CTX).rows
    sent = decoded.any(dim=1)
    _, vectors = torch.linalg.eigh(update.rows.double().T @ update.rows.double())
    along = (update.rows.double() @ vectors[:, -1]).abs()
    assert along[sent].min() >= along[~sent].max() - 1e-6
    assert 0 < int(sent.sum()) < 2000


def test_fedras_splits_to_what_fits_and_tiers_nest():
    update = large_update(2000)
    budgets = [wire_budget(rate) for rate in (0.75, 0.9375)]
    payloads = make("FedRAS").encode_broadcast(update, budgets, LARGE_CTX)
    for own, payload in zip(budgets, payloads, strict=True):
        assert 0.99 * own.n_bytes <= len(payload.to_bytes()) <= own.n_bytes


@pytest.mark.parametrize(
    ("name", "keys", "replica", "make_model"),
    [
        (name, keys, replica, (mf, ncf)[(i + k) % 2])
        for i, (name, keys) in enumerate(VARIANTS)
        for k, replica in enumerate(("broadcast", "stale", "personal"))
        if name != "none" and (name, replica) != ("CE", "stale")  # no table all hold
    ],
)
def test_no_message_exceeds_its_share_of_the_dense_one(
    name, keys, replica, make_model, data, monkeypatch
):
    model, rate = make_model(), 0.3
    n_theta = sum(value.numel() for value in model.theta().values())
    simulation = simulate(
        model, data, make(name, **keys), rates=(rate,), budget="wire", replica=replica
    )
    limit = (1 - rate) * 4 * (N_ITEMS * DIM + n_theta)
    for _ in range(4):
        booked = note_messages(simulation, monkeypatch)
        simulation.run_round()
        for kinds in ([Kind.UPDATE], [Kind.DOWNLINK, Kind.PERSONAL, Kind.RECEIPT]):
            sizes = Counter()
            for message in booked:
                if message.header.kind in kinds:
                    sizes[message.header.client] += len(message)
            assert len(sizes) == 3
            assert max(sizes.values()) <= limit


@pytest.mark.parametrize("counted", ["nominal", "wire"])
def test_directions_share_what_the_rate_leaves(counted, data, monkeypatch):
    sizes = {}
    for share in (0.5, 0.25, 0.75):
        keys = {"rates": (0.5,), "uplink_share": share, "budget": counted}
        simulation = simulate(mf(), data, make("TopK"), **keys)
        booked = note_messages(simulation, monkeypatch)
        simulation.run_round()
        simulation.run_round()
        sizes[share] = {
            kind: max(len(one) for one in booked if one.header.kind is kind)
            for kind in (Kind.UPDATE, Kind.DOWNLINK)
        }
        if counted == "wire":
            half = 0.5 * 4 * N_ITEMS * DIM
            assert sizes[share][Kind.UPDATE] <= 2 * share * half
            assert sizes[share][Kind.DOWNLINK] <= 2 * (1 - share) * half
    for kind, least, most in ((Kind.UPDATE, 0.25, 0.75), (Kind.DOWNLINK, 0.75, 0.25)):
        assert sizes[least][kind] < 0.75 * sizes[0.5][kind]
        assert sizes[most][kind] > 1.2 * sizes[0.5][kind]


def test_a_share_that_leaves_too_little_is_named(data):
    with pytest.raises(
        BudgetError, match=r"^uplinks, by uplink_share=0.01: .*, or another share"
    ):
        simulate(mf(), data, make("TopK"), rates=(0.5,), uplink_share=0.01)
    with pytest.raises(
        BudgetError, match=r"^downlinks, by uplink_share=0.99: .* another share"
    ):
        simulate(mf(), data, make("KLT"), rates=(0.5,), uplink_share=0.99)


def test_binary_codes_are_cut_and_need_no_budget(run):
    keys = {"compression_rate": 0.9688, "embedding_size": 32, "epochs": 2}
    assert run("LightFR", budget="wire", **keys)["rounds"] == 2


def test_what_sends_everything_needs_no_budget(data):
    simulation = simulate(ncf(), data, make("none"), rates=(0.99,), budget="wire")
    simulation.run_round()


@pytest.mark.parametrize("replica", ["broadcast", "stale", "personal"])
def test_a_message_over_its_budget_is_an_error(replica, data):
    class Spending(NoCompression):
        lossless = False

    simulation = simulate(mf(), data, Spending(), budget="wire", replica=replica)
    with pytest.raises(ValueError, match=r"Spending .* of at most"):
        simulation.run_round()


def test_a_network_that_takes_the_whole_budget_is_refused(data):
    with pytest.raises(ValueError, match=r"597 are taken by the network \(135 values"):
        simulate(ncf(), data, make("TopK"), rates=(0.75,), budget="wire")
