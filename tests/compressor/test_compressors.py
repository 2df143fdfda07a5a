"""The contract of every registered compressor, and the laws of each."""

from math import floor

import numpy as np
import pytest
import torch
from conftest import CTX, DIM, N_ITEMS, budget, long, make_update
from methods import NAMES, OF_UPDATES, VARIANTS, compatible, make, sent, table

from recbole_fedras.compressor import RowUpdate, check_compressor
from recbole_fedras.compressor.base import Budget, CohortUpdate, empty_update
from recbole_fedras.compressor.fedras.fedras import FedRAS
from recbole_fedras.compressor.none import NoCompression
from recbole_fedras.wire import bits


def through_the_wire(compressor, update, rate, broadcast):
    if broadcast:
        payload = compressor.encode_broadcast(update, [budget(rate)], CTX)[0]
    else:
        payload = compressor.encode(update, budget(rate), CTX)
    return sent(payload)


@pytest.mark.parametrize(("name", "keys"), [*VARIANTS, ("BinaryCodes", {})])
@pytest.mark.parametrize(
    ("n_items", "dim"),
    [(N_ITEMS, DIM), long(300, 16)],
)
@pytest.mark.filterwarnings("ignore:not checked with budget=wire")
def test_every_compressor_keeps_the_contract(name, keys, n_items, dim):
    check_compressor(lambda: make(name, **keys), n_items, dim)


class _Changing(NoCompression):
    def encode(self, update, budget, ctx):
        update.rows.mul_(2)
        return super().encode(update, budget, ctx)


class _Dicing(NoCompression):
    def encode(self, update, budget, ctx):
        rows = update.rows * np.random.random()  # noqa: NPY002
        return super().encode(RowUpdate(update.ids, rows), budget, ctx)


class _Remembering(NoCompression):
    def __init__(self):
        self.seen = 0

    def encode(self, update, budget, ctx):
        self.seen += 1
        return (
            super()
            .encode(update, budget, ctx)
            .put_ints("seen", np.array([self.seen]), 100)
        )


class _Spending(NoCompression):
    lossless = False


class _Backwards(NoCompression):
    def decode(self, payload, ctx):
        update = super().decode(payload, ctx)
        return RowUpdate(update.ids.flip(0), update.rows.flip(0))


class _Inventing(NoCompression):
    def decode(self, payload, ctx):
        return RowUpdate(torch.arange(ctx.n_items), torch.zeros(ctx.n_items, ctx.dim))


class _Doubling(NoCompression):
    def decode(self, payload, ctx):
        update = super().decode(payload, ctx)
        return RowUpdate(update.ids, update.rows.double())


class _Learning(NoCompression):
    """What its broadcasts remember is in no checkpoint."""

    def __init__(self):
        self.sent = 0

    def encode_broadcast(self, update, budgets, ctx):
        self.sent += 1
        payload = self.encode(update, budgets[0], ctx)
        return [payload.put_ints("sent", np.array([self.sent]), 100)]


class _Dividing(NoCompression):
    def decode(self, payload, ctx):
        update = super().decode(payload, ctx)
        return RowUpdate(update.ids, update.rows / 0)


class _Halving(NoCompression):
    def decode(self, payload, ctx):
        update = super().decode(payload, ctx)
        return RowUpdate(update.ids, update.rows / 2)


class _Negating(NoCompression):
    lossless = False

    def validate(self, budget):
        if budget.n_bytes is not None:
            raise ValueError("not all bytes")

    def decode(self, payload, ctx):
        update = super().decode(payload, ctx)
        return RowUpdate(update.ids, -update.rows)


class _Comparing(NoCompression):
    def encode(self, update, budget, ctx):
        return super().encode(RowUpdate(update.ids, ctx.base[update.ids]), budget, ctx)


class _Averaging(NoCompression):
    def encode_broadcast(self, update, budgets, ctx):
        return [self.encode(update, budgets[0], ctx)]


class _Hasty(NoCompression):
    def encode_cohort(self, updates, budgets, ctxs):
        return [self.encode(updates[0], budgets[0], ctxs[0])] * len(updates)


class _Fixed(NoCompression):
    lossless, fixed_rate = False, True


class _Obeying(_Fixed):
    def encode(self, update, budget, ctx):
        if budget.compression_rate > 0.5:
            update = RowUpdate(update.ids[1:], update.rows[1:])
        return super().encode(update, budget, ctx)


class _Partial(NoCompression):
    """Still says of itself that it draws nothing."""

    linear = False

    def encode(self, update, budget, ctx):
        drawn = ctx.generator().integers(0, 100, 1)
        return super().encode(update, budget, ctx).put_ints("drawn", drawn, 100)


class _Failing(NoCompression):
    def encode(self, update, budget, ctx):
        update.rows.max()
        return super().encode(update, budget, ctx)


class _Stateful(NoCompression):
    def __init__(self):
        self.memory = np.zeros(1)

    def encode_broadcast(self, update, budgets, ctx):
        self.memory += 1
        return [self.encode(update, budget, ctx) for budget in budgets]

    def state_dict(self):
        return {"memory": self.memory}

    def load_state_dict(self, state):
        self.memory = state["memory"]


