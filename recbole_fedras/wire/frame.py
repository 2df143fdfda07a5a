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
        return [_read(bodies, *step) for step in packed]
    except (ValueError, TypeError, IndexError, RecursionError, MemoryError) as error:
        raise PayloadError(f"not a frame of {len(data)} bytes: {error}") from error


def _read(bodies: Any, what: Any, entries: Any, value: Any) -> Step:
    """Make a step of what was unpacked; nothing is converted."""
    if type(what) is not str or type(bodies) is not list:
        raise TypeError("a step has a name, and bodies are a list")
    messages = [(head, bodies[place]) for head, place in entries]
    if any(type(part) is not bytes for message in messages for part in message):
        raise TypeError("heads and bodies are bytes")
    return Step(what, messages, value)
