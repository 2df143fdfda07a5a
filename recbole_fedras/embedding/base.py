"""What an item embedding is: rows of an exchanged table, and how they make items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn

from recbole_fedras.data.clients import Samples
from recbole_fedras.numeric.theta import Theta
from recbole_fedras.wire.payload import Payload

Ints = NDArray[np.int64]


class ItemEmbedding(nn.Module, ABC):
    """Item vectors ``e_i = E0_i + C_i``: a frozen base, and what is trained.

    ``C_i`` is composed of the rows ``members[i]`` of one table, which takes the place
    of the table of items everywhere: it is what clients hold, train, compress and send,
    by its own row ids. Dense parameters besides it join the network (theta). What is
    frozen (E0, and ``members`` if they are fitted) is a buffer, part of checkpoints.

    A subclass gives its constructor's ``members`` and ``width`` to this one and defines
    :meth:`compose`; its further constructor parameters are its hyper-parameters and
    become config keys.

    Parameters
    ----------
    n_items, dim : int
    base : Tensor, shape (n_items, dim), or None
        E0.
    members : Tensor of int64, shape (n_items, h)
        Rows of the table that make up each item.
    width : int
        Columns of the table.

    Examples
    --------
    Two neighbours share a row:

    >>> class Paired(ItemEmbedding):
    ...     def __init__(self, n_items, dim, base, seed):
    ...         members = torch.arange(n_items)[:, None] // 2
    ...         super().__init__(n_items, dim, base, members, width=dim)
    ...
    ...     @property
    ...     def n_rows(self):
    ...         return (self.n_items + 1) // 2
    ...
    ...     def compose(self, parts, items, theta):
    ...         return parts[:, :, 0]
    >>> embedding = Paired(n_items=6, dim=4, base=None, seed=2020)
    >>> table = embedding.initial_table(np.random.default_rng(0), std=0.01)
    >>> items = torch.tensor([[0, 1, 5]])  # of one client
    >>> parts = table[embedding.members[items]]
    >>> table.shape, embedding.vectors(parts, items, {}).shape
    (torch.Size([3, 4]), torch.Size([1, 3, 4]))
    """

    #: Whether :meth:`fit` must be called before anything else.
    fitted: bool = False

    base: Tensor | None
    members: Tensor

    def __init__(
        self, n_items: int, dim: int, base: Tensor | None, members: Tensor, width: int
    ) -> None:
        super().__init__()
        self.n_items, self.dim, self.width = n_items, dim, width
        self.register_buffer("base", base)
        self.register_buffer("members", members)

    @property
    def n_rows(self) -> int:
        """Rows of the table."""
        return self.n_items

    @property
    def n_parts(self) -> int:
        """Rows that make up an item, h."""
        return self.members.shape[1]

    @property
    def n_theta(self) -> int:
        """Values of the dense parameters."""
        return sum(value.numel() for value in self.theta().values())

    def validate(self) -> None:
        """Raise a ConfigError if so many items cannot be made this way."""

    def fit(self, source: NDArray[np.float32], *, features: bool) -> None:
        """Let the server learn what is frozen.

        Parameters
        ----------
        source : ndarray of float32, shape (n_items, n)
            Features of the items, or their warmed-up vectors.
        features : bool
            Which of the two.
        """

    def put_once(self, payload: Payload) -> None:
        """Add what was fitted, which is sent to each client once: nothing, by default.

        Fields book under the part ``once``.
        """

    def get_once(self, payload: Payload) -> None:
        """Take what :meth:`put_once` added."""

    def initial_table(self, rng: np.random.Generator, std: float) -> Tensor:
        """Return the table that everybody starts from, shape (n_rows, width).

        Zeros, where items have a base to start from.
        """
        values = rng.standard_normal((self.n_rows, self.width)) * std
        return torch.from_numpy(values * (self.base is None)).float()

    def theta(self) -> dict[str, Tensor]:
        """Return initial dense parameters by name: none, unless overridden."""
        return {}

    @abstractmethod
    def compose(self, parts: Tensor, items: Tensor, theta: Theta) -> Tensor:
        r"""Return C of some items.

        Parameters
        ----------
        parts : Tensor, shape (n_clients, n, h, width)
            Their rows of the table.
        items : Tensor of int64, shape (n_clients, n)
            Which they are, numbered from 0.
        theta : mapping of str to Tensor
            Dense parameters, shapes (n_clients or 1, \*shape).

        Returns
        -------
        Tensor, shape (n_clients, n, dim)
        """

    def vectors(self, parts: Tensor, items: Tensor, theta: Theta) -> Tensor:
        """Return ``E0 + C`` of items (n_clients, n), numbered from 0."""
        composed = self.compose(parts, items, theta)
        return composed if self.base is None else self.base[items] + composed


def introduction(embedding: ItemEmbedding, base_known: bool) -> Payload | None:
    """Make what each client is sent once; None: nothing.

    It has E0, unless that is known (``base_known``: drawn from the seed), ``4 N d``
    bytes, and what was fitted.
    """
    payload = Payload()
    if embedding.base is not None and not base_known:
        payload.put_floats("base", embedding.base.numpy(), part="once")
    embedding.put_once(payload)
    return payload if len(payload) else None


def take_introduction(embedding: ItemEmbedding, payload: Payload) -> None:
    """Let a client's embedding know what :func:`introduction` says."""
    if "base" in payload:
        base = payload.floats("base", embedding.n_items, embedding.dim)
        embedding.base = torch.from_numpy(base.copy())
    embedding.get_once(payload)


