"""Aggregators that a minority of hostile clients cannot move at will."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import RowUpdate, row_update
from recbole_fedras.federation.server.aggregation import Aggregator

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class Kept(Aggregator):
    """Keeps the updates of a round until all have come."""

    def begin(self, table: Tensor) -> None:
        """Begin a round."""
        self._table = table
        self._clients: list[int] = []
        self._updates: list[RowUpdate] = []
        self._thetas: list[Tensor] = []

    def add(self, client: int, update: RowUpdate, theta_change: Tensor) -> None:
        """Add one more client's update."""
        self._clients.append(client)
        self._updates.append(update)
        self._thetas.append(theta_change)

    def by_item(self) -> tuple[Ints, Ints, Ints, Floats]:
        """Put all clients' rows in order of their items, clients in order within.

        Returns
        -------
        order : ndarray of int64, shape (n_rows,)
            Where each row was, of all updates one behind the other.
        ids : ndarray of int64, shape (n_trained,)
            Items that anybody trained.
        offsets : ndarray of int64, shape (n_trained + 1,)
            The rows of ``ids[i]`` are ``rows[offsets[i]:offsets[i + 1]]``.
        rows : ndarray of float32, shape (n_rows, dim)
        """
        ids = np.concatenate([update.ids.numpy() for update in self._updates])
        rows = np.concatenate([update.rows.numpy() for update in self._updates])
        order = np.argsort(ids, kind="stable")
        found, counts = np.unique(ids, return_counts=True)
        return order, found, np.concatenate([[0], np.cumsum(counts)]), rows[order]


class _RowWise(Kept):
    """Combines each row over the clients that trained it, and the network over all.

    As with the plain mean, what defends a row is the number of clients that trained it:
    one alone is taken at its word, whatever the rule, and of two neither can be told to
    be the honest one.
    """

    def result(self) -> tuple[RowUpdate, Tensor]:
        """Combine row by row."""
        _, found, offsets, rows = self.by_item()
        combined = self._combined(rows, offsets)
        thetas = torch.stack(self._thetas).numpy()
        theta = self._combined(thetas, np.array([0, len(thetas)]))[0]
        self.begin(self._table)
        changed = combined.any(axis=1)
        update = row_update(found[changed], combined[changed])
        return update, torch.from_numpy(theta)

    @abstractmethod
    def _combined(self, rows: Floats, offsets: Ints) -> Floats:
        """Combine ``rows[offsets[g]:offsets[g + 1]]`` for each g, shape (n, dim)."""


def require_share(key: str, share: float, most: float) -> float:
    """Return a share, if it is at least 0 and below ``most``.

    Raises
    ------
    ValueError
        That names it.
    """
    if type(share) not in (int, float) or not 0 <= share < most:
        raise ValueError(f"{key}={share!r} must be at least 0 and below {most}")
    return float(share)


class TrimmedMean(_RowWise):
    """Mean of each value without its largest and its smallest ones.

    Source: Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning:
    Towards Optimal Statistical Rates" (ICML 2018), of which we read the introduction,
    and the rule as implementations have it. Of n clients that trained a row,
    ``ceil(trim_share n)`` values go on either side, but the middle one or two stay.

    **Departures**: updates are sparse, so n is another one for each row. Of one client
    its row is taken, of two the mean, of three the median.

    Parameters
    ----------
    trim_share : float
        At least 0 and below 0.5.

    Examples
    --------
    >>> mean = TrimmedMean(trim_share=0.2)
    >>> mean.begin(torch.zeros(4, 1))
    >>> for client, value in enumerate([1.0, 2.0, -90.0]):
    ...     rows = torch.tensor([[value]])
    ...     mean.add(client, RowUpdate(torch.tensor([3]), rows), torch.zeros(0))
    >>> update, _ = mean.result()
    >>> update.ids.tolist(), update.rows.tolist()
    ([3], [[1.0]])
    """

    def __init__(self, trim_share: float = 0.2) -> None:
        self._trim_share = require_share("trim_share", trim_share, 0.5)

    def _combined(self, rows: Floats, offsets: Ints) -> Floats:
        return _trimmed(rows, offsets, self._trim_share)


class Median(TrimmedMean):
    """Median of each value over the clients that trained the row.

    Source: as :class:`TrimmedMean`, which it is where all but the middle is cut. Of one
    client its row is taken, of two the mean.
    """

    def __init__(self) -> None:
        self._trim_share = 0.5


class GeometricMedian(_RowWise):
    """The row nearest to those of all clients that trained it, by sum of distances.

    Source: Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated Learning"
    (IEEE Transactions on Signal Processing, 2022), of which we read the abstract, by
    Weiszfeld's algorithm, smoothed.

    **Departures**: row by row, and of the network, instead of whole updates, which
    share few rows; clients have equal weights. Of one client its row is taken, of two
    the mean.
    """

    def _combined(self, rows: Floats, offsets: Ints) -> Floats:
        return _nearest(rows, offsets, WEISZFELD_STEPS)


#: Enough for a row's change to settle to about a thousandth of its norm.
WEISZFELD_STEPS = 32


@njit(nogil=True, cache=True)
def _trimmed(rows: Floats, offsets: Ints, share: float) -> Floats:
    """Mean of the middle values of each column of each group of rows."""
    n_groups, dim = len(offsets) - 1, rows.shape[1]
    result = np.zeros((n_groups, dim), np.float32)
    for g in range(n_groups):
        group = rows[offsets[g] : offsets[g + 1]]
        n = len(group)
        cut = min(int(np.ceil(share * n - 1e-9)), (n - 1) // 2)
        for d in range(dim):
            values = np.sort(group[:, d])[cut : n - cut]
            total = 0.0
            for value in values:
                total += value
            result[g, d] = total / len(values)
    return result


@njit(nogil=True, cache=True)
def _nearest(rows: Floats, offsets: Ints, n_steps: int) -> Floats:
    """Geometric median of each group: means weighted by one over the distance.

    A step starts from the mean; distances count as at least a millionth of the mean
    norm, so that the point may come to lie on a row.
    """
    n_groups, dim = len(offsets) - 1, rows.shape[1]
    result = np.zeros((n_groups, dim), np.float32)
    for g in range(n_groups):
        group = rows[offsets[g] : offsets[g + 1]].astype(np.float64)
        n = len(group)
        point: NDArray[np.float64] = np.zeros(dim)
        least = 1e-300
        for row in group:
            point += row / n
            least += 1e-6 * np.sqrt((row * row).sum()) / n
        for _ in range(n_steps if n > 2 else 0):
            total, weights = np.zeros(dim), 0.0
            for row in group:
                away = row - point
                weight = 1 / max(np.sqrt((away * away).sum()), least)
                total += weight * row
                weights += weight
            point = total / weights
        result[g] = point
    return result
