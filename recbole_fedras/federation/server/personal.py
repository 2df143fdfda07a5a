"""Replica policies personal and stale: each client holds a table of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.compressor.base import (
    CohortUpdate,
    Compressor,
    RoundContext,
    RowUpdate,
)
from recbole_fedras.federation.budgets import hold_to
from recbole_fedras.federation.protocol import Agreement, Ints
from recbole_fedras.federation.server.downlink import DownlinkPolicy, PublishedDownlinks
from recbole_fedras.federation.server.state import SharedParameters
from recbole_fedras.federation.store import ClientTables
from recbole_fedras.numeric.parallel import thread_map
from recbole_fedras.wire.message import Header, Kind, Message

#: Differences that are held at a time where every client gets a downlink of its own.
CHUNK_BYTES = 2**27


class _OwnMirrors(DownlinkPolicy):
    """Mirrors of clients' own tables, on disk where memory is short."""

    shared = False

    _mirrors: ClientTables

    def _make_mirrors(self) -> ClientTables:
        agreement = self._agreement
        n_changed = agreement.federation.most_participants(agreement.n_clients)
        table = self._parameters.item_table
        return ClientTables(agreement.n_clients, n_changed, table)

    def mirror_of(self, client: int) -> Tensor:
        """Return the client's table."""
        return self._mirrors.of(client)

    def _apply(self, client: int, update: RowUpdate) -> None:
        table = self._mirrors.renew(client)
        table.index_add_(0, update.ids, update.rows)

    def commit(self, counted: Ints) -> None:
        """Keep what these clients were sent."""
        super().commit(counted)
        self._mirrors.commit(set(counted.tolist()))

    def rollback(self) -> None:
        """Forget deliveries."""
        super().rollback()
        self._mirrors.commit(())

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round depends on."""
        return super().state_dict() | {"mirrors": self._mirrors.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._mirrors.load_state_dict(state["mirrors"])


class Stale(_OwnMirrors, PublishedDownlinks):
    """Participants apply the newest downlink to what they hold; nobody else does.

    Nothing that a client missed ever reaches it: what the paper's assumption costs in
    accuracy, where broadcast says what it costs in bytes.
    """

    cumulative = False

    def _set_up(self) -> None:
        self._mirrors = self._make_mirrors()

    def deliver(self, clients: Iterable[int]) -> Iterator[Message]:
        """Send the newest downlink, which is all they apply."""
        changes = [self._decode(message, None) for message in self.messages]
        for message in super().deliver(clients):
            client = message.header.client
            self._apply(client, changes[self._agreement.tier_of_client[client]])
            yield message


class Personal(_OwnMirrors):
    """The server sends each participant what its own replica lacks.

    One payload per participation, ``Q - mirror`` compressed: nothing is missed, and
    errors of earlier downlinks are part of it. The server encodes for every
    participant; a :class:`Compressor` does so like a client's update (``encode``).

    Clients that have always taken part in the same rounds hold one and the same table.
    If the compressor is ``deterministic``, it encodes once for all of them. That is
    most of a cohort in the first rounds and, of 10 % at a time, nobody after forty.
    """

    def __init__(
        self, agreement: Agreement, compressor: Compressor, parameters: SharedParameters
    ) -> None:
        super().__init__(agreement, compressor, parameters)
        self._mirrors = self._make_mirrors()
        # Clients of the same number, and tier, hold the same table; nothing but time
        # depends on it.
        self._alike = np.zeros(agreement.n_clients, np.int64)
        self._sent: dict[int, int] = {}  # what each client is sent in this round

    def deliver(self, clients: Iterable[int]) -> Iterator[Message]:
        """Encode, decode as the receiver will, and send what each of them lacks."""
        agreement = self._agreement
        at_a_time = max(1, CHUNK_BYTES // (4 * agreement.n_items * agreement.dim))
        waiting = iter(clients)
        while chunk := list(islice(waiting, at_a_time)):
            distinct, places = self._distinct(chunk)
            ctxs = [self._context_of(client) for client in distinct]
            messages = list(self._encode(distinct, ctxs))
            payloads = [message.payload for message in messages]
            decoded = list(self._compressor.decode_cohort(payloads, ctxs))
            for client, place in zip(chunk, places, strict=True):
                self._apply(client, decoded[place])
            for client, place in zip(chunk, places, strict=True):
                yield messages[place].to(client)

    def _distinct(self, clients: list[int]) -> tuple[list[int], list[int]]:
        """Choose clients to encode for; return them, and for each of all which."""
        if not self._compressor.deterministic:
            return clients, list(range(len(clients)))
        tiers = self._agreement.tier_of_client[clients]
        sent = self._alike[clients] * len(self._agreement.budgets) + tiers
        self._sent |= dict(zip(clients, sent.tolist(), strict=True))
        _, chosen, places = np.unique(sent, return_index=True, return_inverse=True)
        return [clients[index] for index in chosen], places.tolist()

    def commit(self, counted: Ints) -> None:
        """Keep what these clients were sent."""
        super().commit(counted)
        holders = [client for client in counted.tolist() if client in self._sent]
        _, places = np.unique(
            [self._sent[client] for client in holders], return_inverse=True
        )
        self._alike[holders] = 1 + self._alike.max() + places
        self._sent = {}

    def rollback(self) -> None:
        """Forget deliveries."""
        super().rollback()
        self._sent = {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; who holds the same, it forgets."""
        super().load_state_dict(state)
        self._alike = np.arange(len(self._alike))

    def publish(self, update: RowUpdate) -> None:
        """Nothing: the next cohort's replicas say what to send."""

    def _context_of(self, client: int) -> RoundContext:
        base = self.mirror_of(client)
        return self._agreement.context(
            self._parameters.round, receiver=client, base=base
        )

    def _encode(
        self, clients: list[int], ctxs: Sequence[RoundContext]
    ) -> Iterator[Message]:
        lacking = thread_map(self._lacking, map(self.mirror_of, clients))
        nothing = torch.zeros(len(clients), 0)  # of networks
        updates = CohortUpdate.of(torch.tensor(clients), lacking, nothing)
        budgets = [self._agreement.budget_of(client) for client in clients]
        payloads = self._compressor.encode_cohort(updates, budgets, ctxs)
        round = self._parameters.round
        for client, budget, payload in zip(clients, budgets, payloads, strict=True):
            hold_to(budget, payload, self._compressor)
            base = int(self.version_of[client])
            header = Header(Kind.PERSONAL, round, client, round, base)
            yield self._with_theta(payload, header)
