"""One federated round, as data flows (FedRAS, KDD 2025, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.compressor.base import (
    SERVER,
    Budget,
    CohortUpdate,
    Compressor,
    RoundContext,
    RowUpdate,
    raw_payload,
)
from recbole_fedras.data.clients import ClientData, Ints, Samples, draw_samples
from recbole_fedras.federation.aggregation import RowMean, mean_theta
from recbole_fedras.federation.cohort import (
    Score,
    TrainClients,
    Trained,
    Workspace,
    train_cohort,
)
from recbole_fedras.federation.replica import BroadcastReplica
from recbole_fedras.federation.sampling import (
    assign_tiers,
    cohort_size,
    select_cohort,
)
from recbole_fedras.federation.server import Server, get_theta, put_theta
from recbole_fedras.federation.settings import Federation, LocalTraining
from recbole_fedras.parallel import thread_map, threads
from recbole_fedras.rng import Stream, counter_key
from recbole_fedras.wire.channel import Channel, Ledger
from recbole_fedras.wire.payload import Message

PHASES = ("local_training", "compression", "serialisation", "aggregation")

#: Clients that a thread draws and trains at a time; on another device, all together.
GROUP = 16

#: Updates of a cohort held at a time, about; the rest waits its turn.
PART_BYTES = 2**27


class NonFiniteError(ArithmeticError):
    """A loss, parameter or score that is not finite."""


class FederatedModel(Protocol):
    """What the simulation needs of a model; ids count from 0."""

    score: Score
    train_clients: TrainClients | None

    def hold_replicas(self, replica_of_client: Tensor, n_replicas: int) -> None:
        """Give each bandwidth tier a replica of its own."""

    def client_rows(self) -> Tensor:
        """Private rows, shape (n_clients, dim); a view."""

    def replicas(self) -> Tensor:
        """Item tables, shape (n_replicas, n_items, dim); a view."""

    def theta(self) -> Mapping[str, Tensor]:
        """Network parameters by name; views."""


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What a round did and cost: one row of ``rounds.csv``.

    Attributes
    ----------
    loss : float
        Mean binary cross-entropy of a training sample.
    n_clients : int
    bytes : dict of str to int
        The round of the ledger.
    metrics : dict of str to float
        What the compressor reports, and the drift of the first replica.
    seconds : dict of str to float
        By phase.
    """

    loss: float
    n_clients: int
    bytes: dict[str, int]
    metrics: dict[str, float]
    seconds: dict[str, float]


