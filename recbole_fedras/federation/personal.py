"""Replica policies stale and personal: clients hold tables of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.compressor.base import (
    CohortUpdate,
    RoundContext,
    RowUpdate,
)
from recbole_fedras.federation.client.store import ClientTables
from recbole_fedras.federation.replica import PublishedReplicas, Replicas
from recbole_fedras.wire.message import Message

#: Differences that are held at a time where every client gets a downlink of his own.
CHUNK_BYTES = 2**27


class OwnReplicas(Replicas):
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


class StaleReplicas(OwnReplicas, PublishedReplicas):
    """Participants apply the newest downlink to what they hold; nobody else does.

    Nothing that a client missed ever reaches him: what the paper's assumption costs in
    accuracy, where broadcast says what it costs in bytes.
    """

    cumulative = False

    def _hold(self, cohort_size: int) -> None:
        OwnReplicas._hold(self, cohort_size)
        PublishedReplicas._hold(self, cohort_size)

    def deliver(self, clients: Tensor) -> None:
        """Send the newest downlink, which is all they apply."""
        super().deliver(clients)
        decoded = [
            self._decode(message, self._server.round, None) for message in self.messages
        ]
        for client in clients.tolist():
            self._apply(client, *decoded[int(self._tier_of_client[client])])


class PersonalReplicas(OwnReplicas):
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
        budgets = [self._budgets[tier] for tier in tiers]
        payloads = self._compressor.encode_cohort(updates, budgets, ctxs)
        held = self.held[clients].tolist()
        for payload, budget, base in zip(payloads, budgets, held, strict=True):
            yield self._message(payload, budget, self._server.round, base)

    def _context_of(self, client: int) -> RoundContext:
        table = self.tables[int(self._model.replica_of_client()[client])]
        return self._context(self._server.round, table, client)

    def publish(self, update: RowUpdate) -> None:
        """Nothing: the next cohort's replicas say what to send."""