class _Aliasing(_Stateful):
    def state_dict(self):
        return {"memory": torch.from_numpy(self.memory)}


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (_Changing, "the update was changed"),
        (_Dicing, r"the same seed gave other bytes: draw from ctx\.generator"),
        (_Remembering, "remembers other updates"),
        (_Learning, r"encode_broadcast .* not all in state_dict"),
        (_Spending, r"of bytes: \d+ bytes, of 4800.* say fixed_rate = True"),
        (_Obeying, r"fixed_rate, but a rate of 0\.1 gives other bytes"),
        (_Backwards, "ids must increase"),
        (_Inventing, "rows that were not sent"),
        (_Doubling, r"float32, not torch\.float64"),
        (_Dividing, "not finite"),
        (_Halving, "it is not lossless"),
        (_Negating, "an error of 4 of the update's energy"),
        (_Comparing, "encode of 0 rows.* TypeError"),
        (_Averaging, "1 payloads for two bandwidth tiers"),
        (_Hasty, "encode_cohort does not give what encode gives"),
        (_Partial, "it is deterministic, but payloads depend on the receiver"),
        (_Failing, r"encode of 0 rows, a rate of 0\.75 of values: RuntimeError"),
        (_Stateful, "encode_broadcast .* must return plain types and tensors"),
        (_Aliasing, "no copies: they changed later"),
    ],
)
@pytest.mark.filterwarnings("ignore:not checked with budget=wire")
def test_the_contract_says_what_is_broken(broken, said):
    with pytest.raises(AssertionError, match=said):
        check_compressor(broken)


def test_a_rate_that_is_fixed_is_not_held_to_another():
    check_compressor(_Fixed)


@pytest.mark.parametrize(("name", "keys"), VARIANTS)
def test_lossless_at_full_budget(name, keys):
    update = make_update(40)
    if name == "RankOne":  # of one rank at any rate
        update = RowUpdate(update.ids, update.rows[:, :1] @ torch.ones(1, DIM))
    exact = table(update)
    for broadcast in (False, True):
        message = through_the_wire(make(name, **keys), update, 0.0, broadcast)
        assert sum(message.part_bytes().values()) == len(message.data)
        decoded = table(make(name, **keys).decode(message.payload, CTX))
        if name == "JointRec" and not broadcast:  # eight bits a value at any rate
            assert 0 < (decoded - exact).norm() < 0.05 * exact.norm()
        else:
            alike = torch.allclose(decoded, exact, rtol=1e-4, atol=1e-5)
            assert alike, f"broadcast={broadcast}"


@pytest.mark.parametrize("name", NAMES)
def test_error_does_not_grow_with_the_budget(name):
    errors = []
    for rate in (0.875, 0.75, 0.5, 0.25, 0.0):
        update = make_update(50)
        payload = make(name).encode(update, budget(rate), CTX)
        decoded = make(name).decode(payload, CTX)
        errors.append(float((table(decoded) - table(update)).square().sum()))
    if name == "RankOne":
        assert len(set(errors)) == 1
        return
    if name != "CoLR":  # each rank draws another random basis
        assert errors == sorted(errors, reverse=True)
    if name == "JointRec":  # eight bits a value at any rate
        assert errors[-1] < 1e-3 * float(make_update(50).rows.square().sum())
        return
    assert errors[-1] < 1e-6 * float(make_update(50).rows.square().sum())


@pytest.mark.parametrize("name", NAMES)
def test_cohort_encoding_equals_encoding_one_by_one(name):
    updates = [make_update(n, seed=n) for n in (3, 30, 50)]
    cohort = CohortUpdate(
        clients=torch.tensor([1, 4, 9]),
        offsets=torch.tensor([0, 3, 33, 83]),
        ids=torch.cat([update.ids for update in updates]),
        rows=torch.cat([update.rows for update in updates]),
        theta=torch.zeros(3, 0),
    )
    budgets, ctxs = [budget(0.75)] * 3, [CTX] * 3
    compressor = make(name)
    together = compressor.encode_cohort(cohort, budgets, ctxs)
    for payload, update in zip(together, updates, strict=True):
        alone = compressor.encode(update, budget(0.75), CTX)
        assert payload.to_bytes() == alone.to_bytes()


# Sizes, from each method's definition and nothing of its code.


def bits_for(bound: int) -> int:
    return int(np.ceil(np.log2(bound))) if bound > 1 else 0


