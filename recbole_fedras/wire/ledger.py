"""The only way between server and clients: it books every byte that it hands over."""

from __future__ import annotations

from typing import Any

from recbole_fedras.wire.message import Message
from recbole_fedras.wire.payload import PARTS

DIRECTIONS = ("uplink", "downlink")


class Ledger:
    """Bytes and messages by direction and part, of the current round and in all.

    Attributes
    ----------
    totals : dict of str to int
        ``{direction}_{part}_bytes``, ``{direction}_bytes``, ``{direction}_messages``,
        and ``catch_up_bytes`` over all closed rounds.
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
        keys += [f"{direction}_messages" for direction in DIRECTIONS]
        return dict.fromkeys([*keys, "catch_up_bytes"], 0)

    def charge(self, direction: str, message: Message, receivers: int = 1) -> None:
        """Book ``message`` for each of ``receivers``."""
        self._round[f"{direction}_bytes"] += receivers * len(message.data)
        self._round[f"{direction}_messages"] += receivers
        for part, size in message.part_bytes.items():
            self._round[f"{direction}_{part}_bytes"] += receivers * size

    def catch_up(self, size: int) -> None:
        """Book what participants had missed: ``catch_up_bytes``, which are not sent."""
        self._round["catch_up_bytes"] += size

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
        self.totals = dict(state)


class Channel:
    """Hands messages over and counts exactly the bytes that the receiver decodes.

    The simulator's carrier is memory.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def send(self, direction: str, message: Message, receivers: int = 1) -> Message:
        """Send to ``receivers`` and return what each of them may open."""
        self.ledger.charge(direction, message, receivers)
        return message
