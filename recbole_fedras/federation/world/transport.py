"""A transport through a described world: answers come late, or never."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from recbole_fedras.errors import FederationError
from recbole_fedras.federation.world.base import Devices, Floats, Ints
from recbole_fedras.federation.world.clock import Bools, Timeline, Work, unfold
from recbole_fedras.federation.world.population import Population
from recbole_fedras.wire.ledger import Ledger
from recbole_fedras.wire.message import Message
from recbole_fedras.wire.transport import Answer, Transport

#: What is added up over rounds, and what the largest is kept of.
_SUMS = ("world_seconds", "late", "dropped", "unavailable", "world_joules")
_MOST = ("client_peak_bytes",)


class Pace(NamedTuple):
    """What the server waits for.

    Attributes
    ----------
    wanted : int
        Updates that a round is to rest on.
    at_once : int
        Clients that are at work at a time.
    window : int
        Versions that an update may be behind when it comes.
    """

    wanted: int
    at_once: int
    window: int


class Flight(NamedTuple):
    """A client at work, and what its answer will be.

    Attributes
    ----------
    client, round : int
        Who, and the round that it was invited to.
    begun : float
        When, in seconds from the begin of the round that is next or now.
    downlink : int
        Bytes that it was sent.
    dropped : bool
        Whether it will be lost before it uploads.
    answer : Answer
    """

    client: int
    round: int
    begun: float
    downlink: int
    dropped: bool
    answer: Answer


class WorldTransport:
    """Carries messages by another transport, and lets a clock decide who is in time.

    Every client that is invited trains at once, whatever becomes of its answer, so that
    nobody else's result depends on it, and it trains from what it was sent. Its answer
    is handed on in the round in which it arrives. One that is lost, or further behind
    than the window, never is: its client is as absent as one that is silent. What of it
    had been sent by then is booked.

    With a window of 0 rounds are synchronous. Else they are those of FedBuff (Nguyen et
    al., Federated Learning with Buffered Asynchronous Aggregation, AISTATS 2022, of
    which we could read the abstract, and its authors' implementation, FLSim): clients
    go on from round to round, and the server steps whenever it has ``wanted`` updates.

    Parameters
    ----------
    transport : Transport
    population : Population
    pace : Pace
    ledger : Ledger
    """

    def __init__(
        self, transport: Transport, population: Population, pace: Pace, ledger: Ledger
    ) -> None:
        self._transport, self._population = transport, population
        self._pace, self._ledger = pace, ledger
        self._flights: list[Flight] = []  # in force, to be
        self._next_flights: list[Flight] = []
        self._columns: dict[str, float] = {}
        self._round = 0
        self.totals = dict.fromkeys((*_SUMS, *_MOST), 0.0)

    @property
    def links(self) -> Floats:
        """Speeds of all clients' downlinks, bytes a second."""
        return self._population.devices.downlink

    def guests(self, round: int) -> tuple[Bools, int]:
        """Return who can be invited to a round, and how many are: see ``Server``."""
        self._round = round
        free = self._population.present(round)
        free[[flight.client for flight in self._flights]] = False
        return free, self._pace.at_once - len(self._flights)

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
        flights = sorted([*self._flights, *self._departed(messages, deadline)])
        if not flights:
            raise FederationError(
                "no client is available: raise availability, or choose another seed"
            )
        clients = np.array([flight.client for flight in flights])
        work = self._work(flights, clients)
        timeline = self._unfold(clients, work)
        over = self._over(flights, work, timeline)
        self._columns = self._figures(flights, work, timeline, over)
        self._ledger.book_interrupted(
            "uplink", int(timeline.sent[over & ~timeline.in_time].sum())
        )
        passed = timeline.seconds + self._population.conditions.server_seconds
        self._next_flights = [
            flight._replace(begun=flight.begun - passed)
            for flight, ended in zip(flights, over.tolist(), strict=True)
            if not ended
        ]
        for place in np.argsort(timeline.arrival, kind="stable").tolist():
            if timeline.in_time[place]:
                yield flights[place].answer

    def settle(self, receipts: Iterable[Message]) -> None:
        """Deliver receipts."""
        self._transport.settle(receipts)

    def _departed(
        self, messages: Iterable[Message], deadline: float | None
    ) -> list[Flight]:
        """Let those who are invited now train; return them at their begin."""
        sizes: dict[int, int] = {}

        def weighed() -> Iterator[Message]:
            for message in messages:
                client = message.header.client
                sizes[client] = sizes.get(client, 0) + len(message)
                yield message

        answers = {
            Message.from_parts(answer.head, answer.body).header.client: answer
            for answer in self._transport.exchange(weighed(), deadline)
        }
        clients = np.array(list(sizes), np.int64)
        dropped = self._population.dropped(self._round, clients).tolist()
        return [
            Flight(client, self._round, 0.0, size, lost, answers[client])
            for (client, size), lost in zip(sizes.items(), dropped, strict=True)
        ]

    def _work(self, flights: list[Flight], clients: Ints) -> Work:
        return Work(
            np.array([flight.begun for flight in flights]),
            np.array([flight.downlink for flight in flights]),
            self._population.flops[clients],
            np.array([flight.answer.size for flight in flights]),
            np.array([flight.dropped for flight in flights]),
        )

    def _unfold(self, clients: Ints, work: Work) -> Timeline:
        population = self._population
        devices = Devices(*(values[clients] for values in population.devices))
        wanted = min(self._pace.wanted, len(clients))
        deadline = population.conditions.deadline
        timeline = unfold(work, devices, wanted, deadline)
        if not timeline.in_time.any():
            raise FederationError(
                f"of {len(clients)} clients invited, {work.dropped.sum()} dropped out "
                f"and nobody was in time: raise deadline={deadline}, or lower dropout="
                f"{population.conditions.dropout}"
            )
        return timeline

    def _over(self, flights: list[Flight], work: Work, timeline: Timeline) -> Bools:
        """Return whose work ends with this round: done, lost, or too far behind."""
        rounds = np.array([flight.round for flight in flights])
        lost = work.dropped & (timeline.ended <= timeline.seconds)
        behind = rounds + self._pace.window <= self._round
        return np.asarray(timeline.in_time | lost | behind)

    def _figures(
        self, flights: list[Flight], work: Work, timeline: Timeline, over: Bools
    ) -> dict[str, float]:
        """Return a round's columns, but for the time so far."""
        population, conditions = self._population, self._population.conditions
        there = population.present(self._round)[population.eligible]
        joules = (
            timeline.received[over].sum() * conditions.downlink_joules
            + timeline.sent[over].sum() * conditions.uplink_joules
            + timeline.trained[over].sum() * conditions.flop_joules
        )
        clients = [flight.client for flight in flights]
        peak = population.memory[clients] + np.maximum(work.downlink, work.uplink)
        figures = {
            "world_seconds": timeline.seconds + conditions.server_seconds,
            "late": int((over & ~timeline.in_time & ~work.dropped).sum()),
            "dropped": int((over & work.dropped).sum()),
            "unavailable": int((~there).sum()),
            "world_joules": float(joules),
            "client_peak_bytes": int(peak.max()),
        }
        if self._pace.window:
            behind = self._round - np.array([flight.round for flight in flights])
            figures["staleness"] = float(behind[timeline.in_time].mean())
            figures["at_work"] = int((~over).sum())
        return figures

    def count_round(self) -> dict[str, float]:
        """Put the round that has just ended into force; return its columns."""
        columns, self._flights = self._columns, self._next_flights
        self.totals |= {key: self.totals[key] + columns[key] for key in _SUMS}
        self.totals |= {key: max(self.totals[key], columns[key]) for key in _MOST}
        return columns | {"world_hours": self.totals["world_seconds"] / 3600}

    def state_dict(self) -> dict[str, Any]:
        """Return totals and who is at work, for a checkpoint at the end of a round."""
        flights = [
            [*flight[:-1], flight.answer.head, flight.answer.body]
            for flight in self._flights
        ]
        return {"totals": dict(self.totals), "flights": flights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.totals = dict(state["totals"])
        self._flights = [
            Flight(client, round, begun, downlink, dropped, Answer(head, body))
            for client, round, begun, downlink, dropped, head, body in state["flights"]
        ]
