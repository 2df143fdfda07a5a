"""KLT: transform coding, the update rotated, quantised by one step, entropy-coded."""

from __future__ import annotations

import numpy as np
from numba import int64, njit, uint64
from numpy.typing import NDArray

from recbole_fedras.compressor.base import (
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    fits_raw,
    put_update_rows,
    raw_payload,
    raw_update,
    row_update,
)
from recbole_fedras.errors import PayloadError
from recbole_fedras.wire.payload import Layout, Payload
from recbole_fedras.wire.symbols import Symbols, pack_symbols, unpack_symbols

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Words = NDArray[np.uint32]

_CLASSES = 17  # magnitude classes at most: 0, and integers of 1 to 16 bits
_FINEST = 2.0 ** (2 - _CLASSES)  # step, in largest coefficients
_TINY = float(np.finfo(np.float32).tiny)
_BYTE = 256  # bound of an integer that is a byte


class KLT(Compressor):
    """Karhunen-Loeve transform coding of the changed rows.

    Source: transform coding is textbook (Goyal, "Theoretical Foundations of Transform
    Coding", IEEE Signal Processing Magazine 2001): the KLT decorrelates, one uniform
    step for all coefficients is optimal at high rate, and an entropy coder takes what
    redundancy is left. The rows X are rotated by the eigenvectors of X'X, each
    coefficient is rounded to a multiple of the step, and integers are sent in two
    parts, as JPEG does: their magnitude class (number of bits) by a range coder with
    each column's histogram, their sign and remaining bits as they are. The step is the
    smallest for which all of that takes no more bytes than the budget's float32 values
    would, ``4 floor(N d (1 - CR))``, or than a budget of all bytes leaves, found by
    bisection on the entropy; but it is never finer than 2^-15 of the largest
    coefficient, so a budget may be left unused.

    Notes
    -----
    Columns that round to zero are not sent, so an update of low rank (a client's of
    MF is nearly of rank one) pays for its few columns only.

    **Wire**: ``rows`` the n changed rows; ``rotation`` float32 (r, d), the r
    eigenvectors used; ``step`` float32; ``histograms`` (r, m) how often each class
    occurs in a column, at ceil(log2(n + 1)) bits; ``classes`` the range coder's bytes
    (`constriction`), column after column; ``rest`` in the same order, for an integer of
    class c, its sign and remaining bits at c bits. All but ``rows`` count as items.
    Updates for which float32 is no larger travel as they are (``values``).

    **Departures**: none from a paper; it is no federated method. At equal bytes it is
    what methods that cluster or truncate should be compared with.

    Examples
    --------
    No more than the bytes of 8 of the 64 rows:

    >>> import numpy as np
    >>> from recbole_fedras.compressor.base import Budget, RoundContext, row_update
    >>> rows = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
    >>> update, budget = row_update(np.arange(64), rows), Budget(64, 32, 0.875)
    >>> ctx = RoundContext(round=0, seed=2020, n_items=64, dim=32)
    >>> payload = KLT().encode(update, budget, ctx)
    >>> payload.part_bytes()["items"] <= 4 * budget.values, 4 * budget.values
    (True, 1024)
    >>> KLT().decode(payload, ctx).rows.shape
    torch.Size([64, 32])
    """

    threaded = True
    deterministic = True

    def validate(self, budget: Budget) -> None:
        """Require the bytes of two rows, for an eigenvector and what is coded."""
        limit = budget.least(lambda n: self._limit(n, budget))
        budget.require("number of rows' worth of bytes", limit // (4 * budget.dim) // 2)

    def encode(self, update: RowUpdate, budget: Budget, ctx: RoundContext) -> Payload:
        """Rotate, find the step, and code."""
        limit = self._limit(len(update), budget)
        if 4 * update.rows.numel() <= limit or fits_raw(len(update), budget):
            return raw_payload(update, ctx.n_items)
        rows = update.rows.numpy().astype(np.float64)
        vectors = leading_vectors(rows)
        coefficients = vectors @ rows.T
        # The step is found by the entropy; the coder takes a few bytes more. A fifth of
        # a per cent coarser at a time, until what is written fits.
        step = 0.0
        while True:
            payload = put_update_rows(Payload(), update, ctx.n_items)
            step = _put_coefficients(payload, coefficients, vectors, step, limit)
            if payload.part_bytes()["items"] <= limit:
                return payload
            step = float(np.float32(step) * np.float32(1.002))

    @staticmethod
    def _limit(n: int, budget: Budget) -> int:
        """Bytes that the fields booked as items may take."""
        if budget.n_bytes is None:
            return 4 * budget.values
        rest = Layout().rows("rows", n, budget.n_items)
        rest.floats("rotation", 0, budget.dim).floats("step", 0)
        rest.ints("histograms", n + 1, 0, _CLASSES)
        rest.ints("classes", _BYTE, 0).ints("rest", _BYTE, 0)
        longer = 24  # headers of these fields when they are not empty, at most
        return budget.n_bytes - rest.size - longer

    def decode(self, payload: Payload, ctx: RoundContext) -> RowUpdate:
        """Decode the integers and rotate back."""
        if "values" in payload:
            return raw_update(payload, ctx)
        ids = payload.rows("rows", ctx.n_items)
        rotation = payload.floats("rotation", None, ctx.dim)
        if not len(ids) or len(rotation) > ctx.dim:
            raise PayloadError(
                f"field 'rotation': {len(rotation)} of {ctx.dim} columns, for "
                f"{len(ids)} rows"
            )
        step = payload.floats("step", 1)[0]
        coefficients = _coefficients(payload, len(ids), len(rotation), float(step))
        with np.errstate(over="ignore", invalid="ignore"):  # whatever was received
            rows = coefficients.T @ rotation.astype(np.float64)
            return row_update(ids, rows.astype(np.float32))


def leading_vectors(rows: Floats) -> Floats:
    """Return the eigenvectors of the Gram matrix that matter, shape (n_vectors, dim).

    Rotated by these, columns of coefficients are uncorrelated, and most of the energy
    is in the leading ones, which stand first.
    """
    gram = rows.T @ rows
    if not np.isfinite(np.trace(gram)):  # float64 has room for squares of float32
        raise ValueError("KLT: a row is not finite")
    energies, vectors = np.linalg.eigh(gram)
    # The energy of a column, the sum of its squares, is its eigenvalue. The finest step
    # is 2^-15 of the largest coefficient, which is no less than the root mean square of
    # the leading column. Where the energy is less than half of that, squared, all of
    # the column rounds to 0.
    matter = energies >= energies[-1] * _FINEST**2 / (4 * len(rows))
    return np.ascontiguousarray(vectors.T[matter][::-1])


@njit(nogil=True, cache=True)
def _classify(
    coefficients: Floats, largest: Floats, step: float, classes: Symbols
) -> Ints:
    """Fill in magnitude classes; return how often each occurs in each column."""
    # The class of an integer is the number of bits of its magnitude, which is the
    # exponent of the float64 that holds it: no logarithm, only the bits of the number,
    # read in place. A first loop rounds a column, and vectorises; a second one counts,
    # in four places by turns, as neighbours of one class would wait for each other.
    n_columns, n = coefficients.shape
    counts = np.zeros((n_columns, _CLASSES), np.int64)
    by_turns = np.empty((4, _CLASSES), np.int64)
    magnitudes = np.empty(n)
    exponents = magnitudes.view(np.int64)
    for column in range(n_columns):
        if np.rint(largest[column] / step) == 0:
            counts[column, 0] = n
            classes[column] = 0
            continue
        for i in range(n):
            magnitudes[i] = np.rint(abs(coefficients[column, i] / step))
        by_turns[:] = 0
        for i in range(n):  # bits 52 on: 1022 + number of bits, or 0 for 0.0
            size = max((exponents[i] >> 52) - 1022, 0)
            classes[column, i] = size
            by_turns[i & 3, size] += 1
        for one in by_turns:
            counts[column] += one
    return counts


@njit(nogil=True, cache=True)
def _size(histograms: Ints, n: int, dim: int) -> float:
    """Bytes of rotation, step, histograms, classes by their entropy, and rest."""
    n_used, n_classes, n_bits = 0, 1, 32.0
    for histogram in histograms:
        if histogram[0] == n:  # all zero: the column is not sent
            continue
        n_used += 1
        for size, count in enumerate(histogram):
            # An integer of class ``size`` takes the entropy of its class, and ``size``
            # bits: a sign, and those below the leading one, which is known to be 1.
            if count:
                n_classes = max(n_classes, size + 1)
                n_bits += count * (size - np.log2(count / n))
    tables = n_used * n_classes * np.ceil(np.log2(n + 1)) / 8
    return float(4 + tables + 4 * n_used * dim + n_bits / 8)


@njit(nogil=True, cache=True)
def _find_step(
    coefficients: Floats, largest: Floats, dim: int, limit: int, classes: Symbols
) -> float:
    """Bisect for the smallest step whose code fits ``limit`` bytes."""
    n, most = coefficients.shape[1], float(largest.max())
    if most == 0:
        return 1.0
    # The finest step leaves the largest coefficient at 2^15 steps, of 16 bits; with the
    # coarsest everything rounds to 0, and nothing is smaller.
    fine, coarse = most * _FINEST, 4 * most
    if _size(_classify(coefficients, largest, fine, classes), n, dim) <= limit:
        return fine
    # ``coarse`` always fits, ``fine`` never does. Geometric means, as steps range over
    # orders of magnitude; the search ends where 99.8 % of the bytes are used, or 40
    # halvings have left nothing to choose.
    for _ in range(40):
        step = float(np.sqrt(fine * coarse))
        size = _size(_classify(coefficients, largest, step, classes), n, dim)
        if size <= limit:
            coarse = step
            if size > 0.998 * limit:
                break
        else:
            fine = step
    return coarse


@njit(nogil=True, cache=True)
def _quantise(
    coefficients: Floats, step: float, dim: int, limit: int, classes: Symbols
) -> tuple[float, Ints, Words]:
    """Round to multiples of the step (0: the smallest whose code fits ``limit``).

    Classes are filled in; returned are the step, how often each class occurs in each
    column, and what :func:`_write` makes of the integers.
    """
    n_columns, n = coefficients.shape
    largest = np.zeros(n_columns)
    for column in range(n_columns):
        for i in range(n):
            largest[column] = max(largest[column], abs(coefficients[column, i]))
    if step == 0:
        # It is sent in float32, and so must not round to 0.
        step = max(_find_step(coefficients, largest, dim, limit, classes), _TINY)
    step = float(np.float32(step))
    histograms = _classify(coefficients, largest, step, classes)
    n_bits = 0
    for size in range(_CLASSES):
        n_bits += size * histograms[:, size].sum()
    words = np.zeros(n_bits // 32 + 1, np.uint32)
    _write(coefficients, step, classes, words)
    return step, histograms, words


def _put_coefficients(
    payload: Payload, coefficients: Floats, vectors: Floats, step: float, limit: int
) -> float:
    """Round, code and add the fields; return the step."""
    n, dim = coefficients.shape[1], vectors.shape[1]
    classes = np.empty(coefficients.shape, np.int32)
    step, histograms, words = _quantise(coefficients, step, dim, limit, classes)
    # Columns with anything but zeros, and no more classes than occur (2 at least, as a
    # model of one symbol is none).
    used = np.flatnonzero(histograms[:, 0] < n)
    histograms = histograms[used]
    n_classes = 1 + int(np.flatnonzero(histograms.any(axis=0)).max(initial=1))
    histograms = histograms[:, :n_classes]
    coded = pack_symbols((classes[column] for column in used), histograms)
    rest = words.astype("<u4").view(np.uint8)[: _size_of_rest(histograms)]

    payload.put_floats("rotation", vectors[used].astype(np.float32))
    payload.put_floats("step", np.array([step], np.float32))
    payload.put_ints("histograms", histograms, n + 1, "items")
    payload.put_ints("classes", coded, _BYTE, "items")
    payload.put_ints("rest", rest, _BYTE, "items")
    return step


def _coefficients(payload: Payload, n: int, n_columns: int, step: float) -> Floats:
    """Invert :func:`_put_coefficients`; shape (n_columns, n)."""
    # Whatever arrives is checked before it is used: histograms that are of n integers,
    # classes that are those announced, and as many bits as these need. A forged payload
    # ends in a PayloadError, not in the decoder.
    histograms = payload.ints("histograms", n + 1, n_columns, None)
    n_classes = histograms.shape[1]
    if not 2 <= n_classes <= _CLASSES or (histograms.sum(1) != n).any():
        raise PayloadError(f"field 'histograms': not of {n} integers in each column")
    coded = payload.raw("classes")
    try:
        classes = unpack_symbols(coded, histograms, n)
    except ValueError as error:
        raise PayloadError(f"field 'classes': {error}") from error

    rest = payload.raw("rest")
    if len(rest) != _size_of_rest(histograms):
        raise PayloadError(f"field 'rest': {len(rest)} bytes do not fit the classes")
    words = np.frombuffer(rest + bytes(-len(rest) % 4), "<u4").astype(np.uint32)
    coefficients = np.empty(classes.shape)
    if not _read(words, classes, histograms, step, coefficients):
        raise PayloadError("field 'classes': not what the histograms announce")
    return coefficients


def _size_of_rest(histograms: Ints) -> int:
    """Return how many bytes signs and remaining bits take."""
    n_bits = int((histograms.sum(0) * np.arange(histograms.shape[1])).sum())
    return (n_bits + 7) // 8


# An integer of class c has its leading bit at c - 1. That one is known, so its place
# holds the sign: 0 if positive, 1 if negative. Lowest bits first; bits wait in a word
# of 64 until there are 32. No branch depends on what an integer is: processors would
# guess every other one wrong.


@njit(nogil=True, cache=True)
def _write(coefficients: Floats, step: float, classes: Symbols, words: Words) -> None:
    """Write what is below each integer's leading bit, and its sign above."""
    word, n_waiting, place = uint64(0), uint64(0), 0
    for column in range(len(classes)):
        for i in range(classes.shape[1]):
            integer = int64(np.rint(coefficients[column, i] / step))
            size = uint64(classes[column, i])
            leading = int64((uint64(1) << size) >> uint64(1))
            code = abs(integer) - (leading if integer > 0 else 0)
            word |= uint64(code) << n_waiting
            n_waiting += size
            words[place] = word & uint64(0xFFFFFFFF)
            full = n_waiting >> uint64(5)  # 1 if there are 32 bits, or 0
            place += int64(full)
            word >>= full << uint64(5)
            n_waiting &= uint64(31)
    words[place] = word


@njit(nogil=True, cache=True)
def _read(
    words: Words,
    classes: Symbols,
    histograms: Ints,
    step: float,
    coefficients: Floats,
) -> bool:
    """Invert :func:`_write`, in multiples of the step.

    It tells whether classes occur as often as announced; if not, nothing is read.
    """
    counts = np.zeros_like(histograms)
    for column in range(len(classes)):
        for i in range(classes.shape[1]):
            counts[column, classes[column, i]] += 1
    if (counts != histograms).any():
        return False
    word, n_waiting, place = uint64(0), uint64(0), 0
    for column in range(len(classes)):
        for i in range(classes.shape[1]):
            size = uint64(classes[column, i])
            short = n_waiting < size
            word |= (uint64(words[place]) if short else uint64(0)) << n_waiting
            n_waiting += uint64(32) if short else uint64(0)
            place += int64(short)
            leading = (uint64(1) << size) >> uint64(1)
            code = word & ((uint64(1) << size) - uint64(1))
            word >>= size
            n_waiting -= size
            integer = -int64(code) if code & leading else int64(code | leading)
            coefficients[column, i] = integer * step
    return True
