"""What numba compiles here, and how long that takes: once for each machine."""

from __future__ import annotations

from time import perf_counter

from numba.core.event import Event, Listener, register


class Compiling(Listener):
    """Hears of every kernel that is not in numba's cache.

    A kernel compiles those that it calls; numba compiles in one thread at a time.
    """

    def __init__(self) -> None:
        self._depth, self._start, self._seconds = 0, 0.0, 0.0
        self._module = ""

    @property
    def seconds(self) -> float:
        """Seconds that this process has compiled for, until now."""
        return self._seconds + (perf_counter() - self._start if self._depth else 0.0)

    @property
    def module(self) -> str:
        """Module of the kernel that is being compiled, ``model.mf``; empty if none."""
        return self._module if self._depth else ""

    def on_start(self, event: Event) -> None:
        """Note the kernel that numba begins with."""
        if not self._depth:
            named = event.data["dispatcher"].py_func.__module__
            self._module = named.removeprefix("recbole_fedras.")
            self._start = perf_counter()
        self._depth += 1

    def on_end(self, event: Event) -> None:
        """Add what it has taken."""
        self._depth -= 1
        if not self._depth:
            self._seconds += perf_counter() - self._start


#: That of this process.
COMPILING = Compiling()
register("numba:compile", COMPILING)  # type: ignore[no-untyped-call]
