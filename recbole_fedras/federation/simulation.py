"""A federation in one process: a server and one shard with everybody, over memory."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import Compressor
from recbole_fedras.data.clients import ClientData
from recbole_fedras.data.local import TrainClients
from recbole_fedras.embedding.base import ItemEmbedding
from recbole_fedras.federation.attacks.base import Attack
from recbole_fedras.federation.client.newcomer import Newcomers, train_newcomer
from recbole_fedras.federation.client.objective import Score
from recbole_fedras.federation.client.shard import ClientMethods, Shard, Start
from recbole_fedras.federation.client.training import LocalModel
from recbole_fedras.federation.protocol import Agreement, Ints
from recbole_fedras.federation.round import RoundReport, run_round
from recbole_fedras.federation.rounds import Rounds
from recbole_fedras.federation.server.aggregation import Aggregator
from recbole_fedras.federation.server.broadcast import Broadcast
from recbole_fedras.federation.server.downlink import DownlinkPolicy
from recbole_fedras.federation.server.server import Server
from recbole_fedras.federation.server.state import SharedParameters
from recbole_fedras.federation.settings import Federation, LocalTraining
from recbole_fedras.federation.transforms import Transform
from recbole_fedras.federation.world.population import Described
from recbole_fedras.federation.world.transport import Pace, WorldTransport
from recbole_fedras.numeric.parallel import threads
from recbole_fedras.numeric.theta import Theta, flatten, unflatten
from recbole_fedras.wire.ledger import Ledger
from recbole_fedras.wire.payload import Payload
from recbole_fedras.wire.transport import MemoryTransport, Transport

#: Phases of a round that take time; compiling, where numba's cache lacks a kernel.
PHASES = (
    "compiling", "local_training", "compression", "serialisation", "aggregation",
)  # fmt: skip


class FederatedModel(Protocol):
    """What a simulation needs of a model; ids count from 0, without [PAD]."""

    score: Score
    train_clients: TrainClients | None
    embedding: ItemEmbedding | None
    device: torch.device

    def user_rows(self) -> Tensor:
        """Private rows to start from, shape (n_clients, dim); changed in place."""

    def item_table(self) -> Tensor:
        """Item table to start from, shape (n_items, width)."""

    def theta(self) -> Theta:
        """Network to start from, by name."""

    def look_at(self, shard: Shard) -> None:
        """Score with what the shard's clients hold from now on."""


class MakePolicy(Protocol):
    """Makes the replica policy of a server: a class of one, or what stands for it."""

    @property
    def shared(self) -> bool:
        """As :attr:`DownlinkPolicy.shared`."""

    @property
    def on_grid(self) -> bool:
        """As :attr:`DownlinkPolicy.on_grid`."""

    def __call__(
        self, agreement: Agreement, compressor: Compressor, parameters: SharedParameters
    ) -> DownlinkPolicy:
        """Make it; parameters are those of :class:`DownlinkPolicy`."""


@dataclass(frozen=True, slots=True)
class Methods:
    """What a federation is made of, each replaceable by a class of one's own.

    Attributes
    ----------
    uplink, downlink : Compressor
        One of each; the same object may serve as both.
    aggregator : Aggregator
    policy : MakePolicy
        A class of :class:`DownlinkPolicy`.
    transforms : sequence of Transform
    attack : Attack or None
        What hostile clients do.
    world : Described or None
        What links and devices there are; None: no time passes.
    """

    uplink: Compressor
    downlink: Compressor
    aggregator: Aggregator
    policy: MakePolicy = Broadcast
    transforms: Sequence[Transform] = ()
    attack: Attack | None = None
    world: Described | None = None

    def on_clients(self) -> ClientMethods:
        """Return what a shard needs of them: objects of its own."""
        uplink, downlink, transforms, attack = copy.deepcopy(
            (self.uplink, self.downlink, self.transforms, self.attack)
        )
        kind = self.policy.shared, self.policy.on_grid
        return ClientMethods(uplink, downlink, transforms, *kind, attack)


def agree(
    model: FederatedModel,
    federation: Federation,
    n_clients: int,
    methods: Methods,
    version: int = 0,
    tiers: Ints | None = None,
) -> Agreement:
    """Derive what server and shards know before the first message.

    Parameters
    ----------
    model, federation, n_clients, methods, version
    tiers : ndarray of int64, shape (n_clients,), optional
        Bandwidth tier of each client, where they do not follow from the seed alone.
    """
    agreement = Agreement.of(
        federation,
        n_clients,
        model.item_table(),
        len(flatten(model.theta())),
        methods.uplink,
        None if methods.policy.on_grid else methods.downlink,
        version,
    )
    return agreement if tiers is None else replace(agreement, tier_of_client=tiers)


