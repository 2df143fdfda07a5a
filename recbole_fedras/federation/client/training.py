"""Local training of a cohort: many clients at once, each by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.compressor.base import CohortUpdate
from recbole_fedras.data.clients import Samples
from recbole_fedras.embedding.base import ItemEmbedding, LocalRows, local_rows
from recbole_fedras.federation.client.adam import adam_step
from recbole_fedras.federation.client.batches import Schedule
from recbole_fedras.federation.client.objective import Objective, Score
from recbole_fedras.federation.settings import LocalTraining
from recbole_fedras.numeric.parallel import thread_map
from recbole_fedras.numeric.theta import flatten

TrainClients = Callable[..., float]


@dataclass(frozen=True, slots=True)
class Trained:
    """What local training leaves behind.

    Attributes
    ----------
    user_rows : Tensor, shape (n_clients, dim)
        New private rows, for the clients themselves.
    updates : CohortUpdate
        Change of the shared parameters, for the server.
    losses : Tensor of float64, shape (n_groups,)
        Binary cross-entropy (LightFR: squared error; BPR: of pairs), summed over all
        samples when they were trained on; not finite if anything else here is not.
    n_samples : int
        Of BPR, pairs.
    user_states : Tensor or None, shape (n_clients, 2 dim + 1)
        Of the users' Adam.
    """

    user_rows: Tensor
    updates: CohortUpdate
    losses: Tensor
    n_samples: int
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
    score: Score,
    clients: Tensor,
    groups: Sequence[Samples],
    user_rows: Tensor,
    tables: Tensor,
    table_of_client: Tensor,
    theta: Mapping[str, Tensor],
    training: LocalTraining,
    gradient_map: Tensor | None = None,
    train_clients: TrainClients | None = None,
    workspace: Workspace | None = None,
    embedding: ItemEmbedding | None = None,
    user_states: Tensor | None = None,
) -> Trained:
    """Train every client of a cohort from the shared parameters that it has.

    Each client copies the rows that it touches into a compact local table and runs
    ``local_epochs`` of SGD in steps of ``batch_size`` samples. Step k of all clients
    of a group is one tensor operation over a padded batch (n_clients, batch_size).
    Clients never see each other's rows: but for rounding, who else is in the cohort
    changes nothing. Groups run in threads.

    Parameters
    ----------
    score : callable
        ``score(user_rows, item_rows, theta)``, see ``FederatedRecommender.score``.
    clients : Tensor of int64, shape (n_clients,)
    groups : sequence of Samples
        Of all clients in their order, some at a time; no client's are empty.
    user_rows : Tensor, shape (n_clients, dim)
    tables : Tensor, shape (n_tables, n_rows, width)
        Replicas; client c holds ``tables[table_of_client[c]]``.
    table_of_client : Tensor of int64, shape (n_clients,)
    theta : mapping of str to Tensor
    training : LocalTraining
    gradient_map : Tensor, shape (width, width), optional
        Applied to item gradients, see ``Compressor.gradient_map``.
    train_clients : callable, optional
        Compiled training, ``FederatedRecommender.train_clients``. It is used on the
        CPU, without an ``embedding`` and with plain SGD of users; its results equal
        those of the general path to rounding.
    workspace : Workspace, optional
        Holds the updates returned, until it is used again.
    embedding : ItemEmbedding, optional
        What items are made of; by default a row of the table each.
    user_states : Tensor, shape (n_clients, 2 dim + 1), optional
        Of the users' Adam, see ``adam_step``; by default users take plain steps.
    """
    device, dim = tables.device, tables.shape[-1]
    bounds = np.cumsum([0, *map(len, groups)])
    local = thread_map(lambda samples: local_rows(samples, embedding), groups)
    row_bounds = np.cumsum([0, *(len(rows.ids) for rows in local)])
    user_rows = user_rows.clone()
    rows = (workspace or Workspace()).rows(int(row_bounds[-1]), dim, device)
    n_theta = sum(value.numel() for value in theta.values())
    theta_changes = torch.empty(len(clients), n_theta, device=device)
    plain = device.type == "cpu" and embedding is None
    compiled = train_clients if plain and user_states is None else None
    if gradient_map is not None:
        gradient_map = gradient_map.to(device)
    objective = Objective(score, training, embedding, gradient_map)
    if user_states is not None:
        user_states = user_states.clone()

    def train(index: int) -> Tensor:
        own = slice(*bounds[index : index + 2])
        users, changes = user_rows[own], rows[slice(*row_bounds[index : index + 2])]
        group = (groups[index], users, changes, tables, table_of_client[own])
        if compiled is not None:
            loss = _train_compiled(
                compiled, *group, theta, theta_changes[own], training, gradient_map
            )
        else:
            loss = _train_batched(
                objective,
                *group,
                theta,
                theta_changes[own],
                local[index],
                None if user_states is None else user_states[own],
            )
        # 0 times a number that is not finite is NaN.
        return loss + 0 * (users.sum() + changes.sum() + theta_changes[own].sum())

    losses = thread_map(train, range(len(groups)))
    offsets = [
        rows_of.offsets[:-1] + start
        for rows_of, start in zip(local, row_bounds, strict=False)
    ]
    updates = CohortUpdate(
        clients=clients,
        offsets=torch.from_numpy(np.concatenate([*offsets, row_bounds[-1:]])),
        ids=torch.from_numpy(np.concatenate([rows_of.ids for rows_of in local])),
        rows=rows,
        theta=theta_changes,
    )
    n_samples = sum(len(samples.rows) for samples in groups) // (1 + training.pairwise)
    total = torch.stack(losses).cpu()
    return Trained(user_rows, updates, total, n_samples, user_states)


def _train_compiled(
    train_clients: TrainClients,
    samples: Samples,
    user_rows: Tensor,
    changes: Tensor,
    tables: Tensor,
    table_of_client: Tensor,
    theta: Mapping[str, Tensor],
    theta_changes: Tensor,
    training: LocalTraining,
    gradient_map: Tensor | None,
) -> Tensor:
    """Train client after client, each in its part of ``changes``; return the loss."""
    if gradient_map is None:
        gradient_map = torch.empty(0, 0)
    network, loss, end = flatten(theta).numpy(), 0.0, 0
    for table, run in groupby(table_of_client.tolist()):
        start, end = end, end + len(list(run))
        loss += train_clients(
            user_rows.numpy()[start:end],
            tables[table].numpy(),
            network,
            changes.numpy(),
            theta_changes.numpy()[start:end],
            samples.ids,
            samples.row_offsets[start : end + 1],
            samples.rows,
            samples.labels,
            samples.sample_offsets[start : end + 1],
            samples.n_epochs,
            training.batch_size,
            training.learning_rate,
            training.user_learning_rate,
            training.theta_learning_rate,
            gradient_map.numpy(),
            training.rho_shared,
            training.rho_private,
            training.pairwise,
            training.upload_gradient,
        )
    return torch.tensor(loss, dtype=torch.float64)


def _train_batched(
    objective: Objective,
    samples: Samples,
    user_rows: Tensor,
    changes: Tensor,
    tables: Tensor,
    table_of_client: Tensor,
    theta: Mapping[str, Tensor],
    theta_changes: Tensor,
    local: LocalRows,
    user_states: Tensor | None,
) -> Tensor:
    """Train all clients of a group side by side; return the loss."""
    training, device = objective.training, tables.device
    schedule = Schedule(samples, training.batch_size)
    who = torch.from_numpy(schedule.order).to(device)
    owner = np.repeat(table_of_client.numpy(), np.diff(local.offsets))
    before = tables[
        torch.from_numpy(owner).to(device), torch.from_numpy(local.ids).to(device)
    ]
    table, users = before.clone(), user_rows[who]
    states = None if user_states is None else user_states[who]
    network = {
        name: value.expand(len(who), *value.shape).clone()
        for name, value in theta.items()
    }
    total = torch.zeros((), dtype=torch.float64, device=device)
    for batch in schedule.batches(local, device):
        n = len(batch.size)
        own = {name: value[:n] for name, value in network.items()}
        loss, slopes = objective.slopes((users[:n], table, own), batch)
        total += loss
        user_gradient, item_gradient, of_network = slopes
        if states is None:
            users[:n] -= training.user_learning_rate * user_gradient
        else:
            users[:n] -= adam_step(
                states[:n], user_gradient, training.user_learning_rate
            )
        table.index_add_(
            0, batch.row.reshape(-1), item_gradient, alpha=-training.learning_rate
        )
        count = batch.size // (1 + training.pairwise)
        if training.upload_gradient:
            count = torch.ones_like(count)
        for value, gradient in zip(network.values(), of_network, strict=True):
            mean = gradient / count.reshape(-1, *[1] * (gradient.dim() - 1))
            value[:n] -= training.theta_learning_rate * mean

    user_rows[who] = users
    if user_states is not None and states is not None:
        user_states[who] = states
    torch.sub(table, before, out=changes)
    for name, value in network.items():
        value -= theta[name]
    if network:
        flat = [value.flatten(1) for value in network.values()]
        theta_changes[who] = torch.cat(flat, 1)
    return total
