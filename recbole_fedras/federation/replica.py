"""Who holds which item table, and how downlinks get there: what policies share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from recbole_fedras.compressor.base import (
    SERVER,
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    empty_update,
    raw_payload,
)
from recbole_fedras.federation.budgets import hold_to
from recbole_fedras.federation.server.state import Server, get_theta, put_theta
from recbole_fedras.wire.ledger import Channel
from recbole_fedras.wire.message import Message
from recbole_fedras.wire.payload import Payload


class Holder(Protocol):
    """The model, as far as replicas go; ids count from 0."""

    networks: Tensor | None

    def hold_replicas(self, n_replicas: int, mapped: bool = False) -> None:
        """Make room for replicas, mapped to a file or not.

        The first is as it was, the rest are zeros.
        """

    def replicas(self) -> Tensor:
        """Item tables, shape (n_replicas, n_items, dim); a view."""

    def replica_of_client(self) -> Tensor:
        """Replica that each client holds, shape (n_clients,); a view."""


class Replicas(ABC):
    """Which item table each client holds, and how downlinks get there.

    In a round, :meth:`deliver` brings the cohort up to date, :meth:`publish` follows
    the server's step, and :meth:`commit` puts all of it into force; :meth:`rollback`
    leaves nothing of a round without one.

    Parameters
    ----------
    model : Holder
        Holds the replicas.
    server : Server
    compressor : Compressor
        Of the downlink.
    budgets : list of Budget
        One per bandwidth tier.
    tier_of_client : Tensor of int64, shape (n_clients,)
    cohort_size : int
    seed : int
    channel : Channel
    """

    def __init__(
        self,
        model: Holder,
        server: Server,
        compressor: Compressor,
        budgets: list[Budget],
        tier_of_client: Tensor,
        cohort_size: int,
        seed: int,
        channel: Channel,
    ) -> None:
        self._server = server
        self._compressor = compressor
        self._budgets = budgets
        self._tier_of_client = tier_of_client
        self._seed = seed
        self._channel = channel
        self._model = model
        self.dense_bytes = self._size_of_table()
        #: No compressor sends more: a message of more bytes is refused unread.
        self.most_bytes = 2 * self.dense_bytes + 4 * len(server.theta) + 1024
        #: Version of the shared parameters that each client holds.
        self.held = torch.full((len(tier_of_client),), server.round)
        self._compressor_before = compressor.state_dict()
        self._hold(cohort_size)

    @property
    def tables(self) -> Tensor:
        """All replicas, shape (n_replicas, n_items, dim)."""
        return self._model.replicas()

    @abstractmethod
    def _hold(self, cohort_size: int) -> None:
        """Set up replicas and first messages."""

    @abstractmethod
    def tables_of(self, clients: Tensor) -> Tensor:
        """Return which of ``tables`` each client trains from in this round."""

    @abstractmethod
    def deliver(self, clients: Tensor) -> None:
        """Send clients of the cohort, some or all, what they train from."""

    @abstractmethod
    def publish(self, update: RowUpdate) -> None:
        """Make downlinks of ``update``, which the server has just applied."""

    def commit(self, cohort: Tensor) -> None:
        """Put a round into force, for all clients that had a delivery."""
        self.held[cohort] = self._server.round - 1
        self._compressor_before = self._compressor.state_dict()

    def rollback(self) -> None:
        """Forget what was delivered and published since the last commit."""
        self._compressor.load_state_dict(self._compressor_before)

    def metrics(self, cohort: Tensor) -> dict[str, float]:
        """Figures of the last round worth a column in ``rounds.csv``.

        ``drift`` is how far, in the mean, the cohort's replicas are from the server's
        table now: ``|Q - replica| / |Q|``.
        """
        held = Counter(self._model.replica_of_client()[cohort].tolist())
        drift = sum(
            self._server.drift(self.tables[replica]) * count
            for replica, count in held.items()
        )
        return self._compressor.metrics() | {"drift": drift / len(cohort)}

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round depends on, besides the model's parameters."""
        return {"held": self.held, "compressor": self._compressor.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; the model is restored already."""
        self.held.copy_(state["held"])
        self._compressor.load_state_dict(state["compressor"])
        self._compressor_before = self._compressor.state_dict()

    # What the policies share.

    def _context(
        self, round: int, base: Tensor | None = None, receiver: int | None = None
    ) -> RoundContext:
        n_items, dim = self._server.item_table.shape
        return RoundContext(round, self._seed, n_items, dim, SERVER, receiver, base)

    def _message(
        self, payload: Payload, budget: Budget, version: int, base: int | None
    ) -> Message:
        hold_to(budget, payload, self._compressor)
        return Message.of(put_theta(payload, self._server.theta), version, base)

    def _size_of_table(self) -> int:
        n_items = len(self._server.item_table)
        everything = RowUpdate(torch.arange(n_items), self._server.item_table.cpu())
        return len(Message.of(raw_payload(everything, n_items), 0, None).data)

    def _open(self, message: Message, held: int) -> Payload:
        return message.open(held, self.most_bytes)

    def _theta(self, payload: Payload) -> Tensor:
        return get_theta(payload, len(self._server.theta))

    def _ahead_of(self, table: Tensor) -> RowUpdate:
        """Return what a replica lacks: ``Q - replica``, where it is not zero."""
        ahead = self._server.item_table - table
        ids = ahead.any(dim=1).nonzero().flatten()
        return RowUpdate(ids.cpu(), ahead[ids])


class PublishedReplicas(Replicas):
    """One message for all clients of a tier, made when the server has stepped."""

    #: Whether a downlink builds on the one before.
    cumulative: ClassVar[bool]

    def _hold(self, cohort_size: int) -> None:
        version = self._server.round
        ctx = self._context(version, self._common_base())
        start = empty_update(ctx.dim)
        base = version if self.cumulative else None
        self.messages = [
            self._message(
                self._compressor.encode(start, budget, ctx), budget, version, base
            )
            for budget in self._budgets
        ]
        self._next: list[Message] = []

    def publish(self, update: RowUpdate) -> None:
        """Encode the messages of the next round."""
        version = self._server.round
        base = version - 1 if self.cumulative else None
        self._next = [
            self._message(payload, budget, version, base)
            for payload, budget in zip(self._encode(update), self._budgets, strict=True)
        ]

    def _encode(self, update: RowUpdate) -> list[Payload]:
        ctx = self._context(self._server.round - 1, self._common_base())
        return self._compressor.encode_broadcast(update, self._budgets, ctx)

    def _common_base(self) -> Tensor | None:
        """Table that all receivers hold; None if there is no such."""
        return None

    def commit(self, cohort: Tensor) -> None:
        """Let the next round have its messages."""
        super().commit(cohort)
        self.messages = self._next

    def deliver(self, clients: Tensor) -> None:
        """Send each tier's newest message."""
        receivers = torch.bincount(
            self._tier_of_client[clients], minlength=len(self._budgets)
        )
        for message, count in zip(self.messages, receivers, strict=True):
            self._channel.send("downlink", message, int(count))

    def _decode(
        self, message: Message, held: int, base: Tensor | None
    ) -> tuple[RowUpdate, Tensor]:
        payload = self._open(message, held)
        ctx = self._context(max(self._server.round - 1, 0), base)
        return self._compressor.decode(payload, ctx), self._theta(payload)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round depends on."""
        messages = [message.data for message in self.messages]
        return super().state_dict() | {"messages": messages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.messages = [Message(data) for data in state["messages"]]
