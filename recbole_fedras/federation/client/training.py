"""Local training of a cohort: many clients at once, each for itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.compressor.base import CohortUpdate
from recbole_fedras.data.clients import Ints, Samples
from recbole_fedras.data.local import Descent, TrainClients
from recbole_fedras.embedding.base import ItemEmbedding, LocalRows, local_rows
from recbole_fedras.federation.client.group import (
    Group,
    train_batched,
    train_compiled,
)
from recbole_fedras.federation.client.objective import Objective, Score
from recbole_fedras.federation.settings import LocalTraining
from recbole_fedras.numeric.parallel import thread_map
from recbole_fedras.numeric.theta import Theta, flatten


class LocalModel(NamedTuple):
    """What clients need to know of the model to train it.

    Attributes
    ----------
    score : callable
        ``score(user_rows, item_rows, theta)``, see ``FederatedRecommender.score``.
    theta : mapping of str to Tensor
        The network that every participant starts from.
    train_clients : callable, optional
        Compiled training, ``FederatedRecommender.train_clients``. It is used on the
        CPU, without an ``embedding`` and with plain SGD of users; its results equal
        those of the general path to rounding.
    embedding : ItemEmbedding, optional
        What items are made of; by default a row of the table each.
    device : torch.device
        Where clients train; all that they hold and send is on the CPU.
    """

    score: Score
    theta: Theta
    train_clients: TrainClients | None = None
    embedding: ItemEmbedding | None = None
    device: torch.device = torch.device("cpu")

    @property
    def on_cpu(self) -> bool:
        """Whether clients train where they are."""
        return self.device.type == "cpu"

    def placed(self) -> LocalModel:
        """Return a copy whose tensors are where clients train."""
        if self.on_cpu:
            return self
        theta = {name: value.to(self.device) for name, value in self.theta.items()}
        embedding = copy.deepcopy(self.embedding)
        if embedding is not None:
            embedding.to(self.device)
        return self._replace(theta=theta, embedding=embedding)


class Participants(NamedTuple):
    """Who trains, and the parameters that they start from.

    Attributes
    ----------
    clients : Tensor of int64, shape (n_clients,)
    user_rows : Tensor, shape (n_clients, dim)
    user_states : Tensor or None, shape (n_clients, 2 dim + 1)
        Of the users' Adam, see ``adam_step``; None: users take plain steps.
    tables : Tensor, shape (n_tables, n_rows, width)
        Replicas; client c holds ``tables[table_of_client[c]]``.
    table_of_client : Tensor of int64, shape (n_clients,)
        On the CPU.
    """

    clients: Tensor
    user_rows: Tensor
    user_states: Tensor | None
    tables: Tensor
    table_of_client: Tensor

    def to(self, device: torch.device) -> Participants:
        """Return the same with their parameters on a device."""
        states = self.user_states
        return self._replace(
            user_rows=self.user_rows.to(device),
            user_states=None if states is None else states.to(device),
            tables=self.tables.to(device),
        )


@dataclass(frozen=True, slots=True)
class Trained:
    """What local training leaves behind.

    Attributes
    ----------
    user_rows : Tensor, shape (n_clients, dim)
        New private rows, for the clients themselves.
    updates : CohortUpdate
        Change of the shared parameters, for the server.
    losses : Tensor of float64, shape (n_clients,)
        The model's, summed over each client's samples (BPR: pairs) when they were
        trained on; not finite where anything else of the client here is not.
    n_samples : Tensor of int64, shape (n_clients,)
        Of BPR, pairs.
    user_states : Tensor or None, shape (n_clients, 2 dim + 1)
        Of the users' Adam.
    """

    user_rows: Tensor
    updates: CohortUpdate
    losses: Tensor
    n_samples: Tensor
    user_states: Tensor | None = None


class Workspace:
    """Memory for the rows of a cohort's updates, used again and again.

    To touch fresh memory for the first time takes longer than to train in it.
    """

    def __init__(self) -> None:
        self._memory = np.empty(0, np.float32)

    def rows(self, n: int, dim: int, device: torch.device) -> Tensor:
        """Return (n, dim) floats, which overwrite those of the call before."""
        if device.type != "cpu":
            return torch.empty(n, dim, device=device)
        if self._memory.size < n * dim:
            self._memory = np.empty(n * dim, np.float32)
        return torch.from_numpy(self._memory[: n * dim].reshape(n, dim))


def train_cohort(
    model: LocalModel,
    participants: Participants,
    groups: Sequence[Samples],
    training: LocalTraining,
    gradient_map: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Trained:
    """Train every client of a cohort from the shared parameters that it holds.

    Each client copies the rows that it touches into a compact local table and runs
    ``local_epochs`` of SGD in steps of ``batch_size`` samples. Step k of all clients
    of a group is one tensor operation over a padded batch (n_clients, batch_size);
    compiled training takes client after client. Clients never see each other's rows:
    but for rounding, who else is in the cohort changes nothing. Groups run in threads.

    Parameters
    ----------
    model : LocalModel
    participants : Participants
        Not changed.
    groups : sequence of Samples
        Of all clients in their order, some at a time; no client's are empty.
    training : LocalTraining
    gradient_map : Tensor, shape (width, width), optional
        Applied to item gradients, see ``Compressor.gradient_map``.
    workspace : Workspace, optional
        Holds the updates returned, until it is used again.
    """
    clients, user_rows, user_states, tables, _ = participants.to(model.device)
    local = thread_map(lambda samples: local_rows(samples, model.embedding), groups)
    n_rows = sum(len(rows.ids) for rows in local)
    n_theta = sum(value.numel() for value in model.theta.values())
    # What is returned: groups write their results into it, side by side.
    results = _Results(
        user_rows.clone(),
        None if user_states is None else user_states.clone(),
        (workspace or Workspace()).rows(n_rows, tables.shape[-1], model.device),
        torch.empty(len(clients), n_theta, device=model.device),
    )
    train = _trainer(model.placed(), training, gradient_map)
    losses = thread_map(
        lambda group: group.mark(train(group)),
        _split(participants._replace(tables=tables), groups, local, results),
    )
    results = results.cpu()
    updates = CohortUpdate(
        clients=clients,
        offsets=_join([rows.offsets for rows in local]),
        ids=torch.from_numpy(np.concatenate([rows.ids for rows in local])),
        rows=results.changes,
        theta=results.theta_changes,
    )
    n_samples = _join([samples.sample_offsets for samples in groups]).diff()
    return Trained(
        results.users,
        updates,
        torch.cat(losses).cpu(),
        n_samples // (1 + training.pairwise),
        results.states,
    )


class _Results(NamedTuple):
    """What becomes of a cohort's parameters; see :class:`Group`."""

    users: Tensor
    states: Tensor | None
    changes: Tensor
    theta_changes: Tensor

    def cpu(self) -> _Results:
        """Return them where clients keep and compress them."""
        states = None if self.states is None else self.states.cpu()
        changes, of_theta = self.changes.cpu(), self.theta_changes.cpu()
        return _Results(self.users.cpu(), states, changes, of_theta)


