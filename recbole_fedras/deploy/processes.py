"""Processes of ours: started, watched, started again, and ended with us."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType

import psutil

from recbole_fedras.errors import ConfigError, KilledError

_ENDING = 10.0  # seconds that a process may take to end when told to
_LEFT = 2.0  # seconds that those which it has started may take more
#: Exit status of a command that has told its user what is wrong.
TOLD = 2

_HEALTHY = 120.0  # seconds after which a start counts as a success
_ERROR = re.compile(r"(?:\b|\x1b\[\d+m)ERROR\b")  # coloured or not


def environment(home: Path) -> dict[str, str]:
    """Return the environment of Flower's programs.

    They find each other, call nobody, install nothing, and keep what they keep in
    ``home``.
    """
    tools = str(Path(sys.executable).parent)
    return os.environ | {
        "PATH": os.pathsep.join([tools, os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",
        "FLWR_HOME": str(home.resolve()),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FORWARDED_ALLOW_IPS": "127.0.0.1",  # who may say whose request it passes on
    }


class Process:
    """A command whose output goes to a file, and that may be started again.

    Parameters
    ----------
    name : str
        For messages.
    command : sequence of str
    log : Path
        File that output is added to.
    env : mapping
    restart_on_error : bool
        Whether to start it again as soon as it reports an error. A SuperNode may live
        on deaf after one, and its work is the server's and the worker's anyhow.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str],
        restart_on_error: bool = False,
    ) -> None:
        self.name, self._command, self._log, self._env = name, command, log, env
        self._restart_on_error = restart_on_error
        self._popen: subprocess.Popen[bytes] | None = None
        self._started = self._next = 0.0
        self._pause = 5.0
        self._read = 0

    @property
    def pid(self) -> int:
        """Process id; 0 before it has been started."""
        return 0 if self._popen is None else self._popen.pid

    @property
    def status(self) -> int | None:
        """Exit status; None while it runs, and before it has been started."""
        return None if self._popen is None else self._popen.poll()

    def start(self) -> None:
        """Start it, in a session of its own: Ctrl-C is for us to pass on."""
        with self._log.open("ab") as file:
            self._read = file.tell()
            self._popen = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=dict(self._env),
                start_new_session=True,
            )
        self._started = time.monotonic()

    def tend(self) -> None:
        """See to it that it runs: called ever again.

        One that has ended is started again after 5 seconds, then 7.5, up to 60; but
        not one of our commands that has told its user what is wrong.

        Raises
        ------
        KilledError
            With what it has told.
        """
        if self.status == TOLD:
            raise KilledError(f"{self.name} has ended: {self._last_line()}")
        if self.status is None and self._restart_on_error and self._error():
            print(f"{self.name} has reported an error: {self._log}", flush=True)
            self.end()
        if self.status is None:
            return
        now = time.monotonic()
        if not self._next:
            if now - self._started > _HEALTHY:
                self._pause = 5.0
            self._next = now + self._pause
            print(
                f"{self.name} has ended with {self.status}, {self._last_line()!r}; it "
                f"is started again in {self._pause:.0f} s: {self._log}",
                flush=True,
            )
            self._pause = min(60.0, 1.5 * self._pause)
        elif now >= self._next:
            self._next = 0.0
            self.start()

    def end(self) -> None:
        """End it and all that it has started, by force if it takes long."""
        if self._popen is None or self.status is not None:
            return
        tree = psutil.Process(self._popen.pid).children(recursive=True)
        self._popen.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(_ENDING)
        self._popen.kill()
        self._popen.wait()
        for left in psutil.wait_procs(tree, timeout=_LEFT)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()

    def _last_line(self) -> str:
        """Return the last line of its log."""
        with self._log.open("rb") as file:
            file.seek(max(0, self._log.stat().st_size - 1000))
            lines = file.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "")

    def _error(self) -> bool:
        """Return whether its log shows an error that was not there before."""
        with self._log.open("rb") as file:
            if self._log.stat().st_size < self._read:  # somebody has emptied it
                self._read = 0
            file.seek(self._read)
            new = file.read()
        self._read += len(new)
        return bool(_ERROR.search(new.decode(errors="replace")))


class Family:
    """Processes that end together, the last one first."""

    def __init__(self) -> None:
        self._members: list[Process] = []

    def __enter__(self) -> Family:
        """Begin without any."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End all, whatever has happened."""
        for process in reversed(self._members):
            process.end()

    def add(self, process: Process) -> Process:
        """Start a process as a member."""
        self._members.append(process)
        process.start()
        return process


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """Have SIGTERM do what Ctrl-C does: leave by way of every ``finally``, once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def only_here(folder: Path) -> Iterator[None]:
    """Make a folder that only its owner can read, and use it alone.

    Raises
    ------
    ConfigError
        If another process uses it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"--folder={str(folder)!r} is in use by another process; end it, or "
                "name another folder"
            ) from None
        yield


def free_port() -> int:
    """Return a port of the loopback device that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
