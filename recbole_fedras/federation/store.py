"""A table for each client: a round changes some of them, or none."""

from __future__ import annotations

from collections.abc import Collection
from heapq import heappop, heappush
from typing import Any

from torch import Tensor

from recbole_fedras.numeric.memory import leading, mapped_zeros


class ClientTables:
    """Tables of clients, of which a round changes some.

    A table is changed by writing a new one to a free slot; :meth:`commit` puts the new
    ones into force and frees the old. Until a client's first, it has slot 0.

    That takes the bytes of a table for each client that has ever taken part, on disk
    where memory is short.

    Parameters
    ----------
    n_clients : int
        That may ever have a table.
    n_changed : int
        Tables that one round may change.
    start : Tensor, shape (...)
        What everybody starts with; never written.

    Attributes
    ----------
    slots : Tensor, shape (1 + n_clients + n_changed, ...)
    """

    def __init__(self, n_clients: int, n_changed: int, start: Tensor) -> None:
        shape = (1 + n_clients + n_changed, *start.shape)
        on_disk = start.device.type == "cpu" and start.numel() > 0
        zeros = mapped_zeros if on_disk else start.new_zeros
        self.slots = zeros(*shape)
        self.slots[0] = start
        self._in_force: dict[int, int] = {}
        self._refresh()

    def _refresh(self) -> None:
        self._changed: dict[int, int] = {}
        used = {0, *self._in_force.values()}
        # A heap: which slot is next depends on who holds which, and on nothing older.
        self._free = [slot for slot in range(len(self.slots)) if slot not in used]

    def slot_of(self, client: int) -> int:
        """Return the slot that counts in the round under way."""
        return self._changed.get(client, self._in_force.get(client, 0))

    def of(self, client: int) -> Tensor:
        """Return a client's table, as it is in the round under way; a view."""
        return self.slots[self.slot_of(client)]

    def renew(self, client: int) -> Tensor:
        """Copy a client's table to a free slot, to be written; return it, a view.

        Another call before the commit returns the same.
        """
        if client not in self._changed:
            new = heappop(self._free)
            self.slots[new] = self.slots[self._in_force.get(client, 0)]
            self._changed[client] = new
        return self.slots[self._changed[client]]

    def commit(self, clients: Collection[int]) -> None:
        """Put what these clients changed into force; forget what others did."""
        for client, slot in self._changed.items():
            unused = slot
            if client in clients:
                unused = self._in_force.get(client, 0)
                self._in_force[client] = slot
            if unused:
                heappush(self._free, unused)
        self._changed = {}

    def state_dict(self) -> dict[str, Any]:
        """Return all tables in force."""
        used = 1 + max(self._in_force.values(), default=0)
        slots = leading(self.slots, used)
        return {"slots": slots, "slot_of_client": dict(self._in_force)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.slots[: len(state["slots"])] = state["slots"]
        self._in_force = dict(state["slot_of_client"])
        self._refresh()
