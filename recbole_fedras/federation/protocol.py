"""What server and clients agree on before the first round, and what messages say."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import (
    SERVER,
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    raw_payload,
)
from recbole_fedras.federation.budgets import Budgets, make_budgets
from recbole_fedras.federation.network import (
    get_coded,
    get_theta,
    put_coded,
    put_theta,
)
from recbole_fedras.federation.settings import Federation
from recbole_fedras.numeric.rng import Stream, generator
from recbole_fedras.wire.message import Header, Kind, Message
from recbole_fedras.wire.payload import Payload

Ints = NDArray[np.int64]

#: Clients that train side by side, about.
GROUP = 16


def block_of(client_fraction: float) -> int:
    """Return how many clients of consecutive numbers train as one group.

    Who trains in one group must not depend on who else is in a cohort or shard, as
    padded batches round by their shape. A block has about ``GROUP`` participants; a
    shard holds whole blocks.
    """
    return max(1, round(GROUP / client_fraction))


@dataclass(frozen=True, slots=True)
class Agreement:
    """What both halves of a federation know without a message.

    It follows from the configuration, the catalogue of items and the number of clients.

    Attributes
    ----------
    federation : Federation
    n_clients : int
        Clients are numbered from 0; who holds which numbers is settled beforehand.
    n_items, dim : int
        Shape of the table exchanged; rows of an item embedding's are no items.
    n_theta : int
        Values of the network.
    budgets : Budgets
    tier_of_client : ndarray of int64, shape (n_clients,)
    start : int
        Version of the shared parameters that everybody starts from.

    Examples
    --------
    >>> from recbole_fedras.compressor.svd import SVD
    >>> federation = Federation(1, 0.5, (0.75,), "inverse_frequency")
    >>> agreement = Agreement.of(federation, 64, torch.zeros(10, 8), 0, SVD(), SVD())
    >>> agreement.block, agreement.uplink_budget_of(5).columns
    (32, 2)
    """

    federation: Federation
    n_clients: int
    n_items: int
    dim: int
    n_theta: int
    budgets: Budgets
    tier_of_client: Ints
    start: int = 0

    @classmethod
    def of(
        cls,
        federation: Federation,
        n_clients: int,
        table: Tensor,
        n_theta: int,
        uplink: Compressor,
        downlink: Compressor | None,
        start: int = 0,
    ) -> Agreement:
        """Derive budgets and tiers.

        Raises
        ------
        BudgetError
            If a compressor cannot work at one of the rates.
        """
        rates, (n_items, dim) = federation.compression_rates, table.shape
        budgets = make_budgets(federation, n_items, dim, n_theta, uplink, downlink)
        # A client's bandwidth tier is drawn once, uniformly.
        draw = generator(federation.seed, Stream.BANDWIDTH)
        tiers = draw.integers(len(rates), size=n_clients)
        shape = (n_clients, n_items, dim, n_theta)
        return cls(federation, *shape, budgets, tiers, start)

    @property
    def block(self) -> int:
        """See :func:`block_of`."""
        return block_of(self.federation.client_fraction)

    @property
    def client_seed(self) -> int:
        """Seed of what clients draw for themselves."""
        federation = self.federation
        own = federation.client_seed
        return federation.seed if own is None else own

    @property
    def most_bytes(self) -> int:
        """No honest message is larger: a larger one is refused unread."""
        return 2 * 4 * self.n_items * self.dim + 4 * self.n_theta + 2**16

    def uplink_budget_of(self, client: int) -> Budget:
        """Return what a client may send."""
        return self.budgets.uplink[int(self.tier_of_client[client])]

    def downlink_budget_of(self, client: int) -> Budget:
        """Return what a client may be sent."""
        return self.budgets.downlink[int(self.tier_of_client[client])]

    def put_network_change(
        self, payload: Payload, change: Tensor, ctx: RoundContext
    ) -> Payload:
        """Add what ``ctx.sender`` has changed of the network, shape (n_theta,)."""
        if not self.budgets.uplink_network:
            return put_theta(payload, change)
        n_bytes = self.budgets.uplink_network[int(self.tier_of_client[ctx.sender])]
        own = replace(ctx, seed=self.client_seed)
        return put_coded(payload, change, n_bytes, own)

    def network_change(self, payload: Payload) -> Tensor:
        """Invert :meth:`put_network_change`.

        Raises
        ------
        PayloadError
            If the payload does not have that form.
        """
        if not self.budgets.uplink_network:
            return get_theta(payload, self.n_theta)
        return get_coded(payload, self.n_theta)

    def context(
        self,
        round: int,
        sender: int = SERVER,
        receiver: int | None = None,
        base: Tensor | None = None,
        downlink: Payload | None = None,
    ) -> RoundContext:
        """Return what both ends know of a payload; see :class:`RoundContext`."""
        seed, n_items, dim = self.federation.seed, self.n_items, self.dim
        ends = sender, receiver, base, downlink
        return RoundContext(round, seed, n_items, dim, *ends)

    def context_of_downlink(
        self, header: Header, base: Tensor | None = None
    ) -> RoundContext:
        """Return what both ends know of the change that a downlink carries.

        Published ones arose in the round before their version; a personal one is made
        in the round that its receiver is invited to.
        """
        if header.kind is Kind.PERSONAL:
            return self.context(header.round, receiver=header.client, base=base)
        return self.context(max(header.version - 1, 0), base=base)


def whole_table(table: Tensor) -> Payload:
    """Make the payload of a ``TABLE``: every row as it is."""
    everything = RowUpdate(torch.arange(len(table)), table)
    return raw_payload(everything, len(table))


def receipt(round: int, client: int) -> Message:
    """Make the message by which a client learns that its update has counted."""
    return Message.of(Payload(), Header(Kind.RECEIPT, round, client, round + 1, None))
