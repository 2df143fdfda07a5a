"""An aggregator that leaves out clients who are unlike the others."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import RowUpdate
from recbole_fedras.federation.clipping import bounded, lengths, require_quantile
from recbole_fedras.federation.server.aggregation import InverseFrequency
from recbole_fedras.federation.server.robust import Floats, Ints, Kept, require_share
from recbole_fedras.federation.transforms import SharedUpdate


class Krum(Kept):
    """Leaves out the clients whose updates are furthest from others'; then the mean.

    Source: Blanchard, El Mhamdi, Guerraoui and Stainer, "Machine Learning with
    Adversaries: Byzantine Tolerant Gradient Descent" (NIPS 2017), multi-Krum, as
    implementations have it. Of n clients, ``f = floor(hostile_share n)`` may be
    hostile. A client's score is the sum of squared distances to the n - f - 2 clients
    nearest to it; the n - f lowest stay. Rows of those are averaged over the clients
    that trained them (FedRAS, section 4.4).

    **Departures**: two clients are compared on the rows that both trained, and on the
    network, by the mean square over these; those without a common row are as far apart
    as pairs are in the median. By whole updates, zeros and all, honest clients with
    many items would be the outliers. A row that one client trained stays as it is if
    that client does. With an ``outlier_factor``, of the f only those go whose score is
    more than so many times the median: without an attack, nearly nobody. With a
    ``row_bound_quantile``, rows of those that stay, and their networks, are scaled down
    to a bound: an attack on few rows is not seen in a whole update. The bound is that
    quantile, over those that stay, of the norm of a client's longest row, and of its
    network's change.

    Parameters
    ----------
    hostile_share : float
        At least 0 and below 0.5.
    outlier_factor : float or None
        At least 1; None: all f go, as in the source.
    row_bound_quantile : float or None
        Above 0 and at most 1; None: nothing is scaled, as in the source.
    """

    def __init__(
        self,
        hostile_share: float = 0.2,
        outlier_factor: float | None = None,
        row_bound_quantile: float | None = None,
    ) -> None:
        self._hostile_share = require_share("hostile_share", hostile_share, 0.5)
        if outlier_factor is not None and not outlier_factor >= 1:
            raise ValueError(f"outlier_factor={outlier_factor!r} must be at least 1")
        self._outlier_factor = outlier_factor
        if row_bound_quantile is not None:
            require_quantile("row_bound_quantile", row_bound_quantile)
        self._quantile = row_bound_quantile

    def result(self) -> tuple[RowUpdate, Tensor]:
        """Choose clients, and return the mean of theirs."""
        chosen = self._chosen()
        kept = [SharedUpdate(self._updates[i], self._thetas[i]) for i in chosen]
        if self._quantile is not None:
            bounds = np.quantile([*map(lengths, kept)], self._quantile, axis=0)
            bounds[bounds == 0] = np.inf  # a network may pass no gradient on, at first
            kept = [bounded(update, *bounds.tolist()) for update in kept]
        mean = InverseFrequency()
        mean.begin(self._table)
        for index, update in zip(chosen, kept, strict=True):
            mean.add(self._clients[index], *update)
        self.begin(self._table)
        return mean.result()

    def _chosen(self) -> list[int]:
        n = len(self._clients)
        n_hostile = int(self._hostile_share * n + 1e-9)
        distances = self._distances()
        np.fill_diagonal(distances, np.inf)
        nearest = np.sort(distances, axis=1)[:, : max(n - n_hostile - 2, 1)]
        scores = nearest.sum(axis=1)
        chosen = np.zeros(n, bool)
        chosen[np.argsort(scores, kind="stable")[: n - n_hostile]] = True
        if self._outlier_factor is not None:
            chosen |= scores <= self._outlier_factor * np.median(scores)
        return [index for index in range(n) if chosen[index]]

    def _distances(self) -> NDArray[np.float64]:
        """Mean squared difference of any two clients, shape (n, n)."""
        n = len(self._updates)
        total, counts = np.zeros((2, n, n))
        clients = np.repeat(np.arange(n), [len(update) for update in self._updates])
        order, _, offsets, rows = self.by_item()
        _compare(rows, clients[order], offsets, total, counts)
        thetas = torch.stack(self._thetas).numpy()
        _compare(thetas, np.arange(n), np.array([0, n]), total, counts)
        return _means(total + total.T, counts + counts.T)


def _means(
    total: NDArray[np.float64], counts: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Divide sums by counts; where there is nothing to compare, take the median pair.

    Not the mean, which a single client could make as large as it likes.
    """
    known = counts > 0
    means: NDArray[np.float64] = total / np.maximum(counts, 1)
    means[~known] = np.median(means[known]) if known.any() else 0.0
    return means


@njit(
    nogil=True,
    cache=True,
    forceinline=True,  # one copy of the code: another one may round differently
    fastmath={"reassoc"},  # else sums are not vectorised
)
def _compare(
    rows: Floats,
    clients: Ints,
    offsets: Ints,
    total: NDArray[np.float64],
    counts: NDArray[np.float64],
) -> None:
    """Add squared differences of any two clients on each row that both have.

    Beneath the diagonal: clients of a row come in increasing order. Differences, not
    products: what is large and alike must not cancel.
    """
    for g in range(len(offsets) - 1):
        for a in range(offsets[g], offsets[g + 1]):
            one, totals, compared = rows[a], total[clients[a]], counts[clients[a]]
            for b in range(offsets[g], a):
                other = rows[b]
                square = np.float32(0)
                for d in range(len(one)):
                    square += (one[d] - other[d]) * (one[d] - other[d])
                totals[clients[b]] += square
                compared[clients[b]] += len(one)
