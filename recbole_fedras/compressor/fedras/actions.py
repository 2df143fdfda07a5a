"""How FedRAS' actions travel: as floats, in 8 bits, or as directions and gains."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from recbole_fedras.compressor.base import Budget
from recbole_fedras.compressor.fedras.assignments import (
    get_assignments,
    put_assignments,
)
from recbole_fedras.compressor.fedras.division import Floats, Ints
from recbole_fedras.numeric.rows import add_rows
from recbole_fedras.wire.payload import FLOAT32, Layout, Payload

_LEVELS = 127  # to each side of zero: with it 255 levels, which 8 bits hold
_GAINS = 255  # positive ones; with zero 256, which 8 bits hold
_BLOCK = 2**18  # cosines at a time: 1 MB stays in the second-level cache
_ITERATIONS = 5  # of spherical k-means; ours: it starts from centroids of k-means


class ActionCode(Protocol):
    """Writes what a receiver needs of a clustering, and reads it back.

    Attributes
    ----------
    value_bytes : int
        Bytes of a value of an action, as it travels.
    """

    value_bytes: int

    @staticmethod
    def nominal(n: int, budget: Budget) -> int:
        """Return as many groups as cost the bytes of C_e float32 centroids."""

    @staticmethod
    def layout(layout: Layout, n: int, n_groups: int, dim: int) -> Layout:
        """Add to a layout what :meth:`put` adds to a payload, at most."""

    @staticmethod
    def put(
        payload: Payload,
        rows: Floats,
        actions: Floats,
        assignments: Ints,
        coded: bool = True,
    ) -> None:
        """Add actions (K, dim), and the assignments (n,) of rows (n, dim).

        ``coded``: assignments may be coded, see :func:`put_assignments`.
        """

    @staticmethod
    def get(payload: Payload, n: int, dim: int) -> Floats:
        """Read the n rows that the receiver gets, shape (n, dim)."""


class Float32Code:
    """The paper's: K centroids in float32.

    Examples
    --------
    >>> rows = np.array([[1, 2], [1, 2], [3, 4]], np.float32)
    >>> payload, assignments = Payload(), np.array([0, 0, 1])
    >>> Float32Code.put(payload, rows, rows[1:], assignments)
    >>> payload.part_bytes()["items"], Float32Code.get(payload, n=3, dim=2)[2]
    (16, array([3., 4.], dtype=float32))
    """

    value_bytes = FLOAT32.itemsize

    @staticmethod
    def nominal(n: int, budget: Budget) -> int:
        """Return as many groups as cost the bytes of C_e float32 centroids."""
        return budget.rows

    @staticmethod
    def layout(layout: Layout, n: int, n_groups: int, dim: int) -> Layout:
        """Add the fields."""
        layout.floats("actions", n_groups, dim)
        return layout.ints("assignments", n_groups, n)

    @staticmethod
    def put(
        payload: Payload,
        rows: Floats,
        actions: Floats,
        assignments: Ints,
        coded: bool = True,
    ) -> None:
        """Add the fields."""
        size = Float32Code.value_bytes
        actions, _ = put_assignments(payload, actions, assignments, size, coded)
        payload.put_floats("actions", actions)

    @staticmethod
    def get(payload: Payload, n: int, dim: int) -> Floats:
        """Read the rows."""
        actions = payload.floats("actions", None, dim)
        return actions[get_assignments(payload, len(actions), n)]


class Int8Code:
    """Centroids rounded to multiples of one step, for all values of all actions.

    Examples
    --------
    A byte for each value, and the step:

    >>> rows = np.array([[1, 2], [1, 2], [3, 4]], np.float32)
    >>> payload, assignments = Payload(), np.array([0, 0, 1])
    >>> Int8Code.put(payload, rows, rows[1:], assignments)
    >>> payload.part_bytes()["items"], Int8Code.get(payload, n=3, dim=2)[2].round(2)
    (8, array([2.99, 4.  ], dtype=float32))
    """

    value_bytes = 1

    @staticmethod
    def nominal(n: int, budget: Budget) -> int:
        """Return as many groups as cost the bytes of C_e float32 centroids."""
        # C_e rows in float32, less the step: what is left holds a byte for each value.
        return (4 * budget.rows * budget.dim - 4) // budget.dim

    @staticmethod
    def layout(layout: Layout, n: int, n_groups: int, dim: int) -> Layout:
        """Add the fields."""
        layout.floats("step", 1).ints("levels", 2 * _LEVELS + 1, n_groups, dim)
        return layout.ints("assignments", n_groups, n)

    @staticmethod
    def put(
        payload: Payload,
        rows: Floats,
        actions: Floats,
        assignments: Ints,
        coded: bool = True,
    ) -> None:
        """Add the fields."""
        size = Int8Code.value_bytes
        actions, _ = put_assignments(payload, actions, assignments, size, coded)
        _put_levels(payload, actions)

    @staticmethod
    def get(payload: Payload, n: int, dim: int) -> Floats:
        """Read the rows."""
        actions = _get_levels(payload, dim)
        return actions[get_assignments(payload, len(actions), n)]


class ShapeCode:
    """Gain-shape vector quantisation: directions, and how far each row goes along one.

    Source: Sabin and Gray, "Product Code Vector Quantizers for Waveform and Voice
    Coding" (IEEE Transactions on Acoustics, Speech and Signal Processing 1984).
    Directions are refined by spherical k-means (Dhillon and Modha, "Concept
    Decompositions for Large Sparse Text Data Using Clustering", Machine Learning 2001),
    in which a row weighs as its squared norm, from the centroids given. A gain is the
    projection of a row on its direction as sent, rounded on a logarithmic scale; one
    that is not positive is 0.

    Examples
    --------
    Two rows share a direction and differ in length. A byte for each value of the
    direction and its step, a byte for each gain and their range:

    >>> rows = np.array([[3, 4], [30, 40]], np.float32)
    >>> payload = Payload()
    >>> ShapeCode.put(payload, rows, rows[:1], np.array([0, 0]))
    >>> payload.part_bytes()["items"], ShapeCode.get(payload, n=2, dim=2).round()
    (16, array([[ 3.,  4.],
           [30., 40.]], dtype=float32))
    """

    value_bytes = 1

    @staticmethod
    def nominal(n: int, budget: Budget) -> int:
        """Return as many groups as cost the bytes of C_e float32 centroids."""
        # As above, less the range of gains, and a byte a row for its gain.
        return (4 * budget.rows * budget.dim - 4 - 8 - n) // budget.dim

    @staticmethod
    def layout(layout: Layout, n: int, n_groups: int, dim: int) -> Layout:
        """Add the fields."""
        layout.floats("gain_range", 2).ints("gains", _GAINS + 1, n)
        return Int8Code.layout(layout, n, n_groups, dim)

    @staticmethod
    def put(
        payload: Payload,
        rows: Floats,
        actions: Floats,
        assignments: Ints,
        coded: bool = True,
    ) -> None:
        """Add the fields."""
        directions, assignments = _refine(rows, _unit(actions))
        directions, assignments = put_assignments(
            payload, directions, assignments, ShapeCode.value_bytes, coded
        )
        _put_levels(payload, directions)
        # Gains belong to the directions that arrive, rounded, not to those found.
        sent = _get_levels(payload, rows.shape[1])[assignments].astype(np.float64)
        squares = np.maximum((sent**2).sum(1), np.finfo(np.float32).tiny)
        gains = (rows * sent).sum(1) / squares  # (n,)
        # Codes 1 to 255 are evenly spaced in the logarithm: gains span many orders of
        # magnitude, and a relative error counts the same for all. 0 is no gain.
        low, high = _range(gains)
        codes = np.zeros(len(gains), np.int64)
        positive = gains > 0
        shares = (np.log(gains[positive]) - low) / (high - low)
        codes[positive] = 1 + np.rint((_GAINS - 1) * shares).clip(0, _GAINS - 1)
        payload.put_floats("gain_range", np.array([low, high], np.float32))
        payload.put_ints("gains", codes, _GAINS + 1, "items")

    @staticmethod
    def get(payload: Payload, n: int, dim: int) -> Floats:
        """Read the rows."""
        directions = Int8Code.get(payload, n, dim)
        low, high = payload.floats("gain_range", 2).astype(np.float64)
        codes = payload.ints("gains", _GAINS + 1, n)
        with np.errstate(over="ignore", invalid="ignore"):  # whatever was received
            gains = np.exp(low + (codes - 1) / (_GAINS - 1) * (high - low))
            gains = np.where(codes, gains, 0)
            rows: Floats = (directions * gains[:, None]).astype(np.float32)
            return rows


ACTIONS: dict[str, type[ActionCode]] = {
    "float32": Float32Code,
    "int8": Int8Code,
    "shape": ShapeCode,
}


def _put_levels(payload: Payload, actions: Floats) -> None:
    """Round to multiples of one step, the largest magnitude over 127; none is 0."""
    step = np.float32(np.abs(actions).max(initial=0) / _LEVELS)
    levels = np.rint(actions / (step or 1)).astype(np.int64) + _LEVELS
    payload.put_floats("step", np.array([step]))
    payload.put_ints("levels", levels, 2 * _LEVELS + 1, "items")


def _get_levels(payload: Payload, dim: int) -> Floats:
    """Invert :func:`_put_levels`, but for the rounding."""
    levels = payload.ints("levels", 2 * _LEVELS + 1, None, dim) - _LEVELS
    with np.errstate(over="ignore", invalid="ignore"):  # whatever was received
        return levels.astype(np.float32) * payload.floats("step", 1)


def _refine(rows: Floats, directions: Floats) -> tuple[Floats, Ints]:
    """Move directions to those of the rows nearest to them, some times."""
    # A row pulls its direction by its squared norm: the error that it leaves, once its
    # gain is sent too, is that times the squared sine.
    shapes = _unit(rows)
    scaled = rows / (np.abs(rows).max() or 1)  # squares stay in range
    weighted = scaled * np.linalg.norm(scaled, axis=1, keepdims=True)
    for _ in range(_ITERATIONS):
        sums, counts = np.zeros_like(directions), np.zeros(len(directions), np.float32)
        add_rows(sums, counts, _nearest(shapes, directions), weighted)
        moved = sums.any(axis=1)
        directions[moved] = _unit(sums[moved])
    return directions, _nearest(shapes, directions)


def _nearest(shapes: Floats, directions: Floats) -> Ints:
    """Find the direction of highest cosine for each unit row."""
    blocks = range(0, len(shapes), max(_BLOCK // len(directions), 64))
    cosines = (shapes[start : start + blocks.step] @ directions.T for start in blocks)
    return np.concatenate([block.argmax(axis=1) for block in cosines])


def _unit(rows: Floats) -> Floats:
    """Scale rows to length 1, in float64, where no square is lost; zeros stay zeros."""
    norms = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    unit: Floats = (rows / np.where(norms, norms, 1)).astype(np.float32)
    return np.ascontiguousarray(unit)


def _range(gains: Floats) -> tuple[float, float]:
    """Logarithms of the least and the largest gain above zero; never the same."""
    positive = gains[gains > 0]
    if not len(positive):
        return 0.0, 1.0
    low, high = np.log(positive.min()), np.log(positive.max())
    return float(low), float(max(high, low + 1e-3))
