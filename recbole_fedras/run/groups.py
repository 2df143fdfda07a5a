"""How different clients fare: quality by activity, by compression rate, by link."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[Any]

#: Groups that clients are put into, where they differ too much for one group a value.
N_GROUPS = 10


def hits_by_group(
    ranks: NDArray[np.int64], k: int, **values: Numbers
) -> dict[str, dict[str, Any]]:
    """Return the share of hits in groups of clients that are alike.

    Parameters
    ----------
    ranks : ndarray of int64, shape (n,)
        Place of each client's held-out item, from 1; 0: beyond what was ranked.
    k : int
    **values : ndarray, shape (n,)
        What clients are told apart by. Up to ten different values make a group each;
        of more, tenths of the clients are groups, by increasing value.

    Returns
    -------
    dict
        For each of ``values``: ``hit@k``, a list by increasing value; ``upto``, the
        largest value of each group; ``worst``, the least of the shares; ``gap``, the
        best minus the worst.

    Examples
    --------
    >>> ranks = np.array([1, 0, 3, 12])
    >>> found = hits_by_group(ranks, 10, rate=np.array([0.9, 0.9, 0.5, 0.5]))
    >>> found["rate"]["hit@10"], found["rate"]["upto"], found["rate"]["gap"]
    ([0.5, 0.5], [0.5, 0.9], 0.0)
    """
    hits = (ranks > 0) & (ranks <= k)
    return {name: _group(hits, k, known) for name, known in values.items()}


def _group(hits: NDArray[np.bool_], k: int, values: Numbers) -> dict[str, Any]:
    order = np.argsort(values, kind="stable")
    if len(np.unique(values)) <= N_GROUPS:
        starts = 1 + np.flatnonzero(np.diff(values[order]))
        groups = np.split(order, starts)
    else:
        groups = np.array_split(order, N_GROUPS)
    shares = [float(hits[group].mean()) for group in groups]
    return {
        f"hit@{k}": shares,
        "upto": [values[group].max().item() for group in groups],
        "worst": min(shares),
        "gap": max(shares) - min(shares),
    }
