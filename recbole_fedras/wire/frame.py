"""Frames: what a server asks of a process that holds a shard, and what it answers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import msgpack

from recbole_fedras.errors import PayloadError
from recbole_fedras.wire.message import Message

#: Head and body of a message, unread.
Parts = tuple[bytes, bytes]


class Step(NamedTuple):
    """A thing to do, or what came of it.

    Attributes
    ----------
    what : str
    messages : sequence of (bytes, bytes)
        Heads and bodies.
    value : object
        Numbers, text, bytes, lists and dicts of these.
    """

    what: str
    messages: Sequence[Parts] = ()
    value: Any = None

    @classmethod
    def of(cls, what: str, messages: Iterable[Message], value: Any = None) -> Step:
        """Make a step of messages."""
        return cls(what, [(message.head, message.body) for message in messages], value)


def pack(steps: Iterable[Step]) -> bytes:
    """Write steps as bytes; a body that many messages share is written once.

    Examples
    --------
    >>> steps = [Step("participate", [(b"a", bytes(999)), (b"b", bytes(999))])]
    >>> unpack(pack(steps)) == steps
    True
    """
    places: dict[int, int] = {}
    bodies: list[bytes] = []
    packed = []
    for step in steps:
        entries = []
        for head, body in step.messages:
            place = places.setdefault(id(body), len(bodies))
            if place == len(bodies):
                bodies.append(body)
            entries.append((head, place))
        packed.append((step.what, entries, step.value))
    return bytes(msgpack.packb((bodies, packed)))


def unpack(data: bytes) -> list[Step]:
    """Read what :func:`pack` wrote.

    Raises
    ------
    PayloadError
        If it is not that.
    """
    try:
        bodies, packed = msgpack.unpackb(data)
        return [
            Step(str(what), [(bytes(h), bytes(bodies[p])) for h, p in entries], value)
            for what, entries, value in packed
        ]
    except (ValueError, TypeError, IndexError, RecursionError) as error:
        raise PayloadError(f"not a frame of {len(data)} bytes: {error}") from error
