"""A server here, and shards wherever their users' data are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from logging import getLogger
from time import sleep
from typing import Any, NamedTuple, TypeVar, cast

import torch

from recbole_fedras.errors import AbsentError, ConfigError, FederationError
from recbole_fedras.federation.network import put_theta
from recbole_fedras.federation.protocol import Ints
from recbole_fedras.federation.round import RoundReport, run_round
from recbole_fedras.federation.rounds import Rounds
from recbole_fedras.federation.server.server import Server
from recbole_fedras.federation.settings import Federation
from recbole_fedras.federation.simulation import (
    PHASES,
    FederatedModel,
    Methods,
    agree,
    make_server,
    start_of,
)
from recbole_fedras.numeric.parallel import threads
from recbole_fedras.numeric.theta import unflatten
from recbole_fedras.wire.ledger import Ledger
from recbole_fedras.wire.links import Links
from recbole_fedras.wire.payload import Payload
from recbole_fedras.wire.transport import LinkTransport, Newest

Done = TypeVar("Done")

_PAUSE = 1.0  # seconds before shards that are missing are looked for again


class Members(NamedTuple):
    """Who takes part in a run, agreed before its first round.

    Attributes
    ----------
    run : str
        Name of the run.
    clients_of : dict of str to ndarray of int64
        Clients of each shard, by its name.
    eligible : ndarray of int64
        Clients that have something to train on.
    n_clients : int
        Numbers in all; some may be nobody's.
    term : int
        Of the server. Shards obey the highest that they have met, so a server that was
        given up for dead cannot go on beside the one that has taken its place.
    """

    run: str
    clients_of: dict[str, Ints]
    eligible: Ints
    n_clients: int
    term: int


class Terms(NamedTuple):
    """What a server asks of shards.

    Attributes
    ----------
    deadline : float or None
        Seconds that a round waits for answers; None: for as long as there is hope.
    min_shards : int
        Shards without which there is no round.
    metrics : frozenset of str
        What an evaluation adds up.
    """

    deadline: float | None
    min_shards: int
    metrics: frozenset[str]


class Deployment(Rounds):
    """A server, and links to shards that keep what their clients hold.

    Parameters
    ----------
    links : Links
    members : Members
    terms : Terms
    model : FederatedModel
        Gives what everybody starts from.
    methods : Methods
    federation : Federation
    n_items : int
    n_jobs : int
        Threads of the server.
    introduction : Payload, optional
        What each client is sent once.
    version : int
        Rounds completed before everybody has started from this model.

    Raises
    ------
    ConfigError
        If ``min_shards`` are more than take part.
    """

    def __init__(
        self,
        links: Links,
        members: Members,
        terms: Terms,
        model: FederatedModel,
        methods: Methods,
        federation: Federation,
        n_items: int,
        n_jobs: int,
        introduction: Payload | None = None,
        version: int = 0,
    ) -> None:
        n_shards = len(members.clients_of)
        if terms.min_shards > n_shards:
            raise ConfigError(
                f"min_shards={terms.min_shards} is not allowed; it must be at most "
                f"{n_shards}, the shards that take part in this run"
            )
        self.agreement = agree(model, federation, members.n_clients, methods, version)
        start = start_of(model)
        self.server: Server = make_server(
            self.agreement, members.eligible, start, methods
        )
        self.server.introduction = introduction
        self.ledger = Ledger()
        self.embedding, self.n_items = model.embedding, n_items
        self.members, self._terms, self._n_jobs = members, terms, n_jobs
        self._model, self._best_round = model, 0
        self._links, self._traffic = links, links.traffic()
        self.transport = LinkTransport(
            links,
            members.clients_of,
            about=lambda: (members.run, members.term, self.round),
            at_least=terms.min_shards,
            most_bytes=self.agreement.most_bytes,
        )
        self._introduce()

    def run_round(self) -> RoundReport:
        """Run a round; wait, and run it again, while there are too few shards.

        One in which no update counts is a round all the same: what other machines do,
        or leave undone, ends no run.
        """
        what = f"round {self.round}"
        report = self._once_enough(what, self._run_round)
        if not report.n_clients:
            getLogger().warning(
                f"{what}: none of the {report.n_invited} clients invited counted"
            )
        for phase in PHASES:
            if phase in self.transport.seconds:
                report.seconds[phase] = self.transport.seconds[phase]
        self.transport.seconds = {}
        return report

    def go_on_from(self, other: Rounds) -> None:
        """End a warm-up at the shards too, once they have learnt what counted in it."""
        super().go_on_from(other)
        self.transport.load_state_dict(cast("Deployment", other).transport.state_dict())
        self._introduce()

    def _introduce(self) -> None:
        """Tell shards at once what clients are sent once.

        So they can evaluate those that it has not reached.
        """
        introduction = self.server.introduction
        if introduction is not None:
            theta = put_theta(Payload(), self.server.parameters.theta)
            begun = {
                "version": self.round,
                "theta": theta.to_bytes(),
                "once": introduction.to_bytes(),
            }
            self.transport.note("begin", begun)

    def _run_round(self) -> RoundReport:
        with torch.no_grad(), threads(self._n_jobs):
            return run_round(
                self.server,
                self.transport,
                self.ledger,
                self._terms.deadline,
                trusted=False,
            )

    def _once_enough(self, what: str, do: Callable[[], Done]) -> Done:
        """Do something with enough shards; wait and do it again while there are not."""
        while True:
            wait_for(
                self._links,
                self._terms.min_shards,
                self.members.clients_of,
                self._pause,
            )
            try:
                return do()
            except AbsentError as error:
                getLogger().warning(f"{what}: {error}; it is tried again")
                self._pause()

    def _pause(self) -> None:
        if self.asked_to_end():
            raise KeyboardInterrupt("continue with --resume, by last.pth")
        sleep(_PAUSE)

    def _asked(self, what: str, value: Any, newest: Newest | None) -> dict[str, Any]:
        ask = partial(
            self.transport.ask_each, what, value, newest, self._terms.deadline
        )
        return self._once_enough(what, ask)

    clients_are_elsewhere = True

    def evaluate(self, phase: str, best: bool) -> dict[str, Any]:
        """Let shards evaluate what their clients hold, or held at the best round.

        Returns
        -------
        dict of str to dict
            ``n_users`` and ``sums``, by shard.

        Raises
        ------
        FederationError
            If no shard has anything to add up.
        """
        if best:
            found = self._asked("evaluate_best", (phase, self._best_round), None)
        else:
            found = self._asked("evaluate", phase, self.server.policy.newest)
        sound = {
            name: {"n_users": sums["n_users"], "sums": sums["sums"]}
            for name, sums in found.items()
            if self._is_sound(sums, len(self.members.clients_of[name]))
        }
        for name in found.keys() - sound.keys():
            getLogger().warning(f"shard {name}: no evaluation: {found[name]!r:.99}")
        if not any(sums["n_users"] for sums in sound.values()):
            raise FederationError(f"evaluation: no shard has users for {phase}")
        return sound

    def _is_sound(self, sums: Any, n_clients: int) -> bool:
        """Whether a shard's evaluation can be added to the others'."""
        try:
            n_users, by_metric = sums["n_users"], sums["sums"]
            return (
                type(n_users) is int
                and 0 <= n_users <= n_clients
                and (not n_users or by_metric.keys() == self._terms.metrics)
                and all(type(value) is float for value in by_metric.values())
                and all(0 <= value <= n_users for value in by_metric.values())
            )
        except (TypeError, KeyError, AttributeError):
            return False

    def carried(self) -> dict[str, Any]:
        """Return bytes of requests and answers, and what the carrier has counted.

        The carrier's are those since this process began.
        """
        traffic = {
            direction: total - self._traffic.get(direction, 0)
            for direction, total in self._links.traffic().items()
        }
        return self.transport.carried | ({"carrier": traffic} if traffic else {})

    def keep_best(self) -> None:
        """Have shards keep what their clients hold, for :meth:`evaluate`."""
        self._best_round = self.round
        self.transport.note("keep_best", self.round, self.server.policy.newest)

    def state_bytes(self) -> int:
        """Return zero: a shard that is ahead of its server is of no use."""
        return 0

    def state_dict(self) -> dict[str, Any]:
        """Return what the server's next round depends on; shards keep the rest."""
        table, theta = self.server.parameters.item_table, self.server.parameters.theta
        self._model.item_table().copy_(table)
        network = self._model.theta()
        for name, value in unflatten(theta, network).items():
            network[name].copy_(value)
        return {
            "server": self.server.state_dict(),
            "ledger": self.ledger.state_dict(),
            "shard": {
                **self.transport.state_dict(),
                **_members_state(self.members),
                "n_items": self.n_items,
                "round": self.round,
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.server.load_state_dict(state["server"])
        self.ledger.load_state_dict(state["ledger"])
        self.transport.load_state_dict(state["shard"])

    def load_clients(self, state: dict[str, Any]) -> None:
        """Note which round is the best: shards keep what clients held."""
        self._best_round = state["round"]


def wait_for(
    links: Links,
    n_shards: int,
    known: Mapping[str, Any] | None = None,
    pause: Callable[[], None] = lambda: sleep(_PAUSE),
) -> None:
    """Wait until so many shards can be reached, of those that are known."""
    told = -1
    while True:
        names = [name for name in links.names() if known is None or name in known]
        if len(names) >= n_shards:
            return
        if len(names) != told:
            told = len(names)
            getLogger().warning(f"waiting for shards: {told} of {n_shards} are here")
        pause()


def _members_state(members: Members) -> dict[str, Any]:
    return {
        "run": members.run,
        "clients_of": {
            name: torch.from_numpy(clients)
            for name, clients in members.clients_of.items()
        },
        "eligible": torch.from_numpy(members.eligible),
        "n_clients": members.n_clients,
    }


def members_of(state: dict[str, Any], term: int) -> Members:
    """Read members from a deployment's ``state_dict()["shard"]``, for a new term."""
    return Members(
        state["run"],
        {name: clients.numpy() for name, clients in state["clients_of"].items()},
        state["eligible"].numpy(),
        state["n_clients"],
        term,
    )
