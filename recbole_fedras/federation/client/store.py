"""A table for each client: nothing is kept of a round that fails."""

from __future__ import annotations

from heapq import heappop, heappush

import torch
from torch import Tensor


class ClientTables:
    """Tables of clients, of which a round changes some, all of them or none.

    A table is changed by writing a new one to a free slot; :meth:`commit` puts the new
    ones into force and frees the old. Until a client's first, it has slot 0.

    Parameters
    ----------
    slots : Tensor, shape (1 + n_clients + n_changed, ...)
        Room for a table of every client and for those that one round changes. Slot 0
        is what everybody starts with, and is never written.
    slot_of_client : Tensor of int64, shape (n_clients,)
        Updated in place by :meth:`commit`.
    """

    def __init__(self, slots: Tensor, slot_of_client: Tensor) -> None:
        self.slots = slots
        self.slot_of_client = slot_of_client
        self.refresh()

    def refresh(self) -> None:
        """Start from what ``slots`` and ``slot_of_client`` hold now."""
        self._changed: dict[int, int] = {}
        used = {0, *self.slot_of_client.tolist()}
        # A heap: which slot is next depends on who holds which, and on nothing older.
        self._free = [slot for slot in range(len(self.slots)) if slot not in used]

    def slots_of(self, clients: Tensor) -> Tensor:
        """Return the slots in force, for the round under way."""
        slots = self.slot_of_client[clients].tolist()
        new = map(self._changed.get, clients.tolist(), slots)
        return torch.tensor(list(new), dtype=torch.int64)

    def renew(self, client: int) -> int:
        """Copy a client's table to a free slot, to be written; return the slot.

        Another call before the commit returns the same.
        """
        if client in self._changed:
            return self._changed[client]
        new = heappop(self._free)
        self.slots[new] = self.slots[int(self.slot_of_client[client])]
        self._changed[client] = new
        return new

    def commit(self) -> None:
        """Put the changes since the last commit into force."""
        for client, slot in self._changed.items():
            old = int(self.slot_of_client[client])
            if old:
                heappush(self._free, old)
            self.slot_of_client[client] = slot
        self._changed = {}

    def rollback(self) -> None:
        """Forget the changes since the last commit."""
        for slot in self._changed.values():
            heappush(self._free, slot)
        self._changed = {}
