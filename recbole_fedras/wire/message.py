"""A message: a payload with what its receiver must know of it, and its bytes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import msgpack

from recbole_fedras.errors import PayloadError, VersionError
from recbole_fedras.wire.payload import Payload, unpack


@dataclass
class Message:
    """The bytes of one payload, as sent.

    **Wire**: a msgpack array of ``version``, ``base`` and the payload. ``version``
    counts the rounds that the shared parameters have seen once it is applied, ``base``
    those that the receiver's must have seen before; ``base`` is nil for a change that
    applies to any.
    """

    data: bytes

    @classmethod
    def of(cls, payload: Payload, version: int, base: int | None) -> Message:
        """Serialise a payload that leads from ``base`` to ``version``."""
        header = msgpack.packb((version, base, None))[:-1]
        message = cls(header + payload.to_bytes())
        message.part_bytes = message._parts(payload)
        return message

    def open(self, held: int, most: int) -> Payload:
        """Return the payload to a receiver who holds version ``held``.

        Raises
        ------
        VersionError
            If it builds on another version.
        PayloadError
            If the bytes are no message, or are more than ``most``.
        """
        if len(self.data) > most:
            raise PayloadError(f"{len(self.data)} bytes, of at most {most}")
        if self.base is not None and self.base != held:
            raise VersionError(
                f"the message leads from version {self.base} to {self.version}, but "
                f"its receiver holds version {held}"
            )
        return self.payload

    @property
    def version(self) -> int:
        """Version of the shared parameters after it."""
        return self._parsed[0]

    @property
    def base(self) -> int | None:
        """Version that it applies to; None: to any."""
        return self._parsed[1]

    @property
    def payload(self) -> Payload:
        """What the receiver parses from the bytes."""
        return self._parsed[2]

    @cached_property
    def _parsed(self) -> tuple[int, int | None, Payload]:
        entries = unpack(self.data)
        if len(entries) != 3 or not (_is_version(entries[0], entries[1])):
            raise PayloadError("not a message of version, base and payload")
        return entries[0], entries[1], Payload.of_entries(entries[2])

    @cached_property
    def part_bytes(self) -> dict[str, int]:
        """Bytes by part; they add up to ``len(data)``."""
        return self._parts(self.payload)

    def _parts(self, payload: Payload) -> dict[str, int]:
        parts = payload.part_bytes()
        return parts | {"framing": len(self.data) - sum(parts.values())}


def _is_version(version: Any, base: Any) -> bool:
    return all(
        type(value) is int and 0 <= value < 2**62
        for value in ([version] if base is None else [version, base])
    )
