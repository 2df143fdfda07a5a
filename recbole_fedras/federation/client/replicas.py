"""Clients' copies of the item table: how messages change them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.compressor.base import Compressor, RowUpdate, raw_update
from recbole_fedras.federation.grid import GridTable, read_change
from recbole_fedras.federation.network import as_column, get_theta
from recbole_fedras.federation.protocol import Agreement, Ints
from recbole_fedras.federation.store import ClientTables
from recbole_fedras.numeric.parallel import mapper
from recbole_fedras.wire.columns import Table
from recbole_fedras.wire.message import Kind, Message
from recbole_fedras.wire.payload import PayloadError


class Replicas(ABC):
    """What the clients of a shard hold of the shared parameters.

    Parameters
    ----------
    agreement : Agreement
    downlink : Compressor
        Decodes what the server sends.
    theta : Tensor, shape (n_theta,)
        The network that they start from.

    Attributes
    ----------
    theta : Tensor, shape (n_theta,)
        The newest network that has come.
    tables : Tensor, shape (n_tables, n_items, dim)
        All tables.
    versions : sequence of int
        Versions of shared tables, one a tier; none where clients hold their own.
    """

    theta: Tensor
    tables: Tensor

    versions: Sequence[int] = ()

    def __init__(
        self, agreement: Agreement, downlink: Compressor, theta: Tensor
    ) -> None:
        self._agreement, self._downlink = agreement, downlink
        self.theta = theta.clone()
        self._theta_version = agreement.start

    def apply(self, messages: Sequence[Message]) -> None:
        """Apply messages to clients, in their order.

        Raises
        ------
        PayloadError
            If one is malformed, or builds on what its receiver does not hold.
        """
        for message in messages:
            message.require_size(self._agreement.most_bytes)
            if message.header.client >= self._agreement.n_clients:
                raise PayloadError(f"there is no client {message.header.client}")
            self._take_theta(message)
        self._apply(messages)

    @abstractmethod
    def _apply(self, messages: Sequence[Message]) -> None:
        """Change tables."""

    @abstractmethod
    def table_of(self, clients: Sequence[int]) -> Tensor:
        """Return which of ``tables`` each client trains from in this round."""

    @property
    def networks(self) -> Tensor | None:
        """Networks that go with tables, (n_tables, n_theta); None: one for all."""
        return None

    @abstractmethod
    def commit(self, counted: Collection[int]) -> None:
        """Put into force what these clients were sent; forget what others were."""

    def _take_theta(self, message: Message) -> None:
        """Take the network of the newest version; the others are of no use any more."""
        header = message.header
        newest = header.kind in (Kind.DOWNLINK, Kind.PERSONAL)
        if newest and header.version > self._theta_version:
            self.theta = get_theta(message.payload, self._agreement.n_theta)
            self._theta_version = header.version

    def _decode(self, message: Message, base: Tensor | None) -> RowUpdate:
        ctx = self._agreement.context_of_downlink(message.header, base)
        return self._downlink.decode(message.payload, ctx)

    def state_dict(self) -> dict[str, Any]:
        """Return all that is held."""
        return {"theta": self.theta, "theta_version": self._theta_version}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.theta = state["theta"].clone()
        self._theta_version = state["theta_version"]


class SharedReplicas(Replicas):
    """One table for all clients of a bandwidth tier.

    Whoever is invited is sent every downlink that it missed. So a table after a given
    version is the same for each of a tier, and the first client that a message reaches
    decodes it for all: the tables are as new as the newest message.

    Parameters
    ----------
    agreement, downlink, theta
        As for the base class.
    table : Tensor, shape (n_items, dim)
        Where everybody starts.
    """

    def __init__(
        self, agreement: Agreement, downlink: Compressor, theta: Tensor, table: Tensor
    ) -> None:
        super().__init__(agreement, downlink, theta)
        n_tiers = len(agreement.budgets.downlink)
        self.tables = table.repeat(n_tiers, 1, 1)
        self.versions: list[int] = [agreement.start] * n_tiers

    def table_of(self, clients: Sequence[int]) -> Tensor:
        """Return their tiers."""
        return torch.from_numpy(self._agreement.tier_of_client[np.array(clients)])

    def _apply(self, messages: Sequence[Message]) -> None:
        for message in messages:
            header = message.header
            tier = int(self._agreement.tier_of_client[header.client])
            if header.version <= self.versions[tier]:
                continue
            table = self.tables[tier]
            if header.kind is Kind.TABLE:
                ctx = self._agreement.context(header.round)
                whole = raw_update(message.payload, ctx)
                if len(whole) != len(table):
                    raise PayloadError(
                        f"a table of {len(whole)} rows, not {len(table)}"
                    )
                table.copy_(whole.rows)
            else:
                message.require_base(self.versions[tier])
                change = self._decode(message, table)
                table.index_add_(0, change.ids, change.rows)
            self.versions[tier] = header.version

    def commit(self, counted: Collection[int]) -> None:
        """Nothing: a published version is in force, whoever was invited to it."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that is held."""
        tables = {"tables": self.tables, "versions": list(self.versions)}
        return super().state_dict() | tables

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.tables.copy_(state["tables"])
        self.versions = list(state["versions"])


