"""Every byte that nodes send and are sent, as HTTP has it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra deploy")

from recbole_fedras.deploy.meter import Meter


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer each request by twice its body, in two parts."""
    body = (await receive())["body"]
    headers = [(b"content-length", b"10")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": body})


def ask(meter: Meter, path: str) -> None:
    headers = [(b"host", b"here"), (b"content-length", b"5")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}

    async def receive() -> Any:
        return {"type": "http.request", "body": b"12345"}

    async def send(message: Any) -> None:
        pass

    asyncio.run(meter(scope, receive, send))


def test_what_nodes_exchange_is_counted_to_the_byte(tmp_path, monkeypatch):
    monkeypatch.setattr("recbole_fedras.deploy.meter._EVERY", -1.0)
    meter = Meter(app, tmp_path / "traffic.json")
    path = "/v1/fleet/push-object"
    ask(meter, "/v1/control/list-runs")
    assert not (tmp_path / "traffic.json").exists()
    ask(meter, path)
    ask(meter, path)
    request = f"POST {path} HTTP/1.1\r\nhost: here\r\ncontent-length: 5\r\n\r\n12345"
    answer = "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n1234512345"
    assert json.loads((tmp_path / "traffic.json").read_text()) == {
        "from_nodes": 2 * len(request),
        "to_nodes": 2 * len(answer),
    }
