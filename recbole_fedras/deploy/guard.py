"""What a SuperLink refuses at the door.

Flower serves nodes, users and apps at one port, and by default asks no user who they
are: whoever reaches the port may start a run, which is code of theirs on the server, or
register a node. Here only this machine may; others may do what nodes do.
"""

from __future__ import annotations

import ipaddress
from collections import Counter

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

FLEET = "/v1/fleet/"


class Guard:
    """Middleware, outermost: refuses before a byte of the body is read.

    Parameters
    ----------
    app : ASGIApp
        What comes next.
    request_bytes : int
        Most that one request may have; Flower sends arrays in chunks of 5 MiB.
    answer_bytes : int
        Most that a node may send as one message.
    nodes : int
        Most that are counted at a time: their keys are only checked after us.
    """

    def __init__(
        self,
        app: ASGIApp,
        request_bytes: int = 2**24,
        answer_bytes: int = 2**30,
        nodes: int = 2**14,
    ) -> None:
        self._app = app
        self._request_bytes, self._answer_bytes = request_bytes, answer_bytes
        self._nodes = nodes
        self._sent: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer why not."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await PlainTextResponse(*refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[str, int] | None:
        headers, path = Headers(scope=scope), scope["path"]
        if not is_loopback(scope["client"][0]) and not path.startswith(FLEET):
            return "only for the server's own machine", 403
        size = headers.get("content-length", "0")
        if "transfer-encoding" in headers or not size.isdecimal():
            return "a request of unknown size", 411
        if int(size) > self._request_bytes:
            return f"more than {self._request_bytes} bytes", 413
        if path.startswith(f"{FLEET}push-"):
            sent = self._count(path, headers.get("flwr-public-key", ""), int(size))
            if sent > self._answer_bytes:
                return f"a message of more than {self._answer_bytes} bytes", 413
        return None

    def _count(self, path: str, node: str, size: int) -> int:
        """Return how many bytes of its message a node has sent; arrays come last."""
        if path.endswith("push-messages"):
            self._sent.pop(node, None)
        if len(self._sent) >= self._nodes:
            self._sent.clear()
        self._sent[node] += size
        return self._sent[node]


def is_loopback(host: str) -> bool:
    """Return whether an address is of this machine's loopback device.

    Examples
    --------
    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("192.168.0.7")
    (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
