"""What Flower adds to an exchange: seconds, CPU seconds, bytes at the socket.

``python benchmarks/deploy.py [--nodes=2]``: a SuperLink and SuperNodes on the loopback
device, with TLS and keys; each node by way of a proxy that counts bytes. ``--stock``
has Flower's own way instead of our workers: a process for each message.
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
from statistics import mean

import psutil

sys.path.append(str(Path(__file__).parents[1] / "tests" / "deploy"))
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)
import echo

from recbole_fedras.deploy.keys import make_keys
from recbole_fedras.deploy.processes import Family, Process, environment, free_port
from recbole_fedras.deploy.shard import Shard
from recbole_fedras.deploy.superlink import SuperLink
from recbole_fedras.experiments.tables import Table

WORKER = """
import sys, echo
from pathlib import Path
from recbole_fedras.deploy.worker import serve
serve(echo.make_handle(Path(), "x", Path()), sys.argv[1], Path(sys.argv[2]))
"""


CLIENT_APP = """
import echo
from flwr.app import Message
from flwr.clientapp import ClientApp
from recbole_fedras.deploy.records import pack, unpack
app = ClientApp()
handle = echo.make_handle(None, "x", None)
app.train()(lambda m, _: Message(pack(handle(unpack(m.content))), reply_to=m))
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


def measure(
    folder: Path, names: list[str], n_exchanges: int, size: int, stock: bool
) -> dict[str, float]:
    """Run exchanges; return what one of them takes, the first left out."""
    make_keys(folder / "keys", [], names)
    for name in ("rows", "server", *names):
        (folder / name).mkdir()
    link = SuperLink(folder / "server", "127.0.0.1", free_port(), folder / "keys")
    with Family() as family:
        server = link.start(family)
        proxies = [Proxy(link.port) for _ in names]
        nodes = [
            start(family, folder, name, proxy, stock)
            for name, proxy in zip(names, proxies, strict=True)
        ]
        marks: list[dict[str, float]] = []

        def look() -> None:
            if len(list((folder / "rows").glob("*.json"))) > len(marks):
                marks.append(
                    {
                        "seconds": time.time(),
                        "CPU s, server": cpu(server),
                        "CPU s, SuperNode": mean(cpu(node[-1]) for node in nodes),
                        "CPU s, worker": mean(sum(map(cpu, n[:-1])) for n in nodes),
                        "bytes up": mean(proxy.bytes["up"] for proxy in proxies),
                        "bytes down": mean(proxy.bytes["down"] for proxy in proxies),
                    }
                )

        keys = {"checkpoint_dir": str(folder / "rows"), "epochs": n_exchanges}
        keys["size"] = size
        app = echo.make_app(folder)
        if stock:
            (app / "client_app.py").write_text(CLIENT_APP)
        link.run(json.dumps(keys), app, look)
    first, last, steps = marks[0], marks[-1], len(marks) - 1
    return {key: (last[key] - first[key]) / steps for key in first}


def start(
    family: Family, folder: Path, name: str, proxy: Proxy, stock: bool
) -> list[Process]:
    """Start a node behind a proxy: its worker, if it has one, and its SuperNode."""
    proxy.start()
    if stock:
        command = [
            *(sys.executable, "-m", "recbole_fedras.deploy.programs", "supernode"),
            *("--superlink", f"127.0.0.1:{proxy.port}", "--port", str(free_port())),
            f"--root-certificates={folder / 'keys' / 'ca.crt'}",
            f"--auth-supernode-private-key={folder / 'keys' / name}.key",
        ]
        env = environment(folder / name)
        return [family.add(Process(name, command, folder / name / "log", env))]
    address, command = f"127.0.0.1:{proxy.port}", [sys.executable, "-c", WORKER]
    shard = Shard(name, address, folder / name, folder / "keys", command)
    return shard.start(family)


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exchanges", type=int, default=11)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--size", type=int, default=1_000_000, help="bytes each way")
    parser.add_argument("--stock", action="store_true", help="a process per message")
    arguments = parser.parse_args()
    names = [f"node{number}" for number in range(arguments.nodes)]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(
            Path(folder), names, arguments.exchanges, arguments.size, arguments.stock
        )
    title = f"one exchange with {len(names)} nodes, {arguments.size:,} bytes each way"
    rows = [{"what": key, "mean": f"{value:,.2f}"} for key, value in found.items()]
    print(Table(title, rows).markdown())


if __name__ == "__main__":
    main()