def row_set_bytes(n: int) -> int:
    if n == N_ITEMS:
        return 0
    return min(-(-N_ITEMS // 8), -(-n * bits_for(N_ITEMS) // 8))


@pytest.mark.parametrize("n", [20, 40, N_ITEMS])
def test_bytes_equal_the_documented_formulas(n):
    update, rate = make_update(n), 0.75
    k, r, groups = floor(DIM * 0.25), floor(DIM * 0.25), floor(N_ITEMS * 0.25)
    expected = {
        "none": (4 * n * DIM, row_set_bytes(n)),
        "TopK": (4 * n * k, row_set_bytes(n) + -(-n * k * bits_for(DIM) // 8)),
        "SVD": (4 * r * (n + DIM), row_set_bytes(n)),
        "CoLR": (4 * n * r, row_set_bytes(n)),
        "PowerSGD": (4 * r * (n + DIM), row_set_bytes(n)),
        "RankOne": (4 * (n + DIM), row_set_bytes(n)),
        "SCoLR": (4 * n * r, row_set_bytes(n)),
        "JointRec": (min(DIM, 4 * DIM // 4) * (n + DIM) + 16, row_set_bytes(n)),
        "EDEN": (
            4 * bin(n * DIM).count("1") + n * DIM,
            row_set_bytes(n) + 1,
        ),
        "Quantize": (4 * n + -(-n * DIM * 8 // 8), row_set_bytes(n) + 1),
        "FedRAS": (
            4 * groups * DIM,
            row_set_bytes(n) + -(-n * bits_for(groups) // 8),
        ),
    }
    expected["CE"] = expected["FedRAS"]
    expected["CountSketch"] = 4 * floor(N_ITEMS * DIM * 0.25), row_set_bytes(n)
    others = {"KLT", "NNC", "RandomRows", "FCF-BTS"}  # in test_methods.py
    assert {*expected, *others} == set(NAMES)
    for name, (items, ids) in expected.items():
        parts = through_the_wire(make(name), update, rate, False).part_bytes()
        assert (parts["items"], parts["ids"]) == (items, ids), name
        assert parts["framing"] < 80


def test_papers_compression_rates_are_read_as_printed():
    for rate, columns in ((0.9063, 3), (0.9375, 2), (0.9688, 1), (0.96875, 1)):
        assert Budget(1682, 32, rate).columns == columns
        assert Budget(1682, 8, rate).bits == columns
    assert Budget(1682, 32, 0.9375).rows == 105
    assert Budget(12399, 32, 0.9375).rows == 774  # 774.9
    assert Budget(12399, 32, 0.5).rows == 6199
    assert Budget(100_000, 32, 0.9375).rows == 6250
    assert Budget(100_000, 32, 0.9375).values == 200_000
    assert Budget(1682, 32, 0.0).rows == 1682


@pytest.mark.parametrize("name", ["TopK", "SVD", "CoLR", "FedRAS", "KLT", "Quantize"])
def test_a_budget_of_nothing_is_refused(name):
    with pytest.raises(ValueError, match=r"compression_rate=0\.999 leaves"):
        make(name).validate(budget(0.999))


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("TopK", {"topk_scope": "column"}),
        ("FedRAS", {"alpha": 1.0}),
        ("FedRAS", {"alpha": -0.1}),
        ("FedRAS", {"clustering": "none"}),
        ("FedRAS", {"kmeans": "slow"}),
        ("FedRAS", {"kmeans_iterations": 0}),
        ("FCF-BTS", {"bandit_alpha": 1.5}),
        ("FCF-BTS", {"bandit_beta": 1.0}),
        ("SCoLR", {"shared_rank": 0}),
        ("SCoLR", {"shared_rank": "many"}),
        ("SCoLR", {"unbiased": 1}),
        ("FCF-BTS", {"bandit_alpha": "most"}),
    ],
)
def test_bad_hyper_parameters_are_refused_by_name(name, keys):
    with pytest.raises(ValueError, match=next(iter(keys))):
        make(name, **keys)


def test_empty_updates_travel():
    for name in NAMES:
        payload = make(name).encode(empty_update(DIM), budget(0.75), CTX)
        assert len(make(name).decode(payload, CTX)) == 0


@pytest.mark.parametrize(("name", "keys"), OF_UPDATES)
def test_rows_of_zeros_stay_zeros(name, keys):
    update = make_update(50)
    update.rows[:] = 0
    for broadcast in (False, True):
        message = through_the_wire(make(name, **keys), update, 0.75, broadcast)
        decoded = make(name, **keys).decode(message.payload, CTX)
        assert not decoded.rows.any(), f"broadcast={broadcast}"


@pytest.mark.parametrize(("name", "keys"), OF_UPDATES)
def test_tiny_and_huge_updates_keep_their_relative_error(name, keys):
    errors = {}
    for scale in (1.0, 1e-37, 1e-22, 1e19, 1e30):
        update = compatible(name, make_update(50, scale=scale), 0.75)
        message = through_the_wire(make(name, **keys), update, 0.75, True)
        decoded = table(make(name, **keys).decode(message.payload, CTX)).double()
        exact = table(update).double()
        errors[scale] = float((decoded - exact).norm() / exact.norm())
    assert errors == pytest.approx(dict.fromkeys(errors, errors[1.0]), abs=0.02)


def test_a_row_that_is_not_finite_is_refused():
    update = make_update(50)
    update.rows[3, 2] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        FedRAS().encode(update, budget(0.75), CTX)


def test_bits_helper_agrees():
    assert bits.rows_size(20, N_ITEMS) == row_set_bytes(20)
