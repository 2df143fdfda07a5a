"""Bit packing and payloads: exact sizes, round trips, refusals."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from methods import sent

from recbole_fedras.wire import bits
from recbole_fedras.wire.payload import Payload, PayloadError


@given(st.integers(1, 5000), st.data())
def test_integers_round_trip_at_the_documented_size(bound, data):
    values = np.array(data.draw(st.lists(st.integers(0, bound - 1))), np.int64)
    packed = bits.pack(values, bound)
    n_bits = int(np.ceil(np.log2(bound)))
    assert len(packed) == -(-len(values) * n_bits // 8)
    np.testing.assert_array_equal(bits.unpack(packed, len(values), bound), values)


@given(st.integers(1, 700), st.data())
def test_row_sets_round_trip_at_the_cheapest_size(n_rows, data):
    chosen = data.draw(st.sets(st.integers(0, n_rows - 1)))
    ids = np.array(sorted(chosen), np.int64)
    packed = bits.pack_rows(ids, n_rows)
    one_by_one = -(-len(ids) * int(np.ceil(np.log2(n_rows))) // 8)
    bitmap = -(-n_rows // 8)
    assert len(packed) == (0 if len(ids) == n_rows else min(one_by_one, bitmap))
    assert len(packed) == bits.rows_size(len(ids), n_rows)
    np.testing.assert_array_equal(bits.unpack_rows(packed, len(ids), n_rows), ids)


def test_the_widest_integers_come_back():
    values = np.array([0, 2**57 - 1, 2**56 + 3, 1, 2**57 - 2])
    packed = bits.pack(values, 2**57)
    np.testing.assert_array_equal(bits.unpack(packed, 5, 2**57), values)


def test_the_design_example():
    # 105 groups of 1682 items: 7 bits each, 1471.75 bytes.
    assert bits.packed_size(1682, 105) == 1472


@pytest.mark.parametrize(
    "call",
    [
        lambda: bits.pack(np.array([5]), 5),
        lambda: bits.pack(np.array([-1]), 5),
        lambda: bits.unpack(b"\x07", 1, 5),
        lambda: bits.unpack(b"", 1, 5),
        lambda: bits.pack_rows(np.array([2, 2]), 9),
        lambda: bits.pack_rows(np.array([3, 2]), 9),
        lambda: bits.pack_rows(np.array([9]), 9),
        lambda: bits.unpack_rows(b"", 10, 9),
        lambda: bits.unpack_rows(b"\xff\xff", 9, 16),
        lambda: bits.unpack_rows(b"\x00" * 3, 4, 64),
        lambda: bits.unpack_rows(b"\x55\xf5", 8, 13),  # one row beyond the last
        lambda: bits.unpack_rows(bits.pack(np.arange(5), 5), 5, 5),  # all, spelled out
        lambda: bits.pack(np.array([5]), 2**58),
        lambda: bits.unpack(b"\x00" * 8, 1, 2**58),
    ],
)
def test_what_does_not_fit_is_refused(call):
    with pytest.raises(ValueError, match=r".+"):
        call()


def _payload() -> Payload:
    payload = Payload().put_floats("actions", np.ones((3, 2), np.float32))
    payload.put_ints("assignments", np.array([0, 2, 1, 1]), 3)
    payload.put_rows("rows", np.array([1, 4, 5, 9]), 10)
    return payload.put_floats("theta", np.zeros(5, np.float32), part="theta")


def test_parts_add_up_to_the_bytes_sent():
    message = sent(_payload())
    parts = message.part_bytes()
    assert sum(parts.values()) == len(message.data)
    assert parts["items"] == 3 * 2 * 4
    assert parts["theta"] == 5 * 4
    assert parts["ids"] == 1 + 2
    received = message.payload
    np.testing.assert_array_equal(received.floats("actions", None, 2), np.ones((3, 2)))
    np.testing.assert_array_equal(received.ints("assignments", 3, 4), [0, 2, 1, 1])
    np.testing.assert_array_equal(received.rows("rows", 10), [1, 4, 5, 9])


def test_wrong_names_and_shapes_are_refused():
    payload = _payload()
    for read in (
        lambda: payload.floats("missing"),
        lambda: payload.floats("actions", None, 3),
        lambda: payload.floats("actions", None),
        lambda: payload.ints("assignments", 300, 4),
        lambda: payload.rows("rows", 9),
    ):
        with pytest.raises(PayloadError):
            read()


@pytest.mark.parametrize("part", ["values", "framing"])
def test_a_field_is_booked_under_a_part_of_its_own(part):
    with pytest.raises(ValueError, match=f"part='{part}' must be of"):
        Payload().put_floats("rows", np.zeros(3, np.float32), part=part)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_payload_or_a_clear_error(data):
    with suppress(PayloadError):
        Payload.from_bytes(data)


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_corrupted_bytes_are_read_or_refused(place, value):
    data = bytearray(_payload().to_bytes())
    data[place % len(data)] = value
    with suppress(PayloadError):
        payload = Payload.from_bytes(bytes(data))
        payload.floats("actions", None, 2)
        payload.ints("assignments", 3, 4)
        payload.rows("rows", 10)
