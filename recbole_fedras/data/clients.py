"""The interactions of every client, and the training samples drawn from them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit, uint64
from numpy.typing import NDArray

from recbole_fedras.errors import DataError
from recbole_fedras.numeric.rng import mix, uniform

Ints = NDArray[np.int64]

# Items of a block that is looked through as a whole; no result depends on it.
_BLOCK = 32

# Drawing is one piece of compiled code: numba would compile parts of it on their own as
# well, which takes seconds.
_inlined = njit(inline="always")


class ClientData(NamedTuple):
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
    per_item = 2 * n_negatives if pairwise else 1 + n_negatives
    offsets = np.concatenate([[0], np.cumsum(counts)]) * (n_epochs * per_item)
    # A client's items, and as many negatives as it can draw or as there are.
    most = np.minimum(counts * (1 + n_epochs * n_negatives), clients.n_items)
    samples = Samples(
        n_epochs,
        row_offsets=np.zeros_like(offsets),
        sample_offsets=offsets,
        ids=np.empty(most.sum(), np.int64),
        rows=np.empty(offsets[-1], np.int32),
        labels=np.zeros(offsets[-1], np.float32),
    )
    # An entry for every item, and one for every block of them, all zero.
    place = np.zeros(clients.n_items, np.int32)
    blocks = np.zeros(clients.n_items // _BLOCK + 1, np.bool_)
    _draw(clients, group, True if pairwise else None, key, samples, place, blocks)
    return samples._replace(ids=samples.ids[: samples.row_offsets[-1]])


@njit(nogil=True, cache=True)
def _draw(  # type: ignore[no-untyped-def]
    clients: ClientData,
    group: Ints,
    pairwise,
    key,
    samples,
    place: NDArray[np.int32],
    blocks: NDArray[np.bool_],
) -> None:
    """Fill all of ``samples`` but the sample offsets, client by client.

    ``place`` makes each question about an item a single load: -1, an item of the
    client's that no sample has yet; 1, an item among its ids; in the end, its row. It
    is all zero again after each client, at the cost of the client's rows, not of all
    items. Unless ``pairwise`` is None samples are pairs.
    """
    # Places in whole arrays, not slices of these, which take longer to compile.
    items, rows, labels, ids = clients.items, samples.rows, samples.labels, samples.ids
    for c in range(len(group)):
        client = group[c]
        first_item, last_item = clients.offsets[client], clients.offsets[client + 1]
        first, last = samples.sample_offsets[c], samples.sample_offsets[c + 1]
        first_id = n_ids = samples.row_offsets[c]
        n, size = last_item - first_item, (last - first) // samples.n_epochs
        client_key = mix(key ^ mix(uint64(client)))
        counter = 0
        for i in range(first_item, last_item):
            place[items[i]] = -1
        # ``rows`` has items first; they become rows when all ids are known.
        for epoch in range(samples.n_epochs):
            start = first + epoch * size
            stop = start + size
            if pairwise is None:
                for i in range(n):
                    rows[start + i] = items[first_item + i]
                    labels[start + i] = 1
                counter, n_ids = _draw_negatives(
                    rows, start + n, stop, 1, place, ids, n_ids, client_key, counter
                )
                counter = _shuffle(rows, labels, start, stop, n, client_key, counter)
            else:  # item, negative, item, ...
                for i in range(0, size, 2):
                    rows[start + i] = items[first_item + i // 2 % n]
                    labels[start + i] = 1
                counter, n_ids = _draw_negatives(
                    rows, start + 1, stop, 2, place, ids, n_ids, client_key, counter
                )
                counter = _shuffle_pairs(rows, start, size // 2, client_key, counter)
        for i in range(first_item, last_item):
            if place[items[i]] < 0:
                ids[n_ids] = items[i]
                n_ids += 1
                place[items[i]] = 1
        _sort(ids, first_id, n_ids, place, blocks)
        for i in range(first, last):
            rows[i] = place[rows[i]]
        for r in range(first_id, n_ids):
            place[ids[r]] = 0
        samples.row_offsets[c + 1] = n_ids


@_inlined
def _draw_negatives(
    rows: NDArray[np.int32],
    first: int,
    stop: int,
    step: int,
    place: NDArray[np.int32],
    ids: Ints,
    n_ids: int,
    key: np.uint64,
    counter: int,
) -> tuple[int, int]:
    """Draw an epoch's negatives, and add those not seen before to the ids.

    An item of the client's is drawn again. Return the counter and how many ids there
    are.
    """
    for i in range(first, stop, step):
        item = int(uniform(key, counter) * len(place))
        counter += 1
        while place[item] < 0:
            item = int(uniform(key, counter) * len(place))
            counter += 1
        rows[i] = item
        ids[n_ids] = item  # without a branch: overwritten unless it is new
        n_ids += 1 - place[item]
        place[item] = 1
    return counter, n_ids


@_inlined
def _shuffle(
    rows: NDArray[np.int32],
    labels: NDArray[np.float32],
    start: int,
    stop: int,
    n: int,
    key: np.uint64,
    counter: int,
) -> int:
    """Shuffle an epoch whose first n samples are the client's items.

    Negatives are exchangeable: it is enough to send each of the items to a uniform
    place, by a partial Fisher-Yates shuffle inverted.
    """
    for i in range(start + n - 1, start - 1, -1):
        j = i + int(uniform(key, counter) * (stop - i))
        counter += 1
        rows[i], rows[j] = rows[j], rows[i]
        labels[i], labels[j] = labels[j], labels[i]
    return counter


@_inlined
def _shuffle_pairs(
    rows: NDArray[np.int32], start: int, n_pairs: int, key: np.uint64, counter: int
) -> int:
    """Shuffle an epoch of pairs: as exchangeable, only the items need to move."""
    for i in range(n_pairs - 1, 0, -1):
        j = start + 2 * int(uniform(key, counter) * (i + 1))
        counter += 1
        rows[start + 2 * i], rows[j] = rows[j], rows[start + 2 * i]
    return counter


@_inlined
def _sort(
    ids: Ints,
    first: int,
    stop: int,
    place: NDArray[np.int32],
    blocks: NDArray[np.bool_],
) -> None:
    """Sort a client's ids, and let ``place`` say which of them an item is."""
    # They are where ``place`` is not zero. Only blocks with any are looked through, so
    # that many items cost little.
    for r in range(first, stop):
        blocks[ids[r] // _BLOCK] = True
    r = first
    for block in range(len(blocks)):
        if blocks[block]:
            blocks[block] = False
            item, end = block * _BLOCK, (block + 1) * _BLOCK
            while item < end and item < len(place):
                if place[item]:
                    ids[r] = item
                    place[item] = r - first
                    r += 1
                item += 1