def _split(
    participants: Participants,
    groups: Sequence[Samples],
    local: Sequence[LocalRows],
    results: _Results,
) -> Iterator[Group]:
    """Yield groups, with views of their parts of the results."""
    start = first = 0
    for samples, rows in zip(groups, local, strict=True):
        stop, last = start + samples.n_clients, first + len(rows.ids)
        yield Group(
            samples,
            rows,
            participants.tables,
            participants.table_of_client[start:stop],
            results.users[start:stop],
            None if results.states is None else results.states[start:stop],
            results.changes[first:last],
            results.theta_changes[start:stop],
        )
        start, first = stop, last


def _join(offsets: Sequence[Ints]) -> Tensor:
    """Return the offsets of groups that lie one behind the other, as of one."""
    counts = np.concatenate([np.diff(of_group) for of_group in offsets])
    return torch.from_numpy(np.concatenate([[0], np.cumsum(counts)]))


def _trainer(
    model: LocalModel, training: LocalTraining, gradient_map: Tensor | None
) -> Callable[[Group], Tensor]:
    """Return what trains a group and returns its losses: compiled where that serves."""
    plain = model.embedding is None and training.user_optimizer == "sgd"
    if model.train_clients is None or not plain or not model.on_cpu:
        mapping = None if gradient_map is None else gradient_map.to(model.device)
        objective = Objective(model.score, training, model.embedding, mapping)
        return partial(train_batched, objective, model.theta)
    mapping = torch.empty(0, 0) if gradient_map is None else gradient_map
    descent = Descent(
        training.batch_size,
        training.learning_rate,
        training.user_learning_rate,
        training.theta_learning_rate,
        training.weight_decay,
        training.rho_shared,
        training.rho_private,
        training.pairwise,
        training.upload_gradient,
        mapping.numpy(),
    )
    theta = flatten(model.theta).numpy()
    return partial(train_compiled, model.train_clients, theta, descent)
