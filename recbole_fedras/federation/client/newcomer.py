"""Users who come when training is over: private rows found, what is shared stays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recbole_fedras.data.clients import ClientData, draw_samples
from recbole_fedras.errors import NonFiniteError
from recbole_fedras.federation.client.training import (
    LocalModel,
    Participants,
    train_cohort,
)
from recbole_fedras.federation.protocol import Ints
from recbole_fedras.federation.settings import LocalTraining
from recbole_fedras.numeric.rng import Stream, counter_key


@dataclass(frozen=True)
class Newcomers:
    """What newcomers hold, numbered from 0; a model can look at it as at a shard.

    Attributes
    ----------
    user_rows : Tensor, shape (n, dim)
    tables : Tensor, shape (1, n_items, width)
        The table that all of them were given.
    theta : Tensor, shape (n_theta,)
        And the network.
    """

    user_rows: Tensor
    tables: Tensor
    theta: Tensor

    @property
    def replicas(self) -> Newcomers:
        """What is shared."""
        return self

    @property
    def networks(self) -> None:
        """One network for all."""

    def table_of(self, clients: Sequence[int]) -> Tensor:
        """Return which table each holds."""
        return torch.zeros(len(clients), dtype=torch.int64)

    def user_rows_of(self, clients: Ints) -> Tensor:
        """Return private rows, shape (n, dim)."""
        return self.user_rows[torch.from_numpy(clients)]


def train_newcomer(
    model: LocalModel,
    start: Newcomers,
    data: ClientData,
    seed: int,
    training: LocalTraining,
    participations: int,
) -> Tensor:
    """Find a private row by local training; items and network stay as they are.

    Parameters
    ----------
    model : LocalModel
        With the network that newcomers hold.
    start : Newcomers
        One of them, untrained.
    data : ClientData
        Its interactions: those of client 0, the only one.
    seed : int
    training : LocalTraining
        The run's.
    participations : int
        How often it trains, each time with negatives of its own.

    Returns
    -------
    Tensor, shape (1, dim)

    Raises
    ------
    NonFiniteError
        If training diverges.

    Examples
    --------
    >>> def score(users, items, theta):
    ...     return (users * items).sum(-1)
    >>> import numpy as np
    >>> table = torch.tensor([[1.0], [-1.0], [-1.0]])
    >>> start = Newcomers(torch.zeros(1, 1), table[None], torch.zeros(0))
    >>> data = ClientData.from_pairs(np.array([0]), np.array([0]), 1, n_items=3)
    >>> training = LocalTraining(0.1, 0.1, 0.1, 1, batch_size=8, n_negatives=2)
    >>> row = train_newcomer(LocalModel(score, {}), start, data, 1, training, 2)
    >>> bool(row > 0)
    True
    """
    frozen = replace(training, learning_rate=0.0, theta_learning_rate=0.0)
    row, states = start.user_rows, None
    if training.user_optimizer == "adam":
        states = row.new_zeros(1, 2 * row.shape[1] + 1)
    counts = training.n_negatives, training.local_epochs
    who = torch.zeros(1, dtype=torch.int64)
    for participation in range(participations):
        key = counter_key(seed, Stream.NEWCOMERS, participation)
        samples = draw_samples(data, who.numpy(), *counts, key, training.pairwise)
        alone = Participants(who, row, states, start.tables, start.table_of([0]))
        trained = train_cohort(model, alone, [samples], frozen)
        if not trained.losses.isfinite().all():
            raise NonFiniteError("local training of a new user is not finite any more")
        row, states = trained.user_rows, trained.user_states
    return row
