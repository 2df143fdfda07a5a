"""What the talks of secure aggregation are as bytes: msgpack arrays, checked."""

from __future__ import annotations

from collections.abc import Mapping

import msgpack

from recbole_fedras.errors import PayloadError
from recbole_fedras.wire.payload import unpack


def pack_blobs(blobs: Mapping[int, bytes]) -> bytes:
    """Write bytes of, or for, some clients: ``[[client, bytes], ...]``."""
    return bytes(msgpack.packb(list(blobs.items())))


def unpack_blobs(body: bytes) -> dict[int, bytes]:
    """Invert :func:`pack_blobs`.

    Raises
    ------
    PayloadError
        If it is none.

    Examples
    --------
    >>> unpack_blobs(pack_blobs({7: b"key", 9: b""}))
    {7: b'key', 9: b''}
    """
    pairs = unpack(body)
    for pair in pairs:
        fits = isinstance(pair, tuple) and len(pair) == 2
        if not (fits and type(pair[0]) is int and type(pair[1]) is bytes):
            raise PayloadError("not bytes by client")
        if not 0 <= pair[0] < 2**62:
            raise PayloadError(f"client {pair[0]} is none")
    return dict(pairs)
