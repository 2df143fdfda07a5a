"""Where the time of a round goes, by phase."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter


class Stopwatch:
    """Adds up seconds by phase.

    Examples
    --------
    >>> seconds = Stopwatch()
    >>> with seconds("aggregation"):
    ...     pass
    >>> list(seconds.taken())
    ['aggregation']
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time of a block to a phase."""
        start = perf_counter()
        yield
        elapsed = perf_counter() - start
        self._seconds[phase] = self._seconds.get(phase, 0.0) + elapsed

    def taken(self) -> dict[str, float]:
        """Return the seconds since the last call, and start anew."""
        seconds, self._seconds = self._seconds, {}
        return seconds