@dataclass(frozen=True, slots=True)
class LocalRows:
    """The rows of the table that clients of a group train, one behind the other.

    Attributes
    ----------
    offsets : ndarray of int64, shape (n_clients + 1,)
        Client c owns ``ids[offsets[c]:offsets[c + 1]]``.
    ids : ndarray of int64, shape (n_rows,)
        Rows of the table, increasing within a client.
    members : ndarray of int64, shape (n_local_items, h)
        For each local item of the group the places of its rows in ``ids``.

    Examples
    --------
    A client's items 2 and 7, which are made of rows 1 and 4, and 0 and 4:

    >>> members = np.array([[0, 1], [2, 1]])
    >>> rows = LocalRows(np.array([0, 3]), np.array([1, 4, 0]), members)
    >>> rows.ids[rows.members]
    array([[1, 4],
           [0, 4]])
    """

    offsets: Ints
    ids: Ints
    members: Ints


def local_rows(samples: Samples, embedding: ItemEmbedding | None) -> LocalRows:
    """Find the rows that the items of a group are made of; by default themselves."""
    if embedding is None:
        themselves = np.arange(len(samples.ids))[:, None]
        return LocalRows(samples.row_offsets, samples.ids, themselves)
    members = embedding.members.numpy()
    wanted = members[samples.ids]  # (n_local_items, h)
    ids = np.empty(wanted.size, np.int64)
    places = np.empty_like(wanted)
    offsets = _find_rows(samples.row_offsets, wanted, embedding.n_rows, ids, places)
    return LocalRows(offsets, ids[: offsets[-1]], places)


@njit(nogil=True, cache=True)
def _find_rows(
    item_offsets: Ints, wanted: Ints, n_rows: int, ids: Ints, places: Ints
) -> Ints:
    """Fill ``ids`` and ``places``; return the offsets.

    Compiled, and linear in what clients touch but for the sort: ``place`` is as long as
    the table, allocated once, and each client clears only what it set.
    """
    place = np.full(n_rows, -1, np.int64)
    offsets = np.zeros(len(item_offsets), np.int64)
    for c in range(len(item_offsets) - 1):
        # Collect the client's rows, each once: -1 marks those not seen yet.
        start = n_found = offsets[c]
        for i in range(item_offsets[c], item_offsets[c + 1]):
            for row in wanted[i]:
                if place[row] < 0:
                    place[row] = 0
                    ids[n_found] = row
                    n_found += 1
        # In increasing order, as updates travel; then a row's place is known.
        ids[start:n_found].sort()
        for r in range(start, n_found):
            place[ids[r]] = r
        for i in range(item_offsets[c], item_offsets[c + 1]):
            for j in range(wanted.shape[1]):
                places[i, j] = place[wanted[i, j]]
        # Leave no trace for the next client.
        for r in range(start, n_found):
            place[ids[r]] = -1
        offsets[c + 1] = n_found
    return offsets
