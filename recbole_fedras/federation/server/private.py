"""DP-FedAvg: the server adds noise to the sum of clipped updates."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.compressor.base import RoundContext, RowUpdate, row_update
from recbole_fedras.federation.privacy import GaussianMechanism
from recbole_fedras.federation.server.aggregation import FedAvg
from recbole_fedras.federation.transforms import SharedUpdate


class DPFedAvg(GaussianMechanism, FedAvg):
    """Sum of clipped updates, and noise, over the size that a cohort has in the mean.

    Source: McMahan, Ramage, Talwar and Zhang, "Learning Differentially Private
    Recurrent Language Models" (ICLR 2018), DP-FedAvg with the fixed-denominator
    estimator and flat clipping, all clients of weight 1.

    An update, items and network together, is scaled down to ``clip_norm`` as it was
    decoded, so that it binds hostile clients, and whatever a compressor makes longer.
    The sum then changes by ``clip_norm`` at most, to rounding, with one client. Noise
    of standard deviation ``dp_noise_multiplier clip_norm`` is added to each value of
    **every** row and of the network, then all is divided by ``q n``. Nothing else
    depends on who took part: neither a divisor, as of ``inverse_frequency``, nor which
    rows have changed. A round without any update is a round too.

    **Sampling** is Poisson: each of n clients takes part with a probability q. Clients
    remember what they took part in, in their private rows. So it matters that no
    client's part depends on another's, as in cohorts of fixed size it does.

    **Guarantee**: of item table and network in all rounds, and all that is made of
    these, for each user: whatever its data are, against none. The number of users is
    public. It is not of what is never published, as a client's own private row, nor of
    what the run's own reports say: losses, metrics, and which round was the best.

    Parameters are those of :class:`GaussianMechanism`; with ``dp_noise_source: os``
    cohorts too are drawn so that nobody can tell them.

    Examples
    --------
    >>> mean = DPFedAvg(clip_norm=1.0, dp_noise_multiplier=0.0)
    >>> ctx = RoundContext(round=0, seed=1, n_items=3, dim=2)
    >>> mean.expect(ctx, n_clients=4.0, n_theta=0)
    >>> mean.begin(torch.zeros(3, 2))
    >>> rows = torch.tensor([[3.0, 4.0]])  # of norm 5
    >>> mean.add(7, RowUpdate(torch.tensor([2]), rows), torch.zeros(0))
    >>> [[round(value, 2) for value in row] for row in mean.result()[0].rows.tolist()]
    [[0.0, 0.0], [0.0, 0.0], [0.15, 0.2]]
    """

    empty_rounds = True
    additive = False  # the server must clip each update

    @property
    def secret_cohorts(self) -> bool:
        """Whether cohorts must not follow from the seed."""
        return self._source == "os"

    def expect(self, ctx: RoundContext, n_clients: float, n_theta: int) -> None:
        """Learn what the sum is divided by."""
        self._ctx, self._expected, self._n_theta = ctx, n_clients, n_theta

    def add(self, client: int, update: RowUpdate, theta_change: Tensor) -> None:
        """Clip one more client's update and add it."""
        given = SharedUpdate(update, theta_change)
        super().add(client, *given.clipped(self.clip_norm))

    def result(self) -> tuple[RowUpdate, Tensor]:
        """Return the noisy mean, of all rows."""
        theta_sum = self._theta.total
        if theta_sum is None:  # nobody takes part
            theta_sum = torch.zeros(self._n_theta)
        total = np.concatenate([self._total.ravel(), theta_sum.numpy()])
        noisy = total + self.noise(self._ctx, len(total))
        mean = (noisy / self._expected).astype(np.float32)
        rows = mean[: self._total.size].reshape(self._total.shape)
        theta = torch.from_numpy(mean[self._total.size :].copy())
        return row_update(np.arange(len(rows)), rows), theta
