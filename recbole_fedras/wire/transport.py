"""What carries messages between server and shards: memory, or pipes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Protocol

import msgpack

from recbole_fedras.wire.message import Message


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

    def exchange(self, messages: Iterable[Message]) -> Iterable[Message]:
        """Deliver invitations; yield answers as they come, in any order.

        Whoever does not answer is missing from them. Messages to one client follow
        each other.
        """

    def settle(self, receipts: Iterable[Message]) -> None:
        """Deliver receipts, and so tell every shard that the round has ended."""

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
    >>> sent = Message.of(Payload(), Header(Kind.DOWNLINK, 0, 7, 0, 0))
    >>> (answer,) = MemoryTransport(Echo()).exchange([sent])
    >>> answer is sent, answer.data == sent.data
    (False, True)
    """

    def __init__(self, shard: Participant) -> None:
        self._shard = shard

    def exchange(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Deliver one after the other; answers come while invitations are made."""
        for answer in self._shard.participate(map(Message.received, messages)):
            yield answer.received()

    def settle(self, receipts: Iterable[Message]) -> None:
        """Deliver receipts."""
        self._shard.settle(map(Message.received, receipts))

    def refresh(self, messages: Sequence[Message]) -> None:
        """Deliver the newest shared tables."""
        self._shard.refresh([message.received() for message in messages])


class PipeTransport:
    """Shards in processes of their own, each behind a pipe.

    Parameters
    ----------
    pipes : sequence of Connection
        To the processes that :func:`serve` shards.
    shard_of_client : sequence of int
        Index of the pipe behind which each client is.

    Examples
    --------
    >>> from multiprocessing import Pipe
    >>> from threading import Thread
    >>> from recbole_fedras.wire.message import Header, Kind
    >>> from recbole_fedras.wire.payload import Payload
    >>> class Echo:
    ...     def participate(self, messages):
    ...         return messages
    >>> here, there = Pipe()
    >>> Thread(target=serve, args=(Echo(), there)).start()
    >>> transport = PipeTransport([here], shard_of_client=[0, 0])
    >>> sent = Message.of(Payload(), Header(Kind.DOWNLINK, 0, 1, 0, 0))
    >>> [answer.header.client for answer in transport.exchange([sent])]
    [1]
    >>> transport.close()
    """

    def __init__(
        self, pipes: Sequence[Connection], shard_of_client: Sequence[int]
    ) -> None:
        self._pipes = dict(enumerate(pipes))
        self._shard_of_client = shard_of_client

    def exchange(self, messages: Iterable[Message]) -> Iterator[Message]:
        """Send every shard its invitations, then yield what comes, first come first.

        A shard that has gone is as silent as its clients.
        """
        waiting = {}
        for shard, invited in self._by_shard(messages).items():
            if invited and self._send(shard, "participate", invited):
                waiting[self._pipes[shard]] = shard
        while waiting:
            for pipe in wait(list(waiting)):
                shard = waiting.pop(pipe)  # type: ignore[call-overload]
                try:
                    answers = self._pipes[shard].recv_bytes()
                except (EOFError, ConnectionResetError):
                    del self._pipes[shard]
                else:
                    yield from _unpacked(answers)[1]

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
            self._pipes[shard].send_bytes(_packed(what, messages))
        except (BrokenPipeError, ConnectionResetError):
            del self._pipes[shard]
            return False
        return True


def serve(shard: Participant, pipe: Connection) -> None:
    """Answer what comes through a pipe, until it is closed.

    Parameters
    ----------
    shard : Participant
    pipe : Connection
    """
    while True:
        try:
            frame = pipe.recv_bytes()
        except EOFError:
            return
        what, messages = _unpacked(frame)
        if what == "close":
            return
        if what == "participate":
            pipe.send_bytes(_packed("answers", list(shard.participate(messages))))
        elif what == "settle":
            shard.settle(messages)
        else:
            shard.refresh(messages)


def _packed(what: str, messages: Sequence[Message]) -> bytes:
    """Pack messages; a body that many of them share is packed once."""
    places: dict[int, int] = {}
    bodies: list[bytes] = []
    entries: list[tuple[bytes, int]] = []
    for message in messages:
        place = places.setdefault(id(message.body), len(bodies))
        if place == len(bodies):
            bodies.append(message.body)
        entries.append((message.head, place))
    return bytes(msgpack.packb((what, bodies, entries)))


def _unpacked(frame: bytes) -> tuple[str, list[Message]]:
    what, bodies, entries = msgpack.unpackb(frame, use_list=False)
    messages = [Message.from_parts(head, bodies[place]) for head, place in entries]
    return what, messages