class GridReplicas(SharedReplicas):
    """One table on a grid for all clients of a tier, whatever they are sent it from.

    A client is sent what leads from the version that it holds. The shard's table may be
    newer, as of another of its clients; of the steps that it took since, it knows what
    leads from there. A message from no version in particular has all moves since the
    start.
    """

    def __init__(
        self, agreement: Agreement, downlink: Compressor, theta: Tensor, table: Tensor
    ) -> None:
        super().__init__(agreement, downlink, theta, table)
        self._grids = [GridTable(table, agreement.start) for _ in self.tables]
        self._network: GridTable | None = None  # one for all tiers
        if agreement.budgets.downlink_network is not None:
            self._network = GridTable(as_column(theta), agreement.start, table.nbytes)

    def _take_theta(self, message: Message) -> None:
        if self._network is None:
            super()._take_theta(message)
        elif message.header.version > self._theta_version:
            self._move(self._network, message, "theta")
            self.theta = self._network.values().flatten()
            self._theta_version = message.header.version

    def _apply(self, messages: Sequence[Message]) -> None:
        for message in messages:
            tier = int(self._agreement.tier_of_client[message.header.client])
            if message.header.version > self.versions[tier]:
                self._move(self._grids[tier], message, "items")
                self.tables[tier].copy_(self._grids[tier].values())
                self.versions[tier] = message.header.version

    @staticmethod
    def _move(grid: GridTable, message: Message, part: str) -> None:
        """Go to a message's version; refuse one that leads from an unknown one."""
        header = message.header
        change = read_change(message.payload, grid.units.shape, part)
        known: Table | None = grid.units
        if header.base is not None:
            ((_, known),) = grid.since([header.base])
        if known is None:  # then it is no version that this one has been at
            message.require_base(grid.version)
            return
        grid.move(header.version, change._replace(moves=change.moves - known))

    def _tables(self) -> list[GridTable]:
        return [*self._grids, *([] if self._network is None else [self._network])]

    def state_dict(self) -> dict[str, Any]:
        """Return all that is held."""
        return super().state_dict() | {
            "grids": [grid.state_dict() for grid in self._tables()]
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        for grid, saved in zip(self._tables(), state["grids"], strict=True):
            grid.load_state_dict(saved)


class OwnReplicas(Replicas):
    """A table of its own for each client, on disk where memory is short.

    Parameters
    ----------
    agreement, downlink, theta, table
        As for :class:`SharedReplicas`.
    clients : ndarray of int64
        Those of the shard.
    """

    def __init__(
        self,
        agreement: Agreement,
        downlink: Compressor,
        theta: Tensor,
        table: Tensor,
        clients: Ints,
    ) -> None:
        super().__init__(agreement, downlink, theta)
        cohort = agreement.federation.most_participants(agreement.n_clients)
        size = (len(clients), min(cohort, len(clients)))
        self._tables = ClientTables(*size, table)
        self._networks = ClientTables(*size, theta)
        self._start = agreement.start
        self._version_of: dict[int, int] = {}
        self._pending: dict[int, int] = {}
        # Of this round: who was sent what first, of those that share a table. Bodies
        # are known by identity, and so must be kept.
        self._leaders: dict[tuple[int, int], tuple[int, bytes]] = {}

    @property
    def tables(self) -> Tensor:  # type: ignore[override]
        """All tables."""
        return self._tables.slots

    @property
    def networks(self) -> Tensor | None:
        """The network that goes with each table."""
        return self._networks.slots if len(self.theta) else None

    def table_of(self, clients: Sequence[int]) -> Tensor:
        """Return the slots that they hold."""
        return torch.tensor([self._tables.slot_of(client) for client in clients])

    def _apply(self, messages: Sequence[Message]) -> None:
        # Who shares a table, and is sent the same, goes on sharing: the first of them
        # leads, in this part of the round or an earlier one.
        fresh, following = [], []
        for message in messages:
            client, version = message.header.client, message.header.version
            if client in self._pending:
                continue  # it has come before in this round: twice is as once
            message.require_base(self._version_of.get(client, self._start))
            self._pending[client] = version
            what = self._tables.slot_of(client), self._sent(message)
            if what in self._leaders:
                following.append((client, self._leaders[what][0]))
                continue
            fresh.append(message)
            alone = what[1] < 0 or not self._tables.is_shared(client)
            if not alone:
                self._leaders[what] = client, message.body
        for message, change in zip(fresh, self._changes(fresh), strict=True):
            client = message.header.client
            self._tables.add(client, change)
            _, network = self._networks.renew(client)
            network.copy_(self.theta)
        for client, leader in following:
            self._tables.follow(client, leader)
            self._networks.follow(client, leader)

    def _changes(self, messages: Sequence[Message]) -> list[RowUpdate]:
        """Decode, in threads where that pays; once what many clients are sent alike."""
        distinct = {self._sent(message): message for message in messages}
        bases = [
            self._tables.of(message.header.client)
            if message.header.kind is Kind.PERSONAL
            else None
            for message in distinct.values()
        ]
        in_threads = self._downlink.threaded_decoding
        changes = mapper(in_threads)(self._decode, distinct.values(), bases)
        decoded = dict(zip(distinct, changes, strict=True))
        return [decoded[self._sent(message)] for message in messages]

    def _sent(self, message: Message) -> int:
        """Return what is the same for messages that mean the same change.

        It is negative where no other message can.
        """
        personal = message.header.kind is Kind.PERSONAL
        if personal and not self._downlink.deterministic:
            return -1 - message.header.client
        return id(message.body)

    def commit(self, counted: Collection[int]) -> None:
        """Keep the tables and networks of these clients."""
        self._tables.commit(counted)
        self._networks.commit(counted)
        for client, version in self._pending.items():
            if client in counted:
                self._version_of[client] = version
        self._pending, self._leaders = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """Return all that is held."""
        return super().state_dict() | {
            "tables": self._tables.state_dict(),
            "networks": self._networks.state_dict(),
            "start": self._start,
            "version_of": dict(self._version_of),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._tables.load_state_dict(state["tables"])
        self._networks.load_state_dict(state["networks"])
        self._start = state["start"]
        self._version_of = dict(state["version_of"])
        self._pending, self._leaders = {}, {}
