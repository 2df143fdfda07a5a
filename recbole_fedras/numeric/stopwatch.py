"""Where the time of a round goes, by phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

from recbole_fedras.numeric.compiling import COMPILING


class Stopwatch:
    """Adds up seconds by phase; what numba compiles meanwhile is a phase of its own.

    Examples
    --------
    >>> seconds = Stopwatch()
    >>> with seconds("aggregation"):
    ...     pass
    >>> list(seconds.taken())
    ['compiling', 'aggregation']
    """

    def __init__(self) -> None:
        self._seconds = {"compiling": 0.0}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time of a block to a phase."""
        start, before = perf_counter(), COMPILING.seconds
        yield
        compiled = COMPILING.seconds - before
        elapsed = perf_counter() - start - compiled
        self._seconds["compiling"] += compiled
        self._seconds[phase] = self._seconds.get(phase, 0.0) + elapsed

    def taken(self) -> dict[str, float]:
        """Return the seconds since the last call, and start anew."""
        seconds, self._seconds = self._seconds, {"compiling": 0.0}
        return seconds
