"""What a command is doing, told from its first second; it waits for no import."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

#: Seconds between two looks at what is going on.
TICK = 0.5


@contextmanager
def ticking(tick: Callable[[], None]) -> Iterator[None]:
    """Call a function twice a second while a block runs, in a thread of its own."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(TICK):
            tick()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def stage(
    what: str, show: bool = True, doing: Callable[[], str] = lambda: ""
) -> Iterator[None]:
    """Say what is going on while a block runs, on standard error.

    On a terminal a line counts the seconds, and goes with the block. Elsewhere a line
    says that it begins.

    Parameters
    ----------
    what : str
    show : bool
        Whether to say anything.
    doing : callable, optional
        Returns what the block is busy with, as compiling; empty: just with itself.

    Examples
    --------
    >>> with stage("reading ml-100k", show=False):
    ...     pass
    """
    if not show:
        yield
        return
    line = _Line(what, doing) if sys.stderr.isatty() else _Lines(what, doing)
    line.tick()
    try:
        with ticking(line.tick):
            yield
    finally:
        line.end()


class _Line:
    """One line of a terminal, written over and over."""

    def __init__(self, what: str, doing: Callable[[], str]) -> None:
        self._what, self._doing, self._start = what, doing, perf_counter()

    def tick(self) -> None:
        said = ", ".join(filter(None, (self._what, self._doing())))
        width = shutil.get_terminal_size().columns - 8
        self._write(f"{said[:width]} {perf_counter() - self._start:.0f} s")

    def end(self) -> None:
        self._write("")

    def _write(self, said: str) -> None:
        # The cursor stays in front: whatever else is printed takes the line's place.
        sys.stderr.write(f"\r{said}\x1b[K\r")
        sys.stderr.flush()


class _Lines:
    """A line for whatever begins."""

    def __init__(self, what: str, doing: Callable[[], str]) -> None:
        self._doing, self._said = doing, ""
        tell(what)

    def tick(self) -> None:
        if (news := self._doing()) not in ("", self._said):
            self._said = news
            tell(news)

    def end(self) -> None:
        return


def tell(news: str) -> None:
    """Print a line of what is going on, or where it went, on standard error."""
    print(f"recbole-fedras: {news}", file=sys.stderr, flush=True)
