"""What the SuperLink's guard lets in, from where, and how much of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra deploy")

from recbole_fedras.deploy.guard import Guard

PUSH, OBJECT = "/v1/fleet/push-messages", "/v1/fleet/push-object"


class App:
    """What is behind the guard: it answers 200."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})


def ask(guard: Guard, path: str, client: str = "192.0.2.7", **headers: str) -> int:
    """Return the status that a request gets; its body must not be read."""
    pairs = [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "client": (client, 1),
        "headers": pairs,
    }
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("read before it was let in")

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(guard(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize(
    ("path", "client", "status"),
    [
        ("/v1/fleet/pull-messages", "192.0.2.7", 200),
        ("/v1/control/start-run", "192.0.2.7", 403),
        ("/v1/control/register-node", "2001:db8::7", 403),
        ("/v1/runtime/acquire-task", "192.0.2.7", 403),
        ("/v1/fleet", "192.0.2.7", 403),
        ("/", "192.0.2.7", 403),
        ("/docs", "testclient", 403),
        ("/v1/control/start-run", "127.0.0.1", 200),
        ("/v1/runtime/acquire-task", "::1", 200),
    ],
)
def test_other_machines_may_do_what_nodes_do(path, client, status):
    assert ask(Guard(App()), path, client) == status


def test_a_request_says_its_size_and_it_is_bounded():
    guard = Guard(App(), request_bytes=100)
    assert ask(guard, OBJECT, content_length="100") == 200
    assert ask(guard, OBJECT, content_length="101") == 413
    assert ask(guard, OBJECT, content_length="1e1") == 411
    assert ask(guard, OBJECT, transfer_encoding="chunked") == 411


def test_a_message_is_bounded_and_of_each_node_for_itself():
    guard = Guard(App(), answer_bytes=100)
    for node in ("one", "two"):
        assert ask(guard, PUSH, flwr_public_key=node, content_length="20") == 200
        assert ask(guard, OBJECT, flwr_public_key=node, content_length="80") == 200
    assert ask(guard, OBJECT, flwr_public_key="one", content_length="1") == 413
    assert ask(guard, PUSH, flwr_public_key="one", content_length="20") == 200
    assert ask(guard, OBJECT, flwr_public_key="one", content_length="80") == 200


def test_keys_that_nobody_has_checked_fill_no_memory():
    guard = Guard(App(), nodes=10)
    for node in range(25):
        ask(guard, PUSH, flwr_public_key=str(node), content_length="1")
    assert len(guard._sent) <= 10
