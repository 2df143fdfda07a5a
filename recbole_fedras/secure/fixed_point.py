"""Real numbers as integers whose sums, modulo 2^32, are those of the numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]


class FixedPoint(NamedTuple):
    """Multiples of one step, rounded to the nearest, as words modulo 2^32.

    Attributes
    ----------
    bound : float
        Larger magnitudes are cut to it.
    n_clients : int
        Whose sum is to be told from others: the step is ``bound n_clients / 2^30``.

    Examples
    --------
    >>> code = FixedPoint(bound=8.0, n_clients=3)
    >>> words = code.encode(np.array([1.5, -2.0])) + code.encode(np.array([7.5, 1.0]))
    >>> code.decode(words).round(6).tolist()
    [9.0, -1.0]
    """

    bound: float
    n_clients: int

    @property
    def step(self) -> float:
        """Difference of neighbouring numbers."""
        return self.bound * self.n_clients / 2**30

    def encode(self, values: NDArray[np.floating]) -> Words:
        """Round each value of one client."""
        cut = np.clip(values.astype(np.float64), -self.bound, self.bound)
        return np.rint(cut / self.step).astype(np.int64).astype(np.uint32)

    def decode(self, total: Words) -> NDArray[np.float64]:
        """Return the sum of values, from the sum of words."""
        return self.step * total.astype(np.int32).astype(np.float64)
