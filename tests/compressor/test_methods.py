"""What is particular to each method: its laws, against their definitions."""

from dataclasses import replace
from hashlib import sha256
from math import floor

import numpy as np
import pytest
import torch
from conftest import CTX, DIM, N_ITEMS, budget, make_update, slow
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from methods import LARGE, LARGE_CTX, compatible, large_update, make, sent, table

from recbole_fedras.compressor import RowUpdate
from recbole_fedras.compressor.base import SERVER, Budget, largest
from recbole_fedras.compressor.colr import CoLR
from recbole_fedras.compressor.fedras.fedras import FedRAS
from recbole_fedras.compressor.klt import leading_vectors
from recbole_fedras.compressor.svd import SVD
from recbole_fedras.compressor.topk import TopK
from recbole_fedras.wire import bits
from recbole_fedras.wire.payload import Payload, PayloadError
from recbole_fedras.wire.symbols import pack_symbols


def test_topk_keeps_the_largest_entries():
    update = make_update(30)
    compressor = TopK()
    decoded = compressor.decode(compressor.encode(update, budget(0.75), CTX), CTX)
    expected = torch.zeros_like(update.rows)
    for row, values in enumerate(update.rows):
        kept = sorted(range(DIM), key=lambda j: -abs(float(values[j])))[:2]
        expected[row, kept] = values[kept]
    assert torch.equal(decoded.rows, expected)

    compressor = TopK("global")
    decoded = compressor.decode(compressor.encode(update, budget(0.75), CTX), CTX)
    cut = update.rows.abs().flatten().sort(descending=True).values[59]
    expected = torch.where(update.rows.abs() >= cut, update.rows, 0.0)
    assert int((expected != 0).sum()) == floor(N_ITEMS * DIM * 0.25 / 2) == 60
    assert torch.equal(table(decoded)[update.ids], expected)


@given(
    arrays(
        np.float32,
        st.integers(0, 12),
        elements=st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, np.inf, -np.inf, np.nan]),
    ),
    st.integers(0, 14),
)
def test_largest_is_a_stable_sort(values, count):
    expected = np.sort(np.argsort(-np.abs(values), kind="stable")[:count])
    np.testing.assert_array_equal(largest(values, count), expected)


def test_svd_is_the_best_approximation_of_its_rank():
    update = make_update(50)
    compressor = SVD()
    decoded = compressor.decode(compressor.encode(update, budget(0.75), CTX), CTX)
    u, s, vt = np.linalg.svd(update.rows.double().numpy(), full_matrices=False)
    best = (u[:, :2] * s[:2]) @ vt[:2]
    np.testing.assert_allclose(decoded.rows, best, atol=1e-5)


def test_colr_basis_is_orthogonal_fresh_and_shared():
    mapping = CoLR().gradient_map(budget(0.75), CTX)  # sqrt(r/d) B'B
    projector = mapping * np.sqrt(2 / DIM)  # B'B = (d/r) P
    torch.testing.assert_close(projector @ projector, projector, rtol=1e-4, atol=1e-5)
    assert float(projector.trace()) == pytest.approx(2, abs=1e-4)
    other_sender = CoLR().gradient_map(budget(0.75), replace(CTX, sender=0))
    other_round = CoLR().gradient_map(budget(0.75), replace(CTX, round=4))
    assert torch.equal(mapping, other_sender)
    assert not torch.allclose(mapping, other_round)


def test_colr_is_exact_in_its_subspace_and_linear():
    update = compatible("CoLR", make_update(40), 0.75)
    compressor = CoLR()
    once = compressor.decode(compressor.encode(update, budget(0.75), CTX), CTX)
    torch.testing.assert_close(once.rows, update.rows, rtol=1e-4, atol=1e-5)
    anything = make_update(40)
    one, two = (
        compressor.decode(
            compressor.encode(RowUpdate(anything.ids, rows), budget(0.75), CTX), CTX
        ).rows
        for rows in (anything.rows, 2 * anything.rows)
    )
    torch.testing.assert_close(two, 2 * one)