def make_server(
    agreement: Agreement, eligible: Ints, start: Start, methods: Methods
) -> Server:
    """Put a server together that starts where its clients start.

    Parameters
    ----------
    agreement : Agreement
    eligible : ndarray of int64
        Clients that have something to train on.
    start : Start
    methods : Methods
    """
    parameters = SharedParameters(
        start.table,
        flatten(start.theta),
        agreement.federation.optimization,
        agreement.start,
    )
    return Server(
        agreement,
        parameters,
        methods.policy(agreement, methods.downlink, parameters),
        methods.uplink,
        methods.aggregator,
        eligible,
        methods.transforms,
    )


def make_shard(
    agreement: Agreement,
    model: FederatedModel,
    data: ClientData,
    methods: Methods,
    training: LocalTraining,
    clients: Ints | None = None,
) -> Shard:
    """Put a shard together, which ``model`` becomes a view of.

    Parameters
    ----------
    agreement : Agreement
    model : FederatedModel
        Gives what everybody starts from.
    data : ClientData
    methods : Methods
    training : LocalTraining
    clients : ndarray of int64, optional
        Those of the shard; by default all, and their rows are the model's.
    """
    start = start_of(model, clients)
    local = LocalModel(
        model.score, start.theta, model.train_clients, model.embedding, model.device
    )
    shard = Shard(agreement, data, local, start, methods.on_clients(), training)
    model.look_at(shard)
    return shard


def start_of(model: FederatedModel, clients: Ints | None = None) -> Start:
    """Return what clients start from, by default all."""
    rows = model.user_rows()
    if clients is None:
        clients = np.arange(len(rows))
    else:
        rows = rows[clients]
    return Start(clients, rows, model.item_table(), model.theta())


