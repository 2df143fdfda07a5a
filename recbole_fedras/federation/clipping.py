"""Bounds on what a client may change, found from what clients sent before."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_fedras.compressor.base import RoundContext, RowUpdate
from recbole_fedras.federation.transforms import SharedUpdate, Transform


def require_quantile(key: str, quantile: float) -> None:
    """Refuse what is no quantile, or the smallest of all.

    Raises
    ------
    ValueError
        That names it.
    """
    if type(quantile) not in (int, float) or not 0 < quantile <= 1:
        raise ValueError(f"{key}={quantile!r} must be above 0 and at most 1")


def lengths(update: SharedUpdate) -> tuple[float, float]:
    """Return the norms of the longest row, and of the network's change."""
    norms = update.items.rows.norm(dim=1)
    return float(norms.max()) if len(norms) else 0.0, float(update.theta.norm())


def bounded(update: SharedUpdate, of_row: float, of_theta: float) -> SharedUpdate:
    """Scale each row, and the network's change, down to a norm where it is larger.

    Examples
    --------
    >>> rows = RowUpdate(torch.tensor([3, 5]), torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    >>> bounded(SharedUpdate(rows, torch.ones(1)), 2.5, 4.0).items.rows.tolist()
    [[1.5, 2.0], [0.0, 1.0]]
    """
    items, theta = update
    scaled = items.rows * _factor(items.rows, of_row)
    return SharedUpdate(RowUpdate(items.ids, scaled), theta * _factor(theta, of_theta))


def _factor(values: Tensor, bound: float) -> Tensor:
    norms = values.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    return torch.clamp(bound / norms, max=1.0)


class _Quantiles(Transform):
    """Holds bounds, each a quantile over clients of the round before.

    The server finds and enforces them where an update arrives, so nobody needs to be
    told, and nobody can pass by. The first round has none but ``max_update_norm``. A
    round that fails leaves the bounds as they were.
    """

    def __init__(self, key: str, quantile: float) -> None:
        require_quantile(key, quantile)
        self._quantile = float(quantile)
        self._bounds: list[float] = []
        self._norms: list[list[float]] = []

    def _note(self, *norms: float) -> list[float]:
        """Note a client's norms; return the bounds, infinite without any."""
        self._norms.append(list(norms))
        return self._bounds or [np.inf] * len(norms)

    def on_aggregate(self, update: SharedUpdate, ctx: RoundContext) -> SharedUpdate:
        """Find the next round's bounds; the aggregate stays as it is."""
        found = np.quantile(np.array(self._norms), self._quantile, axis=0)
        self._bounds = [float(bound) or np.inf for bound in found]
        self._norms = []
        return update

    def state_dict(self) -> dict[str, Any]:
        """Return the bounds."""
        return {"bounds": list(self._bounds)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them, and forget an unfinished round's norms."""
        self._bounds, self._norms = list(state["bounds"]), []


class ClipToQuantile(_Quantiles):
    """Scales a client's whole update down to a quantile of the norms of earlier ones.

    Source: Andrew, Thakkar, McMahan and Ramaswamy, "Differentially Private Learning
    with Adaptive Clipping" (NeurIPS 2021), of which we read the first page: the bound
    is a quantile of unclipped norms, followed online, with privacy. **Departures**: the
    quantile is exact, of the round before, and not private.

    Parameters
    ----------
    clip_quantile : float
        Above 0 and at most 1; 0.5: the median client's.
    """

    def __init__(self, clip_quantile: float = 0.5) -> None:
        super().__init__("clip_quantile", clip_quantile)

    def on_arrival(self, update: SharedUpdate, ctx: RoundContext) -> SharedUpdate:
        """Return ``update min(1, bound / |update|)``."""
        norm = update.norm()
        (bound,) = self._note(norm)
        if norm <= bound:
            return update
        rows = RowUpdate(update.items.ids, update.items.rows * (bound / norm))
        return SharedUpdate(rows, update.theta * (bound / norm))


class ClipRows(_Quantiles):
    """Scales each row of a client's update down to the largest rows of earlier ones.

    Clients count by the norm of their largest row, of which the bound is a quantile: a
    client that sends many rows moves it no more than one that sends few. The network
    has a bound of its own. Nothing depends on how many clients trained a row: it holds
    for one as for a hundred.

    Ours. Honest clients differ in how long most of their rows are, items and negatives,
    but little in how long the longest is: a bound on that costs next to nothing, and
    what pushes a row has to push it further.

    Parameters
    ----------
    row_clip_quantile : float
        Above 0 and at most 1, over clients.
    """

    def __init__(self, row_clip_quantile: float = 0.5) -> None:
        super().__init__("row_clip_quantile", row_clip_quantile)

    def on_arrival(self, update: SharedUpdate, ctx: RoundContext) -> SharedUpdate:
        """Scale rows, and the network's change."""
        return bounded(update, *self._note(*lengths(update)))
