"""Flower's Grid as ways to shards."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping

from flwr.app import Message
from flwr.serverapp import Grid

from recbole_fedras.deploy.meter import traffic
from recbole_fedras.deploy.records import ASK, WHO, pack, unpack
from recbole_fedras.errors import PayloadError

_log = logging.getLogger(__name__)


class FlowerLinks:
    """Bytes to SuperNodes and back, by way of a SuperLink.

    A node's name is the one that its key was registered under: the SuperLink vouches
    for it, and it stays when the node starts again. Nodes without keys (``--insecure``)
    are asked for theirs.

    Parameters
    ----------
    grid : Grid
        Of the ServerApp.
    shortest, longest : float
        Seconds between two looks for answers: a tenth of those waited so far,
        within these.
    patience : float
        Seconds that a node without a key may take to say its name.
    """

    def __init__(
        self,
        grid: Grid,
        shortest: float = 0.1,
        longest: float = 1,
        patience: float = 30,
    ) -> None:
        self._grid, self._patience = grid, patience
        self._shortest, self._longest = shortest, longest
        self._said: dict[int, str] = {}

    def names(self) -> list[str]:
        """Return who can be reached now."""
        return sorted(self._nodes())

    def ask(
        self, requests: Mapping[str, bytes], deadline: float | None = None
    ) -> Iterator[tuple[str, bytes]]:
        """Carry a request to each shard named; yield its name and answer.

        First come, first yielded. Who does not answer within ``deadline`` seconds, or
        is gone, is missing. A late answer of an earlier ask is never yielded.
        """
        nodes = self._nodes()
        for name in requests.keys() - nodes.keys():
            _log.warning("shard %s is not connected", name)
        names = {nodes[name]: name for name in requests if name in nodes}
        there = {node: requests[name] for node, name in names.items()}
        for node, answer in self._exchange(ASK, there, deadline):
            yield names[node], answer

    def traffic(self) -> dict[str, int]:
        """Return the bytes that nodes have sent and been sent, Flower's included."""
        return traffic()

    def close(self) -> None:
        """Do nothing: the Grid is its ServerApp's."""

    def _nodes(self) -> dict[str, int]:
        """Return who is connected; of two with one name, the first registered."""
        nodes = sorted(self._grid.get_nodes(), key=lambda node: node.registered_at)
        new = {node.node_id: b"" for node in nodes if not node.name}
        for known in self._said.keys() & new.keys():
            del new[known]
        for node_id, answer in self._exchange(WHO, new, self._patience):
            self._said[node_id] = answer.decode(errors="replace")
        found: dict[str, int] = {}
        for node in nodes:
            name = node.name or self._said.get(node.node_id)
            if name and found.setdefault(name, node.node_id) != node.node_id:
                _log.warning("node %s: another is named %s", node.node_id, name)
        return found

    def _exchange(
        self, kind: str, requests: Mapping[int, bytes], deadline: float | None
    ) -> Iterator[tuple[int, bytes]]:
        """Yield nodes and their answers.

        Answers are looked for by the ids of these messages, so others are never found;
        with the deadline, the SuperLink forgets the messages as well.
        """
        waiting = self._push(kind, requests, deadline)
        begin = time.monotonic()
        while waiting:
            for reply in self._grid.pull_messages(list(waiting)):
                node = waiting.pop(reply.metadata.reply_to_message_id)
                answer = _read(node, reply)
                if answer is not None:
                    yield node, answer
            waited = time.monotonic() - begin
            if deadline is not None and waited > deadline:
                break
            if waiting:
                time.sleep(min(max(waited / 10, self._shortest), self._longest))
        for node in waiting.values():
            _log.warning("node %s has not answered within %s s", node, deadline)

    def _push(
        self, kind: str, requests: Mapping[int, bytes], deadline: float | None
    ) -> dict[str, int]:
        """Send messages; return nodes by the ids of those that Flower took."""
        messages = [
            Message(pack(data), node, kind, ttl=deadline)
            for node, data in requests.items()
        ]
        sent = self._grid.push_messages(messages) if messages else []
        waiting = dict(zip(sent, requests, strict=False))
        for node in requests.keys() - waiting.values():
            _log.warning("node %s: Flower refuses the message", node)
        waiting.pop(None, None)
        return waiting


def _read(node: int, reply: Message) -> bytes | None:
    """Return the answer; None if there is none, which the log explains."""
    if reply.has_error():
        _log.warning("node %s: %s", node, reply.error.reason)
        return None
    try:
        return unpack(reply.content)
    except PayloadError as error:
        _log.warning("node %s: %s", node, error)
        return None
