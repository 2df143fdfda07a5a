"""What carries messages between server and shards: memory, or pipes."""

from __future__ import annotations

import traceback
from collections.abc import Container, Iterable, Iterator, Sequence
from logging import getLogger
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import NamedTuple, Protocol

import msgpack

from recbole_fedras.wire.message import Message

_GONE = (EOFError, OSError)  # what a pipe raises whose other end has died


class Answer(NamedTuple):
    """Bytes that came from a shard, unread: they may hold anything.

    Attributes
    ----------
    head, body : bytes
        Of a message.
    shard : int
        Whom they came from, as the transport knows.
    clients : container of int or None
        Clients that this shard may answer for; None: all.
    """

    head: bytes
    body: bytes
    shard: int = 0
    clients: Container[int] | None = None

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.head) + len(self.body)


class Participant(Protocol):
    """The shard at the other end, as far as a transport knows it."""

    def participate(self, messages: Iterable[Message]) -> Iterable[Message]:
        """Answer invitations."""

    def settle(self, receipts: Iterable[Message]) -> None:
        """Learn which answers counted; none of those before it that are left out."""

    def refresh(self, messages: Sequence[Message]) -> None:
        """Take the newest shared tables, for evaluation."""


class Transport(Protocol):
    """Carries messages, each to the shard that holds its client, and answers back."""

    def exchange(
        self, messages: Iterable[Message], deadline: float | None = None
    ) -> Iterable[Answer]:
        """Deliver invitations; yield answers as they come, in any order.

        Whoever does not answer, within ``deadline`` seconds if there is one, is missing
        from them. Messages to one client follow each other.
        """

    def settle(self, receipts: Iterable[Message]) -> None:
        """Deliver receipts, and so tell every shard that the round has ended.

        They must arrive before anything of the next round.
        """

    def refresh(self, messages: Sequence[Message]) -> None:
        """Deliver the newest shared tables to every shard, for evaluation."""


class MemoryTransport:
    """One shard in this process. It is handed bytes, like any other.

    Parameters
    ----------
    shard : Participant

    Examples
    --------
    >>> from recbole_fedras.wire.message import Header, Kind
    >>> from recbole_fedras.wire.payload import Payload
    >>> class Echo:
    ...     def participate(self, messages):
    ...         return messages
    >>> invitation = Message.of(Payload(), Header(Kind.DOWNLINK, 0, 7, 0, 0))
    >>> (answer,) = MemoryTransport(Echo()).exchange([invitation])
    >>> Message.from_parts(answer.head, answer.body).header.client
    7
    """

    def __init__(self, shard: Participant) -> None:
        self._shard = shard

    def exchange(
        self, messages: Iterable[Message], deadline: float | None = None
    ) -> Iterator[Answer]:
        """Deliver one after the other; answers come while invitations are made."""
        for message in self._shard.participate(map(Message.received, messages)):
            yield Answer(message.head, message.body)

    def settle(self, receipts: Iterable[Message]) -> None:
        """Deliver receipts."""
        self._shard.settle(map(Message.received, receipts))

    def refresh(self, messages: Sequence[Message]) -> None:
        """Deliver the newest shared tables."""
        self._shard.refresh([message.received() for message in messages])


