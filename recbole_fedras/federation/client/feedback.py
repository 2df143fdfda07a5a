"""Error feedback of the uplink: clients remember what they could not send."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from recbole_fedras.compressor.base import CohortUpdate, RowUpdate
from recbole_fedras.federation.protocol import Agreement
from recbole_fedras.federation.store import ClientTables


class UplinkFeedback:
    """Each client's residual: updates less what arrives of them.

    Error feedback, as in EF-SGD (Seide et al., Interspeech 2014; Karimireddy et al.,
    ICML 2019). A client decodes what it sends, as the server will. The residual of a
    row waits until the client trains that row again: a row that is sent counts as
    trained in the aggregation by inverse frequency.

    Takes ``4 n_items dim`` bytes, on disk where memory is short, for each client that
    has ever taken part.

    Parameters
    ----------
    agreement : Agreement
    n_clients : int
        Of the shard.
    """

    def __init__(self, agreement: Agreement, n_clients: int) -> None:
        cohort = agreement.federation.most_participants(agreement.n_clients)
        nothing = torch.zeros(agreement.n_items, agreement.dim)
        self._residuals = ClientTables(n_clients, min(cohort, n_clients), nothing)

    def residual(self, client: int) -> Tensor:
        """Return what a client has not sent yet, shape (n_items, dim)."""
        return self._residuals.of(client)

    def add_to(self, updates: CohortUpdate) -> None:
        """Add each client's residual to the rows that it sends, in place."""
        for client, update in zip(updates.clients.tolist(), updates, strict=True):
            update.rows.add_(self.residual(client)[update.ids])

    def keep(self, client: int, update: RowUpdate, decoded: RowUpdate) -> None:
        """Note what was to be sent, and what arrives."""
        before, residual = self._residuals.renew(client)
        residual.copy_(before)
        residual[update.ids] = update.rows
        residual.index_add_(0, decoded.ids, decoded.rows, alpha=-1)

    def commit(self, counted: Collection[int]) -> None:
        """Keep the residuals of clients whose updates have counted; forget others'."""
        self._residuals.commit(counted)

    def state_dict(self) -> dict[str, Any]:
        """Return the residuals of all clients."""
        return self._residuals.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._residuals.load_state_dict(state)
