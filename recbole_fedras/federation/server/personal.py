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
from recbole_fedras.federation.server.downlink import (
    DownlinkPolicy,
    PublishedDownlinks,
    difference,
)
from recbole_fedras.federation.server.state import SharedParameters
from recbole_fedras.federation.store import ClientTables
from recbole_fedras.wire.message import Header, Kind, Message

#: What replicas lack, at a time, where every client gets a downlink of its own: few
#: enough that processors find it in their caches.
PART_BYTES = 2**23


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

    def _table_and_tier(self, client: int) -> tuple[int, int]:
        """Return what clients have in common that hold the same, and are sent alike."""
        tier = int(self._agreement.tier_of_client[client])
        return self._mirrors.slot_of(client), tier

    def metrics(self, clients: Ints) -> dict[str, float]:
        """Return figures of the compressor, and the drift."""
        self._drifts: dict[int, float] = {}  # by slot: many share one
        return super().metrics(clients)

    def _drift(self, client: int) -> float:
        slot = self._mirrors.slot_of(client)
        if slot not in self._drifts:
            self._drifts[slot] = super()._drift(client)
        return self._drifts[slot]

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
        first: dict[tuple[int, int], int] = {}
        for message in super().deliver(clients):
            client = message.header.client
            what = self._table_and_tier(client)
            if first.setdefault(what, client) == client:
                self._mirrors.add(client, changes[what[1]])
            else:
                self._mirrors.follow(client, first[what])
            yield message


class Personal(_OwnMirrors):
    """The server sends each participant what its own replica lacks.

    One payload per participation, ``Q - mirror`` compressed: nothing is missed, and
    errors of earlier downlinks are part of it. The server encodes for every
    participant; a :class:`Compressor` does so like a client's update (``encode``).

    Clients that have always taken part in the same rounds hold one and the same table.
    If the compressor is ``deterministic``, it encodes once for all of them; what it has
    made waits for the last of them. That is most of a cohort in the first rounds and,
    of 10 % at a time, nobody after forty.
    """

    def __init__(
        self, agreement: Agreement, compressor: Compressor, parameters: SharedParameters
    ) -> None:
        super().__init__(agreement, compressor, parameters)
        self._mirrors = self._make_mirrors()
        # Memory for what some replicas lack, used again and again.
        self._at_a_time = max(1, PART_BYTES // (4 * agreement.n_items * agreement.dim))
        n_rows = self._at_a_time * agreement.n_items
        self._ids = np.empty(n_rows, np.int64)
        self._rows = np.empty((n_rows, agreement.dim), np.float32)

    def deliver(self, clients: Iterable[int]) -> Iterator[Message]:
        """Encode, decode as the receiver will, and send what each of them lacks."""
        clients = list(clients)
        alike = self._alike(clients)
        waiting = iter(alike)
        messages: dict[int, Message] = {}  # made, and not sent yet
        for client in clients:
            if client not in messages:
                some = list(islice(waiting, self._at_a_time))
                for first, message in zip(some, self._make(some), strict=True):
                    messages |= dict.fromkeys(alike[first], message)
                    for other in alike[first][1:]:
                        self._mirrors.follow(other, first)
            yield messages.pop(client).to(client)

    def _alike(self, clients: Sequence[int]) -> dict[int, list[int]]:
        """Collect clients that are sent the same, by the first of them."""
        if not self._compressor.deterministic:
            return {client: [client] for client in clients}
        alike: dict[tuple[int, int], list[int]] = {}
        for client in clients:
            alike.setdefault(self._table_and_tier(client), []).append(client)
        return {same[0]: same for same in alike.values()}

    def publish(self, update: RowUpdate) -> None:
        """Nothing: the next cohort's replicas say what to send."""

    def _make(self, clients: list[int]) -> list[Message]:
        """Make messages to some clients; let their mirrors be as their replicas."""
        ctxs = [self._context_of(client) for client in clients]
        messages = list(self._encode(clients, ctxs))
        payloads = [message.payload for message in messages]
        decoded = self._compressor.decode_cohort(payloads, ctxs)
        for client, change in zip(clients, decoded, strict=True):
            self._mirrors.add(client, change)
        return messages

    def _context_of(self, client: int) -> RoundContext:
        base = self.mirror_of(client)
        return self._agreement.context(
            self._parameters.round, receiver=client, base=base
        )

    def _encode(
        self, clients: list[int], ctxs: Sequence[RoundContext]
    ) -> Iterator[Message]:
        budgets = [self._agreement.downlink_budget_of(client) for client in clients]
        payloads = self._compressor.encode_cohort(self._lacked(clients), budgets, ctxs)
        round = self._parameters.round
        for client, budget, payload in zip(clients, budgets, payloads, strict=True):
            hold_to(budget, payload, self._compressor)
            base = int(self.version_of[client])
            header = Header(Kind.PERSONAL, round, client, round, base)
            yield self._with_theta(payload, header)

    def _lacked(self, clients: list[int]) -> CohortUpdate:
        """Return what replicas lack, ``Q - replica``, where it is not zero."""
        exact, ends = self._parameters.item_table.numpy(), [0]
        for client in clients:
            rest, table = slice(ends[-1], None), self.mirror_of(client).numpy()
            n = difference(exact, table, self._ids[rest], self._rows[rest])
            ends.append(ends[-1] + n)
        return CohortUpdate(
            torch.tensor(clients),
            torch.tensor(ends),
            torch.from_numpy(self._ids[: ends[-1]]),
            torch.from_numpy(self._rows[: ends[-1]]),
            torch.zeros(len(clients), 0),  # no networks
        )