class Simulation:
    """Server, clients and the channel between them, in one process.

    Parameters
    ----------
    model : FederatedModel
        Holds what clients hold; updated in place.
    clients : ClientData
    compressor : Compressor
    federation : Federation
    training : LocalTraining
    n_jobs : int
        Threads, -1 for one per core; results do not depend on it.

    Raises
    ------
    ValueError
        If the compressor cannot work at a compression rate, or a cohort is empty.
    """

    def __init__(
        self,
        model: FederatedModel,
        clients: ClientData,
        compressor: Compressor,
        federation: Federation,
        training: LocalTraining,
        n_jobs: int = 1,
    ) -> None:
        self._n_jobs = n_jobs
        self.clients = clients
        self.compressor = compressor
        self.federation = federation
        self.training = training
        self._model = model
        self._eligible = clients.eligible
        self._cohort_size = cohort_size(len(self._eligible), federation.client_fraction)
        rates = federation.compression_rates
        self._tier_of_client = torch.from_numpy(
            assign_tiers(clients.n_clients, len(rates), federation.seed)
        )
        model.hold_replicas(self._tier_of_client, len(rates))
        table = model.replicas()[0]
        n_items, dim = table.shape
        self._budgets = [Budget(n_items, dim, rate) for rate in rates]
        for budget in self._budgets:
            compressor.validate(budget)
        theta = _flatten(model.theta())
        self.server = Server(
            table, theta, compressor, self._budgets, self._context(0, SERVER)
        )
        everything = RowUpdate(torch.arange(n_items), table.cpu())
        self.replica = BroadcastReplica(
            model.replicas(),
            self._tier_of_client,
            dense_bytes=len(Message.of(raw_payload(everything, n_items)).data),
        )
        self._dense_participation = 2 * 4 * (n_items * dim + len(theta))
        self.ledger = Ledger()
        self._channel = Channel(self.ledger)
        self._workspace = Workspace()
        self._seconds: dict[str, float] = {}

    @property
    def round(self) -> int:
        """Rounds completed."""
        return self.server.round

    def run_round(self) -> RoundReport:
        """Select, send down, train, send up, aggregate, publish.

        A cohort whose updates would not fit in memory together trains and sends in
        parts, one after the other; the result is the same.

        Raises
        ------
        NonFiniteError
            If local training diverged; the state is still that of the round before.
        """
        with threads(self._n_jobs):
            return self._run_round()

    def _run_round(self) -> RoundReport:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self.ledger.open_round()
        round, seed = self.server.round, self.federation.seed
        cohort = select_cohort(self._eligible, self._cohort_size, seed, round)
        n_items, dim = self.server.item_table.shape
        mean = RowMean(n_items, dim, self.federation.aggregation)
        theta_changes: list[Tensor] = []
        user_rows: list[Tensor] = []
        losses: list[Tensor] = []
        n_samples = 0
        for part in self._parts(cohort):
            trained = self._train(part)
            user_rows.append(trained.user_rows)
            losses.append(trained.losses)
            n_samples += trained.n_samples
            for update, theta_change in self._upload(trained.updates):
                theta_changes.append(theta_change)
                with self._time("aggregation"):
                    mean.add(update)
        self._download(torch.from_numpy(cohort))
        self._model.client_rows()[cohort] = torch.cat(user_rows)
        with self._time("aggregation"):
            update = mean.update()
        self._publish(update, mean_theta(theta_changes))
        metrics = self.compressor.metrics() | {
            "drift": self.server.drift(self.replica.tables[0])
        }
        return RoundReport(
            float(torch.cat(losses).sum()) / n_samples,
            len(cohort),
            self.ledger.close_round(),
            metrics,
            self._seconds,
        )

    def _parts(self, cohort: Ints) -> list[Ints]:
        """Split a cohort where the updates of a part reach ``PART_BYTES``.

        On the CPU groups stay whole, so that parts of another size change no bit.
        """
        n_items, dim = self.server.item_table.shape
        counts = self.clients.offsets[cohort + 1] - self.clients.offsets[cohort]
        n_negatives = self.training.local_epochs * self.training.n_negatives
        n_rows = np.minimum(counts * (1 + n_negatives), n_items)
        starts = np.arange(0, len(cohort), GROUP)
        sizes = np.add.reduceat(n_rows, starts) * dim * 4
        filled = np.cumsum(sizes) // PART_BYTES
        return np.split(cohort, starts[1:][np.diff(filled) > 0])

    def _download(self, cohort: Tensor) -> None:
        """Send the newest downlink to the cohort; its bytes are those applied."""
        receivers = torch.bincount(
            self._tier_of_client[cohort], minlength=len(self._budgets)
        )
        for message, count in zip(self.server.messages, receivers, strict=True):
            self._channel.send("downlink", message, int(count))
        self.ledger.note("catch_up_bytes", self.replica.receive(cohort))
        self.ledger.note("dense_bytes", self._dense_participation * len(cohort))

    def _train(self, part: Ints) -> Trained:
        training, round = self.training, self.server.round
        clients = torch.from_numpy(part)
        tables = self.replica.tables
        width = GROUP if tables.device.type == "cpu" else len(part)
        key = counter_key(self.federation.seed, Stream.SAMPLES, round)

        def draw(start: int) -> Samples:
            group = part[start : start + width]
            n_negatives, n_epochs = training.n_negatives, training.local_epochs
            return draw_samples(self.clients, group, n_negatives, n_epochs, key)

        with self._time("local_training"):
            trained = train_cohort(
                self._model.score,
                clients,
                thread_map(draw, range(0, len(part), width)),
                self._model.client_rows()[clients],
                tables,
                self._tier_of_client[clients],
                self._model.theta(),
                training,
                self.compressor.gradient_map(
                    self._budgets[0], self._context(round, SERVER)
                ),
                self._model.train_clients,
                self._workspace,
            )
        loss = float(trained.losses.sum()) / trained.n_samples
        if not isfinite(loss):
            raise NonFiniteError(
                f"round {round}: local training is not finite any more (loss "
                f"{loss:.4g}); lower learning_rate="
                f"{training.learning_rate} or theta_learning_rate="
                f"{training.theta_learning_rate}"
            )
        return trained

    def _upload(self, updates: CohortUpdate) -> Iterator[tuple[RowUpdate, Tensor]]:
        """Send each client's update; yield what the server decodes."""
        ctxs = [
            self._context(self.server.round, client)
            for client in updates.clients.tolist()
        ]
        tiers = self._tier_of_client[updates.clients].tolist()
        with self._time("compression"):
            payloads = self.compressor.encode_cohort(
                updates, [self._budgets[tier] for tier in tiers], ctxs
            )
        n_theta = len(self.server.theta)
        for payload, theta, ctx in zip(payloads, updates.theta, ctxs, strict=True):
            with self._time("serialisation"):
                message = Message.of(put_theta(payload, theta))
                received = self._channel.send("uplink", message)
            with self._time("compression"):
                update = self.compressor.decode(received, ctx)
            yield update, get_theta(received, n_theta)

    def _publish(self, update: RowUpdate, theta_change: Tensor) -> None:
        """Encode the aggregate; every client applies what he decodes from it."""
        ctx = self._context(self.server.round, SERVER)
        with self._time("compression"):
            feedback = self.federation.downlink_feedback
            held = self.replica.tables[0] if feedback else None
            self.server.publish(update, theta_change, ctx, held)
            payloads = [message.payload for message in self.server.messages]
            decoded = [self.compressor.decode(payload, ctx) for payload in payloads]
        # A client who missed it would not need its theta: the next one replaces it.
        sizes = [
            len(message.data) - message.part_bytes["theta"]
            for message in self.server.messages
        ]
        self.replica.publish(decoded, sizes)
        theta = get_theta(payloads[0], len(self.server.theta))
        _unflatten(theta, self._model.theta())

    def _context(self, round: int, sender: int) -> RoundContext:
        budget = self._budgets[0]
        return RoundContext(
            round, self.federation.seed, budget.n_items, budget.dim, sender
        )

    @contextmanager
    def _time(self, phase: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self._seconds[phase] += perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next round depends on, besides the model's parameters."""
        return {
            "server": self.server.state_dict(),
            "replica": self.replica.state_dict(),
            "ledger": self.ledger.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.server.load_state_dict(state["server"])
        self.replica.load_state_dict(state["replica"])
        self.ledger.load_state_dict(state["ledger"])


def _flatten(theta: Mapping[str, Tensor]) -> Tensor:
    if not theta:
        return torch.zeros(0)
    return torch.cat([value.reshape(-1) for value in theta.values()])


def _unflatten(flat: Tensor, theta: Mapping[str, Tensor]) -> None:
    """Copy a flat network into the parameters, in their order."""
    start = 0
    for value in theta.values():
        value.copy_(flat[start : start + value.numel()].reshape(value.shape))
        start += value.numel()
