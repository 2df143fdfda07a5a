"""Messages that were damaged or forged: a clear error, never a crash or a flood."""

from __future__ import annotations

import tracemalloc

import fuzz
import msgpack
import numpy as np
import pytest
from conftest import CTX, slow
from hypothesis import given, settings
from hypothesis import strategies as st
from methods import make

from recbole_fedras.wire.message import Header, Kind, Message
from recbole_fedras.wire.payload import Payload, PayloadError


@pytest.fixture(scope="module")
def messages():
    """Messages to mutate, of every variant."""
    return fuzz.seeds()


def opened(data):
    """Parse bytes as a receiver does; of at most a megabyte."""
    message = Message.from_bytes(data)
    message.require_size(10**6)
    return message.payload


# Of a signalling NaN; that values are finite is for the server to check, not to decode.
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
@pytest.mark.parametrize("count", [100, slow(3000)])
@pytest.mark.parametrize("variant", fuzz.ATTACKED, ids=fuzz.label)
def test_mutated_messages_are_refused_or_decode_within_their_shape(
    messages, variant, count
):
    rng, sent = np.random.default_rng(0), messages[fuzz.label(variant)]
    everything = [data for sent in messages.values() for data in sent]
    outcomes = {
        fuzz.attack(*variant, fuzz.mutate(sent[i % len(sent)], everything, rng))
        for i in range(count)
    }
    assert outcomes == {"refused", "decoded"}


names = st.sampled_from(
    ["rows", "values", "actions", "assignments", "levels", "scales", "bits", "codes",
     "left", "right", "extra", "extra_values", "histograms", "classes", "rest",
     "rotation", "step", "columns", "counts", "gains", "gain_range", "factor", "sizes",
     "repeats"]
)  # fmt: skip
shapes = st.lists(st.sampled_from([0, 1, 2, 8, 60, 2**20, 2**31 - 1]), max_size=2)
fields = st.tuples(names, shapes, st.binary(max_size=64), st.integers(0, 2))


@settings(max_examples=50)
@given(entries=st.lists(fields, max_size=7, unique_by=lambda field: field[0]))
def test_forged_messages_are_refused_without_a_flood(entries):
    """Whatever shapes are declared, memory is bounded by the bytes that came."""
    data = msgpack.packb((5, 3, 0, 4, 3, (1,), entries))
    for name, keys in fuzz.ATTACKED:
        compressor = make(name, **keys)
        tracemalloc.start()
        try:
            compressor.decode(opened(data), CTX)
        except PayloadError:
            pass
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 2**22


def test_a_message_too_large_is_refused_unread(monkeypatch):
    payload = Payload().put_floats("values", np.zeros(10**6, np.float32))
    message = Message.of(payload, Header(Kind.UPDATE, 3, 0, 4, 3, 1))
    assert message.part_bytes()["items"] == 4 * 10**6
    monkeypatch.setattr(msgpack, "unpackb", None)
    with pytest.raises(PayloadError, match="of at most 1000"):
        message.require_size(1000)


def test_zero_bits_hold_no_numbers():
    payload = Payload.of_entries((("levels", (2**31 - 1,), b"", 1),))
    with pytest.raises(PayloadError, match="no bytes to hold"):
        payload.ints("levels", 1, None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x93\x01\x00",
        b"\xdd\xff\xff\xff\xff",
        b"\x91" * 5000,
        b"\x97" + b"\x91" * 5000,
        b"\x97" + 6 * b"\x00" + b"\xc1",
    ],
)
def test_bytes_that_are_no_message_are_refused(data):
    with pytest.raises(PayloadError):
        opened(data)
