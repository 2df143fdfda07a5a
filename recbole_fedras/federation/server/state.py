"""The exact shared parameters, and how the server steps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_fedras.compressor.base import RowUpdate
from recbole_fedras.federation.server.optimizer import ServerOptimizer
from recbole_fedras.federation.settings import ServerOptimization


class SharedParameters:
    """Exact item table and network; nothing of a round is lost or kept by halves.

    Parameters
    ----------
    item_table : Tensor, shape (n_items, dim)
        Initial table, which every client draws from the shared seed.
    theta : Tensor, shape (n_theta,)
        Initial network, flattened.
    optimization : ServerOptimization
        How it steps.
    round : int
        Rounds completed before.

    Attributes
    ----------
    round : int
        Rounds completed; the version of the shared parameters.
    """

    def __init__(
        self,
        item_table: Tensor,
        theta: Tensor,
        optimization: ServerOptimization,
        round: int = 0,
    ) -> None:
        self.item_table = item_table.clone()
        self.theta = theta.clone()
        self.round = round
        self._before: tuple[Tensor, Tensor, int] | None = None
        self._plain = optimization.is_plain
        self._optimizers = {
            name: ServerOptimizer(optimization) for name in ("item_table", "theta")
        }

    def step(self, update: RowUpdate, theta_change: Tensor) -> RowUpdate:
        """Apply a round's aggregate; nothing is lost until :meth:`commit`.

        Returns
        -------
        RowUpdate
            By how much which items changed.
        """
        self._before = self.item_table.clone(), self.theta.clone(), self.round
        if not self._plain:
            dense = torch.zeros_like(self.item_table)
            dense[update.ids] = update.rows
            change = self._optimizers["item_table"].step(dense)
            ids = change.any(dim=1).nonzero().flatten()
            update = RowUpdate(ids, change[ids])
        self.item_table.index_add_(0, update.ids, update.rows)
        self.theta += self._optimizers["theta"].step(theta_change)
        self.round += 1
        return update

    def commit(self) -> None:
        """Put a step into force."""
        self._before = None
        for optimizer in self._optimizers.values():
            optimizer.commit()

    def rollback(self) -> None:
        """Undo a step that was not committed."""
        if self._before is not None:
            self.item_table, self.theta, self.round = self._before
            self._before = None

    def drift(self, replica: Tensor) -> float:
        """Return how far a replica has departed: ``|Q - replica| / |Q|``."""
        norm = float(self.item_table.norm())
        return float((self.item_table - replica).norm()) / norm if norm else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next round depends on."""
        return {
            "item_table": self.item_table,
            "theta": self.theta,
            "round": self.round,
            "optimizers": {
                name: optimizer.state_dict()
                for name, optimizer in self._optimizers.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.item_table.copy_(state["item_table"])
        self.theta.copy_(state["theta"])
        self.round = state["round"]
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
