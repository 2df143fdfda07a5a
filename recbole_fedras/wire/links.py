"""Ways to the processes that hold shards: bytes there, bytes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from logging import getLogger
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Protocol

_GONE = (EOFError, OSError)  # what a pipe raises whose other end has died
_NUMBER_BYTES = 8


class Links(Protocol):
    """Ways to the processes that hold shards: bytes there, bytes back."""

    def names(self) -> list[str]:
        """Return who can be reached now."""

    def ask(
        self, requests: Mapping[str, bytes], deadline: float | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """Carry a request to each shard named; yield its name and frames as they come.

        An answer is one frame, or several in their order. Who does not answer within
        ``deadline`` seconds, or is gone, is missing. What answers an earlier request,
        late, is never yielded.
        """

    def traffic(self) -> dict[str, int]:
        """Return the bytes exchanged so far, the carrier's own included, by direction.

        Empty if nobody counts them.
        """

    def close(self) -> None:
        """Tell everybody that nothing more will come."""


class PipeLinks:
    """Pipes to processes that :func:`serve` at their other ends.

    A process that has died is missing from then on.

    Parameters
    ----------
    pipes : mapping of str to Connection
    """

    def __init__(self, pipes: Mapping[str, Connection]) -> None:
        self._pipes = dict(pipes)
        self._number = 0

    def names(self) -> list[str]:
        """Return whose pipe is open."""
        return list(self._pipes)

    def ask(
        self, requests: Mapping[str, bytes], deadline: float | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """Send all, then yield what comes, first come first; an empty frame ends it.

        Requests are numbered, and so are their answers: one that belongs to an earlier
        request is recognised, and dropped.
        """
        self._number += 1
        number = self._number.to_bytes(_NUMBER_BYTES, "little")
        waiting = {
            name for name in requests if self._send(name, number + requests[name])
        }
        end = None if deadline is None else monotonic() + deadline
        while waiting:
            left = None if end is None else max(end - monotonic(), 0)
            pipes = {self._pipes[name]: name for name in waiting}
            ready = wait(list(pipes), left)
            if not ready:
                return
            for pipe in ready:
                name = pipes[pipe]  # type: ignore[index]
                frame = self._receive(name)
                if frame is None or frame == number:
                    waiting.discard(name)
                elif frame[:_NUMBER_BYTES] == number:
                    yield name, frame[_NUMBER_BYTES:]

    def _send(self, name: str, data: bytes) -> bool:
        """Send; return whether there is anybody to take it."""
        if name not in self._pipes:
            return False
        try:
            self._pipes[name].send_bytes(data)
        except _GONE as error:
            self._lose(name, error)
            return False
        return True

    def _receive(self, name: str) -> bytes | None:
        """Return what has come; None if that is the end of it."""
        try:
            return self._pipes[name].recv_bytes()
        except _GONE as error:
            self._lose(name, error)
            return None

    def _lose(self, name: str, error: Exception) -> None:
        getLogger(__name__).warning("shard %s is lost: %r", name, error)
        self._pipes.pop(name).close()

    def traffic(self) -> dict[str, int]:
        """Return nothing: a pipe adds next to nothing."""
        return {}

    def close(self) -> None:
        """End those who serve.

        They are told: the other ends of pipes may be open in forked processes too.
        """
        for name in self.names():
            self._send(name, b"")
        while self._pipes:
            self._pipes.popitem()[1].close()


def serve(handle: Callable[[bytes], Iterable[bytes]], pipe: Connection) -> None:
    """Answer what comes through a pipe, until it is closed.

    Parameters
    ----------
    handle : callable
        Takes a request, yields the frames of its answer; none is empty.
    pipe : Connection
    """
    while True:
        try:
            data = pipe.recv_bytes()
            if not data:
                return
            number = data[:_NUMBER_BYTES]
            for frame in handle(data[_NUMBER_BYTES:]):
                pipe.send_bytes(number + frame)
            pipe.send_bytes(number)
        except _GONE:
            return
