"""Rows of an update in few coordinates, which is where k-means works."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from recbole_fedras.compressor.fedras.division import Doubles, Floats, Ints, compiled
from recbole_fedras.numeric.rows import add_rows

# Coordinates that hold less than this share of the energy are dropped: float32 keeps
# 6e-8 of a square, and sums of products less.
_REST = 1e-6
# Leading directions that are looked for. Updates of MF need two to six.
_DIRECTIONS = 8
# Rows in one block of what passes over all once: 64 MB of 64 numbers.
_ROWS = 2**18
# Exponents of numbers whose squares are well within float32's range.
_NEAR_ONE = range(-19, 21)


def scale_of(rows: Floats) -> np.float32:
    """Return the power of two that brings rows near to 1, or refuse them.

    Squares of tiny or huge rows leave float32's range; products with a power of two are
    exact. Rows that are neither stay as they are.

    Raises
    ------
    ValueError
        If a row is not finite.
    """
    largest = max(rows.max(initial=0.0), -rows.min(initial=0.0))
    if not np.isfinite(largest):
        raise ValueError("k-means: a row is not finite")
    exponent = int(np.frexp(largest)[1])
    if exponent in _NEAR_ONE:
        exponent = 0
    return np.float32(2.0 ** min(max(-exponent, -120), 120))


def coordinates(rows: Floats, scale: np.float32) -> Floats:
    """Turn rows so that few coordinates tell them apart, most of all the first.

    A client's rows are sums of the user vectors of its few steps, which are nearly
    parallel. Distances stay as they are, but for the scale and what ``_REST`` is.
    """
    gram = np.zeros((rows.shape[1],) * 2)
    for _, part in _scaled(rows, scale):
        gram += part.T @ part
    directions = np.empty((min(_DIRECTIONS, len(gram)), len(gram)))
    n_led, is_all = _lead(gram, directions, np.empty(len(gram)))
    basis = directions[:n_led].astype(np.float32)
    # The rest, if there is much, as it is: in as many coordinates as before.
    n_rest = 0 if is_all else rows.shape[1]
    points = np.empty((len(rows), n_led + n_rest), np.float32)
    for block, part in _scaled(rows, scale):
        led = part @ basis.T
        points[block, :n_led] = led
        if n_rest:
            np.subtract(part, led @ basis, out=points[block, n_led:])
    return points


def means(rows: Floats, scale: np.float32, groups: Ints, n_groups: int) -> Floats:
    """Return the mean row of each group, shape (n_groups, dim)."""
    sums = np.zeros((n_groups, rows.shape[1]), np.float32)
    sizes = np.zeros(n_groups, np.float32)
    for block, part in _scaled(rows, scale):
        add_rows(sums, sizes, groups[block], part)
    sums /= sizes[:, None]
    return sums / scale


def _scaled(rows: Floats, scale: np.float32) -> Iterator[tuple[slice, Floats]]:
    """Go through rows, scaled: millions of them fit into memory once, not twice."""
    for start in range(0, len(rows), _ROWS):
        block = slice(start, start + _ROWS)
        yield block, rows[block] if scale == 1 else rows[block] * scale


@compiled
def _lead(gram: Doubles, directions: Doubles, along: Doubles) -> tuple[int, bool]:
    """Fill directions, orthonormal, until what is left is little.

    The Gram matrix is used up. Returned are how many, and whether little is left.
    """
    # Gram-Schmidt on the columns of the Gram matrix, the longest first. A column is a
    # product with the rows already, so that the longest is close to the direction of
    # most energy.
    dim, count, energy = len(gram), 0, 0.0
    for j in range(dim):
        energy += gram[j, j]
    rest = energy
    while count == 0 or (rest > _REST * energy and count < len(directions)):
        longest, most = 0, -1.0
        for i in range(dim):
            square = 0.0
            for j in range(dim):
                square += gram[i, j] * gram[i, j]
            if square > most:
                longest, most = i, square
        length = np.sqrt(most) if most > 0 else 1.0
        for j in range(dim):
            directions[count, j] = gram[longest, j] / length
        for i in range(dim):
            along[i] = 0.0
            for j in range(dim):
                along[i] += gram[i, j] * directions[count, j]
            rest -= along[i] * directions[count, i]
            for j in range(dim):
                gram[i, j] -= along[i] * directions[count, j]
        count += 1
    return count, rest <= _REST * energy
