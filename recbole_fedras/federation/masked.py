"""What a masked update holds: words of items, of which were trained, of theta."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.compressor.base import Compressor, RoundContext, RowUpdate
from recbole_fedras.federation.protocol import Agreement
from recbole_fedras.secure.fixed_point import FixedPoint, Words
from recbole_fedras.wire.payload import Payload

_WORD = 2**32
_PARTS = {"values": "items", "trained": "ids", "theta": "theta"}


class Sum(NamedTuple):
    """What the server learns of a round.

    Attributes
    ----------
    items : RowUpdate
        Sum of the updates, of all rows.
    counts : ndarray of float32, shape (n_items,)
        Clients that trained each row.
    theta : Tensor, shape (n_theta,)
    """

    items: RowUpdate
    counts: NDArray[np.float32]
    theta: Tensor


class MaskedForm:
    """Turns an update into words that add up, and their sum into a sum of updates.

    Every update has all rows, as a mask must not show which were trained. A linear
    compressor encodes them; floats of its payload become words, and so does theta. One
    word for each row says whether the client trained it.

    **Wire**: ``values``, ``trained`` and ``theta``, words of 32 bits.

    Parameters
    ----------
    agreement : Agreement
    uplink : Compressor
        ``linear``.
    bound : float
        Values beyond it are cut.
    """

    def __init__(self, agreement: Agreement, uplink: Compressor, bound: float) -> None:
        most = agreement.federation.most_participants(agreement.n_clients)
        self._uplink, self._code = uplink, FixedPoint(bound, most)
        self._n_rows, self._dim = agreement.n_items, agreement.dim
        self._n_theta, self._budget = agreement.n_theta, agreement.budgets.uplink[0]

    def words(self, update: RowUpdate, theta: Tensor, ctx: RoundContext) -> Words:
        """Return a client's words."""
        rows = torch.zeros(self._n_rows, self._dim)
        rows[update.ids] = update.rows
        trained = np.zeros(self._n_rows, np.uint32)
        trained[update.ids.numpy()] = 1
        values = self._encoded(rows, ctx).values()
        parts = self._code.encode(values), trained, self._code.encode(theta.numpy())
        return np.concatenate(parts)

    def _encoded(self, rows: Tensor, ctx: RoundContext) -> Payload:
        update = RowUpdate(torch.arange(self._n_rows), rows)
        return self._uplink.encode(update, self._budget, ctx)

    def _sizes(self, n_words: int) -> dict[str, int]:
        n_values = n_words - self._n_rows - self._n_theta
        sizes = n_values, self._n_rows, self._n_theta
        return dict(zip(_PARTS, sizes, strict=True))

    def n_words(self, ctx: RoundContext) -> int:
        """Return how many words an update of this round has."""
        nothing = torch.zeros(self._n_rows, self._dim)
        n_values = len(self._encoded(nothing, ctx).values())
        return n_values + self._n_rows + self._n_theta

    def put(self, words: Words) -> Payload:
        """Make the payload of masked words."""
        payload, start = Payload(), 0
        for name, size in self._sizes(len(words)).items():
            own = words[start : start + size].astype(np.int64)
            payload.put_ints(name, own, _WORD, _PARTS[name])
            start += size
        return payload

    def get(self, payload: Payload, n_words: int) -> Words:
        """Read masked words.

        Raises
        ------
        PayloadError
            If there are more or fewer.
        """
        sizes = self._sizes(n_words).items()
        found = [payload.ints(name, _WORD, size) for name, size in sizes]
        return np.concatenate(found).astype(np.uint32)

    def sum_of(self, total: Words, ctx: RoundContext) -> Sum:
        """Return what a sum of words says."""
        sizes = list(self._sizes(len(total)).values())
        values, trained, theta = np.split(total, np.cumsum(sizes)[:-1])
        nothing = self._encoded(torch.zeros(self._n_rows, self._dim), ctx)
        floats = self._code.decode(values).astype(np.float32)
        items = self._uplink.decode(nothing.with_values(floats), ctx)
        change = torch.from_numpy(self._code.decode(theta).astype(np.float32))
        return Sum(items, trained.astype(np.float32), change)
