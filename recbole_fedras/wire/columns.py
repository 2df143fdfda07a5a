"""Tables of small integers, mostly zeros, as few bytes: what each column is like."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from recbole_fedras.errors import PayloadError
from recbole_fedras.wire.arithmetic import (
    Bytes,
    finish,
    get,
    put,
    start_coder,
    start_decoder,
)
from recbole_fedras.wire.payload import FLOAT32, Layout, Payload

Table = NDArray[np.int32]
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

#: Of moves, none; see :func:`expected_size`.
NOTHING: Table = np.zeros((1, 1), np.int32)

_BYTE = 256  # bound of an integer that is a byte
_N_FLAGS = 12  # an integer's "larger than 1, 2, ...", before its rest is spelt out
_MOST_BITS = 30  # of that rest
_EVEN = 32768  # half, in 65536ths
_LASTING = 255  # bits of a context from which on older ones are forgotten
_LEAST = 32  # a probability's, in 65536ths

# 2^32 over each number, rounded up: see :func:`_learn`.
_INVERSES = -(-(2**32) // np.maximum(np.arange(_LASTING + 3), 1))

# A context is what bits are alike in: for each column, whether an integer is zero, and
# its sign; for all together, the flags of larger ones, and the lengths of their rests.
# ``states`` has, of each, the probability of a 1 so far, and of how many bits.


def pack_table(table: Table) -> Bytes:
    """Code a table; a table of zeros takes nothing.

    Each integer is bits: is it zero; its sign; is it larger than 1, 2, up to 12; what
    is left, as an Exp-Golomb code. They are coded by probabilities learned from those
    before, by column: nothing of a model is sent.

    Parameters
    ----------
    table : ndarray of int32, shape (n, dim)
        Below 2^30 in magnitude.

    Examples
    --------
    >>> table = np.zeros((1000, 32), np.int32)
    >>> table[::100, 3] = -1
    >>> code = pack_table(table)
    >>> len(code), np.array_equal(unpack_table(code, 1000, 32), table)
    (32, True)
    """
    if not table.any():
        return np.zeros(0, np.uint8)
    size = int(expected_size(table, NOTHING)) + 64
    code = np.zeros(size, np.uint8)
    size = _write(table, code)
    if size > len(code):  # what there was no room for was only counted
        code = np.zeros(size, np.uint8)
        _write(table, code)
    return code[:size]


def unpack_table(code: Bytes, *shape: int) -> Table:
    """Invert :func:`pack_table`.

    Raises
    ------
    ValueError
        If an integer has more bits than any has.
    """
    table = np.zeros(shape, np.int32)
    if len(code) and not _read(code, table):
        raise ValueError("an integer of more bits than any has")
    return table


def put_table(payload: Payload, part: str, scale: Floats, code: Bytes) -> int:
    """Add what integers are multiples of, and their code; return the bytes of both.

    **Wire**: a field called like the part that it is booked under, bytes: the scale's
    float32 values, then what :func:`pack_table` has written.
    """
    data = np.concatenate([scale.astype(FLOAT32).view(np.uint8), code])
    payload.put_ints(part, data, _BYTE, part)
    return table_size(part, len(scale), len(code))


def get_table(
    payload: Payload, part: str, n_scale: int, shape: tuple[int, ...]
) -> tuple[Floats, Table]:
    """Invert :func:`put_table`.

    Raises
    ------
    PayloadError
        If the payload does not have that form.
    """
    data = np.frombuffer(payload.raw(part), np.uint8)
    scale, code = np.split(data, [FLOAT32.itemsize * n_scale])
    if len(scale) < FLOAT32.itemsize * n_scale:
        raise PayloadError(f"field {part!r}: {len(data)} bytes hold no scale")
    try:
        return scale.view(FLOAT32), unpack_table(code, *shape)
    except ValueError as error:
        raise PayloadError(f"field {part!r}: {error}") from error


def table_size(part: str, n_scale: int, n_code: int = 0) -> int:
    """Return the bytes that :func:`put_table` adds to a payload, framing included."""
    n_bytes = FLOAT32.itemsize * n_scale + n_code
    return Layout().ints(part, _BYTE, n_bytes).size - Layout().size


@njit(nogil=True, cache=True)
def expected_size(table: Table, moves: Table) -> float:
    """Return about how many bytes the sum of two tables takes, by its entropy.

    Both may be multiples of one power of two, which is divided out.

    Parameters
    ----------
    table : ndarray of int32, shape (n, dim)
    moves : ndarray of int32, shape (n, dim) or (1, 1)
    """
    n, dim = table.shape
    shift = common_shift(table, moves)
    # Of each column, how many integers are positive and negative; of all, how many have
    # each magnitude. Counted without branches: of what is zero processors guess badly.
    counts = np.zeros((dim, 2), np.int64)
    magnitudes = np.zeros(_N_FLAGS + 2, np.int64)
    bits = 0.0
    for i in range(n):
        for j in range(dim):
            integer = _sum(table, moves, i, j)
            counts[j, 0] += integer > 0
            counts[j, 1] += integer < 0
            magnitude = abs(integer) >> shift
            magnitudes[min(magnitude, _N_FLAGS + 1)] += 1
            if magnitude > _N_FLAGS:
                bits += np.log2(magnitude - _N_FLAGS) + 2
    for positive, negative in counts:
        others = positive + negative
        bits += _cost(others, n - others) + _cost(positive, negative)
    larger = n * dim - magnitudes[0] - magnitudes[1]
    for magnitude in range(1, _N_FLAGS + 1):
        bits += _cost(larger, magnitudes[magnitude])
        larger -= magnitudes[magnitude + 1]
    return float(bits / 8)


@njit(nogil=True, cache=True)
def common_shift(table: Table, moves: Table) -> int:
    """Return the power of two that all integers of a sum are multiples of."""
    n, dim = table.shape
    low = 1 << _MOST_BITS
    for i in range(n):
        for j in range(dim):
            low |= abs(_sum(table, moves, i, j))
    shift = 0
    while not (low >> shift) & 1:
        shift += 1
    return shift


@njit(nogil=True, cache=True)
def _sum(table: Table, moves: Table, i: int, j: int) -> int:
    """One integer of a sum; one table may stand for zeros."""
    return int(table[i, j]) + (int(moves[i, j]) if moves.shape == table.shape else 0)


@njit(nogil=True, cache=True)
def _cost(ones: float, zeros: float) -> float:
    """Bits that so many ones and zeros of a context take, until it is learned too."""
    both = ones + zeros
    bits = 0.5 * np.log2(both + 1)
    for count in (ones, zeros):
        if count > 0:
            bits -= count * np.log2(count / both)
    return float(bits)


@njit(nogil=True, cache=True)
def _start(dim: int) -> Ints:
    """Contexts before the first bit."""
    states = np.zeros((2 * dim + _N_FLAGS + 1 + _MOST_BITS, 2), np.int64)
    states[:, 0] = _EVEN
    return states


@njit(nogil=True, cache=True)
def _learn(bit: bool, context: int, states: Ints) -> None:
    """Let a context's probability be the mean of its bits, of late ones if many."""
    share, n_bits = states[context, 0], states[context, 1]
    # By the bits' number and two, rounded down: to the same whole numbers at both ends.
    # Dividing takes as long as all the rest, so one multiplies by the inverse instead,
    # which is exact for numbers as small as these.
    if bit:
        share += ((65536 - share) * _INVERSES[n_bits + 2]) >> 32
    else:
        share -= ((share + n_bits + 1) * _INVERSES[n_bits + 2]) >> 32
    states[context, 0] = min(max(share, _LEAST), 65536 - _LEAST)
    states[context, 1] = min(n_bits + 1, _LASTING)


