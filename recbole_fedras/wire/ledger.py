"""The ledger: every byte of every message, by direction and part."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from recbole_fedras.wire.message import Kind, Message
from recbole_fedras.wire.payload import PARTS

DIRECTIONS = ("uplink", "downlink")

_CATCH_UP = (Kind.CATCH_UP, Kind.TABLE)

#: Names of what is counted, by direction and part.
_KEYS = {
    direction: {part: f"{direction}_{part}_bytes" for part in PARTS}
    for direction in DIRECTIONS
}

#: What secure aggregation says beside updates: bytes of these, no messages that count.
_ASIDE = {
    Kind.KEYS: "uplink",
    Kind.SHARES: "uplink",
    Kind.REVEALED: "uplink",
    Kind.ROSTER: "downlink",
    Kind.NOTES: "downlink",
    Kind.SURVIVORS: "downlink",
}


class Ledger:
    """Bytes and messages by direction and part, of the current round and in all.

    What participants had missed (``CATCH_UP``, ``TABLE``) stands apart from downlinks.
    What secure aggregation says beside updates is framing.

    Attributes
    ----------
    totals : dict of str to int
        ``{direction}_{part}_bytes``, ``{direction}_bytes``, ``{direction}_messages``,
        ``catch_up_bytes`` and ``catch_up_messages`` over all closed rounds.
    """

    def __init__(self) -> None:
        self.totals = self._empty()
        self._round = self._empty()

    @staticmethod
    def _empty() -> dict[str, int]:
        keys = [
            f"{direction}_{part}bytes"
            for direction in DIRECTIONS
            for part in ["", *(f"{part}_" for part in PARTS)]
        ]
        keys += [f"{direction}_messages" for direction in (*DIRECTIONS, "catch_up")]
        return dict.fromkeys([*keys, "catch_up_bytes"], 0)

    def book(self, message: Message) -> None:
        """Book a message that is sent to, or comes from, one client."""
        kind, size = message.header.kind, len(message)
        if kind in _ASIDE:
            self.book_interrupted(_ASIDE[kind], size)
            return
        if kind in _CATCH_UP:
            direction = "catch_up"
        else:
            direction = "uplink" if kind is Kind.UPDATE else "downlink"
            keys = _KEYS[direction]
            for part, n_bytes in message.part_bytes().items():
                self._round[keys[part]] += n_bytes
        self._round[f"{direction}_bytes"] += size
        self._round[f"{direction}_messages"] += 1

    def book_unread(self, direction: str, size: int) -> None:
        """Book bytes that nobody could, or would, read as a message: as framing."""
        self.book_interrupted(direction, size)
        self._round[f"{direction}_messages"] += 1

    def book_interrupted(self, direction: str, size: int) -> None:
        """Book bytes of a message that broke off: as framing, and as no message."""
        self._round[f"{direction}_framing_bytes"] += size
        self._round[f"{direction}_bytes"] += size

    def through(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Book messages as they pass."""
        for message in messages:
            self.book(message)
            yield message

    def open_round(self) -> None:
        """Begin a round, and forget one that was not closed."""
        self._round = self._empty()

    def close_round(self) -> dict[str, int]:
        """Add the round to the totals and return it."""
        for key, size in self._round.items():
            self.totals[key] += size
        return self._round

    def state_dict(self) -> dict[str, Any]:
        """Return the totals, for a checkpoint at the end of a round."""
        return dict(self.totals)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.totals = self._empty() | state
