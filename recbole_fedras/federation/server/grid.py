"""Replica policy grid: one message from whatever version a client holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import Budget, Compressor, RowUpdate
from recbole_fedras.federation.grid import UNIT, Change, GridTable, put_change
from recbole_fedras.federation.network import as_column
from recbole_fedras.federation.protocol import Agreement, Ints
from recbole_fedras.federation.server.downlink import DownlinkPolicy
from recbole_fedras.federation.server.rate import Held, Rate, choose_moves
from recbole_fedras.federation.server.state import SharedParameters
from recbole_fedras.wire.columns import Table, table_size
from recbole_fedras.wire.message import Header, Kind, Message
from recbole_fedras.wire.payload import Payload

#: Versions that stand for all that clients hold, in proportion.
_SAMPLES = 12


class Grid(DownlinkPolicy):
    """All replicas of a version are one; who has an older is sent what leads from it.

    Replicas stand on a grid, so that differences of two versions are integers, most of
    them zero: they travel as they are, coded by an arithmetic coder that learns as it
    goes. A client that was away for ten rounds is sent one message, in which an entry
    that moved in two of them stands once, and when it moved does not; from the same
    version on it is the same for all. Nothing is caught up on beside.

    Replicas follow the server's table as closely as bytes allow: an entry moves when it
    is further off than a threshold. That is chosen, each round, so that the messages to
    clients take the budget in the mean, over the versions that they hold. What a client
    that was away for long is sent may be more, and less what others are sent.

    Notes
    -----
    What a replica lacks is part of what is sent later, as with ``downlink_feedback``.
    The server needs to know no more than which version each client holds, which a
    message says anyway.

    The downlink's compressor is not used. With ``budget: wire`` the budget is all bytes
    of a participation, receipt and network included; else the float32 values that the
    rate leaves. With ``compress_network`` the network is a further table on a grid.

    Source: none; that differences of a quantised signal are coded without loss, and
    that a dead zone decides what moves, is how video is sent. Rate control by a bucket
    of bytes is as well.
    """

    shared = True
    on_grid = True

    def __init__(
        self, agreement: Agreement, compressor: Compressor, parameters: SharedParameters
    ) -> None:
        super().__init__(agreement, compressor, parameters)
        table, budgets = parameters.item_table, agreement.budgets
        self.mirrors = table.repeat(len(budgets.downlink), 1, 1)
        self._items = [
            _Follower(table, agreement.start, "items", _bytes_of(budget))
            for budget in budgets.downlink
        ]
        self._network: _Follower | None = None
        if (n_bytes := budgets.downlink_network) is not None:
            column, memory = as_column(parameters.theta), table.nbytes
            self._network = _Follower(column, agreement.start, "theta", n_bytes, memory)
        # Of this round, by tier and the version that they lead from.
        self._made: dict[tuple[int, int], _Made] = {}
        self._invited: list[int] = []

    def mirror_of(self, client: int) -> Tensor:
        """Return the table of the client's tier."""
        return self.mirrors[self._tier_of(client)]

    def _tier_of(self, client: int) -> int:
        return int(self._agreement.tier_of_client[client])

    def deliver(self, clients: Iterable[int]) -> Iterator[Message]:
        """Send each client what leads from the version that it holds."""
        self._invited = list(clients)
        for tier in range(len(self._items)):
            self._make(tier, self.version_of[self._invited_of(tier)])
        for client in self._invited:
            yield self._made_for(client).message.to(client)

    def _invited_of(self, tier: int) -> Ints:
        invited: Ints = np.array(self._invited, np.int64)
        mask = self._agreement.tier_of_client[invited] == tier
        return np.compress(mask, invited)

    def _made_for(self, client: int) -> _Made:
        return self._made[self._tier_of(client), int(self.version_of[client])]

    def newest(self, versions: Sequence[int]) -> list[Message]:
        """Return, tier by tier, what leads from a version to the newest.

        They are addressed to one of the tier's clients, which stands for all.
        """
        tiers, clients = np.unique(self._agreement.tier_of_client, return_index=True)
        held = dict(enumerate(versions))  # which may be of fewer tiers
        messages = []
        for tier, client in zip(tiers.tolist(), clients.tolist(), strict=True):
            version = held.get(tier, self._agreement.start)
            if version < self._items[tier].version:
                self._make(tier, np.array([version]))
                messages.append(self._made[tier, version].message.to(client))
        return messages

    def _make(self, tier: int, versions: Ints) -> None:
        """Make messages from these versions, each once in a round."""
        missing = sorted(
            (one for one in set(versions.tolist()) if (tier, one) not in self._made),
            reverse=True,
        )
        if not missing:
            return
        followers = [self._items[tier], *self._networks()]
        whole = self._sealed(followers, [one.whole for one in followers], None)
        for version, *missed in zip(
            missing, *(one.changes_since(missing) for one in followers), strict=True
        ):
            changes = [change for change in missed if change is not None]
            made = whole
            if version != self._agreement.start and len(changes) == len(followers):
                made = self._sealed(followers, changes, version)
            self._made[tier, version] = min(
                made, whole, key=lambda one: len(one.message)
            )

    def _sealed(
        self,
        followers: Sequence[_Follower],
        changes: Sequence[Change],
        base: int | None,
    ) -> _Made:
        version, payload = self._parameters.round, Payload()
        sizes = {
            follower.part: put_change(payload, change, follower.part)
            for follower, change in zip(followers, changes, strict=True)
        }
        header = Header(Kind.DOWNLINK, version, 0, version, base)
        if self._network is None:
            return _Made(self._with_theta(payload, header), sizes)
        return _Made(Message.of(payload, header), sizes)

    def publish(self, update: RowUpdate) -> None:
        """Choose what moves."""
        # What clients hold if all that were invited count.
        held, parameters = self.version_of.copy(), self._parameters
        held[self._invited] = parameters.round - 1
        for tier, items in enumerate(self._items):
            of_tier = held[self._agreement.tier_of_client == tier]
            sent = self._sent(self._invited_of(tier), items)
            items.choose(parameters.item_table, of_tier, sent)
        for network in self._networks():
            sent = self._sent(self._invited, network)
            network.choose(as_column(parameters.theta), held, sent)

    def _sent(self, clients: Iterable[int], follower: _Follower) -> list[int]:
        """Return the bytes that messages of this round have for a table."""
        return [self._made_for(client).sizes[follower.part] for client in clients]

    def commit(self, counted: Ints) -> None:
        """Let the tables move."""
        super().commit(counted)
        for follower in self._followers():
            follower.commit(self._parameters.round)
        for mirror, items in zip(self.mirrors, self._items, strict=True):
            mirror.copy_(items.values())
        self._forget()

    def rollback(self) -> None:
        """Forget what was made and sent."""
        super().rollback()
        self._forget()

    def _forget(self) -> None:
        self._made, self._invited = {}, []

    def _drift(self, client: int) -> float:
        return self._drifts[self._tier_of(client)]

    def metrics(self, clients: Ints) -> dict[str, float]:
        """Return the drift, and the threshold of the first tier."""
        self._drifts = [self._parameters.drift(table) for table in self.mirrors]
        threshold = UNIT * self._items[0].rate.threshold
        return super().metrics(clients) | {"threshold": threshold}

    @property
    def network(self) -> Tensor:
        """What the newest message leads to."""
        if self._network is None:
            return super().network
        return self._network.values().flatten()

    def _networks(self) -> list[_Follower]:
        """Return the network's follower, if that is coded."""
        return [] if self._network is None else [self._network]

    def _followers(self) -> list[_Follower]:
        """Return all: of each tier's items, and of the network."""
        return [*self._items, *self._networks()]

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round depends on."""
        return super().state_dict() | {
            "grids": [one.state_dict() for one in self._followers()],
            "rates": [tuple(one.rate) for one in self._followers()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        for follower, grid, rate in zip(
            self._followers(), state["grids"], state["rates"], strict=True
        ):
            follower.load_state_dict(grid)
            follower.rate = Rate(*rate)
        for mirror, items in zip(self.mirrors, self._items, strict=True):
            mirror.copy_(items.values())
        self._forget()


class _Made(NamedTuple):
    """A message, and the bytes of each part that has a budget of its own."""

    message: Message
    sizes: dict[str, int]


class _Follower(GridTable):
    """A table that follows the server's as closely as its bytes allow.

    Parameters
    ----------
    start : Tensor, shape (n, dim)
    version : int
    part : {'items', 'theta'}
        What it holds.
    n_bytes : int
        What a message may take for it, in the mean.
    memory : int, optional
        As for the base class.
    """

    def __init__(
        self,
        start: Tensor,
        version: int,
        part: str,
        n_bytes: int,
        memory: int | None = None,
    ) -> None:
        super().__init__(start, version, memory)
        self.part, self._budget = part, n_bytes
        self.rate = Rate()
        self._next: tuple[Change, Rate] | None = None

    @property
    def whole(self) -> Change:
        """All moves since the start."""
        return Change(self.units, self.offset)

    def changes_since(self, versions: Sequence[int]) -> Iterator[Change | None]:
        """Yield what leads from each version, the newest first; None: forgotten."""
        for _, missed in self.since(versions):
            yield None if missed is None else Change(missed, self.offset)

    def choose(self, table: Tensor, versions: Ints, sent: Sequence[int]) -> None:
        """Choose what moves.

        Parameters
        ----------
        table : Tensor, shape (n, dim)
            To be followed.
        versions : ndarray of int64
            Of clients that may be sent the moves.
        sent : sequence of int
            Bytes of what went out in this round.
        """
        credit = self.rate.credit + self._budget * len(sent) - sum(sent)
        rate = self.rate._replace(credit=credit)
        if not len(versions):
            self._next = Change(np.zeros_like(self.units), 0.0), rate
            return
        target = self.target(table)
        limit = rate.allowance(self._budget, len(sent)) - table_size(self.part, 2)
        moves, rate = choose_moves(
            rate, target, self.units, self._held(versions), limit
        )
        self._next = Change(moves, _offset(target, self.units + moves)), rate

    def _held(self, versions: Ints) -> Held:
        """Sample what leads from versions that clients hold."""
        places = (np.arange(_SAMPLES) + 0.5) / _SAMPLES * len(versions)
        counts = Counter(np.sort(versions)[places.astype(int)].tolist())
        since = dict(self.since(sorted(counts, reverse=True)))
        missed = [self.units if one is None else one for one in since.values()]
        return Held(missed, [counts[version] / _SAMPLES for version in since])

    def commit(self, version: int) -> None:
        """Move, and go to a version."""
        if self._next is not None:
            change, self.rate = self._next
            self.move(version, change)


def _bytes_of(budget: Budget) -> int:
    """Return what changes may take in the mean."""
    return 4 * budget.values if budget.n_bytes is None else budget.n_bytes


def _offset(target: NDArray[np.float64], units: Table) -> float:
    """Return how much further from the start entries are than their points.

    They go on in the direction in which they have moved, and wait before they move
    again: in the mean over those that have, they are ahead.
    """
    signs = np.sign(units)
    ahead = float(((target - units) * signs).sum())
    return float(np.float32(UNIT * ahead / max(np.count_nonzero(signs), 1))) / UNIT
