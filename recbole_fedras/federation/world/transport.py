"""A transport through a described world: answers come late, or never."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from recbole_fedras.errors import FederationError
from recbole_fedras.federation.world.base import Devices, Floats, Ints
from recbole_fedras.federation.world.clock import Timeline, Work, unfold
from recbole_fedras.federation.world.population import Population
from recbole_fedras.wire.ledger import Ledger
from recbole_fedras.wire.message import Message
from recbole_fedras.wire.transport import Answer, Transport

#: What is added up over rounds, and what the largest is kept of.
_SUMS = ("world_seconds", "late", "dropped", "unavailable", "world_joules")
_MOST = ("client_peak_bytes",)


class WorldTransport:
    """Carries messages by another transport, and lets a clock decide who is in time.

    Every client that is invited trains, whatever becomes of its answer, so that nobody
    else's result depends on it. An answer that is late or lost is not handed on: its
    client is as absent as one that is silent. What of it had been sent when the server
    closed is booked.

    Parameters
    ----------
    transport : Transport
    population : Population
    wanted : int
        Updates that a round is to rest on.
    ledger : Ledger
    """

    def __init__(
        self,
        transport: Transport,
        population: Population,
        wanted: int,
        ledger: Ledger,
    ) -> None:
        self._transport, self._population = transport, population
        self._wanted, self._ledger = wanted, ledger
        self._round: dict[str, float] = {}
        self.totals = dict.fromkeys((*_SUMS, *_MOST), 0.0)

    def exchange(
        self, messages: Iterable[Message], deadline: float | None = None
    ) -> Iterator[Answer]:
        """Let all clients answer; yield the answers that are in time, as they come.

        The deadline is that of the world's conditions.

        Raises
        ------
        FederationError
            If there is none.
        """
        invitations = _Invitations(messages)
        answers = {
            Message.from_parts(answer.head, answer.body).header.client: answer
            for answer in self._transport.exchange(invitations, deadline)
        }
        clients = np.array(list(invitations.sizes), np.int64)
        if not len(clients):
            raise FederationError(
                "no client is available: raise availability, or choose another seed"
            )
        work = self._work(clients, invitations, answers)
        timeline = self._unfold(clients, work)
        self._round = self._columns(clients, invitations.round, work, timeline)
        self._ledger.book_interrupted(
            "uplink", int(timeline.sent[~timeline.in_time].sum())
        )
        for place in np.argsort(timeline.arrival, kind="stable").tolist():
            if timeline.in_time[place]:
                yield answers[int(clients[place])]

    @property
    def links(self) -> Floats:
        """Speeds of all clients' downlinks, bytes a second."""
        return self._population.devices.downlink

    def settle(self, receipts: Iterable[Message]) -> None:
        """Deliver receipts."""
        self._transport.settle(receipts)

    def _work(
        self, clients: Ints, invitations: _Invitations, answers: dict[int, Answer]
    ) -> Work:
        return Work(
            np.array(list(invitations.sizes.values())),
            self._population.flops[clients],
            np.array([answers[client].size for client in clients.tolist()]),
            self._population.dropped(invitations.round, clients),
        )

    def _unfold(self, clients: Ints, work: Work) -> Timeline:
        population = self._population
        devices = Devices(*(values[clients] for values in population.devices))
        deadline = population.conditions.deadline
        timeline = unfold(work, devices, min(self._wanted, len(clients)), deadline)
        if not timeline.in_time.any():
            raise FederationError(
                f"of {len(clients)} clients invited, {work.dropped.sum()} dropped out "
                f"and nobody was in time: raise deadline={deadline}, or lower dropout="
                f"{population.conditions.dropout}"
            )
        return timeline

    def _columns(
        self, clients: Ints, round: int, work: Work, timeline: Timeline
    ) -> dict[str, float]:
        """Return a round's columns, but for the time so far."""
        population, conditions = self._population, self._population.conditions
        there = population.present(round)[population.eligible]
        joules = (
            timeline.received.sum() * conditions.downlink_joules
            + timeline.sent.sum() * conditions.uplink_joules
            + timeline.trained.sum() * conditions.flop_joules
        )
        peak = population.memory[clients] + np.maximum(work.downlink, work.uplink)
        return {
            "world_seconds": timeline.seconds + conditions.server_seconds,
            "late": int((~timeline.in_time & ~work.dropped).sum()),
            "dropped": int(work.dropped.sum()),
            "unavailable": int((~there).sum()),
            "world_joules": float(joules),
            "client_peak_bytes": int(peak.max()),
        }

    def count_round(self) -> dict[str, float]:
        """Add the round that has just ended to the totals; return its columns."""
        columns = self._round
        self.totals |= {key: self.totals[key] + columns[key] for key in _SUMS}
        self.totals |= {key: max(self.totals[key], columns[key]) for key in _MOST}
        return columns | {"world_hours": self.totals["world_seconds"] / 3600}

    def state_dict(self) -> dict[str, Any]:
        """Return the totals, for a checkpoint at the end of a round."""
        return dict(self.totals)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.totals.update(state)


class _Invitations:
    """Messages as they pass, weighed.

    Attributes
    ----------
    sizes : dict of int to int
        Bytes that each client is sent, in the order of invitation.
    round : int
    """

    def __init__(self, messages: Iterable[Message]) -> None:
        self._messages = messages
        self.sizes: dict[int, int] = {}
        self.round = 0

    def __iter__(self) -> Iterator[Message]:
        for message in self._messages:
            client, self.round = message.header.client, message.header.round
            self.sizes[client] = self.sizes.get(client, 0) + len(message)
            yield message
