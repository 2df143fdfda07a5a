"""What an attacker is, what it sees of a client, and what everybody knows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import RowUpdate
from recbole_fedras.federation.client.training import LocalModel
from recbole_fedras.federation.protocol import Agreement
from recbole_fedras.federation.settings import LocalTraining
from recbole_fedras.wire.message import Header

Floats = NDArray[np.float64]


class Known(NamedTuple):
    """What everybody knows, the server among them.

    Attributes
    ----------
    agreement : Agreement
        Shapes, the seed, budgets.
    training : LocalTraining
        How clients train.
    model : LocalModel
        How items are scored; its ``theta`` gives names and shapes only.
    """

    agreement: Agreement
    training: LocalTraining
    model: LocalModel

    def n_interactions(self, header: Header) -> int:
        """Return how many interactions a client has, as an update's header tells.

        It is 0 where the client hides its number of samples.
        """
        training, n = self.training, self.training.n_negatives
        per_item = n if training.pairwise else 1 + n  # samples, or pairs
        return (header.n_samples or 0) // (per_item * training.local_epochs)


class Seen(NamedTuple):
    """One update as the server sees it: bytes, decoded.

    Attributes
    ----------
    header : Header
        Of the message: round, client, number of samples.
    update : RowUpdate
        What its payload decodes to.
    base : Tensor, shape (n_items, dim)
        The table that the client trained from, as the server believes; not to be
        written, nor kept.
    theta : Tensor, shape (n_theta,)
        The network that it was sent.
    """

    header: Header
    update: RowUpdate
    base: Tensor
    theta: Tensor


class Attacker(ABC):
    """Says how likely each item is one that the sender of an update interacted with.

    It is handed :class:`Seen` and :class:`Known`, nothing of a client's own.
    A subclass implements :meth:`scores`. One of yours is named by ``attacker_class``.

    Examples
    --------
    >>> class Largest(Attacker):
    ...     def scores(self, seen, known):
    ...         return spread(seen, seen.update.rows.abs().amax(dim=1).numpy())
    """

    #: Whether scores of all updates of a client are added up; else its newest counts.
    repeated: ClassVar[bool] = False

    @abstractmethod
    def scores(self, seen: Seen, known: Known) -> Floats:
        """Return a score of every item, shape (n_items,); more is more likely."""


def spread(seen: Seen, values: NDArray[Any]) -> Floats:
    """Place values of an update's rows among all items, the absent below the least.

    Absent items have 0, present ones between 1 and 2: added up over updates, to be
    there counts no less than to be likely.

    Parameters
    ----------
    seen : Seen
    values : ndarray, shape (n_rows,)
    """
    scores = np.zeros(len(seen.base))
    values = np.asarray(values, np.float64)
    low, high = values.min(initial=0.0), values.max(initial=0.0)
    scores[seen.update.ids.numpy()] = 1 + (values - low) / max(high - low, 1e-300)
    return scores
