"""What a process does that holds a shard: it reads requests, and answers each."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from recbole_fedras.errors import PayloadError
from recbole_fedras.federation.client.shard import Shard
from recbole_fedras.wire.frame import Step, pack, unpack
from recbole_fedras.wire.message import Message

#: Bytes of updates in a frame, about: enough to be worth it, and soon under way.
_FRAME_BYTES = 2**18


class Node:
    """A shard behind a link, for :class:`LinkTransport` at its other end.

    A request is a list of steps, and so is its answer. The same request twice has the
    same answer: what a step does follows from the round and from what is in force. A
    step that fails ends its request, and the answer says so.

    Parameters
    ----------
    shard : Shard
    evaluate : callable, optional
        Takes a phase, valid or test; returns sums over the shard's users.

    Attributes
    ----------
    is_whole : bool
        Whether no request has failed, which may have changed part of what is held.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> replicas = SimpleNamespace(versions=[3])
    >>> shard = SimpleNamespace(replicas=replicas, settle=list, seconds={})
    >>> shard.seconds = SimpleNamespace(taken=dict)
    >>> node = Node(shard, evaluate=lambda phase: {"n_users": 5})
    >>> unpack(node.handle(pack([Step("evaluate", value="valid")])))[0].value
    {'n_users': 5}
    """

    def __init__(
        self, shard: Shard, evaluate: Callable[[str], dict[str, Any]] | None = None
    ) -> None:
        self.shard, self._evaluate = shard, evaluate
        self.is_whole = True

    def handle(self, request: bytes) -> bytes:
        """Do the steps of a request; return what came of them, as one frame."""
        return pack(self._results(request))

    def frames(self, request: bytes) -> Iterator[bytes]:
        """Do the steps of a request; yield frames of what comes of them, as it comes.

        So the server works on the first updates while the next are made.
        """
        for result in self._results(request):
            yield pack([result])

    def _results(self, request: bytes) -> Iterator[Step]:
        """Do the steps of a request; say at last how it ended, and what is held."""
        try:
            steps = unpack(request)
            yield from self.perform(steps)
            self._done(request, steps)
        except Exception as error:
            self.is_whole = False
            trace = traceback.format_exc()
            yield Step("failed", value=[type(error).__name__, str(error), trace])
        held = [list(self.shard.replicas.versions), self.shard.seconds.taken()]
        yield Step("held", value=held)

    def perform(self, steps: Iterable[Step]) -> Iterator[Step]:
        """Do steps; yield what comes of them."""
        for what, parts, value in steps:
            messages = [Message.from_parts(head, body) for head, body in parts]
            yield from self._do(what, messages, value)

    def _done(self, request: bytes, steps: list[Step]) -> None:
        """Learn that all has gone well, before that is answered."""

    def _do(self, what: str, messages: list[Message], value: Any) -> Iterator[Step]:
        if what == "settle":
            self.shard.settle(messages)
        elif what == "refresh":
            self.shard.refresh(messages)
        elif what == "participate":
            for answers in _batches(self.shard.participate(messages)):
                yield Step.of("answers", answers)
        elif what == "evaluate" and self._evaluate is not None:
            yield Step("evaluate", value=self._evaluate(value))
        else:
            raise PayloadError(f"step {what!r} is unknown")


def _batches(messages: Iterable[Message]) -> Iterator[list[Message]]:
    """Collect messages until they are worth a frame."""
    batch: list[Message] = []
    size = 0
    for message in messages:
        batch.append(message)
        size += len(message)
        if size > _FRAME_BYTES:
            yield batch
            batch, size = [], 0
    yield batch
