"""The worker, with a SuperNode of the tests' own."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs the extra deploy")

import httpx
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from recbole_fedras.deploy import worker
from recbole_fedras.deploy.records import ASK, WHO, pack, unpack


@pytest.fixture(autouse=True)
def _task(monkeypatch):
    """Be a task of Flower's: without one there is no message."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@dataclasses.dataclass
class Task:
    """What a SuperNode says of work: none without a token."""

    token: str = ""


class Over(BaseException):
    """Ends a worker, which never ends by itself."""


class Desk:
    """Hands out what is in ``work``: messages, or errors that it raises."""

    def __init__(self, work: list[Any]) -> None:
        self.work, self.replies, self.outputs = work, [], []

    def AcquireTask(self, request: Any) -> Task:  # noqa: N802
        if not self.work:
            raise Over
        if isinstance(self.work[0], Exception):
            raise self.work.pop(0)
        return Task("token")

    def PushTaskOutput(self, request: Any) -> None:  # noqa: N802
        self.outputs.append(request.sub_status)

    def SendTaskHeartbeat(self, request: Any) -> None:  # noqa: N802
        raise AssertionError("a short task needs none")

    def close(self) -> None:
        pass


def ask(content: RecordDict, kind: str = ASK) -> Message:
    return Message(content, 1, kind)


def replies_to(work: list[Any], monkeypatch, tmp_path) -> list[Message]:
    """Have a worker that reverses bytes do the work."""
    desk = Desk(work)
    context = Context(1, 1, {"name": "node-1"}, RecordDict(), {})
    (tmp_path / "secret").write_bytes(b"secret")
    monkeypatch.setattr(worker, "_client", lambda *_: desk)
    monkeypatch.setattr(worker.time, "sleep", lambda _: None)
    monkeypatch.setattr(
        worker, "pull_task_input", lambda desk: (desk.work.pop(0), context, None, None)
    )
    monkeypatch.setattr(
        worker, "push_message", lambda desk, reply, _: desk.replies.append(reply)
    )

    def handle(request: bytes) -> bytes:
        if request == b"fail":
            raise ValueError("user 17 has seen item 3")
        return request[::-1]

    with pytest.raises(Over):
        worker.serve(handle, "127.0.0.1:1", tmp_path / "secret")
    assert desk.outputs == ["completed"] * len(desk.replies)
    return desk.replies


def test_requests_are_answered_one_after_the_other(monkeypatch, tmp_path):
    work = [ask(pack(b"one")), ask(pack(b"two"))]
    replies = replies_to(work, monkeypatch, tmp_path)
    assert [unpack(reply.content) for reply in replies] == [b"eno", b"owt"]


def test_a_supernode_that_is_away_is_waited_for(monkeypatch, tmp_path):
    response = httpx.Response(401, request=httpx.Request("POST", "http://x"))
    away = httpx.ConnectError("connection refused")
    gone = httpx.HTTPStatusError("expired", request=response.request, response=response)
    replies = replies_to([away, gone, ask(pack(b"one"))], monkeypatch, tmp_path)
    assert len(replies) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [(pack(b"fail"), "ValueError"), (RecordDict(), "PayloadError")],
)
def test_of_an_error_the_server_learns_the_class_only(
    monkeypatch, tmp_path, caplog, content, reason
):
    replies = replies_to([ask(content), ask(pack(b"one"))], monkeypatch, tmp_path)
    assert replies[0].error.reason == reason
    assert unpack(replies[1].content) == b"eno"
    assert "Traceback" in caplog.text


def test_it_says_the_nodes_name(monkeypatch, tmp_path):
    replies = replies_to([ask(pack(b""), WHO)], monkeypatch, tmp_path)
    assert unpack(replies[0].content) == b"node-1"
