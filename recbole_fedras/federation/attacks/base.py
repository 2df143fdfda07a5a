"""What an attack is, and what those who make one know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import CohortUpdate
from recbole_fedras.numeric.rng import Stream, counter_key, generator, normals
from recbole_fedras.numeric.theta import Theta

#: What is drawn once for a run stands before its rounds.
_ONCE = 0


class Known(NamedTuple):
    """What attackers of a cohort know, one entry each: what a real client does.

    Attributes
    ----------
    seed, round : int
    cohort_size : int
        Of the round, as everybody can tell from the configuration.
    user_rows : Tensor, shape (n_attackers, dim)
        Their private rows, after local training.
    tables : Tensor, shape (n_tables, n_rows, width)
        What they were sent; attacker a trained from ``tables[table_of[a]]``.
    table_of : Tensor of int64, shape (n_attackers,)
    theta : mapping of str to Tensor
        The network that they were sent.
    score : callable
        The model's, see :meth:`scores`.
    """

    seed: int
    round: int
    cohort_size: int
    user_rows: Tensor
    tables: Tensor
    table_of: Tensor
    theta: Theta
    score: Callable[[Tensor, Tensor, Theta], Tensor]

    def scores(self, place: int, items: Tensor) -> Tensor:
        """Score items for one attacker, as the model does with its private row.

        Parameters
        ----------
        place : int
            Of the attacker, among those that are known.
        items : Tensor, shape (n, width)
            Rows of items.

        Returns
        -------
        Tensor, shape (n,)
        """
        user = self.user_rows[place].detach()
        network = {name: value[None] for name, value in self.theta.items()}
        return self.score(user[None, None], items[None], network)[0]

    def noise(self, updates: CohortUpdate) -> tuple[Tensor, Tensor]:
        """Return standard normal numbers, shaped as rows and theta of ``updates``.

        A number depends on round, client and place, on nobody else.
        """
        owners = np.repeat(updates.clients.numpy(), updates.offsets.diff().numpy())
        key = counter_key(self.seed, Stream.ATTACK, 1 + self.round)
        stride = 1 + self.tables.shape[1]  # behind a client's rows stands its network
        rows = _normals(key, owners * stride + updates.ids.numpy(), updates.rows)
        places = updates.clients.numpy() * stride + stride - 1
        return rows, _normals(key, places, updates.theta)

    def lasting_generator(self, client: int) -> np.random.Generator:
        """Return random numbers of a client's own that are the same in all rounds."""
        return generator(self.seed, Stream.ATTACK, _ONCE, 2, client)

    def lasting_noise(self, ids: Tensor, like: Tensor) -> Tensor:
        """Return standard normal rows that all attackers draw alike, in all rounds."""
        key = counter_key(self.seed, Stream.ATTACK, _ONCE, 1)
        return _normals(key, ids.numpy(), like)


def _normals(key: np.uint64, rows: NDArray[np.int64], like: Tensor) -> Tensor:
    drawn = torch.from_numpy(normals(key, rows, like.shape[1]))
    return drawn.to(like.dtype)


class Attack:
    """Changes what attackers send, after their local training.

    A subclass overrides one method or both and never writes to what it is given; its
    constructor parameters become config keys. Its key is ``attack_class``. It sees
    attackers only. What it returns is compressed and sealed like every other update,
    but not bound by what honest clients do to theirs before (transforms).

    Examples
    --------
    >>> from recbole_fedras.compressor.base import CohortUpdate
    >>> class Silence(Attack):
    ...     def on_updates(self, updates, known):
    ...         rows, theta = 0 * updates.rows, 0 * updates.theta
    ...         return with_values(updates, rows, theta)
    """

    #: Whether an attacker's update depends on other attackers' of its cohort. Then a
    #: process holds all of them at once, however large the cohort.
    colluding: ClassVar[bool] = False

    #: Whether rows of the table must be items' own.
    of_items: ClassVar[bool] = False

    #: Tokens of the items that it is about, whose exposure is measured.
    targets: Sequence[str] = ()

    #: Their numbers, from 0, increasing; set before the first round.
    target_ids: Tensor = torch.zeros(0, dtype=torch.int64)

    def on_labels(self, labels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the labels that an attacker trains with, shape (n_samples,)."""
        return labels

    def on_updates(self, updates: CohortUpdate, known: Known) -> CohortUpdate:
        """Return what the attackers of a cohort send, given what they have trained.

        Unless it is ``colluding``, each one's must follow from its own entries alone.
        """
        return updates


def with_values(updates: CohortUpdate, rows: Tensor, theta: Tensor) -> CohortUpdate:
    """Return updates of the same clients and items with other values."""
    return CohortUpdate(updates.clients, updates.offsets, updates.ids, rows, theta)


def draw_attackers(seed: int, n_clients: int, share: float) -> NDArray[np.bool_]:
    """Draw who attacks, once for a run: exactly that share, to the nearest number.

    Examples
    --------
    >>> draw_attackers(seed=1, n_clients=40, share=0.1).sum()
    np.int64(4)
    """
    order = generator(seed, Stream.ATTACK, _ONCE).permutation(n_clients)
    hostile = np.zeros(n_clients, bool)
    hostile[order[: round(share * n_clients)]] = True
    return hostile