def test_fedras_uplink_rows_get_the_nearest_action_sent():
    update = make_update(50)
    payload = FedRAS().encode(update, budget(0.75), CTX)
    actions = payload.floats("actions", None, DIM)
    assignments = payload.ints("assignments", len(actions), 50)
    assert len(actions) <= 15
    distances = np.linalg.norm(update.rows.numpy()[:, None] - actions, axis=2)
    np.testing.assert_array_equal(assignments, distances.argmin(1))


def test_fedras_threshold_is_the_mean_of_recorded_qualities():
    compressor = FedRAS()
    recorded = []
    for seed in range(4):
        before = compressor.threshold
        compressor.encode_broadcast(make_update(55, seed), [budget(0.75)], CTX)
        metrics = compressor.metrics()
        if before is None:
            assert metrics["groups"] == 15  # the first round splits to C_e
        assert 12 <= metrics["groups"] <= 18
        recorded.append(metrics["worst_quality"])
        assert compressor.threshold == pytest.approx(np.mean(recorded))
    again = FedRAS()
    again.load_state_dict(compressor.state_dict())
    assert again.threshold == compressor.threshold


def test_fedras_tiers_get_the_largest_snapshot_that_fits():
    update = make_update(55)
    budgets = [budget(rate) for rate in (0.9, 0.75, 0.5, 0.0)]
    payloads = FedRAS().encode_broadcast(update, budgets, CTX)
    sizes = [len(payload.floats("actions", None, DIM)) for payload in payloads[:3]]
    assert sizes == [6, 15, 30]  # the first round has no threshold yet
    assert "values" in payloads[3]  # 60 rows fit: sent as they are
    # Nested: rows together in a finer snapshot are together in every coarser one.
    coarse, fine = (
        payload.ints("assignments", size, 55)
        for payload, size in zip(payloads[1:3], sizes[1:], strict=True)
    )
    for group in range(30):
        assert len(set(coarse[fine == group])) == 1


def test_fixed_fedras_sends_exactly_the_budget():
    compressor = FedRAS(clustering="fixed")
    for seed in range(3):
        payload = compressor.encode_broadcast(
            make_update(55, seed), [budget(0.75)], CTX
        )[0]
        assert payload.floats("actions", None, DIM).shape == (15, DIM)


def test_coinciding_rows_need_fewer_groups():
    update = make_update(50)
    update.rows[:] = update.rows[:5].repeat(10, 1)
    payload = FedRAS().encode(update, budget(0.75), CTX)
    assert payload.floats("actions", None, DIM).shape == (5, DIM)
    decoded = FedRAS().decode(payload, CTX)
    torch.testing.assert_close(decoded.rows, update.rows)


@pytest.mark.parametrize("rate", [slow(0.75), 0.875, slow(0.9375)])
def test_quantize_is_unbiased_and_errs_by_less_than_a_level(rate):
    update, n_draws = make_update(20), 500
    n_levels = 2 ** (round(32 * (1 - rate)) - 1) - 1
    level = update.rows.abs().amax(1, keepdim=True) / n_levels
    total = torch.zeros_like(update.rows)
    for sender in range(n_draws):
        ctx = replace(CTX, sender=sender)
        payload = make("Quantize").encode(update, budget(rate), ctx)
        decoded = make("Quantize").decode(payload, ctx).rows
        assert ((decoded - update.rows).abs() <= 1.0001 * level).all()
        total += decoded
    # The mean of n has a standard deviation of at most level / 2 / sqrt(n).
    assert ((total / n_draws - update.rows).abs() < 5 * level / 2 / n_draws**0.5).all()


@pytest.mark.parametrize("rate", [0.75, 0.9375])
def test_klt_fills_its_bytes_and_errs_less_than_clusters(rate):
    """Within 1 % of the bytes of the budget's floats, never above."""
    update, own = large_update(), Budget(2000, 16, rate)
    errors = {}
    for name in ("KLT", "FedRAS", "SVD"):
        message = sent(make(name).encode(update, own, LARGE_CTX))
        decoded = make(name).decode(message.payload, LARGE_CTX)
        assert torch.equal(decoded.ids, update.ids)
        errors[name] = float((decoded.rows - update.rows).square().sum())
        if name == "KLT":
            assert (
                0.99 * 4 * own.values < message.part_bytes()["items"] <= 4 * own.values
            )
            assert message.part_bytes()["ids"] == bits.rows_size(1900, 2000)
    assert errors["KLT"] < 0.5 * min(errors["FedRAS"], errors["SVD"])


