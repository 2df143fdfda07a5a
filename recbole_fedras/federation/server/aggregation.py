"""How the server combines the updates of a cohort."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import REAL, RoundContext, RowUpdate, row_update
from recbole_fedras.numeric.rows import add_rows


class Aggregator(ABC):
    """Combines what clients changed, of item rows and of the network.

    A subclass implements all three methods; its constructor parameters are its
    hyper-parameters and become config keys. Its key is ``aggregation_class``.

    Examples
    --------
    >>> import torch
    >>> from recbole_fedras.compressor import RowUpdate
    >>> mean = InverseFrequency()
    >>> mean.begin(torch.zeros(3, 1))
    >>> mean.add(7, RowUpdate(torch.tensor([0, 2]), torch.ones(2, 1)), torch.zeros(0))
    >>> mean.add(9, RowUpdate(torch.tensor([2]), torch.zeros(1, 1)), torch.zeros(0))
    >>> update, theta_change = mean.result()
    >>> update.ids.tolist(), update.rows.flatten().tolist()
    ([0, 2], [1.0, 0.5])
    """

    #: What tables may hold whose updates it combines, see
    #: ``FederatedRecommender.table_values``; None: anything.
    table_values: ClassVar[tuple[str, ...] | None] = (REAL,)

    #: Whether sums over clients are all that it needs: it has ``add_sum``.
    additive: ClassVar[bool] = False

    #: Whether a round in which nobody's update counts is a round like others.
    empty_rounds: ClassVar[bool] = False

    @property
    def secret_cohorts(self) -> bool:
        """Whether cohorts must be such that nobody who knows the seed can tell them."""
        return False

    def expect(  # noqa: B027 - optional
        self, ctx: RoundContext, n_clients: float, n_theta: int
    ) -> None:
        """Learn of the round before it begins.

        Parameters
        ----------
        ctx : RoundContext
            The server's, in this round.
        n_clients : float
            Clients of a cohort, in expectation.
        n_theta : int
            Values of the network.
        """

    @abstractmethod
    def begin(self, table: Tensor) -> None:
        """Begin a round, forgetting one that was not finished.

        Parameters
        ----------
        table : Tensor, shape (n_items, dim)
            The server's, which the updates change; not to be written.
        """

    @abstractmethod
    def add(self, client: int, update: RowUpdate, theta_change: Tensor) -> None:
        """Add one more client's update, as decoded; clients come in increasing order.

        Parameters
        ----------
        client : int
        update : RowUpdate
        theta_change : Tensor, shape (n_theta,)
        """

    def add_sum(
        self, total: RowUpdate, counts: NDArray[np.float32], theta: Tensor, n: int
    ) -> None:
        """Add what n clients changed together, if it is ``additive``.

        Parameters
        ----------
        total : RowUpdate
            Sum of their updates.
        counts : ndarray of float32, shape (n_items,)
            Clients that trained each row.
        theta : Tensor, shape (n_theta,)
            Sum of the networks' changes.
        n : int
        """
        raise NotImplementedError

    @abstractmethod
    def result(self) -> tuple[RowUpdate, Tensor]:
        """Return the combined change of rows and of the network, shape (n_theta,).

        At least one update was added.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return what lasts from round to round, as plain types: nothing by default.

        It is part of checkpoints, and restored after a round that failed.
        """
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:  # noqa: B027 - optional
        """Restore what :meth:`state_dict` returned."""


class ThetaMean:
    """Plain mean of the networks' changes, which every aggregator here takes.

    Attributes
    ----------
    total : Tensor or None
        Their sum; None as long as there are none.
    """

    def __init__(self) -> None:
        self.total: Tensor | None = None
        self._count = 0

    def add(self, change: Tensor) -> None:
        """Add one more client's, shape (n_theta,)."""
        if not change.numel():
            pass  # there is no network
        elif self.total is None:
            self.total = change.clone()
        else:
            self.total += change
        self._count += 1

    def add_sum(self, change: Tensor, n: int) -> None:
        """Add the sum of n clients' changes."""
        self.add(change)
        self._count += n - 1

    def result(self) -> Tensor:
        """Return the mean."""
        return torch.zeros(0) if self.total is None else self.total / self._count


class RowMean(Aggregator):
    """Mean of row-sparse updates; a subclass says over how many clients."""

    additive = True

    def begin(self, table: Tensor) -> None:
        """Begin a round."""
        self._total = np.zeros(tuple(table.shape), np.float32)
        self._counts = np.zeros(len(table), np.float32)
        self._n_clients = 0
        self._theta = ThetaMean()

    def add(self, client: int, update: RowUpdate, theta_change: Tensor) -> None:
        """Add one more client's update."""
        add_rows(self._total, self._counts, update.ids.numpy(), update.rows.numpy())
        self._n_clients += 1
        self._theta.add(theta_change)

    def add_sum(
        self, total: RowUpdate, counts: NDArray[np.float32], theta: Tensor, n: int
    ) -> None:
        """Add what n clients changed together."""
        self._total[total.ids.numpy()] += total.rows.numpy()
        self._counts += counts
        self._n_clients += n
        self._theta.add_sum(theta, n)

    @abstractmethod
    def _weights(self) -> NDArray[np.float32]:
        """Return what each row's sum is divided by, shape (n_items,)."""

    def result(self) -> tuple[RowUpdate, Tensor]:
        """Return the mean, of the rows where it is not zero."""
        mean = self._total / self._weights()[:, None]
        ids = np.flatnonzero(mean.any(axis=1))  # a network may pass no gradient on
        return row_update(ids, mean[ids]), self._theta.result()


class InverseFrequency(RowMean):
    """Mean over the clients that trained a row: ``(1 / |S_i|) sum_u delta_i^u``.

    Source: FedRAS (KDD 2025), section 4.4. With S the cohort and S_i the clients that
    changed row i, it weighs every update of row i by ``|S| / |S_i|`` in the mean over
    S.
    """

    def _weights(self) -> NDArray[np.float32]:
        return np.maximum(self._counts, 1)


class FedAvg(RowMean):
    """Plain mean over the cohort: ``(1 / |S|) sum_u delta_i^u``.

    The FedRAS paper's FedRAS-T, section 5.4.1.
    """

    def _weights(self) -> NDArray[np.float32]:
        return np.full_like(self._counts, self._n_clients)
