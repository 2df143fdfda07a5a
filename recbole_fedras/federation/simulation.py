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
    CohortUpdate,
    Compressor,
    RoundContext,
    RowUpdate,
)
from recbole_fedras.data.clients import ClientData, Ints, Samples, draw_samples
from recbole_fedras.data.local import TrainClients
from recbole_fedras.embedding import ItemEmbedding
from recbole_fedras.federation.broadcast import BroadcastReplicas, FeedbackReplicas
from recbole_fedras.federation.budgets import hold_to, make_budgets
from recbole_fedras.federation.client.feedback import UplinkFeedback
from recbole_fedras.federation.client.objective import Score
from recbole_fedras.federation.client.training import (
    LocalModel,
    Participants,
    Trained,
    Workspace,
    train_cohort,
)
from recbole_fedras.federation.personal import PersonalReplicas, StaleReplicas
from recbole_fedras.federation.replica import Holder, Replicas
from recbole_fedras.federation.server.aggregation import aggregate, mean_theta
from recbole_fedras.federation.server.selection import (
    assign_tiers,
    cohort_size,
    select_cohort,
)
from recbole_fedras.federation.server.state import Server, get_theta, put_theta
from recbole_fedras.federation.settings import Federation, LocalTraining
from recbole_fedras.numeric.parallel import thread_map, threads
from recbole_fedras.numeric.rng import Stream, counter_key
from recbole_fedras.numeric.theta import flatten, unflatten
from recbole_fedras.wire.ledger import Channel, Ledger
from recbole_fedras.wire.message import Message

PHASES = ("local_training", "compression", "serialisation", "aggregation")

#: Clients that a thread draws and trains at a time; on another device, all together.
GROUP = 16

#: Updates of a cohort held at a time, about; the rest waits its turn.
PART_BYTES = 2**27


class NonFiniteError(ArithmeticError):
    """A loss, parameter or score that is not finite."""


