"""Which group a row is in: the same after the wire, and never for more bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_fedras.compressor import RowUpdate
from recbole_fedras.compressor.base import Budget, RoundContext
from recbole_fedras.compressor.fedras import assignments as module
from recbole_fedras.compressor.fedras.assignments import (
    get_assignments,
    put_assignments,
)
from recbole_fedras.compressor.fedras.fedras import FedRAS
from recbole_fedras.errors import PayloadError
from recbole_fedras.wire.payload import Layout, Payload
from recbole_fedras.wire.symbols import pack_symbols

N, N_GROUPS = 4000, 32
CTX = RoundContext(round=0, seed=0, n_items=3000, dim=8)


def skewed(n: int = N, n_groups: int = N_GROUPS, seed: int = 0) -> np.ndarray:
    """Draw groups of unequal sizes; some may be of nobody."""
    rng = np.random.default_rng(seed)
    shares = rng.lognormal(0, 2, n_groups)
    return rng.choice(n_groups, size=n, p=shares / shares.sum())


def heavy_tailed() -> RowUpdate:
    """Return rows like those of an aggregate: most are small, so groups are unequal."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((3000, 8)) * rng.lognormal(0, 2, (3000, 1))
    return RowUpdate(torch.arange(3000), torch.from_numpy(rows).float())


def sent(assignments: np.ndarray, n_groups: int, value_bytes: int = 1):
    """Return a payload, and each group's former number as its action."""
    payload, actions = Payload(), np.arange(n_groups, dtype=np.float32)[:, None]
    actions, numbered = put_assignments(payload, actions, assignments, value_bytes)
    np.testing.assert_array_equal(actions[numbered, 0], assignments)
    return Payload.from_bytes(payload.to_bytes()), actions[:, 0]


@given(
    groups=st.lists(st.integers(0, 40), min_size=1, max_size=300),
    n_unused=st.integers(0, 3),
)
def test_every_row_keeps_its_group_and_no_message_grows(groups, n_unused):
    assignments = np.array(groups)
    n_groups = int(assignments.max()) + 1 + n_unused
    payload, actions = sent(assignments, n_groups)
    received = get_assignments(payload, n_groups, len(groups))
    np.testing.assert_array_equal(actions[received], assignments)
    plain = Layout().ints("assignments", n_groups, len(groups))
    assert payload.size <= plain.size


def test_sizes_save_what_their_entropy_says():
    assignments = skewed()
    payload, actions = sent(assignments, N_GROUPS)
    shares = np.bincount(assignments, minlength=N_GROUPS) / N
    entropy = -np.sum(shares * np.log2(shares, where=shares > 0, out=np.zeros(32)))
    assert entropy < 4
    n_bytes = payload.part_bytes()["ids"]
    assert N * entropy / 8 < n_bytes < N * entropy / 8 + 80  # of 5 bits, 2500 bytes
    received = get_assignments(payload, N_GROUPS, N)
    np.testing.assert_array_equal(actions[received], assignments)
    assert (np.diff(np.bincount(received, minlength=N_GROUPS)) <= 0).all()


@pytest.mark.parametrize(
    ("assignments", "value_bytes"),
    [
        (np.arange(N) % N_GROUPS, 1),  # of equal sizes: nothing to gain
        (skewed(), N),  # actions are nearly all of the message
        (skewed(40), 1),  # too few rows to gain more than the sizes take
    ],
)
def test_elsewhere_an_index_is_what_it_was(assignments, value_bytes):
    payload, actions = sent(assignments, N_GROUPS, value_bytes)
    np.testing.assert_array_equal(actions, np.arange(N_GROUPS))
    received = payload.ints("assignments", N_GROUPS, len(assignments))
    np.testing.assert_array_equal(received, assignments)


@pytest.mark.parametrize(
    ("actions", "share"), [("float32", 0.95), ("int8", 0.95), ("shape", 1.0)]
)
def test_updates_arrive_as_without_it_in_fewer_bytes(actions, share, monkeypatch):
    update, budget = heavy_tailed(), Budget(3000, 8, 0.96)
    compressor = FedRAS(actions=actions)
    coded = compressor.encode(update, budget, CTX)
    monkeypatch.setattr(module, "_SHARE", 0)
    plain = compressor.encode(update, budget, CTX)
    assert "sizes" in coded
    assert "sizes" not in plain
    assert coded.size < share * plain.size
    one, other = (compressor.decode(payload, CTX) for payload in (coded, plain))
    assert torch.equal(one.ids, other.ids)
    assert torch.equal(one.rows, other.rows)


@pytest.mark.parametrize(
    ("actions", "gain"), [("float32", 0.3), ("int8", 0.0), ("shape", 0.06)]
)
def test_a_budget_of_bytes_has_room_for_more_groups(actions, gain, monkeypatch):
    update, budget = heavy_tailed(), Budget(3000, 8, 0.9, n_bytes=9000)
    compressor = FedRAS(actions=actions, clustering="fixed")

    def error_of(payload):
        decoded = compressor.decode(payload, CTX)
        return float((decoded.rows - update.rows).square().sum())

    coded = compressor.encode(update, budget, CTX)
    [downlink] = compressor.encode_broadcast(update, [budget], CTX)
    groups = compressor.metrics()["groups"]
    monkeypatch.setattr(module, "_SHARE", 0)
    plain = compressor.encode(update, budget, CTX)
    compressor.encode_broadcast(update, [budget], CTX)
    assert "sizes" in coded
    assert coded.to_bytes() == downlink.to_bytes()
    assert 0.99 * 9000 < coded.size <= 9000
    assert groups > compressor.metrics()["groups"]
    assert error_of(coded) < (1 - gain) * error_of(plain)