class PipeTransport:
    """Shards in processes of their own, each behind a pipe.

    A shard that has died, or sends what is no frame, is as silent as its clients from
    then on; one that fails in a round is silent in that round. Either is logged.

    Parameters
    ----------
    pipes : sequence of Connection
        To the processes that :func:`serve` shards.
    shard_of_client : sequence of int
        Index of the pipe behind which each client is.
    """

    def __init__(
        self, pipes: Sequence[Connection], shard_of_client: Sequence[int]
    ) -> None:
        self._pipes = dict(enumerate(pipes))
        self._shard_of_client = shard_of_client
        self._clients = {
            shard: {c for c, own in enumerate(shard_of_client) if own == shard}
            for shard in self._pipes
        }
        self._number = 0

    def exchange(
        self, messages: Iterable[Message], deadline: float | None = None
    ) -> Iterator[Answer]:
        """Send every shard its invitations, then yield what comes, first come first.

        Frames are numbered: what is left over from an exchange that was not finished
        is recognised, and dropped.
        """
        self._number += 1
        waiting = {
            shard
            for shard, invited in self._by_shard(messages).items()
            if invited and self._send(shard, "participate", invited)
        }
        end = None if deadline is None else monotonic() + deadline
        while waiting:
            left = None if end is None else max(end - monotonic(), 0)
            pipes = {self._pipes[shard]: shard for shard in waiting}
            ready = wait(list(pipes), left)
            if not ready:
                return
            for pipe in ready:
                shard = pipes[pipe]  # type: ignore[index]
                frame = self._receive(shard)
                if frame is None or frame.number == self._number:
                    waiting.discard(shard)
                if frame is not None and frame.number == self._number:
                    yield from self._answers(shard, frame)

    def _answers(self, shard: int, frame: _Frame) -> Iterator[Answer]:
        if frame.what == "failed":
            getLogger(__name__).warning(
                "shard %d failed in this round: %s", shard, frame.error
            )
        for head, body in frame.parts():
            yield Answer(head, body, shard, self._clients[shard])

    def _receive(self, shard: int) -> _Frame | None:
        """Return what has come from a shard; None if that is the end of it."""
        try:
            return _Frame.unpacked(self._pipes[shard].recv_bytes())
        except (*_GONE, ValueError, TypeError, IndexError) as error:
            self._lose(shard, error)
            return None

    def _lose(self, shard: int, error: Exception) -> None:
        getLogger(__name__).warning("shard %d is lost: %r", shard, error)
        self._pipes.pop(shard).close()

    def settle(self, receipts: Iterable[Message]) -> None:
        """Send every shard the receipts of its clients, if none at all."""
        for shard, counted in self._by_shard(receipts).items():
            self._send(shard, "settle", counted)

    def refresh(self, messages: Sequence[Message]) -> None:
        """Send every shard the newest tables."""
        for shard in list(self._pipes):
            self._send(shard, "refresh", messages)

    def close(self) -> None:
        """Tell every shard that nothing more will come."""
        for shard in list(self._pipes):
            self._send(shard, "close", ())

    def _by_shard(self, messages: Iterable[Message]) -> dict[int, list[Message]]:
        by_shard: dict[int, list[Message]] = {shard: [] for shard in self._pipes}
        for message in messages:
            shard = self._shard_of_client[message.header.client]
            if shard in by_shard:
                by_shard[shard].append(message)
        return by_shard

    def _send(self, shard: int, what: str, messages: Sequence[Message]) -> bool:
        """Send a frame; return whether there is anybody to take it."""
        try:
            frame = _Frame.of(what, self._number, messages)
            self._pipes[shard].send_bytes(frame.packed())
        except _GONE as error:
            self._lose(shard, error)
            return False
        return True


def serve(shard: Participant, pipe: Connection) -> None:
    """Answer what comes through a pipe, until it is closed.

    A round in which the shard fails is one that it is silent in; it forgets the round,
    says so, prints the traceback and goes on.

    Parameters
    ----------
    shard : Participant
    pipe : Connection
    """
    while True:
        try:
            frame = _Frame.unpacked(pipe.recv_bytes())
        except _GONE:
            return
        if frame.what == "close":
            return
        try:
            _handle(shard, frame, pipe)
        except Exception as error:
            traceback.print_exc()
            shard.settle(())
            failed = _Frame("failed", frame.number, [], [], repr(error))
            pipe.send_bytes(failed.packed())


def _handle(shard: Participant, frame: _Frame, pipe: Connection) -> None:
    messages = [Message.from_parts(head, body) for head, body in frame.parts()]
    if frame.what == "settle":
        shard.settle(messages)
    elif frame.what == "refresh":
        shard.refresh(messages)
    else:
        answers = list(shard.participate(messages))
        pipe.send_bytes(_Frame.of("answers", frame.number, answers).packed())


class _Frame(NamedTuple):
    """Messages on their way through a pipe; a body that many share is packed once."""

    what: str
    number: int
    bodies: list[bytes]
    entries: list[tuple[bytes, int]]  # head, and place of the body
    error: str = ""

    @classmethod
    def of(cls, what: str, number: int, messages: Sequence[Message]) -> _Frame:
        places: dict[int, int] = {}
        frame = cls(what, number, [], [])
        for message in messages:
            place = places.setdefault(id(message.body), len(frame.bodies))
            if place == len(frame.bodies):
                frame.bodies.append(message.body)
            frame.entries.append((message.head, place))
        return frame

    def packed(self) -> bytes:
        return bytes(msgpack.packb(tuple(self)))

    @classmethod
    def unpacked(cls, data: bytes) -> _Frame:
        return cls(*msgpack.unpackb(data, use_list=False))

    def parts(self) -> Iterator[tuple[bytes, bytes]]:
        for head, place in self.entries:
            yield head, self.bodies[place]
