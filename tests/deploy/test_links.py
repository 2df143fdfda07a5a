"""FlowerLinks over a Grid of the tests' own: who is asked, and what is yielded."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs the extra deploy")

from flwr.app import Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from recbole_fedras.deploy.links import FlowerLinks
from recbole_fedras.deploy.records import WHO, pack, unpack
from recbole_fedras.errors import PayloadError


@pytest.fixture(autouse=True)
def _task(monkeypatch):
    """Be a task of Flower's: without one there is no message."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@dataclass
class Node:
    """What a Grid tells of a node."""

    node_id: int
    name: str = ""
    registered_at: str = ""


@dataclass
class FakeGrid:
    """A Grid whose nodes answer at the poll that ``delays`` says, from 0 on."""

    nodes: list[Node]
    delays: dict[int, int] = field(default_factory=dict)
    replies: dict[int, Any] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    sent: list[Message] = field(default_factory=list)
    polls: dict[str, int] = field(default_factory=dict)

    def get_nodes(self) -> list[Node]:
        return self.nodes

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        ids: list[str | None] = []
        for message in messages:
            refused = message.metadata.dst_node_id in self.refused
            ids.append(None if refused else f"message {len(self.sent)}")
            message.metadata.__dict__["_message_id"] = ids[-1] or ""
            self.sent.append(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        asked = set(message_ids)
        found = []
        for message in self.sent:
            name, node = message.metadata.message_id, message.metadata.dst_node_id
            poll = self.polls[name] = self.polls.get(name, -1) + 1
            if name in asked and self.delays.get(node, 0) == poll:
                found.append(self._reply(message, node))
        return found

    def _reply(self, message: Message, node: int) -> Message:
        content = self.replies.get(node)
        if content is None:
            who = message.metadata.message_type == WHO
            answer = f"said {node}".encode() if who else unpack(message.content)[::-1]
            content = pack(answer)
        reply = Message(content, reply_to=message)
        reply.metadata.__dict__["_reply_to_message_id"] = message.metadata.message_id
        return reply


def links(grid: FakeGrid) -> FlowerLinks:
    return FlowerLinks(grid, shortest=0.001, longest=0.002, patience=0.1)  # type: ignore[arg-type]


def test_answers_come_by_name_and_first_come_first():
    grid = FakeGrid([Node(1, "a"), Node(2, "b")], delays={1: 3, 2: 1})
    ways = links(grid)
    assert ways.names() == ["a", "b"]
    answers = list(ways.ask({"a": b"one", "b": b"two"}, deadline=5))
    assert answers == [("b", b"owt"), ("a", b"eno")]
    assert [message.metadata.ttl for message in grid.sent] == [5, 5]


def test_only_those_asked_are_asked_and_who_is_not_connected_is_missing(caplog):
    grid = FakeGrid([Node(1, "a"), Node(2, "b")])
    assert dict(links(grid).ask({"b": b"x", "gone": b"y"})) == {"b": b"x"}
    assert [message.metadata.dst_node_id for message in grid.sent] == [2]
    assert "shard gone is not connected" in caplog.text


def test_who_is_late_is_missing_and_its_answer_is_never_yielded(caplog):
    grid = FakeGrid([Node(1, "a"), Node(2, "b")], delays={1: 10**9})
    ways = links(grid)
    assert dict(ways.ask({"a": b"early", "b": b"x"}, deadline=0.05)) == {"b": b"x"}
    assert "node 1 has not answered within 0.05 s" in caplog.text
    grid.delays[1] = 2  # it answers again: the second request, and the first one too
    grid.polls["message 0"] = 0
    assert list(ways.ask({"a": b"late"}, deadline=5)) == [("a", b"etal")]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Error(code=3, reason="Node Unavailable"), "Node Unavailable"),
        (RecordDict(), "of another form"),
        (
            RecordDict({"bytes": pack(b"x")["bytes"], "more": pack(b"x")["bytes"]}),
            "form",
        ),
    ],
)
def test_a_reply_without_bytes_is_no_answer(caplog, reply, said):
    grid = FakeGrid([Node(1, "a"), Node(2, "b")], replies={1: reply})
    assert dict(links(grid).ask({"a": b"", "b": b"x"})) == {"b": b"x"}
    assert said in caplog.text


def test_a_message_that_flower_refuses_is_not_waited_for(caplog):
    caplog.set_level(logging.WARNING)
    grid = FakeGrid([Node(1, "a"), Node(2, "b")], refused={1})
    assert dict(links(grid).ask({"a": b"x", "b": b"y"})) == {"b": b"y"}


def test_a_name_is_its_keys_and_of_two_the_first_registered(caplog):
    grid = FakeGrid([Node(7, "a", "2026-02"), Node(5, "a", "2026-01")])
    ways = links(grid)
    assert ways.names() == ["a"]
    assert "node 7: another is named a" in caplog.text
    list(ways.ask({"a": b"x"}))
    assert [message.metadata.dst_node_id for message in grid.sent] == [5]


def test_a_node_without_a_key_is_asked_for_its_name_once():
    grid = FakeGrid([Node(1), Node(2, "b"), Node(3)], delays={3: 10**9})
    ways = links(grid)
    assert ways.names() == ["b", "said 1"]  # 3 has not said it in time
    assert dict(ways.ask({"said 1": b"xy"})) == {"said 1": b"yx"}
    kinds = [(m.metadata.dst_node_id, m.metadata.message_type) for m in grid.sent]
    assert kinds.count((1, WHO)) == 1


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 30_000])
def test_bytes_survive(data):
    assert unpack(pack(data)) == data


def test_other_records_are_refused():
    with pytest.raises(PayloadError, match="another form"):
        unpack(RecordDict())
