"""Local training of a whole cohort at once, each client for himself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from recbole_fedras.compressor.base import CohortUpdate
from recbole_fedras.data.clients import ClientSamples, Ints
from recbole_fedras.federation.settings import LocalTraining

Score = Callable[[Tensor, Tensor, Mapping[str, Tensor]], Tensor]

#: Clients trained together: their gathered rows stay within a processor's cache.
CHUNK = 32


@dataclass(frozen=True, slots=True)
class Trained:
    """What local training leaves behind.

    Attributes
    ----------
    user_rows : Tensor, shape (n_clients, dim)
        New private rows, for the clients themselves.
    updates : CohortUpdate
        Change of the shared parameters, for the server.
    loss : float
        Mean binary cross-entropy of a sample over the whole training.
    """

    user_rows: Tensor
    updates: CohortUpdate
    loss: float


def train_cohort(
    score: Score,
    clients: Tensor,
    samples: list[ClientSamples],
    user_rows: Tensor,
    tables: Tensor,
    table_of_client: Tensor,
    theta: Mapping[str, Tensor],
    training: LocalTraining,
    gradient_map: Tensor | None = None,
    train_client: Callable[..., float] | None = None,
) -> Trained:
    """Train every client of a cohort from the shared parameters that he holds.

    Each client copies the rows that he touches into a compact local table and runs
    ``local_epochs`` of SGD in steps of ``batch_size`` samples. Step k of all clients
    is one tensor operation over a padded batch (n_clients, batch_size). Clients never
    see each other's rows: but for rounding, who else is in the cohort changes nothing.

    Parameters
    ----------
    score : callable
        ``score(user_rows, item_rows, theta)``, see ``FederatedRecommender.score``.
    clients : Tensor of int64, shape (n_clients,)
    samples : list of ClientSamples
        One per client, none empty.
    user_rows : Tensor, shape (n_clients, dim)
    tables : Tensor, shape (n_tables, n_items, dim)
        Replicas; client c holds ``tables[table_of_client[c]]``.
    table_of_client : Tensor of int64, shape (n_clients,)
    theta : mapping of str to Tensor
    training : LocalTraining
    gradient_map : Tensor, shape (dim, dim), optional
        Applied to item gradients, see ``Compressor.gradient_map``.
    train_client : callable, optional
        Compiled training of one client, ``FederatedRecommender.train_client``. It is
        used on the CPU, in threads over clients; its results equal those of the
        general path to rounding.
    """
    chunks = [slice(start, start + CHUNK) for start in range(0, len(samples), CHUNK)]

    def train(own: slice) -> _Chunk:
        chunk = (samples[own], user_rows[own], tables, table_of_client[own])
        if train_client is not None and tables.device.type == "cpu" and not theta:
            return _train_compiled(train_client, *chunk, training, gradient_map)
        return _train_batched(score, *chunk, theta, training, gradient_map)

    with ThreadPoolExecutor(cpu_count()) as pool:
        parts = list(pool.map(train, chunks))
    n_rows = torch.tensor([len(own.ids) for own in samples])
    updates = CohortUpdate(
        clients=clients,
        offsets=torch.cat([torch.zeros(1, dtype=torch.int64), n_rows.cumsum(0)]),
        ids=torch.cat([part.ids for part in parts]),
        rows=torch.cat([part.rows for part in parts]),
        theta=torch.cat([part.theta for part in parts]),
    )
    loss = sum(float(part.loss) for part in parts)
    n_samples = sum(own.labels.size for own in samples)
    return Trained(
        torch.cat([part.user_rows for part in parts]), updates, loss / n_samples
    )


@dataclass(frozen=True, slots=True)
class _Chunk:
    user_rows: Tensor
    ids: Tensor
    rows: Tensor
    theta: Tensor
    loss: Tensor


def _local_tables(
    samples: list[ClientSamples], tables: Tensor, table_of_client: Tensor
) -> tuple[Tensor, Tensor, Ints]:
    """Gather the rows that clients touch.

    Returns
    -------
    ids : Tensor of int64, shape (n,)
    rows : Tensor, shape (n, dim)
        One client's rows behind the other's.
    offsets : ndarray of int64, shape (n_clients + 1,)
    """
    n_rows = [len(own.ids) for own in samples]
    offsets = np.concatenate([[0], np.cumsum(n_rows)])
    ids = torch.from_numpy(np.concatenate([own.ids for own in samples]))
    owner = torch.from_numpy(np.repeat(np.arange(len(samples)), n_rows))
    ids, owner = ids.to(tables.device), owner.to(tables.device)
    return ids, tables[table_of_client.to(owner.device)[owner], ids], offsets


def _train_compiled(
    train_client: Callable[..., float],
    samples: list[ClientSamples],
    user_rows: Tensor,
    tables: Tensor,
    table_of_client: Tensor,
    training: LocalTraining,
    gradient_map: Tensor | None,
) -> _Chunk:
    ids, before, offsets = _local_tables(samples, tables, table_of_client)
    table, user_rows = before.clone(), user_rows.clone()
    users, rows = user_rows.numpy(), table.numpy()
    mapping = np.empty((0, 0), np.float32)
    if gradient_map is not None:
        mapping = gradient_map.numpy()

    losses = [
        train_client(
            users[client],
            rows[offsets[client] : offsets[client + 1]],
            own.rows,
            own.labels,
            training.batch_size,
            training.learning_rate,
            training.user_learning_rate,
            mapping,
        )
        for client, own in enumerate(samples)
    ]
    return _Chunk(
        user_rows=user_rows,
        ids=ids,
        rows=table - before,
        theta=table.new_zeros(len(samples), 0),
        loss=torch.tensor(sum(losses)),
    )


def _train_batched(
    score: Score,
    samples: list[ClientSamples],
    user_rows: Tensor,
    tables: Tensor,
    table_of_client: Tensor,
    theta: Mapping[str, Tensor],
    training: LocalTraining,
    gradient_map: Tensor | None,
) -> _Chunk:
    device, n_clients, dim = tables.device, len(samples), tables.shape[-1]
    ids, before, offsets = _local_tables(samples, tables, table_of_client)
    table = before.clone()
    rows = torch.from_numpy(
        np.concatenate(
            [own.rows.ravel() + at for own, at in zip(samples, offsets, strict=False)]
        )
    ).to(device)
    labels = torch.from_numpy(
        np.concatenate([own.labels.ravel() for own in samples])
    ).to(device)

    plan = _plan_steps(samples, training.batch_size)
    user_rows = user_rows.clone()
    network = {
        name: value.expand(n_clients, *value.shape).clone()
        for name, value in theta.items()
    }
    width = torch.arange(training.batch_size, device=device)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for active, starts, sizes in plan:
        # Clients are addressed by `active`; the batch is padded with its first sample.
        who = torch.from_numpy(active).to(device)
        size = torch.from_numpy(sizes).to(device)[:, None]
        column = width[: int(sizes.max())]
        valid = column < size  # (n_active, batch)
        start = torch.from_numpy(starts).to(device)[:, None]
        place = torch.where(valid, start + column, start)
        row, label = rows[place], labels[place]

        user = user_rows[who][:, None].requires_grad_()  # (n_active, 1, dim)
        item = table[row].requires_grad_()  # (n_active, batch, dim)
        own = {name: value[who].requires_grad_() for name, value in network.items()}
        with torch.enable_grad():
            logits = score(user, item, own)
            losses = binary_cross_entropy_with_logits(
                logits, label, weight=valid.to(logits.dtype), reduction="sum"
            )
        gradients = torch.autograd.grad(losses, [user, item, *own.values()])
        total += losses.detach()

        user_rows[who] -= training.user_learning_rate * gradients[0][:, 0]
        item_gradient = gradients[1].reshape(-1, dim)
        if gradient_map is not None:
            item_gradient = item_gradient @ gradient_map.to(device)
        table.index_add_(
            0, row.reshape(-1), item_gradient, alpha=-training.learning_rate
        )
        for name, gradient in zip(own, gradients[2:], strict=True):
            mean = gradient / size.reshape(-1, *[1] * (gradient.dim() - 1))
            network[name][who] -= training.theta_learning_rate * mean

    changes = [
        (network[name] - value).reshape(n_clients, -1) for name, value in theta.items()
    ]
    return _Chunk(
        user_rows=user_rows,
        ids=ids,
        rows=table - before,
        theta=torch.cat(changes, 1) if changes else table.new_zeros(n_clients, 0),
        loss=total,
    )


def _plan_steps(
    samples: list[ClientSamples], batch_size: int
) -> list[tuple[Ints, Ints, Ints]]:
    """For each step: clients still active, where their batches start, and their sizes.

    Samples of client c stand from the sum of the sizes of those before him, epoch by
    epoch; no batch crosses the end of an epoch.
    """
    per_epoch = np.array([own.labels.shape[1] for own in samples])
    n_epochs = samples[0].labels.shape[0]
    offsets = np.concatenate([[0], np.cumsum(per_epoch * n_epochs)[:-1]])
    n_batches = -(-per_epoch // batch_size)
    plan = []
    for step in range(int(n_batches.max()) * n_epochs):
        active = np.flatnonzero(step < n_batches * n_epochs)
        epoch, batch = np.divmod(step, n_batches[active])
        begin = batch * batch_size
        sizes = np.minimum(batch_size, per_epoch[active] - begin)
        plan.append(
            (active, offsets[active] + epoch * per_epoch[active] + begin, sizes)
        )
    return plan
