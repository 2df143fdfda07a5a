"""Error feedback of the uplink: clients remember what they could not send."""

from __future__ import annotations

from typing import Any

import torch

from recbole_fedras.compressor.base import CohortUpdate, RowUpdate
from recbole_fedras.federation.client.store import ClientTables
from recbole_fedras.numeric.memory import leading, mapped_zeros


class UplinkFeedback:
    """Each client's residual: updates less what the server decoded of them.

    Error feedback, as in EF-SGD (Seide et al., Interspeech 2014; Karimireddy et al.,
    ICML 2019). The residual of a row waits until the client trains that row again: a
    row that is sent counts as trained in the aggregation by inverse frequency.

    Takes ``4 n_items dim`` bytes, on disk where memory is short, for each client who
    has ever taken part.

    Parameters
    ----------
    n_clients, n_items, dim : int
    cohort_size : int
    """

    def __init__(
        self, n_clients: int, n_items: int, dim: int, cohort_size: int
    ) -> None:
        self._store = ClientTables(
            mapped_zeros(1 + n_clients + cohort_size, n_items, dim),
            torch.zeros(n_clients, dtype=torch.int64),
        )

    def residual(self, client: int) -> torch.Tensor:
        """Return what a client has not sent yet, shape (n_items, dim)."""
        slot = self._store.slot_of_client[client]
        return self._store.slots[slot]

    def add_to(self, updates: CohortUpdate) -> None:
        """Add each client's residual to the rows that he sends, in place."""
        for index, client in enumerate(updates.clients.tolist()):
            update = updates[index]
            update.rows.add_(self.residual(client)[update.ids].to(update.rows.device))

    def keep(self, client: int, update: RowUpdate, decoded: RowUpdate) -> None:
        """Note what was to be sent, and what arrived."""
        residual = self._store.slots[self._store.renew(client)]
        residual[update.ids] = update.rows.cpu()
        residual.index_add_(0, decoded.ids, decoded.rows.cpu(), alpha=-1)

    def commit(self) -> None:
        """Put the residuals of a round into force."""
        self._store.commit()

    def rollback(self) -> None:
        """Forget those of a round that failed."""
        self._store.rollback()

    def state_dict(self) -> dict[str, Any]:
        """Return the residuals of all clients."""
        slot_of_client = self._store.slot_of_client
        used = int(slot_of_client.max()) + 1
        slots = leading(self._store.slots, used)
        return {"slots": slots, "slot_of_client": slot_of_client}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._store.slots[: len(state["slots"])] = state["slots"]
        self._store.slot_of_client.copy_(state["slot_of_client"])
        self._store.refresh()
