"""Replica policy grid: one message from whatever version a client holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import Budget, Compressor, RowUpdate
from recbole_fedras.federation.grid import UNIT, Change, GridTable, change_payload
from recbole_fedras.federation.protocol import Agreement, Ints
from recbole_fedras.federation.server.downlink import DownlinkPolicy
from recbole_fedras.federation.server.rate import Held, Rate, choose_moves
from recbole_fedras.federation.server.state import SharedParameters
from recbole_fedras.wire.columns import Table
from recbole_fedras.wire.message import Header, Kind, Message

#: Bytes of a payload beside its code.
_FRAMING = len(change_payload(Change(np.zeros((1, 1), np.int32), 0.0)).to_bytes())

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
    rate leaves.

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
        table, tiers = parameters.item_table, agreement.budgets.downlink
        self.mirrors = table.repeat(len(tiers), 1, 1)
        self._grids = [GridTable(table, agreement.start) for _ in tiers]
        self._rates = [Rate() for _ in tiers]
        self._next: list[tuple[Change, Rate]] = []
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
        for tier in range(len(self._grids)):
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
            if version < self._grids[tier].version:
                self._make(tier, np.array([version]))
                messages.append(self._made[tier, version].message.to(client))
        return messages

    def _make(self, tier: int, versions: Ints) -> None:
        """Make messages from these versions, each once in a round."""
        grid = self._grids[tier]
        missing = [
            one for one in set(versions.tolist()) if (tier, one) not in self._made
        ]
        if not missing:
            return
        whole = self._sealed(Change(grid.units, grid.offset), None)
        for version, missed in grid.since(sorted(missing, reverse=True)):
            made = whole
            if version != self._agreement.start and missed is not None:
                made = self._sealed(Change(missed, grid.offset), version)
            self._made[tier, version] = min(made, whole, key=lambda one: one.size)

    def _sealed(self, change: Change, base: int | None) -> _Made:
        version = self._parameters.round
        payload = change_payload(change)
        size = len(payload.to_bytes())
        header = Header(Kind.DOWNLINK, version, 0, version, base)
        return _Made(self._with_theta(payload, header), size)

    def publish(self, update: RowUpdate) -> None:
        """Choose what moves."""
        self._next = [self._moved(tier) for tier in range(len(self._grids))]

    def _moved(self, tier: int) -> tuple[Change, Rate]:
        grid, rate = self._grids[tier], self._rates[tier]
        sent = [self._made_for(client).size for client in self._invited_of(tier)]
        n_bytes = _bytes_of(self._agreement.budgets.downlink[tier])
        rate = rate._replace(credit=rate.credit + n_bytes * len(sent) - sum(sent))
        if not (self._agreement.tier_of_client == tier).any():
            return Change(np.zeros_like(grid.units), 0.0), rate
        target = grid.target(self._parameters.item_table)
        limit = rate.allowance(n_bytes, len(sent)) - _FRAMING
        moves, rate = choose_moves(rate, target, grid.units, self._held(tier), limit)
        return Change(moves, _offset(target, grid.units + moves)), rate

    def _held(self, tier: int) -> Held:
        """Sample what the tier's clients hold, if all that were invited count."""
        grid, versions = self._grids[tier], self.version_of.copy()
        versions[self._invited] = grid.version
        held = np.sort(versions[self._agreement.tier_of_client == tier])
        places = (np.arange(_SAMPLES) + 0.5) / _SAMPLES * len(held)
        counts = Counter(held[places.astype(int)].tolist())
        since = dict(grid.since(sorted(counts, reverse=True)))
        missed = [grid.units if one is None else one for one in since.values()]
        return Held(missed, [counts[version] / _SAMPLES for version in since])

    def commit(self, counted: Ints) -> None:
        """Let the tables move."""
        super().commit(counted)
        for tier, (change, rate) in enumerate(self._next):
            self._grids[tier].move(self._parameters.round, change)
            self._rates[tier] = rate
            self.mirrors[tier].copy_(self._grids[tier].values())
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
        return super().metrics(clients) | {"threshold": UNIT * self._rates[0].threshold}

    def state_dict(self) -> dict[str, Any]:
        """Return what the next round depends on."""
        return super().state_dict() | {
            "grids": [grid.state_dict() for grid in self._grids],
            "rates": [tuple(rate) for rate in self._rates],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        super().load_state_dict(state)
        self._rates = [Rate(*rate) for rate in state["rates"]]
        for grid, mirror, saved in zip(
            self._grids, self.mirrors, state["grids"], strict=True
        ):
            grid.load_state_dict(saved)
            mirror.copy_(grid.values())
        self._forget()


class _Made(NamedTuple):
    """A message, and what of its bytes the budget is for."""

    message: Message
    size: int


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
