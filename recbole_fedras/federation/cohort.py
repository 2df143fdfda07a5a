"""Local training of a cohort: many clients at once, each for himself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from recbole_fedras.compressor.base import CohortUpdate
from recbole_fedras.data.clients import Samples
from recbole_fedras.embedding.base import ItemEmbedding, LocalRows, local_rows
from recbole_fedras.federation.optimizer import adam_step
from recbole_fedras.federation.sam import Gradients, Parameters, ascend
from recbole_fedras.federation.settings import LocalTraining
from recbole_fedras.parallel import thread_map

Score = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]
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
        Binary cross-entropy (LightFR: squared error), summed over all samples when they
        were trained on; not finite if anything else here is not.
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
    """Train every client of a cohort from the shared parameters that he holds.

    Each client copies the rows that he touches into a compact local table and runs
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
    tables : Tensor, shape (n_tables, n_items, dim)
        Replicas; client c holds ``tables[table_of_client[c]]``.
    table_of_client : Tensor of int64, shape (n_clients,)
    theta : mapping of str to Tensor
    training : LocalTraining
    gradient_map : Tensor, shape (dim, dim), optional
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
    plain = device.type == "cpu" and not theta and embedding is None
    compiled = train_clients if plain and user_states is None else None
    if user_states is not None:
        user_states = user_states.clone()

    def train(index: int) -> Tensor:
        own = slice(*bounds[index : index + 2])
        users, changes = user_rows[own], rows[slice(*row_bounds[index : index + 2])]
        group = (groups[index], users, changes, tables, table_of_client[own])
        if compiled is not None:
            loss = _train_compiled(compiled, *group, training, gradient_map)
        else:
            loss = _train_batched(
                score, *group, theta, theta_changes[own], training, gradient_map,
                local[index], embedding,
                None if user_states is None else user_states[own],
            )  # fmt: skip
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
    training: LocalTraining,
    gradient_map: Tensor | None,
) -> Tensor:
    """Train client after client, each in his part of ``changes``; return the loss."""
    if gradient_map is None:
        gradient_map = torch.empty(0, 0)
    loss, end = 0.0, 0
    for table, run in groupby(table_of_client.tolist()):
        start, end = end, end + len(list(run))
        loss += train_clients(
            user_rows.numpy()[start:end],
            tables[table].numpy(),
            changes.numpy(),
            samples.ids,
            samples.row_offsets[start : end + 1],
            samples.rows,
            samples.labels,
            samples.sample_offsets[start : end + 1],
            samples.n_epochs,
            training.batch_size,
            training.learning_rate,
            training.user_learning_rate,
            gradient_map.numpy(),
            training.rho_shared,
            training.rho_private,
            training.pairwise,
        )
    return torch.tensor(loss, dtype=torch.float64)


