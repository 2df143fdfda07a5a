"""The server's side: a SuperLink, its nodes' keys, and a run on it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recbole_fedras.deploy.keys import AUTHORITY, SERVER
from recbole_fedras.deploy.processes import Family, Process, environment
from recbole_fedras.deploy.registry import register
from recbole_fedras.errors import ConfigError, KilledError

#: The Flower app of this package.
APP = Path(__file__).parent / "app"

_STARTING = 120.0  # seconds that a SuperLink may take to listen
_ENDING = 10.0  # seconds that one whose parent was killed may take to let go of a port
_CONNECTION = "here"
_RUN_ID = re.compile(r"Successfully started run (\d+)")


@dataclass(frozen=True, slots=True)
class SuperLink:
    """A SuperLink of this machine.

    Attributes
    ----------
    folder : Path
        Of its database, logs and Flower's own files.
    host : str
        Address to listen at.
    port : int
    keys : Path or None
        Folder of keys; None: no TLS and no keys.
    """

    folder: Path
    host: str
    port: int
    keys: Path | None

    @property
    def address(self) -> str:
        """Where this machine finds it."""
        return f"127.0.0.1:{self.port}"

    @property
    def home(self) -> Path:
        """Of Flower's own files, among them the connection that ``flwr`` uses."""
        return self.folder / "flower"

    def start(self, family: Family) -> Process:
        """Start it, and register the nodes that it does not know.

        Raises
        ------
        ConfigError
            If the port is taken, or keys are missing.
        KilledError
            If it ends at once.
        """
        self._write_connection()
        end = time.monotonic() + _ENDING
        while self._is_taken() and time.monotonic() < end:
            time.sleep(0.2)
        if self._is_taken():
            raise ConfigError(
                f"port {self.port} is in use; end what listens there, or give another "
                "in --address"
            )
        process = family.add(
            Process(
                "SuperLink",
                [*_program("superlink"), *self._arguments()],
                self.folder / "superlink.log",
                self._environment(),
            )
        )
        self._wait_for(process)
        if self.keys is not None:
            for name in register(self.address, self.keys):
                print(f"node {name} is registered", flush=True)
        return process

    def run(
        self, config: str, app: Path = APP, tend: Callable[[], None] = lambda: None
    ) -> None:
        """Run an app, and print what it prints until it has ended.

        Parameters
        ----------
        config : str
            YAML text: the keys of the run.
        app : Path
            Folder of a Flower app with a key ``config``.
        tend : callable
            Called several times a second; may raise.

        Raises
        ------
        KilledError
            If the run does not end well; its log has been printed.
        """
        keys = self.folder / "run.toml"
        keys.write_text(f"config = {quoted(config)}\n", encoding="utf-8")
        command = ["run", str(app), _CONNECTION, "--run-config", str(keys)]
        run_id = _RUN_ID.search(self._flwr(*command))
        if run_id is None:
            raise KilledError(f"Flower starts no run: {self.folder / 'superlink.log'}")
        log = subprocess.Popen(
            ["flwr", "log", run_id[1], _CONNECTION], env=self._environment()
        )
        try:
            while log.poll() is None:
                tend()
                time.sleep(0.2)
        finally:
            log.terminate()
            log.wait()
        self._require_success(run_id[1])

    def _require_success(self, run_id: str) -> None:
        found = self._flwr("list", _CONNECTION, "--run-id", run_id, *_JSON)
        run = json.loads(found)["runs"][0]
        if run["status"] != "finished:completed":
            why = run["status-details"].removeprefix(_OF_SERVER_APP)
            raise KilledError(
                f"{why} (the run has {run['status']}: {self.folder / 'superlink.log'})"
            )

    def _arguments(self) -> list[str]:
        database = str(self.folder / "superlink.db")
        where = ["--host", self.host, "--port", str(self.port), "--database", database]
        if self.keys is None:
            return [*where, "--insecure"]
        return [
            *where,
            "--enable-supernode-auth",
            f"--ssl-ca-certfile={self.keys / AUTHORITY}.crt",
            f"--ssl-certfile={self.keys / SERVER}.crt",
            f"--ssl-keyfile={self.keys / SERVER}.key",
        ]

    def _environment(self) -> dict[str, str]:
        return environment(self.home)

    def _write_connection(self) -> None:
        """Tell ``flwr`` of this SuperLink, also for use by hand."""
        self.home.mkdir(exist_ok=True)
        if self.keys is None:
            trust = "insecure = true"
        else:
            certificate = (self.keys / f"{AUTHORITY}.crt").resolve()
            if not certificate.is_file():
                raise ConfigError(
                    f"--keys={str(self.keys)!r}: no {certificate.name}; make them by "
                    "`recbole-fedras deploy keys`"
                )
            trust = f"root-certificates = {quoted(str(certificate))}"
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "{_CONNECTION}"\n\n[superlink.{_CONNECTION}]\n'
            f'address = "{self.address}"\n{trust}\n',
            encoding="utf-8",
        )

    def _is_taken(self) -> bool:
        """Whether anything listens at the port."""
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def _wait_for(self, process: Process) -> None:
        end = time.monotonic() + _STARTING
        while process.status is None and time.monotonic() < end:
            if self._is_taken():
                return
            time.sleep(0.2)
        raise KilledError(f"no SuperLink: {self.folder / 'superlink.log'} says why")

    def _flwr(self, *arguments: str) -> str:
        """Run Flower's command line, and return what it prints."""
        done = subprocess.run(
            ["flwr", *arguments],
            env=self._environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise KilledError(f"flwr {arguments[0]}: {done.stderr or done.stdout}")
        return done.stdout


_JSON = ("--format", "json")

#: Flower's words before those of a ServerApp's error.
_OF_SERVER_APP = "ServerApp failed with exception: "


def quoted(text: str) -> str:
    r"""Quote a string for TOML: as JSON does, but for the two that differ.

    Examples
    --------
    >>> quoted('a "b"\n')
    '"a \\"b\\"\\n"'
    """
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _program(name: str) -> list[str]:
    return [sys.executable, "-m", "recbole_fedras.deploy.programs", name]
