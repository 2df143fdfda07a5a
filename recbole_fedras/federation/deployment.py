"""A server here, and shards wherever their users' data are."""

from __future__ import annotations

from collections.abc import Mapping
from logging import getLogger
from time import sleep
from typing import Any, NamedTuple

import torch

from recbole_fedras.errors import AbsentError
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
from recbole_fedras.wire.transport import LinkTransport

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


class Patience(NamedTuple):
    """What a server does about shards that do not answer.

    Attributes
    ----------
    deadline : float or None
        Seconds that a round waits for answers; None: for as long as there is hope.
    min_shards : int
        Shards without which there is no round.
    """

    deadline: float | None
    min_shards: int


class Deployment(Rounds):
    """A server, and links to shards that keep what their clients hold.

    Parameters
    ----------
    links : Links
    members : Members
    patience : Patience
    model : FederatedModel
        Gives what everybody starts from.
    methods : Methods
    federation : Federation
    n_items : int
    n_jobs : int
        Threads of the server.
    introduction : Payload, optional
        What each client is sent once.
    """

    def __init__(
        self,
        links: Links,
        members: Members,
        patience: Patience,
        model: FederatedModel,
        methods: Methods,
        federation: Federation,
        n_items: int,
        n_jobs: int,
        introduction: Payload | None = None,
    ) -> None:
        self.agreement = agree(model, federation, members.n_clients, methods)
        start = start_of(model)
        self.server: Server = make_server(
            self.agreement, members.eligible, start, methods
        )
        self.server.introduction = introduction
        self.ledger = Ledger()
        self.embedding, self.n_items = model.embedding, n_items
        self.members, self._patience, self._n_jobs = members, patience, n_jobs
        self._model = model
        self._links = links
        self.transport = LinkTransport(
            links,
            members.clients_of,
            run=(members.run, members.term),
            at_least=patience.min_shards,
        )

    def run_round(self) -> RoundReport:
        """Run a round; wait, and run it again, while there are too few shards.

        Raises
        ------
        FederationError
            If shards have answered, and no update counted.
        """
        while True:
            self._wait()
            try:
                with torch.no_grad(), threads(self._n_jobs):
                    deadline = self._patience.deadline
                    report = run_round(
                        self.server, self.transport, self.ledger, deadline
                    )
                break
            except AbsentError as error:
                getLogger().warning(f"round {self.round}: {error}; it is run again")
        for phase in PHASES:
            if phase in self.transport.seconds:
                report.seconds[phase] = self.transport.seconds[phase]
        self.transport.seconds = {}
        return report

    def _wait(self) -> None:
        """Wait until there are enough shards."""
        wait_for(self._links, self._patience.min_shards, self.members.clients_of)

    clients_are_elsewhere = True

    def evaluate(self, phase: str, best: bool) -> dict[str, Any]:
        """Let shards evaluate what their clients hold, or held at the best round.

        Returns
        -------
        dict of str to dict
            ``n_users`` and ``sums``, by shard.
        """
        while True:
            self._wait()
            try:
                return self._evaluated(phase, best)
            except AbsentError as error:
                getLogger().warning(f"evaluation: {error}; it is asked for again")

    def _evaluated(self, phase: str, best: bool) -> dict[str, Any]:
        step = "evaluate_best" if best else "evaluate"
        newest = None if best else self.server.policy.newest
        deadline = self._patience.deadline
        found = self.transport.ask_each(step, phase, newest, deadline)
        sound = {
            name: sums
            for name, sums in found.items()
            if _is_sound(sums, len(self.members.clients_of[name]))
        }
        for name in found.keys() - sound.keys():
            getLogger().warning(f"shard {name}: no evaluation: {found[name]!r:.99}")
        return sound

    def keep_best(self) -> None:
        """Have shards keep what their clients hold, for :meth:`evaluate`."""
        self.transport.ask_each("keep_best")

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
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.server.load_state_dict(state["server"])
        self.ledger.load_state_dict(state["ledger"])
        self.transport.load_state_dict(state["shard"])

    def load_clients(self, state: Any) -> None:
        """Nothing: shards keep what clients held."""


def _is_sound(sums: Any, n_clients: int) -> bool:
    """Whether a shard's evaluation can be added to the others'.

    Each metric is a number from 0 to 1 for each user, as all of RecBole's lists are.
    """
    try:
        n_users = sums["n_users"]
        values = [float(value) for value in sums["sums"].values()]
        return (
            type(n_users) is int
            and 0 <= n_users <= n_clients
            and all(0 <= value <= n_users for value in values)
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        return False


def wait_for(
    links: Links, n_shards: int, known: Mapping[str, Any] | None = None
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
        sleep(_PAUSE)


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
