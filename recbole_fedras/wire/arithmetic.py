"""Binary arithmetic coding: each bit costs what its probability says it must."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

_WORD = 2**32 - 1  # largest number of 32 bits

# The coder keeps an interval [low, high] of 32-bit numbers. Every bit cuts it in
# proportion to the bit's probability; leading bytes on which both ends agree are
# written and shifted out. The decoder follows by the number that it has read. ``coder``
# is low, high, bytes written or read, and that number. ``share`` is the probability of
# a 1, in 65536ths, from 1 to 65535.


@njit(nogil=True, cache=True)
def start_coder() -> Ints:
    """Return the whole interval."""
    return np.array([0, _WORD, 0, 0])


@njit(nogil=True, cache=True)
def start_decoder(code: Bytes) -> Ints:
    """Return the whole interval, and the first number read."""
    coder = start_coder()
    for _ in range(4):
        coder[3] = coder[3] << 8 | _byte(coder, code)
        coder[2] += 1
    return coder


@njit(nogil=True, cache=True)
def put(bit: bool, share: int, coder: Ints, code: Bytes) -> None:
    """Write a bit; what there is no room for is counted only."""
    _cut(bit, share, coder)
    while (coder[0] ^ coder[1]) < 1 << 24:
        if coder[2] < len(code):
            code[coder[2]] = coder[1] >> 24
        _shift(coder)


@njit(nogil=True, cache=True)
def get(share: int, coder: Ints, code: Bytes) -> bool:
    """Read a bit; beyond the end there are zeros."""
    bit = coder[3] <= _middle(share, coder)
    _cut(bit, share, coder)
    while (coder[0] ^ coder[1]) < 1 << 24:
        coder[3] = ((coder[3] << 8) & _WORD) | _byte(coder, code)
        _shift(coder)
    return bool(bit)


@njit(nogil=True, cache=True)
def finish(coder: Ints, code: Bytes) -> int:
    """Write what tells the interval from others; return how many bytes there are."""
    # One byte more, and the zeros that follow, lie in the interval.
    if coder[2] < len(code):
        code[coder[2]] = (coder[0] >> 24) + 1
    return int(coder[2]) + 1


@njit(nogil=True, cache=True)
def _middle(share: int, coder: Ints) -> int:
    """Last number of the part of the interval that stands for a 1."""
    return int(coder[0] + (((coder[1] - coder[0]) * share) >> 16))


@njit(nogil=True, cache=True)
def _cut(bit: bool, share: int, coder: Ints) -> None:
    """Go on with a bit's part of the interval."""
    if bit:
        coder[1] = _middle(share, coder)
    else:
        coder[0] = _middle(share, coder) + 1


@njit(nogil=True, cache=True)
def _shift(coder: Ints) -> None:
    """Leave a leading byte behind."""
    coder[2] += 1
    coder[0] = (coder[0] << 8) & _WORD
    coder[1] = ((coder[1] << 8) & _WORD) | 255


@njit(nogil=True, cache=True)
def _byte(coder: Ints, code: Bytes) -> int:
    """Return the next byte to be read."""
    return int(code[coder[2]]) if coder[2] < len(code) else 0
