"""The interactions of every client, and the training samples he draws from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClientData:
    """Training interactions, grouped by client. Users and items count from 0.

    Attributes
    ----------
    n_clients, n_items : int
    offsets : ndarray of int64, shape (n_clients + 1,)
        Client u owns ``items[offsets[u]:offsets[u + 1]]``.
    items : ndarray of int64, shape (n_interactions,)
        Increasing within each client; a pair that occurs twice stands twice.
    """

    n_clients: int
    n_items: int
    offsets: Ints
    items: Ints

    @classmethod
    def from_pairs(
        cls, users: Ints, items: Ints, n_clients: int, n_items: int
    ) -> ClientData:
        """Group (user, item) pairs by user.

        Raises
        ------
        ValueError
            If a client interacted with every item, so that no negative is left.
        """
        order = np.lexsort((items, users))
        counts = np.bincount(users, minlength=n_clients)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        clients = cls(n_clients, n_items, offsets, items[order])
        for client in np.flatnonzero(counts >= n_items):
            if len(np.unique(clients.of(client))) == n_items:
                raise ValueError(
                    f"user {client + 1} interacted with all {n_items} items in the "
                    "training data, so there are no negatives to draw for him; filter "
                    "him with user_inter_num_interval"
                )
        return clients

    def of(self, client: int) -> Ints:
        """Return a client's items, increasing."""
        return self.items[self.offsets[client] : self.offsets[client + 1]]

    @property
    def eligible(self) -> Ints:
        """Clients that have something to train on."""
        return np.flatnonzero(np.diff(self.offsets))


@dataclass(frozen=True, slots=True)
class ClientSamples:
    """What one client trains on in one participation.

    Attributes
    ----------
    ids : ndarray of int64, shape (n_rows,)
        Items that occur, increasing: the rows of his local table.
    rows : ndarray of int64, shape (local_epochs, n_samples)
        Local row of each sample, shuffled within each epoch.
    labels : ndarray of float32, shape (local_epochs, n_samples)
        1 for his items, 0 for negatives.
    """

    ids: Ints
    rows: Ints
    labels: NDArray[np.float32]


def draw_samples(
    clients: ClientData,
    client: int,
    n_negatives: int,
    n_epochs: int,
    rng: np.random.Generator,
) -> ClientSamples:
    """Draw fresh negatives and a fresh order for every local epoch.

    Negatives are uniform over the items that the client has not interacted with *in
    the training data*; to spare the held-out items too would leak them.
    """
    positives = clients.of(client)
    items, labels = _draw(positives, clients.n_items, n_negatives, n_epochs, rng)
    ids, rows = np.unique(items, return_inverse=True)
    return ClientSamples(ids, rows.reshape(items.shape), labels)


@njit(nogil=True, cache=True)
def _draw(
    positives: Ints,
    n_items: int,
    n_negatives: int,
    n_epochs: int,
    rng: np.random.Generator,
) -> tuple[Ints, NDArray[np.float32]]:
    n = len(positives)
    size = n * (1 + n_negatives)
    items = np.empty((n_epochs, size), np.int64)
    labels = np.zeros((n_epochs, size), np.float32)
    for epoch in range(n_epochs):
        items[epoch, :n] = positives
        labels[epoch, :n] = 1
        for i in range(n, size):
            while True:
                item = int(rng.random() * n_items)
                place = np.searchsorted(positives, item)
                if place == n or positives[place] != item:
                    break
            items[epoch, i] = item
        for i in range(size - 1, 0, -1):  # Fisher-Yates
            j = int(rng.random() * (i + 1))
            items[epoch, i], items[epoch, j] = items[epoch, j], items[epoch, i]
            labels[epoch, i], labels[epoch, j] = labels[epoch, j], labels[epoch, i]
    return items, labels