def test_klt_rounds_every_coefficient_to_the_step():
    """The definition: an orthogonal rotation, multiples of one step."""
    update = large_update()
    payload = make("KLT").encode(update, LARGE, LARGE_CTX)
    rotation = payload.floats("rotation", None, 16).astype(float)
    step = float(payload.floats("step", 1)[0])
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(len(rotation)), atol=1e-6)
    decoded = make("KLT").decode(payload, LARGE_CTX).rows.numpy()
    integers = decoded @ rotation.T / step
    np.testing.assert_allclose(integers, integers.round(), atol=1e-2)
    exact = update.rows.numpy() @ rotation.T / step
    assert np.abs(exact - integers).max() < 0.51
    _, vectors = np.linalg.eigh(update.rows.double().T @ update.rows.double())
    aligned = np.abs(rotation @ vectors.flip(1).numpy()[:, : len(rotation)])
    np.testing.assert_allclose(aligned.diagonal(), 1, atol=1e-4)


def test_klt_sends_the_columns_of_a_low_rank_update_only():
    update = large_update(decay=1.0)
    low = RowUpdate(update.ids, update.rows[:, :1] @ torch.ones(1, 16))
    message = sent(make("KLT").encode(low, LARGE, LARGE_CTX))
    assert message.payload.floats("rotation", None, 16).shape == (1, 16)
    decoded = make("KLT").decode(message.payload, LARGE_CTX)
    assert (decoded.rows - low.rows).norm() < 1e-3 * low.rows.norm()
    assert message.part_bytes()["items"] < 2 * 1900 + 100  # 16 bits a row at most


