"""Who holds which item table: the clients' replicas and what they missed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_fedras.compressor.base import RowUpdate


class BroadcastReplica:
    """Everybody applies every downlink, also while not selected.

    This is the FedRAS paper's assumption. All clients of a bandwidth tier hold the
    same table. What a participant had missed since he last took part is charged as
    catch-up beside the downlink: the missed payloads, or the dense table if smaller.

    Parameters
    ----------
    tables : Tensor, shape (n_tiers, n_items, dim)
        Updated in place.
    tier_of_client : Tensor of int64, shape (n_clients,)
    dense_bytes : int
        Bytes of a message that carries the whole table.
    """

    def __init__(
        self, tables: Tensor, tier_of_client: Tensor, dense_bytes: int
    ) -> None:
        self.tables = tables
        self.tier_of_client = tier_of_client
        self.dense_bytes = dense_bytes
        # Bytes published before each version; client u holds version held[u].
        self._published = torch.zeros(len(tables), 1, dtype=torch.int64)
        self._held = torch.zeros(len(tier_of_client), dtype=torch.int64)

    @property
    def version(self) -> int:
        """Number of downlinks published so far."""
        return self._published.shape[1] - 1

    def publish(self, updates: list[RowUpdate], sizes: list[int]) -> None:
        """Apply one decoded downlink per tier, of ``sizes`` bytes, to its table."""
        for table, update in zip(self.tables, updates, strict=True):
            table.index_add_(0, update.ids.to(table.device), update.rows.to(table))
        newest = self._published[:, -1:] + torch.tensor(sizes)[:, None]
        self._published = torch.cat([self._published, newest], dim=1)

    def receive(self, clients: Tensor) -> int:
        """Bring ``clients`` up to date; return the catch-up bytes.

        The newest downlink is not among them: it is sent, and counted, as such.
        """
        tier = self.tier_of_client[clients]
        before_newest = max(self.version - 1, 0)
        missed = (
            self._published[tier, before_newest]
            - (self._published[tier, self._held[clients].clamp(max=before_newest)])
        )
        self._held[clients] = self.version
        return int(missed.clamp(max=self.dense_bytes).sum())

    def state_dict(self) -> dict[str, Any]:
        """Return what clients hold besides the tables, which belong to the model."""
        return {"published": self._published, "held": self._held}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._published, self._held = state["published"], state["held"]
