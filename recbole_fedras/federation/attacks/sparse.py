"""Attacks that choose item by item: ALIE, and Spattack with limited knowledge."""

from __future__ import annotations

from math import floor

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from recbole_fedras.compressor.base import CohortUpdate
from recbole_fedras.federation.attacks.base import Attack, Known
from recbole_fedras.federation.attacks.untargeted import (
    require_count,
    require_strength,
)


class ALIE(Attack):
    """Stays within the spread of honest updates: mean - z deviations, of every value.

    Source: Baruch, Baruch and Goldberg, "A Little Is Enough: Circumventing Defenses For
    Distributed Learning" (NeurIPS 2019), as implementations have it. Attackers estimate
    mean and standard deviation of each value from what they themselves have trained.
    With n clients in a cohort, m of them hostile, ``s = floor(n / 2 + 1) - m`` honest
    ones must be further out than they, so ``z = Phi^-1((n - m - s) / (n - m))``, where
    that is positive.

    **Departures**: updates are sparse. Mean and deviation of a row are over the
    attackers that trained it, and all attackers send all rows that any of them trained;
    where one did, that is its own row.

    Parameters
    ----------
    attack_strength : float or None
        z; None: by the formula.
    """

    colluding = True

    def __init__(self, attack_strength: float | None = None) -> None:
        if attack_strength is not None:
            require_strength(attack_strength)
        self.z = attack_strength

    def on_updates(self, updates: CohortUpdate, known: Known) -> CohortUpdate:
        """Return the same update for all attackers."""
        m, n = len(updates), known.cohort_size
        z = largest_deviation(n, m) if self.z is None else self.z
        found, where = np.unique(updates.ids.numpy(), return_inverse=True)
        ids, place = torch.from_numpy(found), torch.from_numpy(where)
        mean, deviation = _moments(updates.rows, place, len(ids))
        of_theta = updates.theta.mean(dim=0), updates.theta.std(dim=0, correction=0)
        theta = of_theta[0] - z * of_theta[1]
        return all_alike(updates.clients, ids, mean - z * deviation, theta)


def largest_deviation(n: int, m: int) -> float:
    """Return ALIE's z for m attackers among n clients; 0 where they are too few.

    Examples
    --------
    >>> round(largest_deviation(50, 24), 2)
    1.43
    """
    honest = n - m
    needed = max(floor(n / 2 + 1) - m, 0)
    if honest <= needed:
        return 0.0
    share = (honest - needed) / honest
    return max(float(ndtri(min(share, 1 - 1e-6))), 0.0)


def _moments(rows: Tensor, place: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of the rows at each of n places, each (n, dim)."""
    counts = torch.bincount(place, minlength=n)[:, None]
    empty = rows.new_zeros(n, rows.shape[1])
    mean = empty.index_add(0, place, rows) / counts
    spread = (rows - mean[place]).square()
    return mean, (empty.index_add(0, place, spread) / counts).sqrt()


class Spattack(Attack):
    """Sends one random row per item, the same from all attackers in all rounds.

    Source: Zhang et al., "Rethinking Byzantine Robustness in Federated Recommendation
    from Sparse Aggregation Perspective" (AAAI 2025), of whose attacks this is the one
    with limited knowledge, as its published code has it (``sameValueAtkClient``): a
    "gradient" of N(0, 1), fixed once. Few honest clients train a rare item, so there
    attackers are soon the majority, whatever the server takes of it.

    **Departures**: what it sends is a change, not a gradient, so it is scaled. A
    network's change is sent as trained. The attacks that know all honest updates are
    left out: no client knows them.

    Parameters
    ----------
    attack_strength : float
        Standard deviation of a value.
    attack_items : int or None
        How many items each sends, drawn once for itself; None: all.
    """

    def __init__(
        self, attack_strength: float = 1.0, attack_items: int | None = None
    ) -> None:
        require_strength(attack_strength)
        require_count("attack_items", attack_items)
        self.strength, self.n_items = float(attack_strength), attack_items

    def on_updates(self, updates: CohortUpdate, known: Known) -> CohortUpdate:
        """Return random rows."""
        chosen = [self._items(client, known) for client in updates.clients.tolist()]
        ids = torch.cat(chosen)
        offsets = np.cumsum([0, *map(len, chosen)])
        rows = self.strength * known.lasting_noise(ids, updates.rows)
        return CohortUpdate(
            updates.clients, torch.from_numpy(offsets), ids, rows, updates.theta
        )

    def _items(self, client: int, known: Known) -> Tensor:
        n_rows = known.tables.shape[1]
        if self.n_items is None or self.n_items >= n_rows:
            return torch.arange(n_rows)
        drawn = known.lasting_generator(client).permutation(n_rows)[: self.n_items]
        return torch.from_numpy(np.sort(drawn))


def all_alike(
    clients: Tensor, ids: Tensor, rows: Tensor, theta: Tensor
) -> CohortUpdate:
    """Return the same update from each of the clients."""
    n = len(clients)
    offsets = len(ids) * torch.arange(n + 1)
    return CohortUpdate(
        clients, offsets, ids.repeat(n), rows.repeat(n, 1), theta.expand(n, -1)
    )
