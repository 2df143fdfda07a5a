"""A node's side: a SuperNode and the worker that answers for it, both watched."""

from __future__ import annotations

import json
import os
import secrets
import sys
from dataclasses import dataclass
from pathlib import Path

from recbole_fedras.deploy.keys import AUTHORITY
from recbole_fedras.deploy.processes import Family, Process, environment, free_port
from recbole_fedras.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Shard:
    """A node of a federation.

    Attributes
    ----------
    name : str
        The name that the server has registered the node's key under.
    superlink : str
        ``host:port`` of the server.
    folder : Path
        Of all that the node keeps.
    keys : Path or None
        Folder with ``ca.crt`` and ``NAME.key``; None: no TLS and no key.
    worker : list of str
        Command of a worker; the SuperNode's address and the file of the secret that
        they share are added.
    """

    name: str
    superlink: str
    folder: Path
    keys: Path | None
    worker: list[str]

    def start(self, family: Family) -> list[Process]:
        """Start both."""
        secret = self.folder / "secret"
        secret.unlink(missing_ok=True)
        with os.fdopen(os.open(secret, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        port = free_port()
        env = environment(self.folder / "flower")
        supernode = Process(
            f"SuperNode of {self.name}",
            [
                *(sys.executable, "-m", "recbole_fedras.deploy.programs", "supernode"),
                *("--superlink", self.superlink, "--port", str(port)),
                *("--isolation", "process"),
                *("--superexec-auth-secret-file", str(secret)),
                *("--node-config", f"name={json.dumps(self.name)}"),
                *self._trust(),
            ],
            self.folder / "supernode.log",
            env,
            restart_on_error=True,
        )
        worker = Process(
            f"worker of {self.name}",
            [*self.worker, f"127.0.0.1:{port}", str(secret)],
            self.folder / "worker.log",
            env,
        )
        return [family.add(worker), family.add(supernode)]

    def _trust(self) -> list[str]:
        if self.keys is None:
            return ["--insecure"]
        authority, key = self.keys / f"{AUTHORITY}.crt", self.keys / f"{self.name}.key"
        for file in (authority, key):
            if not file.is_file():
                raise ConfigError(
                    f"--keys={str(self.keys)!r}: no {file.name}; the server makes them "
                    "by `recbole-fedras deploy keys`"
                )
        return [
            f"--root-certificates={authority}",
            f"--auth-supernode-private-key={key}",
        ]
