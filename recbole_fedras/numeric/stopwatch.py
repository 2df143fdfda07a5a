"""Where the time of a round goes, by phase."""

from __future__ import annotations

from contextlib import AbstractContextManager
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

    def __call__(self, phase: str) -> AbstractContextManager[None]:
        """Add the time of a block to a phase."""
        return _Lap(self, phase)

    def add(self, phase: str, elapsed: float, compiled: float) -> None:
        """Add seconds to a phase, and what was compiled meanwhile to its own."""
        self._seconds["compiling"] += compiled
        self._seconds[phase] = self._seconds.get(phase, 0.0) + elapsed - compiled

    def taken(self) -> dict[str, float]:
        """Return the seconds since the last call, and start anew."""
        seconds, self._seconds = self._seconds, {"compiling": 0.0}
        return seconds


class _Lap:
    """One block. A round has thousands: no generator, which takes twice as long."""

    __slots__ = ("_before", "_phase", "_start", "_stopwatch")

    def __init__(self, stopwatch: Stopwatch, phase: str) -> None:
        self._stopwatch, self._phase = stopwatch, phase

    def __enter__(self) -> None:
        self._start, self._before = perf_counter(), COMPILING.seconds

    def __exit__(self, *error: object) -> None:
        elapsed = perf_counter() - self._start
        self._stopwatch.add(self._phase, elapsed, COMPILING.seconds - self._before)
