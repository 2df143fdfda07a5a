"""User-level differential privacy: the Gaussian mechanism, and noise of each client."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from recbole_fedras.compressor.base import REAL, RoundContext, RowUpdate
from recbole_fedras.federation.transforms import SharedUpdate, Transform
from recbole_fedras.numeric.rng import Stream, generator, system_normals

NOISE_SOURCES = ("seed", "os")


class GaussianMechanism:
    """Noise for values whose norm, all together, a client changes by a bound at most.

    What has it, an aggregator or a transform, has its parameters as keys.

    Source: Dwork and Roth, "The Algorithmic Foundations of Differential Privacy"
    (2014), appendix A; only implementations of it were read.

    **Limits**: values are floating-point numbers, whose last bits can tell more than
    the mathematics allows (Mironov, CCS 2012, of which only accounts were read).

    Parameters
    ----------
    clip_norm : float
        Positive: the bound, of items and network together.
    dp_noise_multiplier : float
        Standard deviation of the noise of a value, in ``clip_norm``; 0: none, and no
        guarantee.
    dp_delta : float, optional
        Of the guarantee, by default ``n^-1.1`` for n users.
    dp_noise_source : {'seed', 'os'}
        With ``seed`` runs can be repeated, and the noise taken away by whoever knows
        the seed; ``os`` draws from the operating system.

    Raises
    ------
    ValueError
    """

    def __init__(
        self,
        clip_norm: float = 1.0,
        dp_noise_multiplier: float = 1.0,
        dp_delta: float | None = None,
        dp_noise_source: str = "seed",
    ) -> None:
        numbers = {"clip_norm": clip_norm, "dp_noise_multiplier": dp_noise_multiplier}
        for key, value in numbers.items():
            if type(value) not in (int, float) or not 0 <= value < np.inf:
                raise ValueError(f"{key}={value!r} must be a number from 0")
        if not clip_norm:
            raise ValueError(f"clip_norm={clip_norm} must be above 0")
        if dp_delta is not None and not (type(dp_delta) is float and 0 < dp_delta < 1):
            raise ValueError(f"dp_delta={dp_delta!r} must be None, or above 0, below 1")
        if dp_noise_source not in NOISE_SOURCES:
            raise ValueError(
                f"dp_noise_source={dp_noise_source!r} must be of {NOISE_SOURCES}"
            )
        self.clip_norm, self._source = float(clip_norm), dp_noise_source
        self._deviation = float(dp_noise_multiplier) * self.clip_norm

    def noise(self, ctx: RoundContext, n: int) -> NDArray[np.float64]:
        """Draw the sender's noise of this round, shape (n,)."""
        if not self._deviation:
            return np.zeros(n)
        if self._source == "os":
            return self._deviation * system_normals(n)
        rng = generator(ctx.seed, Stream.PRIVACY, ctx.round, ctx.sender + 1)
        return self._deviation * rng.standard_normal(n)


class LocalDP(GaussianMechanism, Transform):
    """Clips a client's update and adds Gaussian noise to all of it, before it is sent.

    The server need not be trusted: what leaves a client is private by itself, and so is
    all that compressor and server make of it. Each value of **every** row of the table
    gets noise, as does the network. Which rows a client trained is as private as their
    values, so an update has all rows, and takes the bytes of all. The number of samples
    is not told, and the loss must not be (``report_loss``).

    Any two updates of a client differ by a norm of ``2 clip_norm`` at most, so one
    message is a Gaussian mechanism whose noise is ``dp_noise_multiplier / 2`` times its
    sensitivity. Nothing is gained by sampling: the server knows whom it invites.

    Source: clipping as in McMahan et al., "Learning Differentially Private Recurrent
    Language Models" (ICLR 2018), with the noise of each client instead of the server's.

    Parameters are those of :class:`GaussianMechanism`.

    Examples
    --------
    >>> ctx = RoundContext(round=0, seed=1, n_items=50, dim=8, sender=5)
    >>> trained = RowUpdate(torch.tensor([3]), torch.ones(1, 8))
    >>> noisy = LocalDP(1.0, 0.1).on_client(SharedUpdate(trained, torch.zeros(2)), ctx)
    >>> noisy.items.rows.shape, round(float(noisy.items.rows[10:].std()), 2)
    (torch.Size([50, 8]), 0.1)
    """

    hides_samples = True
    table_values = (REAL,)

    def on_client(self, update: SharedUpdate, ctx: RoundContext) -> SharedUpdate:
        """Return all rows and the network, clipped and noisy."""
        items, theta = update.clipped(self.clip_norm)
        n_values = ctx.n_items * ctx.dim
        noise = torch.from_numpy(self.noise(ctx, n_values + len(theta)))
        rows = noise[:n_values].view(ctx.n_items, ctx.dim)
        rows.index_add_(0, items.ids, items.rows.to(rows))
        theta = theta + noise[n_values:].to(theta)
        return SharedUpdate(RowUpdate(torch.arange(ctx.n_items), rows.float()), theta)
