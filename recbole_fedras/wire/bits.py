"""Integers and sets of row ids in as few bits as their bounds allow."""

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

#: Bits of the widest integer: up to seven others wait with it in a word of 64.
_WIDEST = 57


def width(bound: int) -> int:
    """Bits of an integer in ``[0, bound)``: ``ceil(log2(bound))``, 0 if bound is 1.

    Raises
    ------
    ValueError
        If they are more than 57, which is what packing can hold.
    """
    n_bits = max(bound - 1, 0).bit_length()
    if n_bits > _WIDEST:
        raise ValueError(f"integers below {bound} take {n_bits} bits, not {_WIDEST}")
    return n_bits


def packed_size(count: int, bound: int) -> int:
    """Bytes of ``count`` packed integers in ``[0, bound)``."""
    return (count * width(bound) + 7) // 8


def pack(values: Ints | Bytes, bound: int) -> bytes:
    """Pack integers in ``[0, bound)`` at ``width(bound)`` bits each, lowest bit first.

    Parameters
    ----------
    values : ndarray of int64, shape (n,)
        Or of uint8: bytes, of bound 256.
    bound : int
        Exclusive upper bound that the receiver knows too.

    Raises
    ------
    ValueError
        If a value lies outside ``[0, bound)``.

    Examples
    --------
    Five integers below 10 take 4 bits each:

    >>> data = pack(np.array([3, 1, 4, 1, 5]), bound=10)
    >>> len(data), unpack(data, count=5, bound=10)
    (3, array([3, 1, 4, 1, 5]))
    """
    if values.dtype == np.uint8 and bound == 256:  # they are bytes
        return values.tobytes()
    values = np.ascontiguousarray(values, np.int64)
    data = np.zeros(packed_size(len(values), bound), np.uint8)
    least, most = _pack(values, width(bound), data)
    if values.size and (least < 0 or most >= bound):
        raise ValueError(
            f"values to pack must lie in [0, {bound}), got [{least}, {most}]"
        )
    return data.tobytes()


def unpack(data: bytes, count: int, bound: int) -> Ints:
    """Invert :func:`pack`.

    Raises
    ------
    ValueError
        If ``data`` is not exactly ``packed_size(count, bound)`` bytes or holds a value
        outside ``[0, bound)``.
    """
    if len(data) != packed_size(count, bound):
        raise ValueError(
            f"{count} integers below {bound} take {packed_size(count, bound)} bytes, "
            f"got {len(data)}"
        )
    if bound == 256:
        return np.frombuffer(data, np.uint8).astype(np.int64)
    values = np.empty(count, np.int64)
    most = _unpack(np.frombuffer(data, np.uint8), width(bound), values)
    if most >= bound:
        raise ValueError(f"packed value {most} is not below {bound}")
    return values


def pack_rows(ids: Ints, n_rows: int) -> bytes:
    """Pack a set of row ids by the cheapest of three codes.

    Nothing at all if every row is in the set, a bitmap of ``n_rows`` bits, or the ids
    one by one; both ends know which from the set's size and ``n_rows``.

    Parameters
    ----------
    ids : ndarray of int64, shape (n,)
        Strictly increasing, in ``[0, n_rows)``.

    Raises
    ------
    ValueError
        If the ids are not strictly increasing or out of range.

    Examples
    --------
    Of 100 rows: none takes 0 bytes, three 7 bits each, 50 a bitmap, all 0 bytes.

    >>> [len(pack_rows(np.arange(n), n_rows=100)) for n in (0, 3, 50, 100)]
    [0, 3, 13, 0]
    """
    ids = np.ascontiguousarray(ids, np.int64)
    if not _increase(ids, n_rows):
        raise ValueError(f"row ids must be strictly increasing in [0, {n_rows})")
    if len(ids) == n_rows:
        return b""
    if _bitmap_is_smaller(len(ids), n_rows):
        bitmap = np.zeros(n_rows, np.bool_)
        bitmap[ids] = True
        return np.packbits(bitmap, bitorder="little").tobytes()
    return pack(ids, n_rows)


def unpack_rows(data: bytes, count: int, n_rows: int) -> Ints:
    """Invert :func:`pack_rows`.

    Raises
    ------
    ValueError
        If ``data`` is not a code of ``count`` strictly increasing ids below ``n_rows``.
    """
    if not 0 <= count <= n_rows:
        raise ValueError(f"a set of {count} rows does not fit a table of {n_rows}")
    if count == n_rows:
        if data:
            raise ValueError(f"all {n_rows} rows take no bytes, got {len(data)}")
        return np.arange(n_rows)
    # A bitmap has as many ones as announced, and none beyond the last row; a list of
    # ids increases.
    if _bitmap_is_smaller(count, n_rows):
        if len(data) != (n_rows + 7) // 8:
            raise ValueError(f"a bitmap of {n_rows} rows, got {len(data)} bytes")
        bitmap = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        ids = np.flatnonzero(bitmap.view(np.bool_))
        is_set = not len(ids) or ids[-1] < n_rows
    else:
        ids = unpack(data, count, n_rows)
        is_set = _increase(ids, n_rows)
    if len(ids) != count or not is_set:
        raise ValueError(f"not a set of {count} increasing row ids below {n_rows}")
    return ids


def rows_size(count: int, n_rows: int) -> int:
    """Bytes that :func:`pack_rows` takes for ``count`` of ``n_rows`` rows."""
    if count == n_rows:
        return 0
    return min((n_rows + 7) // 8, packed_size(count, n_rows))


def _bitmap_is_smaller(count: int, n_rows: int) -> bool:
    return (n_rows + 7) // 8 < packed_size(count, n_rows)


# What the first run compiles, it waits for: kernels make no arrays and call nothing.


@njit(cache=True)
def _increase(ids: Ints, n_rows: int) -> bool:
    """Whether ids increase strictly, in [0, n_rows)."""
    # It holds the interpreter lock: to give that away for a microsecond takes longer.
    last, increase = -1, True
    for i in range(len(ids)):
        increase &= last < ids[i] < n_rows
        last = ids[i]
    return increase


@njit(nogil=True, cache=True)
def _pack(values: Ints, width: int, data: Bytes) -> tuple[int, int]:
    """Fill ``data``, all zero; return the least and the largest value."""
    # Bits wait in a word, lowest first, until there are eight for a byte.
    least = most = 0
    word, n_waiting, place = uint64(0), 0, 0
    for i in range(len(values)):
        value = values[i]
        if value < least:
            least = value
        if value > most:
            most = value
        word |= uint64(value) << uint64(n_waiting)
        n_waiting += width
        while n_waiting >= 8:
            data[place] = word & uint64(255)
            word >>= uint64(8)
            n_waiting -= 8
            place += 1
    if n_waiting:
        data[place] = word
    return least, most


@njit(nogil=True, cache=True)
def _unpack(data: Bytes, width: int, values: Ints) -> int:
    """Invert :func:`_pack`; return the largest value, -1 if there is none."""
    mask, most = (uint64(1) << uint64(width)) - uint64(1), -1
    word, n_waiting, place = uint64(0), 0, 0
    for i in range(len(values)):
        while n_waiting < width:
            word |= uint64(data[place]) << uint64(n_waiting)
            n_waiting += 8
            place += 1
        values[i] = word & mask
        if values[i] > most:
            most = values[i]
        word >>= uint64(width)
        n_waiting -= width
    return most
