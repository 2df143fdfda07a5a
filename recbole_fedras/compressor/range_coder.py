"""A range coder of columns of integers, each with its histogram: compiled code.

It writes the very words of the package `constriction` (``RangeEncoder`` with
``Categorical(perfect=False)`` models), which tests hold it to. For columns as short as
a client's, most of that package's time goes to calls and models, which hold the
interpreter's lock.
"""

from __future__ import annotations

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Words = NDArray[np.uint32]

_BITS = uint64(24)  # of a probability
_WHOLE = uint64(1 << 24)
_WORD = uint64(32)  # bits that travel at a time
_LOW = uint64(2**32 - 1)


@njit(nogil=True, cache=True)
def _starts(histogram: Ints) -> NDArray[np.uint64]:
    """Return where each symbol's share of 2^24 begins, and at last 2^24."""
    # One part of 2^24 for every symbol, occurs it or not; the rest by frequency, in
    # floats that are added up in order, so that both ends round alike.
    n_symbols, total, before = len(histogram), 0.0, 0.0
    shares = histogram / histogram.sum()
    for share in shares:
        total += share
    scale = ((1 << 24) - n_symbols) / total
    starts = np.empty(n_symbols + 1, np.uint64)
    for symbol in range(n_symbols):
        starts[symbol] = int(before * scale) + symbol
        before += shares[symbol]
    starts[n_symbols] = _WHOLE
    return starts


@njit(nogil=True, cache=True)
def encode(columns: Ints, histograms: Ints) -> Words:
    """Code each row of ``columns`` by its histogram.

    Parameters
    ----------
    columns : ndarray of int64, shape (n_columns, n)
        Symbols from 0.
    histograms : ndarray of int64, shape (n_columns, n_symbols)
        How often each occurs.

    Examples
    --------
    >>> columns = np.array([[0, 1, 0, 0, 2, 0, 0, 0]])
    >>> words = encode(columns, np.array([[6, 1, 1]]))
    >>> len(words), decode(words, np.array([[6, 1, 1]]), 8)[0].tolist()
    (1, [[0, 1, 0, 0, 2, 0, 0, 0]])
    """
    # The message so far is an interval [lower, lower + width) of 64-bit numbers, which
    # shrinks by each symbol's share. Once it is narrower than a word its upper word is
    # settled, and leaves; unless it spans a carry: then words wait until that is known.
    words = np.empty(columns.size + 2, np.uint32)  # 24 bits a symbol at most
    n_words = n_waiting = 0
    lower, width, waiting = uint64(0), uint64(2**64 - 1), uint64(0)
    for column in range(len(columns)):
        starts = _starts(histograms[column])
        for symbol in columns[column]:
            scale = width >> _BITS
            width = scale * (starts[symbol + 1] - starts[symbol])
            moved = lower + scale * starts[symbol]  # wraps where it carries
            if n_waiting and moved + width > moved:
                carry = 1 if moved < lower else 0
                n_words = _settle(words, n_words, waiting, n_waiting, carry)
                n_waiting = 0
            lower = moved
            if width <= _LOW:
                upper = lower >> _WORD
                lower <<= _WORD
                width <<= _WORD
                if n_waiting:
                    n_waiting += 1
                elif lower + width > lower:
                    words[n_words] = upper
                    n_words += 1
                else:
                    waiting, n_waiting = upper, 1
    if width == uint64(2**64 - 1):  # nothing was coded
        return words[:0]
    # A point of the interval, with as few words as say where the message is.
    point = lower + _LOW
    if n_waiting:
        carry = 1 if point < lower else 0
        n_words = _settle(words, n_words, waiting, n_waiting, carry)
    words[n_words] = point >> _WORD
    n_words += 1
    if (lower + width) >> _WORD == point >> _WORD:
        words[n_words] = 0
        n_words += 1
    return words[:n_words]


@njit(nogil=True, cache=True)
def _settle(  # type: ignore[no-untyped-def]
    words: Words, n_words: int, first, count: int, carry: int
) -> int:
    """Write words that have waited for a carry; return how many there are now."""
    words[n_words] = (first + uint64(carry)) & _LOW
    for place in range(n_words + 1, n_words + count):
        words[place] = 0 if carry else _LOW
    return n_words + count


@njit(nogil=True, cache=True)
def decode(words: Words, histograms: Ints, n: int) -> tuple[Ints, bool]:
    """Invert :func:`encode`; tell whether the symbols are as frequent as announced."""
    columns = np.zeros((len(histograms), n), np.int64)
    lower, width, point, place = uint64(0), uint64(2**64 - 1), uint64(0), 0
    while place < 2:
        point <<= _WORD
        if place < len(words):
            point |= uint64(words[place])
        place += 1
    for column in range(len(histograms)):
        starts, left = _starts(histograms[column]), histograms[column].copy()
        for i in range(n):
            scale = width >> _BITS
            share = (point - lower) // scale
            if share >= _WHOLE:
                return columns, False
            symbol = 0
            while starts[symbol + 1] <= share:
                symbol += 1
            columns[column, i] = symbol
            left[symbol] -= 1
            lower += scale * starts[symbol]
            width = scale * (starts[symbol + 1] - starts[symbol])
            if width <= _LOW:
                lower <<= _WORD
                width <<= _WORD
                point <<= _WORD
                if place < len(words):
                    point |= uint64(words[place])
                place += 1
        if left.any():
            return columns, False
    return columns, True