def test_adaptive_clustering_splits_as_far_as_bytes_go():
    update = heavy_tailed()
    budgets = [Budget(3000, 8, 0.9, n_bytes=n) for n in (9000, 12_000)]
    compressor = FedRAS()
    coarse, fine = compressor.encode_broadcast(update, budgets, CTX)
    assert "sizes" in coarse
    assert "sizes" in fine
    assert 0.99 * 9000 < coarse.size <= 9000
    assert 0.99 * 12_000 < fine.size <= 12_000
    assert compressor.metrics()["groups"] == len(fine.floats("actions", None, 8))
    # Tiers nest, however groups are numbered.
    rows = [compressor.decode(payload, CTX).rows for payload in (coarse, fine)]
    of_coarse, of_fine = (one.unique(dim=0, return_inverse=True)[1] for one in rows)
    pairs = torch.stack([of_fine, of_coarse], 1).unique(dim=0)
    assert len(pairs) == len(of_fine.unique())


@pytest.mark.parametrize("clustering", ["fixed", "adaptive"])
def test_few_bytes_are_spent_without_coding(clustering):
    """A group more would take over 0.5 % of them: too much to leave no more."""
    update, budget = heavy_tailed(), Budget(3000, 8, 0.9, n_bytes=5000)
    compressor = FedRAS(clustering=clustering)
    [downlink] = compressor.encode_broadcast(update, [budget], CTX)
    for payload in (compressor.encode(update, budget, CTX), downlink):
        assert "sizes" not in payload
        assert 0.99 * 5000 < payload.size <= 5000


def test_rows_that_are_alike_need_no_more_groups_than_they_are():
    rows = np.random.default_rng(0).standard_normal((5, 8)).astype("f4").repeat(400, 0)
    update = RowUpdate(torch.arange(2000), torch.from_numpy(rows))
    payload = FedRAS().encode(update, Budget(3000, 8, 0.9, n_bytes=40_000), CTX)
    assert "sizes" in payload
    assert len(payload.floats("actions", None, 8)) == 5


def forged(assignments, sizes, *, cut: int = 0) -> Payload:
    """Claim sizes for groups, whatever they are, and code rows by these."""
    occurring, repeats = np.unique(sizes, return_counts=True)
    code = pack_symbols([assignments.astype(np.int32)], sizes[None])
    payload = Payload().put_rows("sizes", occurring, len(assignments) + 1)
    payload.put_ints("repeats", repeats, len(sizes) + 1)
    return payload.put_ints("assignments", code[: len(code) - cut], 256)


@pytest.mark.parametrize(
    ("sizes", "n_groups", "cut", "message"),
    [
        ([5, 3, 2], 3, 0, None),
        ([5, 4, 1], 3, 0, "not of the sizes announced"),
        ([5, 3, 2], 4, 0, "3 integers below 5"),
        ([5, 3, 1], 3, 0, "not of 3 groups of 10 rows"),
        ([5, 3, 2], 3, 1, "no whole words"),
    ],
)
def test_a_receiver_believes_no_sizes(sizes, n_groups, cut, message):
    assignments = np.repeat([0, 1, 2], [5, 3, 2])
    payload = forged(assignments, np.array(sizes), cut=cut)
    if message is None:
        np.testing.assert_array_equal(get_assignments(payload, 3, 10), assignments)
    else:
        with pytest.raises(PayloadError, match=message):
            get_assignments(payload, n_groups, 10)


@pytest.mark.parametrize(("n", "n_groups"), [(0, 0), (0, 2), (6, 1)])
def test_sizes_are_of_rows_and_of_two_groups_at_least(n, n_groups):
    occurring = np.array([n]) if n_groups else np.array([], np.int64)
    payload = Payload().put_rows("sizes", occurring, n + 1)
    payload.put_ints("repeats", np.full(len(occurring), n_groups), n_groups + 1)
    payload.put_ints("assignments", np.zeros(4, np.uint8), 256)
    with pytest.raises(PayloadError, match=f"not of {n_groups} groups of {n} rows"):
        get_assignments(payload, n_groups, n)


def test_whatever_arrives_is_refused_or_is_of_the_groups_that_there_are():
    payload, _ = sent(skewed(600), N_GROUPS)
    data, rng = payload.to_bytes(), np.random.default_rng(0)
    assert "sizes" in payload
    outcomes = set()
    for _ in range(2000):
        broken = bytearray(data)
        for place in rng.integers(len(data), size=rng.integers(1, 4)):
            broken[place] ^= 1 << rng.integers(8)
        try:
            received = get_assignments(Payload.from_bytes(bytes(broken)), N_GROUPS, 600)
        except PayloadError:
            outcomes.add("refused")
            continue
        outcomes.add("decoded")
        assert received.shape == (600,)
        assert 0 <= received.min() <= received.max() < N_GROUPS
    assert outcomes == {"refused", "decoded"}