@njit(nogil=True, cache=True)
def _put(bit: bool, context: int, states: Ints, coder: Ints, code: Bytes) -> None:
    put(bit, states[context, 0], coder, code)
    _learn(bit, context, states)


@njit(nogil=True, cache=True)
def _get(context: int, states: Ints, coder: Ints, code: Bytes) -> bool:
    bit = get(states[context, 0], coder, code)
    _learn(bit, context, states)
    return bool(bit)


@njit(nogil=True, cache=True)
def _write(table: Table, code: Bytes) -> int:
    """Code integers, row after row; return how many bytes they take."""
    n, dim = table.shape
    states, coder = _start(dim), start_coder()
    for i in range(n):
        for j in range(dim):
            integer = int(table[i, j])
            magnitude = abs(integer)
            _put(magnitude > 0, j, states, coder, code)
            if not magnitude:
                continue
            _put(integer < 0, dim + j, states, coder, code)
            flag = 0
            while magnitude > flag + 1 and flag < _N_FLAGS:
                _put(True, 2 * dim + flag, states, coder, code)
                flag += 1
            if flag < _N_FLAGS:
                _put(False, 2 * dim + flag, states, coder, code)
            else:
                _put_rest(magnitude - flag, 2 * dim + flag, states, coder, code)
    return finish(coder, code)


@njit(nogil=True, cache=True)
def _put_rest(rest: int, first: int, states: Ints, coder: Ints, code: Bytes) -> None:
    """Write a number from 1 on: how many bits follow the leading one, and these."""
    length = 0
    while rest >> (length + 1):
        _put(True, first + length, states, coder, code)
        length += 1
    _put(False, first + length, states, coder, code)
    for place in range(length):
        put(rest >> place & 1 == 1, _EVEN, coder, code)


@njit(nogil=True, cache=True)
def _read(code: Bytes, table: Table) -> bool:
    """Invert :func:`_write`; False if an integer has more bits than any has."""
    n, dim = table.shape
    states, coder = _start(dim), start_decoder(code)
    for i in range(n):
        for j in range(dim):
            if not _get(j, states, coder, code):
                continue
            negative = _get(dim + j, states, coder, code)
            magnitude = 1
            while magnitude <= _N_FLAGS:
                if not _get(2 * dim + magnitude - 1, states, coder, code):
                    break
                magnitude += 1
            if magnitude > _N_FLAGS:
                rest = _get_rest(2 * dim + _N_FLAGS, states, coder, code)
                if not rest:
                    return False
                magnitude = _N_FLAGS + rest
            table[i, j] = -magnitude if negative else magnitude
    return True


@njit(nogil=True, cache=True)
def _get_rest(first: int, states: Ints, coder: Ints, code: Bytes) -> int:
    """Invert :func:`_put_rest`; 0 if it has too many bits."""
    length = 0
    while _get(first + length, states, coder, code):
        length += 1
        if length == _MOST_BITS:
            return 0
    rest = 1 << length
    for place in range(length):
        rest |= int(get(_EVEN, coder, code)) << place
    return rest
