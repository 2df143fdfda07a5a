"""Integers and sets of row ids in as few bits as their bounds allow."""

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


def width(bound: int) -> int:
    """Bits of an integer in ``[0, bound)``: ``ceil(log2(bound))``, 0 if bound is 1."""
    return max(bound - 1, 0).bit_length()


def packed_size(count: int, bound: int) -> int:
    """Bytes of ``count`` packed integers in ``[0, bound)``."""
    return (count * width(bound) + 7) // 8


def pack(values: Ints, bound: int) -> bytes:
    """Pack integers in ``[0, bound)`` at ``width(bound)`` bits each, lowest bit first.

    Parameters
    ----------
    values : ndarray of int64, shape (n,)
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
    if values.size and (values.min() < 0 or values.max() >= bound):
        raise ValueError(
            f"values to pack must lie in [0, {bound}), "
            f"got [{values.min()}, {values.max()}]"
        )
    if width(bound) == 32:  # so they lie in memory as well
        return values.astype("<u4").tobytes()
    # A column for each bit of the integers, lowest first, then eight bits to a byte.
    shifts = np.arange(width(bound), dtype=np.uint32)
    bits = (values.astype(np.uint32)[:, None] >> shifts) & 1  # (n, width)
    return np.packbits(bits.astype(np.uint8).ravel(), bitorder="little").tobytes()


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
    if width(bound) == 32 and bound == 2**32:
        return np.frombuffer(data, "<u4").astype(np.int64)
    # Back to a row of bits for each integer; their weights are the powers of two.
    n_bits = width(bound)
    bits = np.unpackbits(
        np.frombuffer(data, np.uint8), count=count * n_bits, bitorder="little"
    ).reshape(count, n_bits)
    values = bits.astype(np.int64) @ (1 << np.arange(n_bits, dtype=np.int64))
    if count and values.max() >= bound:
        raise ValueError(f"packed value {values.max()} is not below {bound}")
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
    if ids.size and (ids[0] < 0 or ids[-1] >= n_rows or (ids[1:] <= ids[:-1]).any()):
        raise ValueError(f"row ids must be strictly increasing in [0, {n_rows})")
    if len(ids) == n_rows:
        return b""
    if _bitmap_is_smaller(len(ids), n_rows):
        bitmap = np.zeros(n_rows, np.uint8)
        bitmap[ids] = 1
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
    if count == n_rows and not data:
        return np.arange(n_rows)
    # A bitmap has as many ones as announced, and none beyond the last row; a list of
    # ids increases. Anything else was never written by pack_rows.
    if count < n_rows and _bitmap_is_smaller(count, n_rows):
        if len(data) != (n_rows + 7) // 8:
            raise ValueError(f"a bitmap of {n_rows} rows, got {len(data)} bytes")
        bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
        ids = np.flatnonzero(bits)
        valid = len(ids) == count and not bits[n_rows:].any()
    else:
        ids = unpack(data, count, n_rows)
        valid = bool((ids[1:] > ids[:-1]).all())
    if not valid:
        raise ValueError(f"not a set of {count} increasing row ids below {n_rows}")
    return ids


def rows_size(count: int, n_rows: int) -> int:
    """Bytes that :func:`pack_rows` takes for ``count`` of ``n_rows`` rows."""
    if count == n_rows:
        return 0
    return min((n_rows + 7) // 8, packed_size(count, n_rows))


def _bitmap_is_smaller(count: int, n_rows: int) -> bool:
    return (n_rows + 7) // 8 < packed_size(count, n_rows)
