"""A message: a payload, and in front of it what its receiver must know of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
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

_KINDS = {int(kind): kind for kind in Kind}

# One for all heads: to make a packer takes longer than to pack with it.
_PACKER = msgpack.Packer()


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


@dataclass(slots=True)
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
    head : bytes
        What stands in front of the payload, if it has come or been packed already.

    Examples
    --------
    >>> from recbole_fedras.wire.payload import Payload
    >>> message = Message.of(Payload(), Header(Kind.RECEIPT, 3, 17, 4, None))
    >>> len(message.data), Message.from_bytes(message.data).header.client
    (8, 17)
    """

    header: Header
    body: bytes
    head: bytes = field(default=b"", repr=False, compare=False)
    _payload: Payload | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.head:
            self.head = _packed(self.header)

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
        size = _size_of_head(data)
        return cls.from_parts(data[:size], data[size:])

    @classmethod
    def from_parts(cls, head: bytes, body: bytes) -> Message:
        """Parse a message whose two parts have come apart."""
        return cls(_parsed(head), body, head)

    def received(self) -> Message:
        """Return what a receiver in the same process makes of the bytes.

        A payload is the same: the very same bytes were parsed before.
        """
        return Message(_parsed(self.head), self.body, self.head, self._payload)

    def to(self, client: int) -> Message:
        """Return the same message, addressed to another client.

        Its payload is parsed once for all receivers.
        """
        header = self.header._replace(client=client)
        return Message(header, self.body, b"", self.payload)

    @property
    def data(self) -> bytes:
        """The bytes that travel."""
        return self.head + self.body

    def __len__(self) -> int:
        return len(self.head) + len(self.body)

    @property
    def payload(self) -> Payload:
        """What the receiver parses from the bytes.

        Raises
        ------
        PayloadError
            If they hold no payload.
        """
        if self._payload is None:
            self._payload = Payload.from_bytes(self.body)
        return self._payload

    def part_bytes(self) -> dict[str, int]:
        """Bytes by part; they add up to ``len(self)``.

        What is no payload is framing.
        """
        try:
            parts = self.payload.part_bytes()
        except PayloadError:
            parts = Payload().part_bytes()
        parts["framing"] = len(self) - sum(parts.values())
        return parts

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


def _packed(header: Header) -> bytes:
    """Return a message's bytes up to its payload."""
    kind, round, client, version, base, n_samples, loss = header
    report: tuple[Any, ...] | None = None
    if n_samples is not None:
        report = (n_samples,) if loss is None else (n_samples, loss)
    fields = (int(kind), round, client, version, base, report, None)
    return bytes(_PACKER.pack(fields)[:-1])


def _size_of_head(data: bytes) -> int:
    """Return where the payload of a message begins.

    Raises
    ------
    PayloadError
        If the bytes are no message.
    """
    unpacker = msgpack.Unpacker(use_list=False, max_buffer_size=len(data) + 1)
    unpacker.feed(data)
    try:
        for _ in range(min(unpacker.read_array_header(), 7) - 1):
            unpacker.skip()
    except (ValueError, msgpack.exceptions.OutOfData) as error:
        raise PayloadError(f"not a message: {error}") from error
    return int(unpacker.tell())


def _parsed(head: bytes) -> Header:
    """Return the header that some bytes are, if they are one.

    Raises
    ------
    PayloadError
        That says why not.
    """
    try:
        fields = msgpack.unpackb(head + b"\xc0", use_list=False)  # nil, the payload's
    except ValueError as error:
        raise PayloadError(f"not a message of seven parts: {error}") from error
    if not isinstance(fields, tuple) or len(fields) != 7:
        raise PayloadError("not a message of seven parts")
    kind, round, client, version, base, report, _ = fields
    counts = (
        [round, client, version] if base is None else [round, client, version, base]
    )
    n_samples, loss = None, None
    if isinstance(report, tuple) and len(report) in (1, 2):
        n_samples, loss = (*report, None)[:2]
        counts.append(n_samples)
    elif report is not None:
        raise PayloadError("not a message: a malformed report")
    for count in counts:
        if type(count) is not int or not 0 <= count < 2**62:
            raise PayloadError(f"not a message: its numbers are {counts}")
    if loss is not None and not (type(loss) is float and isfinite(loss)):
        raise PayloadError(f"its loss is {loss!r}")
    if type(kind) is not int or kind not in _KINDS:
        raise PayloadError(f"not a message: its kind is {kind!r}")
    return Header(_KINDS[kind], round, client, version, base, n_samples, loss)
