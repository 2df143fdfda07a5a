"""Replica policies: what the server sends, and what it believes clients to hold."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import (
    Compressor,
    RowUpdate,
    empty_update,
    row_update,
)
from recbole_fedras.federation.budgets import hold_to
from recbole_fedras.federation.network import put_theta
from recbole_fedras.federation.protocol import Agreement, Ints
from recbole_fedras.federation.server.state import SharedParameters
from recbole_fedras.wire.message import Header, Kind, Message
from recbole_fedras.wire.payload import Payload


class DownlinkPolicy(ABC):
    """What participants are sent, and a *mirror* of the replica that each one holds.

    In a round, :meth:`deliver` brings the cohort up to date, :meth:`publish` follows
    the server's step, and :meth:`commit` puts all of it into force for the clients that
    counted; :meth:`rollback` leaves nothing of a round without one. A policy of one's
    own derives from this or from a policy here; its key is ``replica_class``.

    Parameters
    ----------
    agreement : Agreement
    compressor : Compressor
        Of the downlink; the policy alone uses it.
    parameters : SharedParameters
        The server's; never changed here.

    Attributes
    ----------
    version_of : ndarray of int64, shape (n_clients,)
        Version of the shared parameters that each client holds.
    """

    #: Whether clients of a bandwidth tier hold one and the same table, as everything
    #: that any of them missed reaches it. Else each has a table of its own.
    shared: ClassVar[bool]

    #: Whether everything that a client missed reaches it, so that the server encodes
    #: for a table that the receiver holds.
    cumulative: ClassVar[bool] = True

    #: Whether replicas are shared and stand on a grid; the policy then codes their
    #: differences itself, and the downlink's compressor has nothing to do.
    on_grid: ClassVar[bool] = False

    def __init__(
        self, agreement: Agreement, compressor: Compressor, parameters: SharedParameters
    ) -> None:
        self._agreement = agreement
        self._compressor = compressor
        self._parameters = parameters
        self.version_of = np.full(agreement.n_clients, agreement.start)
        self._state = self._next_state = compressor.state_dict()  # in force, to be
        self._figures: dict[str, float] = {}

    @abstractmethod
    def mirror_of(self, client: int) -> Tensor:
        """Return the table that a client trains from in this round; a view."""

    @property
    def network(self) -> Tensor:
        """The network that participants of this round train, shape (n_theta,)."""
        return self._parameters.theta

    @abstractmethod
    def deliver(self, clients: Iterable[int]) -> Iterator[Message]:
        """Make the messages that bring clients of the cohort up to date.

        Those to one client follow each other, in the order to be applied.
        """

    @abstractmethod
    def publish(self, update: RowUpdate) -> None:
        """Make downlinks of ``update``, which the server has just applied."""

    @property
    def published(self) -> Payload | None:
        """What all clients of the first tier are sent last; None: each its own."""
        return None

    def prepare(self) -> None:
        """Take what a commit needs of the compressor, so that it cannot fail."""
        self._next_state = self._compressor.state_dict()
        self._figures = self._compressor.metrics()

    def newest(self, versions: Sequence[int]) -> list[Message]:
        """Make what leads shared tables, one a tier, from versions to the newest.

        It is for evaluation, which no client is charged for.
        """
        return []

    def commit(self, counted: Ints) -> None:
        """Put a round into force: these clients hold what they were sent."""
        self.version_of[counted] = self._parameters.round - 1
        self._state = self._next_state

    def rollback(self) -> None:
        """Forget what was delivered and published since the last commit."""
        self._compressor.load_state_dict(self._state)

    def metrics(self, clients: Ints) -> dict[str, float]:
        """Figures of the last round worth a column in ``rounds.csv``.

        ``drift`` is how far, in the mean, participants' replicas are from the server's
        table now: ``|Q - replica| / |Q|``; without participants there is none.
        """
        drifts = [self._drift(client) for client in clients.tolist()]
        return self._figures | ({"drift": float(np.mean(drifts))} if drifts else {})

    def _drift(self, client: int) -> float:
        return self._parameters.drift(self.mirror_of(client))

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round depends on."""
        return {
            "version_of": torch.from_numpy(self.version_of),
            "compressor": self._state,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.version_of[:] = state["version_of"].numpy()
        self._compressor.load_state_dict(state["compressor"])
        self._state = state["compressor"]

    def _lacking(self, table: Tensor) -> RowUpdate:
        """Return what a replica lacks: ``Q - replica``, where it is not zero."""
        exact = self._parameters.item_table.numpy()
        ids, rows = np.empty(len(exact), np.int64), np.empty_like(exact)
        n = difference(exact, table.numpy(), ids, rows)
        return row_update(ids[:n], rows[:n])

    def _with_theta(self, payload: Payload, header: Header) -> Message:
        return Message.of(put_theta(payload, self._parameters.theta), header)


class PublishedDownlinks(DownlinkPolicy):
    """One message for all clients of a tier, made when the server has stepped."""

    def __init__(
        self, agreement: Agreement, compressor: Compressor, parameters: SharedParameters
    ) -> None:
        super().__init__(agreement, compressor, parameters)
        self._set_up()
        # Before the first step nobody lacks anything, but for the network.
        start = agreement.context(agreement.start, base=self._base_of_all())
        nothing = empty_update(agreement.dim)
        payloads = [
            compressor.encode(nothing, budget, start)
            for budget in agreement.budgets.downlink
        ]
        self.messages = self._sealed(payloads, agreement.start)
        self._next: list[Message] = []

    @abstractmethod
    def _set_up(self) -> None:
        """Make mirrors."""

    def _base_of_all(self) -> Tensor | None:
        """Table that all receivers hold; None if there is no such."""
        return None

    def _sealed(self, payloads: Sequence[Payload], base: int) -> list[Message]:
        """Make messages, one a tier, that lead from ``base`` to the newest version."""
        version = self._parameters.round
        header = Header(
            Kind.DOWNLINK, version, 0, version, base if self.cumulative else None
        )
        for payload, budget in zip(
            payloads, self._agreement.budgets.downlink, strict=True
        ):
            hold_to(budget, payload, self._compressor)
        return [self._with_theta(payload, header) for payload in payloads]

    @property
    def published(self) -> Payload:
        """The newest downlink."""
        return self.messages[0].payload

    def deliver(self, clients: Iterable[int]) -> Iterator[Message]:
        """Send each client its tier's newest message."""
        for client in clients:
            yield self.messages[self._agreement.tier_of_client[client]].to(client)

    def publish(self, update: RowUpdate) -> None:
        """Encode the messages of the next round."""
        self._next = self._sealed(self._encode(update), self._parameters.round - 1)

    def _encode(self, update: RowUpdate) -> list[Payload]:
        round = self._parameters.round - 1
        ctx = self._agreement.context(round, base=self._base_of_all())
        return self._compressor.encode_broadcast(
            update, self._agreement.budgets.downlink, ctx
        )

    def _decode(self, message: Message, base: Tensor | None) -> RowUpdate:
        ctx = self._agreement.context_of_downlink(message.header, base)
        return self._compressor.decode(message.payload, ctx)

    def commit(self, counted: Ints) -> None:
        """Let the next round have its messages."""
        super().commit(counted)
        self.messages = self._next

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round depends on."""
        messages = [message.data for message in self.messages]
        return super().state_dict() | {"messages": messages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self.messages = [Message.from_bytes(data) for data in state["messages"]]


@njit(nogil=True, cache=True)
def difference(
    exact: NDArray[np.float32],
    table: NDArray[np.float32],
    ids: Ints,
    rows: NDArray[np.float32],
) -> int:
    """Write which rows differ, and by how much: ``exact - table``; return how many.

    There must be room for all of them.
    """
    n = 0
    for i in range(len(exact)):
        differs = False
        for j in range(exact.shape[1]):  # written where the next row that differs goes
            ahead = exact[i, j] - table[i, j]
            rows[n, j] = ahead
            differs |= ahead != 0
        ids[n] = i
        n += differs
    return n
