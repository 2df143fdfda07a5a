"""The server: the exact shared parameters, and the messages it publishes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recbole_fedras.compressor.base import (
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    empty_update,
)
from recbole_fedras.wire.payload import Message, Payload


class Server:
    """Exact item table and network, and the messages that clients receive next.

    Parameters
    ----------
    item_table : Tensor, shape (n_items, dim)
        Initial table, which every client draws from the shared seed: the first
        messages carry no rows.
    theta : Tensor, shape (n_theta,)
        Initial network, flattened.
    compressor : Compressor
    budgets : list of Budget
        One per bandwidth tier.

    Attributes
    ----------
    round : int
        Rounds completed.
    messages : list of Message
        The newest downlink, one per tier: compressed item rows, and theta as it is.
    """

    def __init__(
        self,
        item_table: Tensor,
        theta: Tensor,
        compressor: Compressor,
        budgets: list[Budget],
        ctx: RoundContext,
    ) -> None:
        self.item_table = item_table.clone()
        self.theta = theta.clone()
        self.round = 0
        self._compressor = compressor
        self._budgets = budgets
        start = empty_update(ctx.dim)
        self.messages = self._with_theta(
            [compressor.encode(start, budget, ctx) for budget in budgets]
        )

    def publish(
        self,
        update: RowUpdate,
        theta_change: Tensor,
        ctx: RoundContext,
        replica: Tensor | None = None,
    ) -> None:
        """Apply a round's aggregate and encode it for the clients.

        Given the ``replica`` that all of them hold, shape (n_items, dim), encode
        instead how far the table is ahead of it: error feedback, as in EF-SGD (Seide et
        al., Interspeech 2014; Karimireddy et al., ICML 2019), with ``Q - replica`` as
        the memory of what was not sent.
        """
        self.item_table.index_add_(
            0, update.ids.to(self.item_table.device), update.rows.to(self.item_table)
        )
        self.theta += theta_change.to(self.theta)
        if replica is not None:
            update = self._ahead_of(replica)
        self.messages = self._with_theta(
            self._compressor.encode_broadcast(update, self._budgets, ctx)
        )
        self.round += 1

    def _ahead_of(self, replica: Tensor) -> RowUpdate:
        ahead = self.item_table - replica
        ids = ahead.any(dim=1).nonzero().flatten()
        return RowUpdate(ids.cpu(), ahead[ids])

    def _with_theta(self, payloads: list[Payload]) -> list[Message]:
        return [Message.of(put_theta(payload, self.theta)) for payload in payloads]

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
            "messages": [message.data for message in self.messages],
            "compressor": self._compressor.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.item_table.copy_(state["item_table"])
        self.theta.copy_(state["theta"])
        self.round = state["round"]
        self.messages = [Message(data) for data in state["messages"]]
        self._compressor.load_state_dict(state["compressor"])


def put_theta(payload: Payload, theta: Tensor) -> Payload:
    """Add the network, shape (n_theta,), as field ``theta``; nothing if there is none.

    It is not compressed: float32, ``4 n_theta`` bytes.
    """
    if len(theta):
        payload.put_floats("theta", theta.cpu().numpy(), part="theta")
    return payload


def get_theta(payload: Payload, n_theta: int) -> Tensor:
    """Invert :func:`put_theta`."""
    if not n_theta:
        return torch.zeros(0)
    return torch.from_numpy(payload.floats("theta", n_theta).copy())
