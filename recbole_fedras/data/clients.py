"""The interactions of every client, and the training samples drawn from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from recbole_fedras.errors import DataError
from recbole_fedras.numeric.rng import mix, uniform

Ints = NDArray[np.int64]

_SPARSE = 32  # items per row above which sorting rows beats passing over all items


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
        DataError
            If a client interacted with every item, so that no negative is left.
        """
        order = np.lexsort((items, users))
        counts = np.bincount(users, minlength=n_clients)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        clients = cls(n_clients, n_items, offsets, items[order])
        for client in np.flatnonzero(counts >= n_items):
            if len(np.unique(clients.of(client))) == n_items:
                raise DataError(
                    f"user {client + 1} (RecBole's id) interacted with all {n_items} "
                    "items in the training data, so there are no negatives to draw for "
                    "it; leave it out with user_inter_num_interval"
                )
        return clients

    def of(self, client: int) -> Ints:
        """Return a client's items, increasing."""
        return self.items[self.offsets[client] : self.offsets[client + 1]]

    @property
    def eligible(self) -> Ints:
        """Clients that have something to train on."""
        return np.flatnonzero(np.diff(self.offsets))


class Samples(NamedTuple):
    """What a group of clients trains on in one participation, one behind the other.

    Attributes
    ----------
    n_epochs : int
    row_offsets, sample_offsets : ndarray of int64, shape (n_clients + 1,)
        Client c owns ``ids[row_offsets[c]:row_offsets[c + 1]]`` and
        ``rows[sample_offsets[c]:sample_offsets[c + 1]]``.
    ids : ndarray of int64, shape (n_rows,)
        Items that occur, increasing within a client: the rows of its local table.
    rows : ndarray of int32, shape (n_samples,)
        Local row of each sample, epoch by epoch, shuffled within each; in pairs, each
        an item of the client's and a negative, if they were drawn so.
    labels : ndarray of float32, shape (n_samples,)
        1 for the client's items, 0 for negatives.
    """

    n_epochs: int
    row_offsets: Ints
    sample_offsets: Ints
    ids: Ints
    rows: NDArray[np.int32]
    labels: NDArray[np.float32]

    @property
    def n_clients(self) -> int:
        """Clients of the group."""
        return len(self.row_offsets) - 1

    def of(self, client: int) -> tuple[Ints, NDArray[np.int32], NDArray[np.float32]]:
        """Return a client's ids (n_rows,), and rows and labels (n_epochs, n)."""
        rows = slice(*self.row_offsets[client : client + 2])
        samples = slice(*self.sample_offsets[client : client + 2])
        shape = (self.n_epochs, -1)
        return (
            self.ids[rows],
            self.rows[samples].reshape(shape),
            self.labels[samples].reshape(shape),
        )


def draw_samples(
    clients: ClientData,
    group: Ints,
    n_negatives: int,
    n_epochs: int,
    key: np.uint64,
    pairwise: bool = False,
) -> Samples:
    """Draw fresh negatives and a fresh order for every client and local epoch.

    Negatives are uniform over the items that the client has not interacted with *in
    the training data*; to spare the held-out items too would leak them. What a client
    draws depends on ``key`` and its number, not on the group.

    Parameters
    ----------
    clients : ClientData
    group : ndarray of int64, shape (n_clients,)
        Clients that have something to train on.
    n_negatives : int
        For each interaction and epoch.
    n_epochs : int
    key : uint64
        Of :func:`recbole_fedras.numeric.rng.counter_key`, for the round.
    pairwise : bool
        Whether each negative follows the item that it is drawn for, which then stands
        ``n_negatives`` times in an epoch.
    """
    counts = clients.offsets[group + 1] - clients.offsets[group]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    per_item = 2 * n_negatives if pairwise else 1 + n_negatives
    sample_offsets = offsets * (n_epochs * per_item)
    # Its items, and negatives that are as many as it can draw or as there are.
    most = np.minimum(counts * (1 + n_epochs * n_negatives), clients.n_items)
    ids = np.empty(most.sum(), np.int64)
    rows = np.empty(sample_offsets[-1], np.int32)
    labels = np.zeros(sample_offsets[-1], np.float32)
    row_offsets = _draw(
        clients.offsets, clients.items, clients.n_items, group, n_negatives, n_epochs,
        key, sample_offsets, ids, rows, labels, pairwise,
    )  # fmt: skip
    return Samples(
        n_epochs, row_offsets, sample_offsets, ids[: row_offsets[-1]], rows, labels
    )


@njit(nogil=True, cache=True)
def _draw(  # type: ignore[no-untyped-def]
    offsets, items, n_items, group, n_negatives, n_epochs, key, sample_offsets, ids,
    rows, labels, pairwise,
):  # fmt: skip
    """Fill ``ids``, ``rows`` and ``labels``; return the row offsets."""
    place = np.zeros(n_items, np.int32)  # all zero again after each client
    row_offsets = np.zeros(len(group) + 1, np.int64)
    for c in range(len(group)):
        positives = items[offsets[group[c]] : offsets[group[c] + 1]]
        n, size = len(positives), len(positives) * (1 + n_negatives)
        if pairwise:
            size = 2 * n * n_negatives
        own_ids = ids[row_offsets[c] :]
        own_rows = rows[sample_offsets[c] : sample_offsets[c + 1]]
        own_labels = labels[sample_offsets[c] : sample_offsets[c + 1]]
        client_key = mix(key ^ mix(uint64(group[c])))
        counter = n_rows = 0
        for item in positives:
            place[item] = -1
        for epoch in range(n_epochs):
            row = own_rows[epoch * size : (epoch + 1) * size]
            label = own_labels[epoch * size : (epoch + 1) * size]
            if pairwise:
                for i in range(0, size, 2):
                    row[i] = positives[i // 2 % n]
                    label[i] = 1
            else:
                row[:n] = positives
                label[:n] = 1
            for i in range(1 if pairwise else n, size, 2 if pairwise else 1):
                item = int(uniform(client_key, counter) * n_items)
                counter += 1
                while place[item] < 0:
                    item = int(uniform(client_key, counter) * n_items)
                    counter += 1
                row[i] = item
                own_ids[n_rows] = item
                n_rows += 1 - place[item]
                place[item] = 1
            # Negatives are exchangeable: it is enough to send each of its items to a
            # uniform place, by a partial Fisher-Yates shuffle inverted.
            if pairwise:
                # As exchangeable: it is enough to shuffle the items of the pairs.
                for i in range(size // 2 - 1, 0, -1):
                    j = int(uniform(client_key, counter) * (i + 1))
                    counter += 1
                    row[2 * i], row[2 * j] = row[2 * j], row[2 * i]
            else:
                for i in range(n - 1, -1, -1):
                    j = i + int(uniform(client_key, counter) * (size - i))
                    counter += 1
                    row[i], row[j] = row[j], row[i]
                    label[i], label[j] = label[j], label[i]
        for item in positives:
            if place[item] < 0:
                own_ids[n_rows] = item
                n_rows += 1
                place[item] = 1
        if n_items > _SPARSE * n_rows:
            own_ids[:n_rows].sort()
        else:
            n_rows = 0
            for item in range(n_items):
                if place[item]:
                    own_ids[n_rows] = item
                    n_rows += 1
        for r in range(n_rows):
            place[own_ids[r]] = r
        for i in range(len(own_rows)):
            own_rows[i] = place[own_rows[i]]
        for r in range(n_rows):
            place[own_ids[r]] = 0
        row_offsets[c + 1] = row_offsets[c] + n_rows
    return row_offsets