def _train_batched(
    score: Score,
    samples: Samples,
    user_rows: Tensor,
    changes: Tensor,
    tables: Tensor,
    table_of_client: Tensor,
    theta: Mapping[str, Tensor],
    theta_changes: Tensor,
    training: LocalTraining,
    gradient_map: Tensor | None,
    local: LocalRows,
    embedding: ItemEmbedding | None,
    user_states: Tensor | None,
) -> Tensor:
    """Train all clients of a group side by side; return the loss.

    Those with most steps stand first, so that the ones still training are a prefix.
    Sizes are known on the host: nothing waits for the device.
    """
    device, batch_size = tables.device, training.batch_size
    per_epoch = np.diff(samples.sample_offsets) // samples.n_epochs
    n_batches = -(-per_epoch // batch_size)
    batch_size = min(batch_size, int(per_epoch.max()))
    order = np.argsort(-n_batches, kind="stable")
    sizes, n_batches = per_epoch[order], n_batches[order]

    def place(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(device)

    owner = np.repeat(table_of_client.numpy(), np.diff(local.offsets))
    before = tables[place(owner), place(local.ids)]
    table = before.clone()
    shift = np.repeat(samples.row_offsets[:-1], np.diff(samples.sample_offsets))
    # Of each sample its place among the group's items, whose rows are members.
    own_items, labels = place(samples.rows + shift), place(samples.labels)
    members, items = place(local.members), place(samples.ids)
    first, own_sizes, own_batches, who = map(
        place, (samples.sample_offsets[:-1][order], sizes, n_batches, order)
    )
    users = user_rows[who]
    states = None if user_states is None else user_states[who]
    network = {
        name: value.expand(len(order), *value.shape).clone()
        for name, value in theta.items()
    }
    column = torch.arange(batch_size, device=device)
    if gradient_map is not None:
        gradient_map = gradient_map.to(device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for step in range(samples.n_epochs * int(n_batches[0])):
        n = int(np.count_nonzero(step < samples.n_epochs * n_batches))
        done = step % n_batches[:n] * batch_size
        width = min(int((sizes[:n] - done).max()), batch_size)
        begin = step % own_batches[:n] * batch_size
        size = (own_sizes[:n] - begin).clamp(max=batch_size)
        start = first[:n] + step // own_batches[:n] * own_sizes[:n] + begin
        valid = column[:width] < size[:, None]  # (n, width)
        # Batches are padded with their first sample.
        batch = torch.where(valid, start[:, None] + column[:width], start[:, None])
        item, label = own_items[batch], labels[batch]
        row = members[item]  # (n, width, h)

        own = {name: value[:n] for name, value in network.items()}
        parameters = (users[:n], table, own)
        given = (
            row, items[item], label, valid, gradient_map, embedding, training.pairwise
        )  # fmt: skip
        loss, slopes = _gradients(score, parameters, *given)
        total += loss
        if training.sharpness_aware:
            uphill = ascend(
                parameters, slopes, row, training.rho_shared, training.rho_private
            )
            _, slopes = _gradients(score, uphill, *given)
        user_gradient, item_gradient, of_network = slopes
        if states is None:
            users[:n] -= training.user_learning_rate * user_gradient
        else:
            users[:n] -= adam_step(
                states[:n], user_gradient, training.user_learning_rate
            )
        table.index_add_(
            0, row.reshape(-1), item_gradient, alpha=-training.learning_rate
        )
        count = size // (1 + training.pairwise)
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


def _gradients(
    score: Score,
    parameters: Parameters,
    row: Tensor,
    item: Tensor,
    label: Tensor,
    valid: Tensor,
    gradient_map: Tensor | None,
    embedding: ItemEmbedding | None,
    pairwise: bool,
) -> tuple[Tensor, Gradients]:
    """Return a batch's loss and gradients, summed over samples.

    Those of users are (n, dim), of rows one for each sample and part of its item
    (n * width * h, columns), of the network by parameter (n, ...).
    """
    users, table, network = parameters
    user = users[:, None].detach().requires_grad_()  # (n, 1, dim)
    parts = table[row].requires_grad_()  # (n, width, h, columns)
    own = {name: value.detach().requires_grad_() for name, value in network.items()}
    with torch.enable_grad():
        if embedding is None:
            vectors = parts[:, :, 0]
        else:
            vectors = embedding.vectors(parts, item, own)
        logits = score(user, vectors, own)
        weight = valid.to(logits.dtype)
        if pairwise:  # item, negative, item, ...
            ahead = logits[:, ::2] - logits[:, 1::2]
            loss = -(logsigmoid(ahead) * weight[:, ::2]).sum()
        else:
            loss = binary_cross_entropy_with_logits(
                logits, label, weight=weight, reduction="sum"
            )
    leaves = [user, parts, *own.values()]
    of_user, of_item, *of_network = torch.autograd.grad(loss, leaves)
    of_item = of_item.reshape(-1, table.shape[1])
    if gradient_map is not None:
        of_item = of_item @ gradient_map
    return loss.detach(), (of_user[:, 0], of_item, of_network)
