"""A small population without RecBole: its data, its models, naive local training."""

from __future__ import annotations

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from recbole_fedras.data.clients import ClientData, Samples, draw_samples
from recbole_fedras.federation.client.training import (
    LocalModel,
    Participants,
    train_cohort,
)
from recbole_fedras.federation.server.aggregation import FedAvg, InverseFrequency
from recbole_fedras.federation.server.broadcast import Broadcast
from recbole_fedras.federation.server.grid import Grid
from recbole_fedras.federation.server.personal import Personal, Stale
from recbole_fedras.federation.settings import Federation, LocalTraining
from recbole_fedras.federation.simulation import Methods, Simulation
from recbole_fedras.model import MF, NCF
from recbole_fedras.model.settings import ModelSettings
from recbole_fedras.numeric.parallel import threads
from recbole_fedras.numeric.rng import Stream, counter_key
from recbole_fedras.wire.message import Message

N_CLIENTS, N_ITEMS, DIM = 12, 40, 8
BASE = 0.5 * torch.randn(N_ITEMS, DIM, generator=torch.Generator().manual_seed(3))
TRAINING = LocalTraining(0.1, 0.07, 0.2, local_epochs=2, batch_size=16, n_negatives=4)


class Catalogue:
    """Numbers of users and items, [PAD] included: what a model asks a dataset for."""

    def num(self, field: str) -> int:
        return 1 + {"user_id": N_CLIENTS, "item_id": N_ITEMS}[field]


class Keys(dict):
    """Keys that RecBole's recommenders read, and settings of ours, without a file."""

    def __init__(self, std: float, **keys) -> None:
        super().__init__(USER_ID_FIELD="user_id", ITEM_ID_FIELD="item_id", **keys)
        self |= {"NEG_PREFIX": "neg_", "device": torch.device("cpu")}
        self._std = std

    def model_settings(self) -> ModelSettings:
        return ModelSettings(DIM, self._std, 0, "label", warmup_rounds=0)

    def item_embedding_of(self, dataset: Catalogue) -> None:
        return None

    def make_item_embedding(self, n_items: int, dim: int, source=None) -> None:
        return None


def mf(std: float = 0.5) -> MF:
    return MF(Keys(std), Catalogue())


def ncf(hidden=(6, 4)) -> NCF:
    return NCF(Keys(0.5), Catalogue(), mlp_hidden_size=list(hidden))


def make_data() -> ClientData:
    """Up to eleven items for each client."""
    rng = np.random.default_rng(3)
    pairs = [
        (user, item)
        for user in range(N_CLIENTS)
        for item in rng.choice(N_ITEMS, rng.integers(1, 12), replace=False)
    ]
    users, items = np.array(pairs).T
    return ClientData.from_pairs(users, items, N_CLIENTS, N_ITEMS)


class Sample(NamedTuple):
    """What one client trains on."""

    ids: np.ndarray
    rows: np.ndarray
    labels: np.ndarray


def draw(data: ClientData, clients, training=TRAINING, round=0) -> Samples:
    key = counter_key(1, Stream.SAMPLES, round)
    group = np.array(clients)
    counts = training.n_negatives, training.local_epochs
    return draw_samples(data, group, *counts, key, training.pairwise)


def samples_of(data: ClientData, clients, training=TRAINING) -> list[Sample]:
    return [Sample(*draw(data, [client], training).of(0)) for client in clients]


