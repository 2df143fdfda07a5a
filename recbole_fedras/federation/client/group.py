"""A group of clients trains together: compiled one by one, or as padded tensors."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.data.clients import Samples
from recbole_fedras.data.local import Descent, Floats, LocalParameters, TrainClients
from recbole_fedras.embedding.base import LocalRows
from recbole_fedras.federation.client.adam import adam_step
from recbole_fedras.federation.client.batches import Batch, Schedule
from recbole_fedras.federation.client.objective import Objective
from recbole_fedras.federation.client.sam import Parameters
from recbole_fedras.federation.settings import LocalTraining
from recbole_fedras.numeric.theta import Theta


class Group(NamedTuple):
    """Clients that train together, and where their results go: views of a cohort's.

    Attributes
    ----------
    samples : Samples
    local : LocalRows
        Rows of the table that their items are made of.
    tables : Tensor, shape (n_tables, n_rows, width)
        Replicas; client c holds ``tables[table_of_client[c]]``.
    table_of_client : Tensor of int64, shape (n_clients,)
        On the CPU.
    users : Tensor, shape (n_clients, dim)
        Private rows, trained in place.
    states : Tensor or None, shape (n_clients, 2 dim + 1)
        Of the users' Adam, updated in place.
    changes : Tensor, shape (n_rows, width)
        Overwritten by how much the clients' copies of rows change.
    theta_changes : Tensor, shape (n_clients, n_theta)
        Overwritten by how much their copies of the network change.
    """

    samples: Samples
    local: LocalRows
    tables: Tensor
    table_of_client: Tensor
    users: Tensor
    states: Tensor | None
    changes: Tensor
    theta_changes: Tensor

    def mark(self, losses: Tensor) -> Tensor:
        """Return losses, not finite where any result of the client is not.

        0 times a number that is not finite is NaN.
        """
        offsets = torch.from_numpy(self.local.offsets).to(self.changes.device)
        moved = torch.segment_reduce(self.changes.sum(1), "sum", offsets=offsets)
        return losses + 0 * (self.users.sum(1) + moved + self.theta_changes.sum(1))


def train_compiled(
    train_clients: TrainClients, theta: Floats, descent: Descent, group: Group
) -> Tensor:
    """Train client after client; return each one's loss.

    Compiled code takes one table at a time: a run of clients that hold the same one.
    """
    losses, samples, end = [], group.samples, 0
    for table, run in groupby(group.table_of_client.tolist()):
        start, end = end, end + len(list(run))
        bounds = slice(start, end + 1)
        parameters = LocalParameters(
            group.users[start:end].numpy(),
            group.tables[table].numpy(),
            theta,
            group.changes.numpy(),
            group.theta_changes[start:end].numpy(),
        )
        samples_of_run = samples._replace(
            row_offsets=samples.row_offsets[bounds],
            sample_offsets=samples.sample_offsets[bounds],
        )
        losses.append(train_clients(parameters, samples_of_run, descent))
    return torch.from_numpy(np.concatenate(losses))


def train_batched(objective: Objective, theta: Theta, group: Group) -> Tensor:
    """Train all clients side by side; return each one's loss.

    Clients stand in the order of their schedule, in which those that still have
    samples are a prefix: what a step works on are views of it.
    """
    device = group.tables.device
    schedule = Schedule(group.samples, objective.training.batch_size)
    who = torch.from_numpy(schedule.order).to(device)
    before = _copy_rows(group)
    table, users = before.clone(), group.users[who]
    states = None if group.states is None else group.states[who]
    network = {
        name: value.expand(len(who), *value.shape).clone()
        for name, value in theta.items()
    }
    losses = torch.zeros(len(who), dtype=torch.float64, device=device)
    for batch in schedule.batches(group.local, device):
        n = len(batch.size)
        prefix = users[:n], table, {name: value[:n] for name, value in network.items()}
        losses[:n] += _step(
            objective, prefix, None if states is None else states[:n], batch
        )

    group.users[who] = users
    if group.states is not None and states is not None:
        group.states[who] = states
    torch.sub(table, before, out=group.changes)
    if network:
        moved = [(value - theta[name]).flatten(1) for name, value in network.items()]
        group.theta_changes[who] = torch.cat(moved, 1)
    return torch.empty_like(losses).index_copy_(0, who, losses)


def _copy_rows(group: Group) -> Tensor:
    """Return the rows of their tables that the clients train, shape (n_rows, width)."""
    owner = np.repeat(group.table_of_client.numpy(), np.diff(group.local.offsets))
    device = group.tables.device
    return group.tables[
        torch.from_numpy(owner).to(device), torch.from_numpy(group.local.ids).to(device)
    ]


def _step(
    objective: Objective, parameters: Parameters, states: Tensor | None, batch: Batch
) -> Tensor:
    """Let each client take a step, in place; return their losses before it."""
    training = objective.training
    users, table, network = parameters
    losses, (of_user, of_item, of_network) = objective.slopes(parameters, batch)
    of_network = _means(training, of_network, batch)
    row = batch.row.reshape(-1)
    if training.weight_decay > 0:
        touched = torch.unique(row)
        decay, of_touched, more = objective.decay(parameters, touched)
        of_user = of_user + decay
        row, of_item = torch.cat([row, touched]), torch.cat([of_item, of_touched])
        of_network = list(map(torch.add, of_network, more))
    rate = training.user_learning_rate
    users -= rate * of_user if states is None else adam_step(states, of_user, rate)
    # An item's gradient is the sum over its samples, which index_add_ adds up.
    table.index_add_(0, row, of_item, alpha=-training.learning_rate)
    for value, gradient in zip(network.values(), of_network, strict=True):
        value -= training.theta_learning_rate * gradient
    return losses


def _means(
    training: LocalTraining, of_network: Sequence[Tensor], batch: Batch
) -> list[Tensor]:
    """Return gradients of the network as it follows them: means over samples or pairs.

    Those of a gradient that is sent stay sums.
    """
    if training.upload_gradient:
        return list(of_network)
    count = batch.size // (1 + training.pairwise)
    return [
        gradient / count.reshape(-1, *[1] * (gradient.dim() - 1))
        for gradient in of_network
    ]
