"""Attacks on the model as a whole, by clients that know nothing of each other."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from recbole_fedras.compressor.base import CohortUpdate
from recbole_fedras.federation.attacks.base import Attack, Known, with_values


def require_strength(strength: float | None) -> None:
    """Refuse what is no positive number.

    Raises
    ------
    ValueError
        That names it.
    """
    if type(strength) not in (int, float) or not 0 < strength < np.inf:  # type: ignore[operator]
        raise ValueError(f"attack_strength={strength!r} must be a positive number")


def require_count(key: str, count: int | None) -> None:
    """Refuse what is no number of items; None is none.

    Raises
    ------
    ValueError
        That names it.
    """
    if count is not None and (type(count) is not int or count < 1):
        raise ValueError(f"{key}={count!r} must be at least 1")


class Scaling(Attack):
    """Sends ``attack_strength`` times the update.

    Parameters
    ----------
    attack_strength : float
        Positive.

    Examples
    --------
    >>> rows, none = torch.ones(1, 2), torch.zeros(1, 0)
    >>> clients, ids = torch.tensor([3]), torch.tensor([7])
    >>> update = CohortUpdate(clients, torch.tensor([0, 1]), ids, rows, none)
    >>> Scaling(10.0).on_updates(update, known=None).rows.tolist()
    [[10.0, 10.0]]
    """

    def __init__(self, attack_strength: float = 10.0) -> None:
        require_strength(attack_strength)
        self.factor = float(attack_strength)

    def on_updates(self, updates: CohortUpdate, known: Known) -> CohortUpdate:
        """Scale rows and network."""
        rows, theta = self.factor * updates.rows, self.factor * updates.theta
        return with_values(updates, rows, theta)


class SignFlip(Scaling):
    """Sends minus ``attack_strength`` times the update.

    Parameters
    ----------
    attack_strength : float
        Positive.
    """

    def __init__(self, attack_strength: float = 10.0) -> None:
        super().__init__(attack_strength)
        self.factor *= -1


class Noise(Attack):
    """Adds Gaussian noise, ``attack_strength`` times as large as the update is.

    Its standard deviation is that many times the root mean square of a client's rows,
    and of its network's change.

    Parameters
    ----------
    attack_strength : float
        Positive.
    """

    def __init__(self, attack_strength: float = 10.0) -> None:
        require_strength(attack_strength)
        self.factor = float(attack_strength)

    def on_updates(self, updates: CohortUpdate, known: Known) -> CohortUpdate:
        """Add it to rows and network."""
        counts = updates.offsets.diff()
        owners = torch.repeat_interleave(torch.arange(len(updates)), counts)
        squares = updates.rows.new_zeros(len(updates))
        squares.index_add_(0, owners, updates.rows.square().mean(dim=1))
        scale = (squares / counts.clamp(min=1)).sqrt()[owners, None]
        of_theta = updates.theta.square().sum(dim=1, keepdim=True)
        of_theta = (of_theta / max(updates.theta.shape[1], 1)).sqrt()
        rows, theta = known.noise(updates)
        return with_values(
            updates,
            updates.rows + self.factor * scale * rows,
            updates.theta + self.factor * of_theta * theta,
        )


class LabelFlip(Attack):
    """Trains with wrong labels: its items as negatives, negatives as its items.

    In pairs, the negative becomes the item. What it sends is what training gives.

    Examples
    --------
    >>> LabelFlip().on_labels(np.array([1, 0, 0], np.float32)).tolist()
    [0.0, 1.0, 1.0]
    """

    def on_labels(self, labels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Swap ones and zeros."""
        return 1 - labels