class Simulation(Rounds):
    """Server, clients and the memory between them, in one process.

    Parameters
    ----------
    model : FederatedModel
        Gives what everybody starts from, and becomes a view of what clients hold.
    data : ClientData
    methods : Methods
    federation : Federation
    training : LocalTraining
    n_jobs : int
        Threads, -1 for one per core; results do not depend on it.
    introduction : Payload, optional
        What each client is sent once, before its first downlink.
    version : int
        Rounds completed before.

    Attributes
    ----------
    server : Server
    shard : Shard
    ledger : Ledger
    tiers : ndarray of int64, shape (n_clients,), or None
        Clients' bandwidth tiers, if a world says them.

    Raises
    ------
    ConfigError
        If a compressor cannot work at a compression rate, or a cohort is empty.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> from recbole_fedras import Config
    >>> keys = {"client_fraction": 1.0, "compressor": "none"}
    >>> config = Config("MF", config_dict=keys)
    >>> dataset = SimpleNamespace(num={"user_id": 3, "item_id": 5}.get, item_num=5)
    >>> model = config.make_model(dataset)
    >>> data = ClientData.from_pairs(np.array([0, 0, 1]), np.array([0, 1, 3]), 2, 4)
    >>> methods, settings = config.make_methods(), config.federation()
    >>> simulation = Simulation(model, data, methods, settings, config.local_training())
    >>> report = simulation.run_round()
    >>> simulation.round, report.n_clients, report.bytes["uplink_messages"]
    (1, 2, 2)
    """

    _transport: Transport
    _world: WorldTransport | None

    def __init__(
        self,
        model: FederatedModel,
        data: ClientData,
        methods: Methods,
        federation: Federation,
        training: LocalTraining,
        n_jobs: int = 1,
        introduction: Payload | None = None,
        version: int = 0,
    ) -> None:
        world = methods.world
        self.tiers = None if world is None else world.tiers(data, federation)
        agreement = agree(
            model, federation, data.n_clients, methods, version, self.tiers
        )
        start = start_of(model)
        self.data, self.agreement, self._n_jobs = data, agreement, n_jobs
        self.server = make_server(agreement, data.eligible, start, methods)
        self.server.introduction = introduction
        self.shard = make_shard(agreement, model, data, methods, training)
        self.embedding, self.n_items = model.embedding, data.n_items
        self.ledger = Ledger()
        self._carry_by(MemoryTransport(self.shard), world, training)

    def _carry_by(
        self, transport: Transport, world: Described | None, training: LocalTraining
    ) -> None:
        """Let messages be carried, through a world if there is one."""
        self._transport, self._world = transport, None
        if world is None:
            return
        n_parts = 1 if self.embedding is None else self.embedding.n_parts
        population = world.population(self.data, self.agreement, training, n_parts)
        federation, wanted = self.agreement.federation, self.server.cohort_size
        at_once, window = federation.invited(wanted), federation.staleness_window
        pace = Pace(wanted, at_once, window)
        self._world = WorldTransport(transport, population, pace, self.ledger)
        self._transport, self.server.guests = self._world, self._world.guests

    def run_round(self) -> RoundReport:
        """Run a round; then bring shared tables up to date, as evaluation sees them.

        Raises
        ------
        NonFiniteError
            If local training diverged; the state is still that of the round before.
        FederationError
            If all updates were refused; likewise.
        """
        with torch.no_grad(), threads(self._n_jobs):
            report = run_round(self.server, self._transport, self.ledger)
            newest = self.server.policy.newest(self.shard.replicas.versions)
            self.shard.refresh([message.received() for message in newest])
        for phase, seconds in self.shard.seconds.taken().items():
            report.seconds[phase] = report.seconds.get(phase, 0.0) + seconds
        return self._timed(report)

    def _timed(self, report: RoundReport) -> RoundReport:
        """Put what the round took in the world to its figures."""
        if self._world is not None:
            report.metrics.update(self._world.count_round())
        return report

    def in_world(self) -> dict[str, float]:
        """Return what rounds took in the world; empty without one."""
        return {} if self._world is None else dict(self._world.totals)

    def links(self) -> NDArray[np.float64] | None:
        """Return clients' downlinks in that world, bytes a second; None without one."""
        return None if self._world is None else self._world.links

    def newcomers(self, user_rows: Tensor) -> Newcomers:
        """Return what new users hold: private rows, and what they are given now.

        That is what clients share or, where each has a replica of its own, what the
        server has. Of bandwidth tiers it is the table of the widest.
        """
        replicas, exact = self.shard.replicas, self.server.parameters
        if replicas.versions:
            return Newcomers(user_rows, replicas.tables[:1], replicas.theta)
        return Newcomers(user_rows, exact.item_table[None], exact.theta)

    def train_newcomer(self, user_row: Tensor, items: Ints) -> Tensor:
        """Find a new user's row, as often trained as a client was on average.

        Parameters
        ----------
        user_row : Tensor, shape (1, dim)
            Where it starts.
        items : ndarray of int64
            What it has interacted with, numbered from 0.
        """
        start, model = self.newcomers(user_row), self.shard.model
        alone = ClientData.from_pairs(0 * items, items, 1, self.data.n_items)
        updates = self.ledger.totals["uplink_messages"]
        with torch.no_grad(), threads(self._n_jobs):
            return train_newcomer(
                model._replace(theta=unflatten(start.theta, model.theta)),
                start,
                alone,
                self.agreement.federation.seed,
                self.shard.training,
                max(1, round(updates / len(self.data.eligible))),
            )

    def state_bytes(self) -> int:
        """Return about how many bytes of :meth:`state_dict` change in a round."""
        per_client = int(not self.shard.replicas.versions) * 2
        per_client += int(self.shard.feedback is not None)
        n_tables = (
            4 * len(self.agreement.budgets.downlink) + per_client * self.data.n_clients
        )
        table = self.agreement.n_items * self.agreement.dim
        return 4 * (n_tables * table + 2 * self.shard.user_rows.numel())

    def go_on_from(self, other: Rounds) -> None:
        """Take over another simulation's ledger and its users' optimizer states."""
        super().go_on_from(other)
        before = cast("Simulation", other)
        self.shard.user_states = before.shard.user_states
        if self._world is not None:
            self._world.totals = before.in_world()

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next round depends on."""
        state = {
            "server": self.server.state_dict(),
            "shard": self.shard.state_dict(),
            "ledger": self.ledger.state_dict(),
        }
        return (
            state
            if self._world is None
            else state | {"world": self._world.state_dict()}
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.server.load_state_dict(state["server"])
        self.load_clients(state["shard"])
        self.ledger.load_state_dict(state["ledger"])
        if self._world is not None:
            self._world.load_state_dict(state["world"])

    def load_clients(self, state: dict[str, Any]) -> None:
        """Let clients hold what they did when a state was saved; the server stays."""
        self.shard.load_state_dict(state)
