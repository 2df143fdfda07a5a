"""What Flower adds to an exchange: seconds, CPU seconds, bytes at the socket.

``python benchmarks/deploy.py``: a SuperLink and two SuperNodes on the loopback device,
with TLS and keys; each node by way of a proxy that counts bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

sys.path.append(str(Path(__file__).parents[1] / "tests" / "deploy"))
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
import echo

from recbole_fedras.deploy.keys import make_keys
from recbole_fedras.deploy.processes import Family, Process, free_port
from recbole_fedras.deploy.shard import Shard
from recbole_fedras.deploy.superlink import SuperLink
from recbole_fedras.experiments.tables import Table

WORKER = """
import sys, echo
from pathlib import Path
from recbole_fedras.deploy.worker import serve
serve(echo.make_handle(Path(), "x", Path()), sys.argv[1], Path(sys.argv[2]))
"""


class Proxy(threading.Thread):
    """Passes connections on, and counts what goes up and down."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.bytes: Counter[str] = Counter()

    def run(self) -> None:
        """Take connections until the program ends."""
        while True:
            near = self._server.accept()[0]
            far = socket.create_connection(("127.0.0.1", self._port))
            for name, one, other in (("up", near, far), ("down", far, near)):
                pump = threading.Thread(target=self._pump, args=(name, one, other))
                pump.daemon = True
                pump.start()

    def _pump(self, name: str, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):  # one of them has gone
            while data := one.recv(2**16):
                self.bytes[name] += len(data)
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)


def cpu(process: Process) -> float:
    """Seconds of a process and all below it that live."""
    first = psutil.Process(process.pid)
    tree = [first, *first.children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in tree)


def measure(folder: Path, n_exchanges: int, size: int) -> dict[str, float]:
    """Run exchanges; return what one of them takes, the first left out."""
    make_keys(folder / "keys", [], ["a", "b"])
    for name in ("rows", "server", "a", "b"):
        (folder / name).mkdir()
    link = SuperLink(folder / "server", "127.0.0.1", free_port(), folder / "keys")
    with Family() as family:
        server = link.start(family)
        proxies = [Proxy(link.port) for _ in "ab"]
        workers, supernodes = zip(
            *(start(family, folder, *pair) for pair in zip("ab", proxies, strict=True)),
            strict=True,
        )
        marks: list[dict[str, float]] = []

        def look() -> None:
            if len(list((folder / "rows").glob("*.json"))) > len(marks):
                marks.append(
                    {
                        "seconds": time.time(),
                        "CPU s, server": cpu(server),
                        "CPU s, SuperNode": sum(map(cpu, supernodes)) / 2,
                        "CPU s, worker": sum(map(cpu, workers)) / 2,
                        "bytes up": sum(proxy.bytes["up"] for proxy in proxies) / 2,
                        "bytes down": sum(proxy.bytes["down"] for proxy in proxies) / 2,
                    }
                )

        keys = {"checkpoint_dir": str(folder / "rows"), "epochs": n_exchanges}
        keys["size"] = size
        link.run(json.dumps(keys), echo.make_app(folder), look)
    first, last, steps = marks[0], marks[-1], len(marks) - 1
    return {key: (last[key] - first[key]) / steps for key in first}


def start(family: Family, folder: Path, name: str, proxy: Proxy) -> list[Process]:
    """Start a node behind a proxy: its worker, and its SuperNode."""
    proxy.start()
    address, command = f"127.0.0.1:{proxy.port}", [sys.executable, "-c", WORKER]
    shard = Shard(name, address, folder / name, folder / "keys", command)
    return shard.start(family)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exchanges", type=int, default=11)
    parser.add_argument("--size", type=int, default=1_000_000, help="bytes each way")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.exchanges, arguments.size)
    title = f"one exchange with two nodes, {arguments.size:,} bytes each way, by node"
    rows = [{"what": key, "mean": f"{value:,.2f}"} for key, value in found.items()]
    print(Table(title, rows).markdown())


if __name__ == "__main__":
    main()