@pytest.mark.parametrize("noise", [1e-8, 1e-6, 1e-5])
def test_klt_leaves_out_columns_that_round_to_zero(noise):
    """Whatever the step, which is never finer than 2^-15 of the largest."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((500, 3)) @ rng.standard_normal((3, 16))
    rows += noise * rng.standard_normal((500, 16))
    vectors = leading_vectors(rows)
    _, of_all = np.linalg.eigh(rows.T @ rows)
    left_out = np.abs(rows @ of_all[:, : 16 - len(vectors)]).max(initial=0)
    assert len(vectors) == (16 if noise == 1e-5 else 3)
    assert left_out < 2.0**-16 * np.abs(rows @ vectors.T).max()


@pytest.mark.parametrize("forged", [False, True])
def test_klt_refuses_other_classes_than_those_announced(forged):
    """Even if they take as many bits: one of no bits, two of one, one of two."""
    classes = np.array([0, 2, 0, 2] if forged else [0, 1, 1, 2], np.int32)
    histograms = np.array([[1, 2, 1]])
    payload = Payload().put_rows("rows", np.arange(4), LARGE_CTX.n_items)
    payload.put_floats("rotation", np.eye(1, 16, dtype="f4"))
    payload.put_floats("step", np.ones(1, np.float32))
    payload.put_ints("histograms", histograms, 5, "items")
    payload.put_ints("classes", pack_symbols([classes], histograms), 256, "items")
    payload.put_ints("rest", np.array([0b1010], np.uint8), 256, "items")
    if forged:
        with pytest.raises(PayloadError, match="not what the histograms announce"):
            make("KLT").decode(payload, LARGE_CTX)
    else:
        decoded = make("KLT").decode(payload, LARGE_CTX).rows[:, 0]
        assert decoded.tolist() == [0.0, 1.0, -1.0, -2.0]


def test_eden_is_nearly_unbiased_even_where_few_values_are_large():
    """Over many rotations; a single pass would lose all but the largest."""
    rows = torch.zeros(16, 16)
    rows[0, 0], rows[3, 2], rows[7, 7] = 10.0, 3.0, 1.0
    update = RowUpdate(torch.arange(16), rows)
    own, compressor = Budget(1000, 16, 0.96875), make("EDEN")
    mean = torch.zeros(16, 16, dtype=torch.float64)
    for seed in range(1500):
        ctx = replace(CTX, seed=seed, n_items=1000, dim=16)
        # A budget of a thousand rows has room for sixteen as they are.
        payload = compressor.encode(update, replace(own, n_items=17), ctx)
        assert "codes" in payload
        mean += compressor.decode(payload, ctx).rows / 1500
    assert (mean - rows).norm() < 0.1 * rows.norm()
    assert float(mean[7, 7]) > 0.5


def test_eden_levels_are_those_of_lloyd_and_max():
    """Max (1960), table I: levels and distortion for a standard Gaussian."""
    from recbole_fedras.compressor.eden import _levels

    np.testing.assert_allclose(_levels(1), [-0.7979, 0.7979], atol=1e-4)
    np.testing.assert_allclose(_levels(2)[2:], [0.4528, 1.510], atol=1e-3)
    np.testing.assert_allclose(
        _levels(3)[4:], [0.2451, 0.7560, 1.344, 2.152], atol=1e-3
    )


@pytest.mark.parametrize("actions", ["int8", "shape"])
def test_two_rows_and_a_budget_of_one_are_one_group(actions):
    update = make_update(2)
    compressor = make("FedRAS", actions=actions)
    payload = compressor.encode_broadcast(update, [Budget(N_ITEMS, DIM, 0.98)], CTX)[0]
    assert payload.ints("levels", 255, None, DIM).shape == (1, DIM)


@pytest.mark.parametrize(("rate", "limit"), [(0.75, 0.9), (0.875, 0.95)])
def test_shapes_err_less_than_int8_and_that_less_than_floats(rate, limit):
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((150, 16))
    rows = centres[rng.integers(150, size=2000)] + 0.2 * rng.standard_normal((2000, 16))
    rows = rows * rng.lognormal(0, 0.3, (2000, 1))
    update = RowUpdate(torch.arange(2000), torch.from_numpy(rows).float())
    errors = []
    for actions in ("float32", "int8", "shape"):
        compressor = make("FedRAS", actions=actions)
        payload = compressor.encode(update, Budget(2000, 16, rate), LARGE_CTX)
        assert payload.part_bytes()["items"] <= 4 * floor(2000 * (1 - rate)) * 16
        decoded = compressor.decode(payload, LARGE_CTX)
        errors.append(float((decoded.rows - update.rows).square().sum()))
    assert errors[2] < limit * errors[1]
    assert errors[1] < 0.25 * errors[0]


def test_gains_and_directions_rebuild_each_row_along_its_own():
    update = make_update(50)
    payload = make("FedRAS", actions="shape").encode(update, budget(0.5), CTX)
    decoded = make("FedRAS", actions="shape").decode(payload, CTX).rows
    low, high = payload.floats("gain_range", 2)
    codes = payload.ints("gains", 256, 50)
    directions = (payload.ints("levels", 255, None, DIM) - 127) / 127
    assignments = payload.ints("assignments", len(directions), 50)
    unit = directions / np.abs(directions).max()
    for row, code, group, rebuilt in zip(
        update.rows.numpy(), codes, assignments, decoded.numpy(), strict=True
    ):
        cosines = unit @ row / np.linalg.norm(unit, axis=1) / np.linalg.norm(row)
        assert cosines[group] > cosines.max() - 0.02  # refined, then rounded
        if code:
            gain = np.exp(low + (code - 1) / 254 * (high - low))
            step = payload.floats("step", 1)[0] * 127
            np.testing.assert_allclose(
                rebuilt, gain * step * directions[group], rtol=1e-4, atol=1e-6
            )


def error_of(payload, update, compressor):
    decoded = compressor.decode(payload, CTX)
    return float((table(decoded) - table(update)).square().sum())


def test_powersgd_reaches_the_best_factors_round_by_round():
    """Power iteration: each broadcast starts where the one before ended."""
    update, own = make_update(50), budget(0.75)
    best = error_of(SVD().encode(update, own, CTX), update, SVD())
    server = make("PowerSGD")
    payloads = [server.encode_broadcast(update, [own], CTX)[0] for _ in range(30)]
    errors = [error_of(payload, update, server) for payload in payloads]
    assert errors[0] > errors[1] > 1.0001 * best
    assert errors[-1] == pytest.approx(best, rel=1e-4)


def test_powersgd_clients_start_from_what_they_were_sent():
    update, own = make_update(50), budget(0.75)
    downlink, client = make("PowerSGD").encode(update, own, CTX), make("PowerSGD")
    told = client.encode(update, own, replace(CTX, downlink=downlink))
    start = downlink.floats("query", 2, DIM)
    exact = update.rows.double().numpy()
    left, _ = np.linalg.qr(exact @ start.T.astype(float))
    approximation = left @ (left.T @ exact)
    np.testing.assert_allclose(client.decode(told, CTX).rows, approximation, atol=1e-4)
    other = make("SVD").encode(update, own, CTX)  # tells nothing of this method
    untold = client.encode(update, own, replace(CTX, downlink=other))
    assert untold.to_bytes() == downlink.to_bytes()


@pytest.mark.parametrize("name", ["RandomRows", "FCF-BTS"])
def test_clients_send_the_rows_that_the_server_chose(name):
    update, own = make_update(50), budget(0.75)
    downlink = make(name).encode_broadcast(make_update(40, 1), [own], CTX)[0]
    chosen = downlink.rows("selected", N_ITEMS)
    assert len(chosen) == 15
    sent_down = make(name).decode(downlink, CTX).ids.tolist()
    assert sent_down == sorted({*chosen} & {*make_update(40, 1).ids.tolist()})
    payload = make(name).encode(update, own, replace(CTX, downlink=downlink))
    decoded = make(name).decode(payload, CTX)
    kept = np.isin(update.ids, chosen)
    assert torch.equal(decoded.ids, update.ids[kept])
    assert torch.equal(decoded.rows, update.rows[kept])
    parts = payload.part_bytes()
    expected = bits.rows_size(int(kept.sum()), N_ITEMS)
    assert (parts["items"], parts["ids"]) == (4 * kept.sum() * DIM, expected)


def test_bandit_prefers_rows_whose_gradients_change():
    """Twelve of sixty rows change at every step, the others hardly."""
    bandit, rng, counts = make("FCF-BTS"), np.random.default_rng(0), np.zeros(N_ITEMS)
    for round in range(200):
        rows = rng.standard_normal((N_ITEMS, DIM)) * 1e-3
        rows[:12] *= 1e3
        update = RowUpdate(torch.arange(N_ITEMS), torch.from_numpy(rows).float())
        ctx = replace(CTX, round=round)
        payload = bandit.encode_broadcast(update, [budget(0.75)], ctx)[0]
        counts[payload.rows("selected", N_ITEMS)] += round >= 100
    assert counts.sum() == 1500
    assert counts[:12].min() > 90  # of 100
    assert counts[12:].min() > 0  # it goes on exploring


def test_count_sketches_add_up_and_project():
    own, sketcher = budget(0.75), make("CountSketch")
    assert sketcher.linear
    one, other = make_update(N_ITEMS, 1), make_update(N_ITEMS, 2)
    both = RowUpdate(one.ids, one.rows + other.rows)
    payloads = [
        sketcher.encode(update, own, replace(CTX, sender=sender))
        for sender, update in enumerate((one, other, both))
    ]
    sketches = [payload.floats("sketch", None) for payload in payloads]
    assert len(sketches[0]) == floor(N_ITEMS * DIM * 0.25)
    np.testing.assert_allclose(sketches[0] + sketches[1], sketches[2], atol=1e-4)
    # A projection: what is lost is orthogonal to what arrives, and an update that
    # arrives wholly is left as it is.
    arrived = sketcher.decode(payloads[0], CTX)
    lost = one.rows - arrived.rows
    assert abs(float((lost * arrived.rows).sum())) < 1e-3 * float(one.rows.norm())
    again = sketcher.decode(sketcher.encode(arrived, own, CTX), CTX)
    torch.testing.assert_close(again.rows, arrived.rows)


def test_nnc_rounds_to_the_step_and_learns_what_is_usual():
    update, nnc = large_update(), make("NNC")
    message = sent(nnc.encode(update, LARGE, LARGE_CTX))
    assert 0.99 * 4 * LARGE.values < message.part_bytes()["items"] <= 4 * LARGE.values
    step = float(message.payload.floats("step", 1)[0])
    decoded = nnc.decode(message.payload, LARGE_CTX).rows.double().numpy()
    integers = decoded / step
    np.testing.assert_allclose(integers, integers.round(), atol=1e-4)
    assert np.abs(update.rows.numpy() - decoded).max() < 0.5001 * step
    # Rows of unequal norms take less than the entropy of all integers together.
    counts = np.unique(integers.round(), return_counts=True)[1]
    shares = counts / counts.sum()
    entropy = -(counts * np.log2(shares)).sum() / 8
    assert message.part_bytes()["items"] < 0.97 * entropy


@pytest.mark.parametrize("size", [0, 1, 700])
def test_binary_coder_inverts_itself(size):
    from recbole_fedras.compressor.nnc import _code, _read

    rng = np.random.default_rng(size)
    integers = np.rint(rng.laplace(size=size) * 10.0 ** rng.uniform(-2, 4, size))
    integers = integers.astype(np.int64).clip(-(2**15), 2**15)
    code, read = _code(integers, 4000), np.zeros(size, np.int64)
    assert not integers.any() or _read(code, read)
    np.testing.assert_array_equal(read, integers)
    assert not _read(np.zeros(40, np.uint8), read) or not size  # ones without an end


def test_binary_codes_are_the_same_for_ever():
    from recbole_fedras.compressor.nnc import _code

    code = _code(np.arange(-300, 300) ** 3 % 41 // 5 - 4, 4000)
    assert sha256(code.tobytes()).hexdigest()[:16] == "180bd96a2a4fd601"


def test_scolr_clients_send_columns_of_one_factor():
    scolr, rank = make("SCoLR", shared_rank=4), 4
    mapping = scolr.gradient_map(budget(0.5), CTX)
    assert torch.equal(mapping, scolr.gradient_map(budget(0.75), CTX))
    update = RowUpdate(make_update(50).ids, make_update(50).rows @ mapping)
    total = torch.zeros_like(update.rows)
    for sender in range(200):
        ctx = replace(CTX, sender=sender)
        payload = scolr.encode(update, budget(0.75), ctx)
        assert payload.floats("factor", 50, 2).shape == (50, 2)
        total += scolr.decode(payload, ctx).rows / 200
    # Half of the columns at random: half of the update in the mean, all at its rank.
    assert (total - update.rows / 2).norm() < 0.1 * update.rows.norm()
    unbiased = make("SCoLR", shared_rank=4, unbiased=True)
    one = unbiased.encode(update, budget(0.75), ctx).floats("factor", 50, 2)
    np.testing.assert_array_equal(one, 2 * payload.floats("factor", 50, 2))
    ctx = replace(CTX, sender=SERVER)  # what all take is no mean
    sent = [made.encode(update, budget(0.75), ctx) for made in (scolr, unbiased)]
    assert sent[0].to_bytes() == sent[1].to_bytes()
    whole = scolr.decode(scolr.encode(update, budget(1 - rank / DIM), CTX), CTX).rows
    torch.testing.assert_close(whole, update.rows, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_jointrec_rounds_each_factor_without_bias():
    update = large_update()
    own = Budget(2000, 16, 0.9375)
    compressor, mean = make("JointRec"), torch.zeros(1900, 16, dtype=torch.float64)
    for seed in range(200):
        ctx = replace(LARGE_CTX, seed=seed)
        payload = compressor.encode(update, own, ctx)
        assert payload.ints("left", 256, 1900, None).shape == (1900, 4)
        mean += compressor.decode(payload, ctx).rows / 200
    best = SVD().decode(SVD().encode(update, Budget(2000, 16, 0.75), ctx), ctx).rows
    step = (best.abs().max() / 255) * 16
    assert (mean - best).abs().max() < step
    assert (mean - best).abs().mean() < 0.1 * step
    broadcast = compressor.encode_broadcast(update, [own], LARGE_CTX)[0]
    assert torch.equal(compressor.decode(broadcast, LARGE_CTX).rows, update.rows)
