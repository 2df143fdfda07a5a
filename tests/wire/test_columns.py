"""Tables of integers as an arithmetic coder's bytes: exact, and near their entropy."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import pytest
from numba import njit

from recbole_fedras.wire import columns
from recbole_fedras.wire.columns import (
    common_shift,
    expected_size,
    pack_table,
    unpack_table,
)

NONE = np.zeros((1, 1), np.int32)


def sparse(share: float, scale: float, shape=(600, 8)) -> np.ndarray:
    rng = np.random.default_rng(3)
    values = np.rint(scale * rng.standard_normal(shape))
    return np.where(rng.random(shape) < share, values, 0).astype(np.int32)


@pytest.mark.parametrize(
    ("share", "scale"), [(0.0, 1), (0.002, 1), (0.1, 1), (0.5, 9), (1.0, 2.0**26)]
)
def test_tables_come_back(share, scale):
    table = sparse(share, scale)
    table.ravel()[:2] = np.array([2**30 - 1, 1 - 2**30]) if scale > 9 else 0
    code = pack_table(table)
    assert np.array_equal(unpack_table(code, *table.shape), table)
    assert len(code) == 0 or table.any()


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_codes_take_what_their_entropy_says(share):
    table = np.sign(sparse(share, 9.0, (2000, 8)))
    n = np.count_nonzero(table) / table.size
    entropy = -n * np.log2(n / 2) - (1 - n) * np.log2(1 - n)
    size = len(pack_table(table))
    assert size == pytest.approx(table.size * entropy / 8, rel=0.04, abs=16)
    assert size == pytest.approx(expected_size(table, NONE), rel=0.03, abs=8)


def test_what_columns_differ_in_is_learned():
    """A column that always moves, one way, costs next to nothing."""
    table = np.zeros((1000, 8), np.int32)
    table[:, 2] = -1
    assert len(pack_table(table)) < 40


@njit
def _means_that_differ(learn, shares, counts, bits):
    """Count contexts that learn otherwise than by the mean, rounded down."""
    n = 0
    state = np.zeros((1, 2), np.int64)
    for share in shares:
        for count in counts:
            for bit in bits:
                state[0] = share, count
                learn(bit, 0, state)
                moved = share + (65536 * bit - share) // (count + 2)
                n += state[0, 0] != min(max(moved, 32), 65504)
                n += state[0, 1] != min(count + 1, 255)
    return n


def test_contexts_learn_the_mean_of_their_bits():
    """Of all states that there are: multiplying by inverses is exact."""
    shares, counts = np.arange(32, 65505), np.arange(256)
    both = np.array([False, True])
    assert _means_that_differ(columns._learn, shares, counts, both) == 0


def test_a_table_is_the_same_bytes_for_ever():
    """Nodes and checkpoints of other versions rely on it."""
    table = (np.arange(4800) ** 2 % 97 - 48) * (np.arange(4800) % 3 == 0)
    code = pack_table(
        table.reshape(600, 8).astype(np.int32) << np.arange(8, dtype=np.int32)
    )
    assert sha256(code.tobytes()).hexdigest()[:16] == "16997d8a3378991d"


def test_sums_and_their_power_of_two():
    table, moves = 8 * sparse(0.3, 2.0), 24 * sparse(0.1, 2.0)
    assert common_shift(table, moves) == 3
    divided = (table + moves) >> 3
    assert expected_size(table, moves) == expected_size(divided, NONE)


@pytest.mark.parametrize("code", [b"\xff" * 40, b""])
def test_whatever_arrives_is_a_table(code):
    assert unpack_table(np.frombuffer(code, np.uint8), 50, 4).shape == (50, 4)


def test_integers_of_too_many_bits_are_refused():
    with pytest.raises(ValueError, match="more bits than any has"):
        unpack_table(np.zeros(99, np.uint8), 50, 4)
