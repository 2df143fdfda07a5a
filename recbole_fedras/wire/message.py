"""A message: a payload, and in front of it what its receiver must know of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from math import isfinite
from typing import Any, NamedTuple

import msgpack

from recbole_fedras.errors import PayloadError, VersionError
from recbole_fedras.wire.payload import Payload


class Kind(IntEnum):
    """What a message is for; the values travel.

    To clients: ``INTRODUCTION``, once, what items are made of; ``DOWNLINK``, the change
    of the newest version, the same for all of a bandwidth tier; ``PERSONAL``, what one
    client lacks; ``CATCH_UP``, a downlink of an earlier version; ``TABLE``, the whole
    item table in place of many of these; ``RECEIPT``, that its update has counted.
    From clients: ``UPDATE``.

    With secure aggregation three talks more. A client answers its invitation by
    ``KEYS``, ``ROSTER`` (its neighbours' keys) by ``SHARES``, ``NOTES`` (neighbours'
    shares) by its masked ``UPDATE``, and ``SURVIVORS`` (whose updates have arrived) by
    ``REVEALED``. Their bodies are no payloads, but see ``secure.notes``.
    """

    INTRODUCTION = 0
    DOWNLINK = 1
    PERSONAL = 2
    CATCH_UP = 3
    TABLE = 4
    UPDATE = 5
    RECEIPT = 6
    KEYS = 7
    ROSTER = 8
    SHARES = 9
    NOTES = 10
    SURVIVORS = 11
    REVEALED = 12


#: What secure aggregation says to clients beside a downlink.
TALKS = (Kind.ROSTER, Kind.NOTES, Kind.SURVIVORS)

_KINDS = frozenset(map(int, Kind))


class Header(NamedTuple):
    """What stands in front of a payload.

    Attributes
    ----------
    kind : Kind
    round : int
        The round that it belongs to; who is sent a downlink is invited to it.
    client : int
        The client that it goes to or comes from.
    version : int
        Rounds that the shared parameters have seen once it is applied.
    base : int or None
        Rounds that the receiver's must have seen before; None: it applies to any.
    n_samples : int or None
        Of an update: training samples that it rests on.
    loss : float or None
        Of an update, if clients report it: their sum of losses.
    """

    kind: Kind
    round: int
    client: int
    version: int
    base: int | None
    n_samples: int | None = None
    loss: float | None = None


@dataclass(frozen=True)
class Message:
    """One payload as sent, with its header.

    **Wire**: a msgpack array of ``kind``, ``round``, ``client``, ``version``, ``base``
    (or nil), ``report`` and the payload; ``report`` is nil, ``[n_samples]`` or
    ``[n_samples, loss]``.

    Parameters
    ----------
    header : Header
    body : bytes
        The payload, serialised. Messages to many receivers share it.

    Examples
    --------
    >>> from recbole_fedras.wire.payload import Payload
    >>> message = Message.of(Payload(), Header(Kind.RECEIPT, 3, 17, 4, None))
    >>> len(message.data), Message.from_bytes(message.data).header.client
    (8, 17)
    """

    header: Header
    body: bytes

    @classmethod
    def of(cls, payload: Payload, header: Header) -> Message:
        """Serialise a payload."""
        return cls(header, payload.to_bytes())

    @classmethod
    def from_bytes(cls, data: bytes) -> Message:
        """Parse the header; the payload is parsed when it is asked for.

        Raises
        ------
        PayloadError
            If these are no message.
        """
        header, size = _parsed(data)
        return cls(header, data[size:])

    @classmethod
    def from_parts(cls, head: bytes, body: bytes) -> Message:
        """Parse a message whose two parts have come apart."""
        return cls(_parsed(head)[0], body)

    def received(self) -> Message:
        """Return what a receiver in the same process makes of the bytes."""
        message = Message.from_parts(self.head, self.body)
        if "payload" in vars(self):  # the very same bytes were parsed before
            vars(message)["payload"] = self.payload
        return message

    def to(self, client: int) -> Message:
        """Return the same message, addressed to another client."""
        message = Message(self.header._replace(client=client), self.body)
        vars(message)["payload"] = self.payload  # parsed once for all receivers
        return message

    @cached_property
    def head(self) -> bytes:
        """The bytes in front of the payload."""
        header = self.header
        report: tuple[Any, ...] | None = None
        if header.n_samples is not None:
            report = (header.n_samples,)
            if header.loss is not None:
                report = (header.n_samples, header.loss)
        fields = (int(header.kind), *header[1:5], report, None)
        return bytes(msgpack.packb(fields))[:-1]

    @property
    def data(self) -> bytes:
        """The bytes that travel."""
        return self.head + self.body

    def __len__(self) -> int:
        return len(self.head) + len(self.body)

    @cached_property
    def payload(self) -> Payload:
        """What the receiver parses from the bytes.

        Raises
        ------
        PayloadError
            If they hold no payload.
        """
        return Payload.from_bytes(self.body)

    def part_bytes(self) -> dict[str, int]:
        """Bytes by part; they add up to ``len(self)``.

        What is no payload is framing.
        """
        try:
            parts = self.payload.part_bytes()
        except PayloadError:
            parts = Payload().part_bytes()
        return parts | {"framing": len(self) - sum(parts.values())}

    def require_base(self, version: int) -> None:
        """Refuse to be applied to another version than the one that it builds on.

        Raises
        ------
        VersionError
            That names both.
        """
        if self.header.base is not None and self.header.base != version:
            raise VersionError(
                f"the message leads from version {self.header.base} to "
                f"{self.header.version}, but its receiver holds version {version}"
            )

    def require_size(self, most: int) -> None:
        """Refuse to be larger than anything that an honest sender makes.

        Raises
        ------
        PayloadError
            That says how large.
        """
        if len(self) > most:
            raise PayloadError(f"{len(self)} bytes, of at most {most}")


def _parsed(data: bytes) -> tuple[Header, int]:
    """Return the header that some bytes begin with, and its size."""
    unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=len(data) + 1)
    unpacker.feed(data)
    try:
        if unpacker.read_array_header() != 7:
            raise PayloadError("not a message: it must have seven parts")
        head = tuple(unpacker.unpack() for _ in range(6))
    except (ValueError, msgpack.exceptions.OutOfData) as error:
        raise PayloadError(f"not a message: {error}") from error
    return _checked(head), unpacker.tell()


def _checked(head: tuple[Any, ...]) -> Header:
    """Return the header that msgpack unpacked, if it is one."""
    kind, round, client, version, base, report = head
    counts = [round, client, version, *([] if base is None else [base])]
    n_samples, loss = None, None
    if isinstance(report, tuple) and len(report) in (1, 2):
        n_samples, loss = (*report, None)[:2]
        counts.append(n_samples)
    elif report is not None:
        raise PayloadError("not a message: a malformed report")
    if not all(type(count) is int and 0 <= count < 2**62 for count in counts):
        raise PayloadError(f"not a message: its numbers are {counts}")
    if loss is not None and not (type(loss) is float and isfinite(loss)):
        raise PayloadError(f"its loss is {loss!r}")
    if type(kind) is not int or kind not in _KINDS:
        raise PayloadError(f"not a message: its kind is {kind!r}")
    return Header(Kind(kind), round, client, version, base, n_samples, loss)
