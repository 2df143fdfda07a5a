"""Rows of symbols that occur as often as announced, by a library's range coder."""

from __future__ import annotations

from collections.abc import Iterable

import constriction
import numpy as np
from numpy.typing import NDArray

from recbole_fedras.wire.bits import Bytes, Ints

Symbols = NDArray[np.int32]


def pack_symbols(rows: Iterable[Symbols], counts: Ints) -> Bytes:
    """Code rows of symbols by the shares that these have of their row.

    **Wire**: the words of 32 bits, little-endian, that the ``RangeEncoder`` of
    `constriction` writes, row after row, by a ``Categorical`` model of each with
    ``perfect=False``, of float64 counts over their sum.

    Parameters
    ----------
    rows : iterable of ndarray of int32, shape (n,)
        Of symbols in ``[0, n_symbols)``.
    counts : ndarray of int64, shape (n_rows, n_symbols)
        How often each symbol occurs in each row; two symbols at least.

    Examples
    --------
    A thousand symbols, of which one in a hundred is no zero, take no bit each:

    >>> symbols = np.zeros((1, 1000), np.int32)
    >>> symbols[0, ::100] = 1
    >>> code = pack_symbols(symbols, np.array([[990, 10]]))
    >>> restored = unpack_symbols(code.tobytes(), np.array([[990, 10]]), 1000)
    >>> len(code), np.array_equal(restored, symbols)
    (12, True)
    """
    encoder = constriction.stream.queue.RangeEncoder()
    for row, model in zip(rows, _models(counts), strict=True):
        encoder.encode(row, model)
    code: Bytes = encoder.get_compressed().astype("<u4").view(np.uint8)
    return code


def unpack_symbols(code: bytes, counts: Ints, n: int) -> Symbols:
    """Invert :func:`pack_symbols`, of rows of n symbols; shape (n_rows, n).

    What was not written by it may be read as other symbols than were announced.

    Raises
    ------
    ValueError
        If the code is no whole words, or none of the coder's.
    """
    if len(code) % 4:
        raise ValueError(f"{len(code)} bytes are no whole words")
    words = np.frombuffer(code, "<u4").astype(np.uint32)
    decoder = constriction.stream.queue.RangeDecoder(words)
    symbols = np.empty((len(counts), n), np.int32)
    for row, model in zip(symbols, _models(counts), strict=True):
        try:
            row[:] = decoder.decode(model, n)
        except AssertionError as error:  # the coder's, of data that it cannot read
            raise ValueError(str(error)) from error
    return symbols


def _models(counts: Ints) -> list[constriction.stream.model.Categorical]:
    """Return the coder's model of each row."""
    model = constriction.stream.model.Categorical
    shares = counts / counts.sum(1, keepdims=True)
    return [model(share, perfect=False) for share in shares]
