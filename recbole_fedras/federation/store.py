"""A table for each client: a round changes some of them, or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from heapq import heappop, heappush
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import RowUpdate
from recbole_fedras.numeric.memory import leading, mapped_zeros


class ClientTables:
    """Tables of clients, of which a round changes some.

    A table is changed by writing a new one to a free slot; :meth:`commit` puts the new
    ones into force and frees the old. Until a client's first, it has slot 0. Clients
    whose tables have always changed together share a slot.

    That takes the bytes of a table for each client that has ever taken part at most, on
    disk where memory is short.

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
        self._n_clients = n_clients
        self._in_force: dict[int, int] = {}
        self._refresh()

    def _refresh(self) -> None:
        self._changed: dict[int, int] = {}
        # How many clients have each slot, in force or in the round under way.
        self._n_holders = Counter(self._in_force.values())
        self._n_holders[0] = self._n_clients - len(self._in_force)
        used = {0, *self._in_force.values()}
        # A heap: which slot is next depends on who holds which, and on nothing older.
        self._free = [slot for slot in range(len(self.slots)) if slot not in used]

    def slot_of(self, client: int) -> int:
        """Return the slot that counts in the round under way."""
        return self._changed.get(client, self._in_force.get(client, 0))

    def of(self, client: int) -> Tensor:
        """Return a client's table, as it is in the round under way; a view."""
        return self.slots[self.slot_of(client)]

    def is_shared(self, client: int) -> bool:
        """Whether another client had the same slot when the round began."""
        return self._n_holders[self._in_force.get(client, 0)] > 1

    def renew(self, client: int) -> tuple[Tensor, Tensor]:
        """Give a client a free slot, once until the commit.

        Returns
        -------
        table, renewed : Tensor
            Views: what it has, and what is to be written, which may hold anything.
        """
        table, new = self.of(client), heappop(self._free)
        self._changed[client] = new
        self._n_holders[new] = 1
        return table, self.slots[new]

    def add(self, client: int, update: RowUpdate) -> None:
        """Renew a client's table: what it has, and an update."""
        table, renewed = self.renew(client)
        ids, rows = update.ids.numpy(), update.rows.numpy()
        _add(table.numpy(), ids, rows, renewed.numpy())

    def follow(self, client: int, other: int) -> None:
        """Renew a client's table to what another has, which it has shared before."""
        self._changed[client] = self._changed[other]
        self._n_holders[self._changed[other]] += 1

    def commit(self, clients: Collection[int]) -> None:
        """Put what these clients changed into force; forget what others did."""
        for client, slot in self._changed.items():
            unused = slot
            if client in clients:
                unused = self._in_force.get(client, 0)
                self._in_force[client] = slot
            self._n_holders[unused] -= 1
            if unused and not self._n_holders[unused]:
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


@njit(nogil=True, cache=True)
def _add(
    table: NDArray[np.float32],
    ids: NDArray[np.int64],
    rows: NDArray[np.float32],
    result: NDArray[np.float32],
) -> None:
    """Write a table, and rows that are added to it, in one pass; ids increase."""
    place = 0
    for i in range(len(table)):
        changes = place < len(ids) and ids[place] == i
        if changes:
            for j in range(table.shape[1]):
                result[i, j] = table[i, j] + rows[place, j]
            place += 1
        else:
            result[i] = table[i]