class FederatedModel(Holder, Protocol):
    """What the simulation needs of a model; ids count from 0."""

    score: Score
    train_clients: TrainClients | None
    embedding: ItemEmbedding | None

    def client_rows(self) -> Tensor:
        """Private rows, shape (n_clients, dim); a view."""

    def theta(self) -> Mapping[str, Tensor]:
        """Network parameters by name; views."""


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What a round did and cost: one row of ``rounds.csv``.

    Attributes
    ----------
    loss : float
        Of a training sample, the mean: binary cross-entropy, LightFR's squared error;
        or of a pair, BPR's.
    n_clients : int
    bytes : dict of str to int
        The round of the ledger.
    metrics : dict of str to float
        What replicas and the downlink's compressor report.
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
    uplink, downlink : Compressor
        One of each; the same object may serve as both.
    federation : Federation
    training : LocalTraining
    n_jobs : int
        Threads, -1 for one per core; results do not depend on it.
    once : Message, optional
        What each client is sent once, with his first downlink here.
    round : int
        Rounds completed before.

    Raises
    ------
    ValueError
        If a compressor cannot work at a compression rate, or a cohort is empty.
    """

    def __init__(
        self,
        model: FederatedModel,
        clients: ClientData,
        uplink: Compressor,
        downlink: Compressor,
        federation: Federation,
        training: LocalTraining,
        n_jobs: int = 1,
        once: Message | None = None,
        round: int = 0,
    ) -> None:
        self._n_jobs = n_jobs
        self.clients = clients
        self.uplink = uplink
        self.federation = federation
        self.training = training
        self._model = model
        self._eligible = clients.eligible
        self._cohort_size = cohort_size(len(self._eligible), federation.client_fraction)
        rates = federation.compression_rates
        self._tier_of_client = torch.from_numpy(
            assign_tiers(clients.n_clients, len(rates), federation.seed)
        )
        self.server = Server(
            model.replicas()[0], flatten(model.theta()), federation.optimization, round
        )
        n_items, dim = self.server.item_table.shape
        self._budgets = make_budgets(
            federation, n_items, dim, len(self.server.theta), {uplink, downlink}
        )
        self.ledger = Ledger()
        self._channel = Channel(self.ledger)
        self.replicas = _policy(federation)(
            model,
            self.server,
            downlink,
            self._budgets,
            self._tier_of_client,
            self._cohort_size,
            federation.seed,
            self._channel,
        )
        self.feedback = (
            UplinkFeedback(clients.n_clients, n_items, dim, self._cohort_size)
            if federation.uplink_feedback
            else None
        )
        self._user_states = (
            torch.zeros(clients.n_clients, 2 * model.client_rows().shape[1] + 1)
            if training.user_optimizer == "adam"
            else None
        )
        self.once = once
        self._has_once = torch.zeros(clients.n_clients, dtype=torch.bool)
        self._workspace = Workspace()
        self._seconds: dict[str, float] = {}

    def go_on_from(self, other: Simulation) -> None:
        """Take over another simulation's ledger and its users' optimizer states."""
        self.ledger.load_state_dict(other.ledger.state_dict())
        self._user_states = other._user_states

    @property
    def round(self) -> int:
        """Rounds completed."""
        return self.server.round

    @property
    def embedding(self) -> ItemEmbedding | None:
        """What items are made of."""
        return self._model.embedding

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
            try:
                return self._run_round()
            except BaseException:
                self._rollback()
                raise

    def _run_round(self) -> RoundReport:
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self.ledger.open_round()
        round, seed = self.server.round, self.federation.seed
        cohort = select_cohort(self._eligible, self._cohort_size, seed, round)
        combined = aggregate(self.federation.aggregation, self.server.item_table)
        theta_changes: list[Tensor] = []
        user_rows: list[Tensor] = []
        user_states: list[Tensor] = []
        losses: list[Tensor] = []
        n_samples = 0
        for part in self._parts(cohort):
            if self.once is not None:
                new = int((~self._has_once[part]).sum())
                self._channel.send("downlink", self.once, new)
            with self._time("compression"):
                self.replicas.deliver(torch.from_numpy(part))
            trained = self._train(part)
            user_rows.append(trained.user_rows)
            if trained.user_states is not None:
                user_states.append(trained.user_states)
            losses.append(trained.losses)
            n_samples += int(trained.n_samples.sum())
            for update, theta_change in self._upload(trained.updates):
                theta_changes.append(theta_change)
                with self._time("aggregation"):
                    combined.add(update)
        with self._time("aggregation"):
            update = combined.update()
            update = self.server.step(update, mean_theta(theta_changes))
        with self._time("compression"):
            self.replicas.publish(update)
        states = torch.cat(user_states).cpu() if user_states else None
        self._commit(torch.from_numpy(cohort), torch.cat(user_rows), states)
        return RoundReport(
            float(torch.cat(losses).sum()) / n_samples,
            len(cohort),
            self.ledger.close_round(),
            self.replicas.metrics(torch.from_numpy(cohort)),
            self._seconds,
        )

    def _commit(
        self, cohort: Tensor, user_rows: Tensor, user_states: Tensor | None
    ) -> None:
        """Put into force what the round changed; nothing here can fail."""
        self._model.client_rows()[cohort] = user_rows
        if self._user_states is not None and user_states is not None:
            self._user_states[cohort] = user_states
        self._has_once[cohort] = True
        self.server.commit()
        self.replicas.commit(cohort)
        if self.feedback is not None:
            self.feedback.commit()
        newest = unflatten(self.server.theta, self._model.theta())
        for name, value in self._model.theta().items():
            value.copy_(newest[name])

    def _rollback(self) -> None:
        self.server.rollback()
        self.replicas.rollback()
        if self.feedback is not None:
            self.feedback.rollback()

    def _parts(self, cohort: Ints) -> list[Ints]:
        """Split a cohort where the updates of a part reach ``PART_BYTES``.

        On the CPU groups stay whole, so that parts of another size change no bit.
        """
        n_items, dim = self.server.item_table.shape
        counts = self.clients.offsets[cohort + 1] - self.clients.offsets[cohort]
        n_negatives = self.training.local_epochs * self.training.n_negatives
        n_parts = 1 if self._model.embedding is None else self._model.embedding.n_parts
        n_rows = np.minimum(counts * (1 + n_negatives) * n_parts, n_items)
        starts = np.arange(0, len(cohort), GROUP)
        sizes = np.add.reduceat(n_rows, starts) * dim * 4
        filled = np.cumsum(sizes) // PART_BYTES
        return np.split(cohort, starts[1:][np.diff(filled) > 0])

    def _train(self, part: Ints) -> Trained:
        training, round = self.training, self.server.round
        clients = torch.from_numpy(part)
        tables = self.replicas.tables
        width = GROUP if tables.device.type == "cpu" else len(part)
        key = counter_key(self.federation.seed, Stream.SAMPLES, round)

        def draw(start: int) -> Samples:
            group = part[start : start + width]
            n_negatives, n_epochs = training.n_negatives, training.local_epochs
            return draw_samples(
                self.clients, group, n_negatives, n_epochs, key, training.pairwise
            )

        with self._time("local_training"):
            trained = train_cohort(
                LocalModel(
                    self._model.score,
                    self._model.theta(),
                    self._model.train_clients,
                    self._model.embedding,
                ),
                Participants(
                    clients,
                    self._model.client_rows()[clients],
                    self._states_of(clients),
                    tables,
                    self.replicas.tables_of(clients),
                ),
                thread_map(draw, range(0, len(part), width)),
                training,
                self.uplink.gradient_map(
                    self._budgets[0], self._context(round, SERVER)
                ),
                self._workspace,
            )
        loss = float(trained.losses.sum()) / int(trained.n_samples.sum())
        if not isfinite(loss):
            rates = {
                "learning_rate": training.learning_rate,
                "theta_learning_rate": training.theta_learning_rate,
            }
            if training.upload_gradient:
                rates = {"user_learning_rate": training.user_learning_rate}
            rates["server_learning_rate"] = self.federation.optimization.learning_rate
            lower = ", ".join(f"{key}={rate}" for key, rate in rates.items())
            raise NonFiniteError(
                f"round {round}: local training is not finite any more (loss "
                f"{loss:.4g}); lower one of {lower}"
            )
        return trained

    def _states_of(self, clients: Tensor) -> Tensor | None:
        if self._user_states is None:
            return None
        return self._user_states[clients].to(self.replicas.tables.device)

    def _upload(self, updates: CohortUpdate) -> Iterator[tuple[RowUpdate, Tensor]]:
        """Send each client's update; yield what the server decodes."""
        round = self.server.round
        clients = updates.clients.tolist()
        held = self.replicas.tables_of(updates.clients).tolist()
        ctxs = [
            self._context(round, client, self.replicas.tables[table])
            for client, table in zip(clients, held, strict=True)
        ]
        tiers = self._tier_of_client[updates.clients].tolist()
        n_theta = len(self.server.theta)
        with self._time("compression"):
            if self.feedback is not None:
                self.feedback.add_to(updates)
            budgets = [self._budgets[tier] for tier in tiers]
            payloads = self.uplink.encode_cohort(updates, budgets, ctxs)
            for payload, budget in zip(payloads, budgets, strict=True):
                hold_to(budget, payload, self.uplink)
        with self._time("serialisation"):
            received = [
                self._channel.send(
                    "uplink", Message.of(put_theta(payload, theta), round + 1, round)
                ).open(round, self.replicas.most_bytes)
                for payload, theta in zip(payloads, updates.theta, strict=True)
            ]
        with self._time("compression"):
            decoded = iter(self.uplink.decode_cohort(received, ctxs))
        for index, payload in enumerate(received):
            with self._time("compression"):
                update = next(decoded)
                if self.feedback is not None:
                    self.feedback.keep(clients[index], updates[index], update)
            yield update, get_theta(payload, n_theta)

    def _context(
        self, round: int, sender: int, base: Tensor | None = None
    ) -> RoundContext:
        n_items, dim = self.server.item_table.shape
        seed = self.federation.seed
        return RoundContext(round, seed, n_items, dim, sender, base=base)

    @contextmanager
    def _time(self, phase: str) -> Iterator[None]:
        start = perf_counter()
        yield
        self._seconds[phase] += perf_counter() - start

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next round depends on, besides the model's parameters."""
        return {
            "server": self.server.state_dict(),
            "replicas": self.replicas.state_dict(),
            "feedback": self.feedback.state_dict() if self.feedback else None,
            "ledger": self.ledger.state_dict(),
            "once": self.once.data if self.once else None,
            "has_once": self._has_once,
            "user_states": self._user_states,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned; the model is restored already."""
        self.server.load_state_dict(state["server"])
        self.replicas.load_state_dict(state["replicas"])
        if self.feedback is not None:
            self.feedback.load_state_dict(state["feedback"])
        self.ledger.load_state_dict(state["ledger"])
        self._has_once.copy_(state["has_once"])
        if self._user_states is not None:
            self._user_states.copy_(state["user_states"])


def _policy(federation: Federation) -> type[Replicas]:
    if federation.replica == "stale":
        return StaleReplicas
    if federation.replica == "personal":
        return PersonalReplicas
    return FeedbackReplicas if federation.downlink_feedback else BroadcastReplicas
