"""A table on a grid: what leads from any of its versions to the newest, exactly."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recbole_fedras.errors import PayloadError
from recbole_fedras.wire.columns import (
    NOTHING,
    Table,
    common_shift,
    get_table,
    pack_table,
    put_table,
)
from recbole_fedras.wire.payload import Payload

Floats = NDArray[np.float64]

#: Distance of the grid's points; a step is this times a power of two.
UNIT = 2.0**-20

#: Units that an entry may be from its start, about: differences then have 30 bits.
MOST = 2**28

_ENTRY = 8  # bytes of an entry that changed, its place and by how much


class _Step(NamedTuple):
    """What led from a version to the next that was held, where it is not zero."""

    before: int
    places: NDArray[np.int32]
    moves: NDArray[np.int32]


class Change(NamedTuple):
    """What leads from one version to another.

    Attributes
    ----------
    moves : ndarray of int32, shape (n_items, dim)
        By how many units which entries move.
    offset : float
        Of the newer version, see :class:`GridTable`.
    """

    moves: Table
    offset: float


class GridTable:
    """A table that moves in whole units, and the steps that it took lately.

    ``start + UNIT (units + offset sign(units))``: who starts from the same table and
    makes the same moves, in whatever portions, holds the same bits. The offset says how
    much further from the start than their grid points entries are in the mean.

    Parameters
    ----------
    start : Tensor, shape (n_items, dim)
    version : int
        Of the start.
    memory : int, optional
        Bytes that the steps which are kept may take; by default as many as the table.

    Examples
    --------
    >>> here, there = (GridTable(torch.zeros(2, 3), version=0) for _ in range(2))
    >>> for version in (1, 2):
    ...     here.move(version, Change(np.eye(2, 3, dtype=np.int32), offset=0.5))
    >>> ((base, missed),) = here.since([0])
    >>> there.move(2, Change(missed, here.offset))
    >>> torch.equal(here.values(), there.values()), float(there.values()[0, 0] / UNIT)
    (True, 2.5)
    """

    def __init__(self, start: Tensor, version: int, memory: int | None = None) -> None:
        self._start = start.numpy().copy()
        self._memory = self._start.nbytes if memory is None else memory
        self._begin = self.version = version
        self.units: Table = np.zeros(self._start.shape, np.int32)
        self.offset = 0.0
        self._steps: deque[_Step] = deque()

    def values(self) -> Tensor:
        """Return the table, float32."""
        moved = self.units + self.offset * np.sign(self.units)
        return torch.from_numpy((self._start + UNIT * moved).astype(np.float32))

    def target(self, table: Tensor) -> Floats:
        """Return where another table would be, in units, of this one's start."""
        ahead: Floats = (table.numpy().astype(np.float64) - self._start) / UNIT
        return ahead.clip(-MOST, MOST)

    def since(self, bases: Iterable[int]) -> Iterator[tuple[int, Table | None]]:
        """Yield what leads from each version to the newest; None where it is forgotten.

        Parameters
        ----------
        bases : iterable of int
            The newest first.
        """
        missed = np.zeros_like(self.units)
        steps, reached = reversed(self._steps), self.version
        for base in bases:
            while reached > base and (step := next(steps, None)) is not None:
                missed.ravel()[step.places] += step.moves
                reached = step.before
            if base == self._begin:
                yield base, self.units
            else:
                yield base, missed.copy() if reached == base else None

    def move(self, version: int, change: Change) -> None:
        """Go to a newer version."""
        places = np.flatnonzero(change.moves)
        moves = change.moves.ravel()[places]
        self._steps.append(_Step(self.version, places.astype(np.int32), moves))
        while sum(len(step.places) for step in self._steps) * _ENTRY > self._memory:
            self._steps.popleft()
        self.units = self.units + change.moves
        self.version, self.offset = version, change.offset

    def state_dict(self) -> dict[str, Any]:
        """Return what the next move depends on."""
        return {
            "start": torch.from_numpy(self._start),
            "begin": self._begin,
            "version": self.version,
            "units": torch.from_numpy(self.units),
            "offset": self.offset,
            "steps": {
                step.before: torch.from_numpy(np.stack([step.places, step.moves]))
                for step in self._steps
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._start = state["start"].numpy().copy()
        self._begin, self.version = state["begin"], state["version"]
        self.units, self.offset = state["units"].numpy().copy(), state["offset"]
        self._steps = deque(
            _Step(before, *entries.numpy())
            for before, entries in state["steps"].items()
        )


def joined_grid(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the states of one table that shards hold, which know different versions.

    Parameters
    ----------
    states : sequence of mapping
        As ``GridTable.state_dict`` returns them, all of one version.
    """
    newest = max(states, key=lambda state: int(state["version"]))
    # What leads from each version that any of them held to the newest.
    since: dict[int, Table] = {}
    for state in states:
        grid = GridTable(newest["start"], newest["begin"])
        grid.load_state_dict(state)
        if grid.version == newest["version"]:
            since |= {
                base: missed
                for base, missed in grid.since(reversed(state["steps"]))
                if missed is not None
            }
    joint = GridTable(newest["start"], newest["begin"])
    joint.load_state_dict({**newest, "steps": _steps(since)})
    return joint.state_dict()


def _steps(since: Mapping[int, Table]) -> dict[int, Tensor]:
    """Return the steps between versions, of what leads from each to the newest."""
    bases, steps = sorted(since), {}
    for base, after in zip(bases, [*bases, None][1:], strict=True):
        moved = since[base] - (0 if after is None else since[after])
        places = np.flatnonzero(moved).astype(np.int32)
        steps[base] = torch.from_numpy(np.stack([places, moved.ravel()[places]]))
    return steps


def put_change(payload: Payload, change: Change, part: str = "items") -> int:
    """Add a change, of items or of the network (``theta``); return its bytes.

    **Wire**: a field of that name, see :func:`~recbole_fedras.wire.columns.put_table`:
    two float32, the power of two that all moves are multiples of, times :data:`UNIT`,
    and the offset; and the moves, divided by that power.
    """
    shift = common_shift(change.moves, NOTHING)
    scale = np.array([UNIT * 2.0**shift, UNIT * change.offset], np.float32)
    return put_table(payload, part, scale, pack_table(change.moves >> shift))


def read_change(
    payload: Payload, shape: tuple[int, ...], part: str = "items"
) -> Change:
    """Invert :func:`put_change`.

    Raises
    ------
    PayloadError
        If the payload does not have that form.
    """
    scale, moves = get_table(payload, part, 2, shape)
    step, offset = scale.astype(np.float64) / UNIT
    if not (np.isfinite([step, offset]).all() and step in _POWERS):
        raise PayloadError(f"field {part!r}: {step} units, with an offset of {offset}")
    if moves.any() and int(np.abs(moves).max()) * step > 4 * MOST:
        raise PayloadError(f"field {part!r}: a move beyond the grid")
    return Change(moves * np.int32(step), float(offset))


_POWERS = {2.0**shift for shift in range(31)}
