"""Who holds which item table: three policies for replicas and downlinks."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.compressor.base import (
    SERVER,
    Budget,
    CohortUpdate,
    Compressor,
    RoundContext,
    RowUpdate,
    empty_update,
    raw_payload,
)
from recbole_fedras.federation.server import Server, get_theta, put_theta
from recbole_fedras.federation.store import ClientTables
from recbole_fedras.wire.channel import Channel
from recbole_fedras.wire.payload import Message, Payload

#: Differences that are held at a time where every client gets a downlink of his own.
CHUNK_BYTES = 2**27


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
        self.held = torch.zeros(len(tier_of_client), dtype=torch.int64)
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

    def _context(self, round: int) -> RoundContext:
        n_items, dim = self._server.item_table.shape
        return RoundContext(round, self._seed, n_items, dim, SERVER)

    def _message(self, payload: Payload, version: int, base: int | None) -> Message:
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


class _Published(Replicas):
    """One message for all clients of a tier, made when the server has stepped."""

    def _hold(self, cohort_size: int) -> None:
        ctx = self._context(0)
        start = empty_update(ctx.dim)
        self.messages = [
            self._message(self._compressor.encode(start, budget, ctx), 0, self._base(0))
            for budget in self._budgets
        ]
        self._next: list[Message] = []

    @staticmethod
    @abstractmethod
    def _base(version: int) -> int | None:
        """Version that the downlink to ``version`` builds on."""

    def publish(self, update: RowUpdate) -> None:
        """Encode the messages of the next round."""
        version = self._server.round
        self._next = [
            self._message(payload, version, self._base(version))
            for payload in self._encode(update)
        ]

    def _encode(self, update: RowUpdate) -> list[Payload]:
        ctx = self._context(self._server.round - 1)
        return self._compressor.encode_broadcast(update, self._budgets, ctx)

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

    def _decode(self, message: Message, held: int) -> tuple[RowUpdate, Tensor]:
        payload = self._open(message, held)
        ctx = self._context(max(self._server.round - 1, 0))
        return self._compressor.decode(payload, ctx), self._theta(payload)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round depends on."""
        messages = [message.data for message in self.messages]
        return super().state_dict() | {"messages": messages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.messages = [Message(data) for data in state["messages"]]


class BroadcastReplicas(_Published):
    """Everybody applies every downlink, also while not selected.

    This is the FedRAS paper's assumption. All clients of a bandwidth tier hold the
    same table. What a participant had missed since he last took part is charged as
    catch-up beside the downlink: the missed payloads, or the dense table if smaller.
    """

    def _hold(self, cohort_size: int) -> None:
        self._model.hold_replicas(len(self._budgets))
        self._model.replica_of_client()[:] = self._tier_of_client
        self.tables[1:] = self.tables[0]
        super()._hold(cohort_size)
        self._share_theta(self.messages[0])
        # Bytes published before each version, by tier.
        self._published = torch.zeros(len(self._budgets), 1, dtype=torch.int64)

    @staticmethod
    def _base(version: int) -> int:
        return max(version - 1, 0)

    def _share_theta(self, message: Message) -> None:
        if self._model.networks is not None:
            self._model.networks[:] = self._theta(message.payload)

    def tables_of(self, clients: Tensor) -> Tensor:
        """Return the tables that they hold."""
        return self._tier_of_client[clients]

    def deliver(self, clients: Tensor) -> None:
        """Send the newest downlink, and charge what was missed."""
        super().deliver(clients)
        tier = self._tier_of_client[clients]
        # The newest downlink is not among those missed: it has just been sent.
        newest = self._published.shape[1] - 1
        before = max(newest - 1, 0)
        held = self.held[clients].clamp(max=before)
        missed = self._published[tier, before] - self._published[tier, held]
        catch_up = int(missed.clamp(max=self.dense_bytes).sum())
        self._channel.ledger.note("catch_up_bytes", catch_up)

    def publish(self, update: RowUpdate) -> None:
        """Encode, and decode what all replicas will apply."""
        super().publish(update)
        held = self._server.round - 1
        self._changes = [self._decode(message, held)[0] for message in self._next]

    def commit(self, cohort: Tensor) -> None:
        """Apply the newest downlink to all replicas."""
        super().commit(cohort)
        for table, change in zip(self.tables, self._changes, strict=True):
            table.index_add_(0, change.ids.to(table.device), change.rows.to(table))
        self._share_theta(self.messages[0])
        # Who missed it would not need its theta: the next one replaces it.
        sizes = [
            [len(message.data) - message.part_bytes["theta"]]
            for message in self.messages
        ]
        newest = self._published[:, -1:] + torch.tensor(sizes)
        self._published = torch.cat([self._published, newest], dim=1)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round depends on."""
        return super().state_dict() | {"published": self._published}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._published = state["published"]


class FeedbackReplicas(BroadcastReplicas):
    """Broadcast of all that the replica lacks, errors of earlier downlinks included.

    Error feedback, as in EF-SGD (Seide et al., Interspeech 2014; Karimireddy et al.,
    ICML 2019), with ``Q - replica`` as the memory of what was not sent. Each bandwidth
    tier has errors, and so a compressor, of its own.
    """

    def _hold(self, cohort_size: int) -> None:
        super()._hold(cohort_size)
        self._compressors = [copy.deepcopy(self._compressor) for _ in self._budgets]
        self._states = [own.state_dict() for own in self._compressors]

    def _encode(self, update: RowUpdate) -> list[Payload]:
        ctx = self._context(self._server.round - 1)
        return [
            compressor.encode_broadcast(self._ahead_of(table), [budget], ctx)[0]
            for compressor, table, budget in zip(
                self._compressors, self.tables, self._budgets, strict=True
            )
        ]

    def metrics(self, cohort: Tensor) -> dict[str, float]:
        """Return figures of the first tier's compressor."""
        return super().metrics(cohort) | self._compressors[0].metrics()

    def commit(self, cohort: Tensor) -> None:
        """Put the compressors' states into force too."""
        super().commit(cohort)
        self._states = [own.state_dict() for own in self._compressors]

    def rollback(self) -> None:
        """Restore the compressors' states too."""
        super().rollback()
        for compressor, state in zip(self._compressors, self._states, strict=True):
            compressor.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round depends on."""
        return super().state_dict() | {"compressors": self._states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._states = state["compressors"]
        self.rollback()


class _OwnTables(Replicas):
    """Clients hold tables of their own, on disk where memory is short.

    That takes ``4 n_items dim`` bytes for each client who has ever taken part.
    """

    def _hold(self, cohort_size: int) -> None:
        n_clients = len(self._tier_of_client)
        self._model.hold_replicas(1 + n_clients + cohort_size, mapped=True)
        if self._model.networks is not None:
            self._model.networks[0] = self._server.theta
        self._store = ClientTables(self.tables, self._model.replica_of_client())

    def tables_of(self, clients: Tensor) -> Tensor:
        """Return the tables that they hold."""
        return self._store.slots_of(clients)

    def _apply(self, client: int, update: RowUpdate, theta: Tensor) -> None:
        slot = self._store.renew(client)
        table = self.tables[slot]
        table.index_add_(0, update.ids.to(table.device), update.rows.to(table))
        if self._model.networks is not None:
            self._model.networks[slot] = theta.to(table.device)

    def commit(self, cohort: Tensor) -> None:
        """Note who is up to date."""
        super().commit(cohort)
        self._store.commit()

    def rollback(self) -> None:
        """Forget deliveries."""
        super().rollback()
        self._store.rollback()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._store.refresh()


class StaleReplicas(_OwnTables, _Published):
    """Participants apply the newest downlink to what they hold; nobody else does.

    Nothing that a client missed ever reaches him: what the paper's assumption costs in
    accuracy, where broadcast says what it costs in bytes.
    """

    def _hold(self, cohort_size: int) -> None:
        _OwnTables._hold(self, cohort_size)
        _Published._hold(self, cohort_size)

    @staticmethod
    def _base(version: int) -> None:
        return None

    def deliver(self, clients: Tensor) -> None:
        """Send the newest downlink, which is all they apply."""
        super().deliver(clients)
        decoded = [
            self._decode(message, self._server.round) for message in self.messages
        ]
        for client in clients.tolist():
            self._apply(client, *decoded[int(self._tier_of_client[client])])


class PersonalReplicas(_OwnTables):
    """The server knows each participant's replica and sends what that one lacks.

    One payload per participation, ``Q - replica`` compressed: nothing is missed, and
    errors of earlier downlinks are part of it. The server encodes for every
    participant; a :class:`Compressor` does so like a client's update (``encode``).
    """

    def deliver(self, clients: Tensor) -> None:
        """Encode, send and apply what each of them lacks."""
        n_items, dim = self._server.item_table.shape
        for part in torch.split(clients, max(1, CHUNK_BYTES // (4 * n_items * dim))):
            ctxs = [self._context_of(client) for client in part.tolist()]
            received = [
                self._open(self._channel.send("downlink", message), held)
                for message, held in zip(
                    self._encode(part, ctxs), self.held[part].tolist(), strict=True
                )
            ]
            decoded = self._compressor.decode_cohort(received, ctxs)
            for client, payload, update in zip(
                part.tolist(), received, decoded, strict=True
            ):
                self._apply(client, update, self._theta(payload))

    def _encode(self, clients: Tensor, ctxs: list[RoundContext]) -> Iterator[Message]:
        slots = self._model.replica_of_client()[clients].tolist()
        owed = [self._ahead_of(self.tables[slot]) for slot in slots]
        updates = CohortUpdate(
            clients=clients,
            offsets=torch.tensor(np.cumsum([0, *map(len, owed)])),
            ids=torch.cat([update.ids for update in owed]),
            rows=torch.cat([update.rows for update in owed]),
            theta=torch.zeros(len(clients), 0),
        )
        tiers = self._tier_of_client[clients].tolist()
        payloads = self._compressor.encode_cohort(
            updates,
            [self._budgets[tier] for tier in tiers],
            ctxs,
        )
        for payload, held in zip(payloads, self.held[clients].tolist(), strict=True):
            yield self._message(payload, self._server.round, held)

    def _context_of(self, client: int) -> RoundContext:
        n_items, dim = self._server.item_table.shape
        return RoundContext(
            self._server.round, self._seed, n_items, dim, SERVER, receiver=client
        )

    def publish(self, update: RowUpdate) -> None:
        """Nothing: the next cohort's replicas say what to send."""


POLICIES: dict[str, type[Replicas]] = {
    "broadcast": BroadcastReplicas,
    "stale": StaleReplicas,
    "personal": PersonalReplicas,
}
