"""One federated round, as data flows (FedRAS, KDD 2025, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from time import perf_counter
from typing import Any, Protocol

import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

from recbole_fedras.compressor.base import (
    SERVER,
    Budget,
    Compressor,
    RoundContext,
    RowUpdate,
    raw_payload,
)
from recbole_fedras.data.clients import ClientData, draw_samples
from recbole_fedras.federation.aggregation import aggregate_rows, aggregate_theta
from recbole_fedras.federation.cohort import Score, Trained, train_cohort
from recbole_fedras.federation.replica import BroadcastReplica
from recbole_fedras.federation.sampling import (
    assign_tiers,
    cohort_size,
    select_cohort,
)
from recbole_fedras.federation.server import Server, get_theta, put_theta
from recbole_fedras.federation.settings import Federation, LocalTraining
from recbole_fedras.rng import Stream, generator
from recbole_fedras.wire.channel import Channel, Ledger
from recbole_fedras.wire.payload import Message

PHASES = ("local_training", "compression", "serialisation", "aggregation")


class NonFiniteError(ArithmeticError):
    """A loss, parameter or score that is not finite."""


class FederatedModel(Protocol):
    """What the simulation needs of a model; ids count from 0."""

    score: Score
    train_client: Callable[..., float] | None

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
    ) -> None:
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
        self._seconds: dict[str, float] = {}

    @property
    def round(self) -> int:
        """Rounds completed."""
        return self.server.round

    def run_round(self) -> RoundReport:
        """Select, send down, train, send up, aggregate, publish.

        Raises
        ------
        NonFiniteError
            If local training diverged; the state is still that of the round before.
        """
        with _single_threaded():
            return self._run_round()

    def _run_round(self) -> RoundReport:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        round = self.server.round
        cohort = torch.from_numpy(
            select_cohort(
                self._eligible, self._cohort_size, self.federation.seed, round
            )
        )
        trained = self._train(cohort)
        self._download(cohort)
        self._model.client_rows()[cohort] = trained.user_rows
        received, theta_change = self._upload(trained)
        with self._time("aggregation"):
            n_items, dim = self.server.item_table.shape
            update = aggregate_rows(received, n_items, dim, self.federation.aggregation)
        self._publish(update, theta_change)
        metrics = self.compressor.metrics() | {
            "drift": self.server.drift(self.replica.tables[0])
        }
        return RoundReport(
            trained.loss,
            len(cohort),
            self.ledger.close_round(),
            metrics,
            self._seconds,
        )

    def _download(self, cohort: Tensor) -> None:
        """Send the newest downlink to the cohort; its bytes are those applied."""
        receivers = torch.bincount(
            self._tier_of_client[cohort], minlength=len(self._budgets)
        )
        for message, count in zip(self.server.messages, receivers, strict=True):
            self._channel.send("downlink", message, int(count))
        self.ledger.note("catch_up_bytes", self.replica.receive(cohort))
        self.ledger.note("dense_bytes", self._dense_participation * len(cohort))

    def _train(self, cohort: Tensor) -> Trained:
        with self._time("local_training"):
            round, seed = self.server.round, self.federation.seed
            samples = [
                draw_samples(
                    self.clients,
                    client,
                    self.training.n_negatives,
                    self.training.local_epochs,
                    generator(seed, Stream.SAMPLES, round, client),
                )
                for client in cohort.tolist()
            ]
            gradient_map = self.compressor.gradient_map(
                self._budgets[0], self._context(round, SERVER)
            )
            trained = train_cohort(
                self._model.score,
                cohort,
                samples,
                self._model.client_rows()[cohort],
                self.replica.tables,
                self._tier_of_client[cohort],
                self._model.theta(),
                self.training,
                gradient_map,
                self._model.train_client,
            )
        tensors = (trained.user_rows, trained.updates.rows, trained.updates.theta)
        finite = all(bool(tensor.isfinite().all()) for tensor in tensors)
        if not finite or not isfinite(trained.loss):
            raise NonFiniteError(
                f"round {round}: local training is not finite any more (loss "
                f"{trained.loss:.4g}); lower learning_rate="
                f"{self.training.learning_rate} or theta_learning_rate="
                f"{self.training.theta_learning_rate}"
            )
        return trained

    def _upload(self, trained: Trained) -> tuple[list[RowUpdate], Tensor]:
        updates = trained.updates
        ctxs = [
            self._context(self.server.round, client)
            for client in updates.clients.tolist()
        ]
        tiers = self._tier_of_client[updates.clients].tolist()
        with self._time("compression"):
            payloads = self.compressor.encode_cohort(
                updates, [self._budgets[tier] for tier in tiers], ctxs
            )
        with self._time("serialisation"):
            messages = [
                Message.of(put_theta(payload, theta))
                for payload, theta in zip(payloads, updates.theta, strict=True)
            ]
            payloads = [self._channel.send("uplink", message) for message in messages]
        with self._time("compression"):
            received = [
                self.compressor.decode(payload, ctx)
                for payload, ctx in zip(payloads, ctxs, strict=True)
            ]
        n_theta = len(self.server.theta)
        changes = torch.stack([get_theta(payload, n_theta) for payload in payloads])
        return received, aggregate_theta(changes)

    def _publish(self, update: RowUpdate, theta_change: Tensor) -> None:
        """Encode the aggregate; every client applies what he decodes from it."""
        ctx = self._context(self.server.round, SERVER)
        with self._time("compression"):
            self.server.publish(update, theta_change, ctx)
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


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Leave the cores to our threads over clients, each single-threaded inside.

    The pools of torch and BLAS split small operations, stall when a core is busy
    elsewhere, and may round differently with another number of threads.
    """
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(n_threads)


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
