"""How many bytes nodes and the SuperLink exchange, Flower's own included."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recbole_fedras.config.checkpoint import replacing
from recbole_fedras.deploy.guard import FLEET

_EVERY = 1.0  # seconds between two times that the totals are written


class Meter:
    """Middleware: adds up what nodes send and are sent, as HTTP has it; without TLS.

    Parameters
    ----------
    app : ASGIApp
        What comes next.
    file : Path
        Where the totals are written.
    """

    def __init__(self, app: ASGIApp, file: Path) -> None:
        self._app, self._file = app, file
        self._totals = {"from_nodes": 0, "to_nodes": 0}
        self._written = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and count it."""
        if scope["type"] != "http" or not scope["path"].startswith(FLEET):
            await self._app(scope, receive, send)
            return
        line = len(scope["method"]) + len(scope["path"]) + len("  HTTP/1.1\r\n\r\n")
        self._totals["from_nodes"] += line + _size(scope["headers"])

        async def counted() -> Message:
            message = await receive()
            self._totals["from_nodes"] += len(message.get("body", b""))
            return message

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                line = len("HTTP/1.1 200 OK\r\n\r\n")
                self._totals["to_nodes"] += line + _size(message.get("headers", ()))
            self._totals["to_nodes"] += len(message.get("body", b""))
            await send(message)

        await self._app(scope, counted, counting)
        self._write()

    def _write(self) -> None:
        if time.monotonic() - self._written > _EVERY:
            self._written = time.monotonic()
            with replacing(self._file) as file:
                file.write(json.dumps(self._totals).encode())


def _size(headers: list[tuple[bytes, bytes]]) -> int:
    return sum(len(name) + len(value) + len(": \r\n") for name, value in headers)


def traffic_file() -> Path:
    """Return where the SuperLink of this process's Flower home writes totals."""
    return Path(os.environ["FLWR_HOME"]) / "traffic.json"


def traffic() -> dict[str, int]:
    """Return what has been exchanged with nodes; nothing if nobody has counted."""
    file = traffic_file()
    if not file.is_file():
        return {}
    totals: dict[str, int] = json.loads(file.read_bytes())
    return totals
