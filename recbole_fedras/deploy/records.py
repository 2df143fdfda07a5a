"""Bytes as Flower's messages carry them: one array, which travels in chunks."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, RecordDict

from recbole_fedras.errors import PayloadError

#: Type of a message to a shard, and of one that asks a node for its name.
ASK, WHO = "train", "query"

_KEY = "bytes"


def pack(data: bytes) -> RecordDict:
    """Wrap bytes as the content of a message."""
    array = Array(dtype="uint8", shape=(len(data),), stype=_KEY, data=data)
    return RecordDict({_KEY: ArrayRecord({_KEY: array})})


def unpack(content: RecordDict) -> bytes:
    """Return the bytes of a message's content; nothing of it is interpreted.

    Raises
    ------
    PayloadError
        If it holds anything else.
    """
    record = content.get(_KEY)
    if len(content) != 1 or not isinstance(record, ArrayRecord) or len(record) != 1:
        raise PayloadError("a Flower message of another form than ours")
    return b"".join(array.data for array in record.values())
