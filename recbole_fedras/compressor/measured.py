"""What compression loses of each message, measured: the contraction of a compressor."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from recbole_fedras.compressor.base import (
    Budget,
    CohortUpdate,
    Compressor,
    RoundContext,
    RowUpdate,
)
from recbole_fedras.wire.payload import Payload


class Noted:
    """Contractions of a round's messages, by direction.

    Those of a new round begin with the first that comes after the means were asked for.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {"uplink": [], "downlink": []}
        self._told = False

    def add(self, direction: str, value: float) -> None:
        """Note a message's."""
        if self._told:
            self._told = False
            for values in self._values.values():
                values.clear()
        self._values[direction].append(value)

    def means(self) -> dict[str, float]:
        """Return the columns of ``rounds.csv``; 0 where nothing was sent."""
        self._told = True
        return {
            f"{direction}_contraction": float(np.mean(values)) if values else 0.0
            for direction, values in self._values.items()
        }


def contraction(update: RowUpdate, decoded: RowUpdate) -> float:
    """Return ``|C(x) - x|^2 / |x|^2`` of an update x and what arrives of it.

    0 where there is nothing to send.

    Examples
    --------
    >>> update = RowUpdate(torch.arange(2), torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> contraction(update, RowUpdate(torch.tensor([1]), torch.tensor([[0.0, 4.0]])))
    0.36
    """
    lost = update.rows.double()
    energy = float(lost.square().sum())
    lost[torch.searchsorted(update.ids, decoded.ids)] -= decoded.rows.to(lost)
    return float(lost.square().sum()) / energy if energy else 0.0


class Measured:
    """A compressor, and what it loses of every message: ``report_contraction``.

    Each message is decoded once more, where it is encoded. Copies note to the same
    place, so that server and clients of one process report together.

    Parameters
    ----------
    compressor : Compressor
        What does the work.
    direction : {'uplink', 'downlink'}
    noted : Noted
        Where to note; of both directions.
    """

    def __init__(self, compressor: Compressor, direction: str, noted: Noted) -> None:
        self._compressor = compressor
        self._direction, self._noted = direction, noted

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compressor, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Measured:
        """Copy the compressor alone."""
        inner = copy.deepcopy(self._compressor, memo)
        return Measured(inner, self._direction, self._noted)

    def _note(self, update: RowUpdate, payload: Payload, ctx: RoundContext) -> None:
        decoded = self._compressor.decode(payload, ctx)
        self._noted.add(self._direction, contraction(update, decoded))

    def encode_cohort(
        self,
        updates: CohortUpdate,
        budgets: Sequence[Budget],
        ctxs: Sequence[RoundContext],
    ) -> list[Payload]:
        """Encode as the compressor does, and note what each message loses."""
        payloads = self._compressor.encode_cohort(updates, budgets, ctxs)
        for index, (payload, ctx) in enumerate(zip(payloads, ctxs, strict=True)):
            self._note(updates[index], payload, ctx)
        return payloads

    def encode_broadcast(
        self, update: RowUpdate, budgets: Sequence[Budget], ctx: RoundContext
    ) -> list[Payload]:
        """Encode as the compressor does, and note what each tier's message loses."""
        payloads = self._compressor.encode_broadcast(update, budgets, ctx)
        for payload in payloads:
            self._note(update, payload, ctx)
        return payloads

    def metrics(self) -> dict[str, float]:
        """Return the compressor's figures, and the means of both directions."""
        return self._compressor.metrics() | self._noted.means()