def naive_client(model, client, sample, training, mapping=None):
    """One client, one sample after the other into a batch, autograd on full tables."""
    user = model.user_rows()[client].clone().requires_grad_()
    table = model.item_table().clone().requires_grad_()
    theta = {
        name: value.clone().requires_grad_() for name, value in model.theta().items()
    }
    leaves, decay = [user, table, *theta.values()], training.weight_decay
    for rows, labels in zip(sample.rows, sample.labels, strict=True):
        for start in range(0, len(rows), training.batch_size):
            own = slice(start, start + training.batch_size)
            items = torch.from_numpy(sample.ids[rows[own]])
            label = torch.from_numpy(labels[own])

            def slopes(leaves, items=items, label=label):
                user, table, *network = leaves
                named = zip(theta, network, strict=True)
                logits = model.score(
                    user[None, None],
                    table[items][None],
                    {name: value[None] for name, value in named},
                )[0]
                if training.pairwise:
                    pairs = logits.view(-1, 2)
                    loss = torch.log1p(torch.exp(pairs[:, 1] - pairs[:, 0])).sum()
                else:
                    loss = bce(logits, label, reduction="sum")
                user_slope, table_slope, *rest = torch.autograd.grad(loss, leaves)
                if mapping is not None:
                    table_slope = table_slope @ mapping
                return [user_slope, table_slope, *rest]

            gradients = slopes(leaves)
            if training.sharpness_aware:
                private, shared = gradients[:1], gradients[1:]
                uphill = [
                    training.rho_private * private[0] / (private[0].norm() + 1e-12),
                    *(
                        training.rho_shared
                        * gradient
                        / (sum(other.square().sum() for other in shared).sqrt() + 1e-12)
                        for gradient in shared
                    ),
                ]
                gradients = slopes(
                    [
                        (leaf.detach() + eps).requires_grad_()
                        for leaf, eps in zip(leaves, uphill, strict=True)
                    ]
                )
            with torch.no_grad():
                pull = torch.zeros_like(table)
                pull[items] = decay * table[items]
                pull = pull if mapping is None else pull @ mapping
                user -= training.user_learning_rate * (gradients[0] + decay * user)
                table -= training.learning_rate * (gradients[1] + pull)
                for value, gradient in zip(theta.values(), gradients[2:], strict=True):
                    mean = gradient / (len(label) // (1 + training.pairwise))
                    value -= training.theta_learning_rate * (mean + decay * value)
    changes = [theta[name] - model.theta()[name] for name in theta]
    flat = torch.cat([change.flatten() for change in changes]) if changes else None
    return user.detach(), (table - model.item_table()).detach(), flat


def train(
    model, data, clients, compiled, training=TRAINING, mapping=None, group=64, n_jobs=1
):
    starts = range(0, len(clients), group)
    groups = [draw(data, clients[start : start + group], training) for start in starts]
    with threads(n_jobs):
        return train_groups(model, clients, groups, compiled, training, mapping)


def train_groups(model, clients, groups, compiled, training, mapping=None, states=None):
    return train_cohort(
        LocalModel(
            model.score,
            model.theta(),
            model.train_clients if compiled else None,
            model.embedding,
        ),
        Participants(
            torch.tensor(clients),
            model.user_rows()[clients],
            states,
            model.item_table()[None],
            torch.zeros(len(clients), dtype=torch.int64),
        ),
        groups,
        training,
        mapping,
    )


def federation(fraction=1.0, rates=(0.0,), aggregation="inverse_frequency", **keys):
    return Federation(1, fraction, rates, aggregation, **keys)


AGGREGATORS = {"inverse_frequency": InverseFrequency, "fedavg": FedAvg}
POLICIES = {"grid": Grid, "broadcast": Broadcast, "stale": Stale, "personal": Personal}


def ready_methods(
    compressor, settings: Federation, transforms=(), attack=None
) -> Methods:
    """Make the objects of a run, one of each kind."""
    aggregator = AGGREGATORS[settings.aggregation]()
    downlink, policy = copy.deepcopy(compressor), POLICIES[settings.replica]
    return Methods(compressor, downlink, aggregator, policy, transforms, attack)


DEFAULTS = {"transforms": (), "attack": None}


def simulate(model, data, compressor, training=TRAINING, fraction=0.25, **keys):
    """Make a simulation; further keys are those of ``federation``, or of Simulation."""
    more = {key: keys.pop(key) for key in ("n_jobs",) if key in keys}
    of_methods = {key: keys.pop(key, of) for key, of in DEFAULTS.items()}
    settings = federation(fraction, keys.pop("rates", (0.75,)), **keys)
    made = ready_methods(compressor, settings, **of_methods)
    return Simulation(model, data, made, settings, training, **more)


def tables(simulation: Simulation) -> torch.Tensor:
    """Return all tables that clients hold."""
    return simulation.shard.replicas.tables


def held_by(simulation: Simulation, client: int) -> torch.Tensor:
    """Return the table that a client holds; a view."""
    replicas = simulation.shard.replicas
    return replicas.tables[int(replicas.table_of([client])[0])]


def note_messages(simulation: Simulation, monkeypatch) -> list[Message]:
    """Return a list that all messages go to, as they are booked."""
    booked: list[Message] = []
    book = simulation.ledger.book

    def note(message):
        booked.append(message)
        book(message)

    monkeypatch.setattr(simulation.ledger, "book", note)
    return booked
