"""Real processes of Flower on the loopback device, with TLS and keys."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import echo
import psutil
import pytest

from recbole_fedras.deploy.processes import free_port

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(
        importlib.util.find_spec("flwr") is None,
        reason="Flower is not installed: the extra deploy has it",
    ),
]


class Deployment:
    """A server and two shards in a folder."""

    def __init__(self, folder: Path, epochs: int) -> None:
        self.folder, self.port = folder, free_port()
        self.rows = folder / "rows"
        self.rows.mkdir()
        self._epochs = epochs
        echo.make_app(folder)
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def deploy(self, *arguments: str) -> subprocess.Popen[bytes]:
        path = os.pathsep.join([str(echo.HERE), os.environ.get("PYTHONPATH", "")])
        return subprocess.Popen(
            [sys.executable, "-m", "recbole_fedras", "deploy", *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": path},
            stdout=(self.folder / "out.log").open("ab"),
            stderr=subprocess.STDOUT,
        )

    def start_server(self, trust: str = "--keys=keys") -> None:
        self.processes["server"] = self.deploy(
            "server",
            trust,
            "--folder=server",
            f"--address=127.0.0.1:{self.port}",
            "--app=app",
            f"--epochs={self._epochs}",
            f"--checkpoint_dir={self.rows}",
        )

    def start_shard(self, name: str) -> None:
        self.processes[name] = self.deploy(
            "shard",
            f"--name={name}",
            "--keys=keys",
            f"--folder={name}",
            f"--superlink=127.0.0.1:{self.port}",
            f"--data_path={self.folder}",
            f"--dataset={name}",
            "--handle=echo:make_handle",
        )

    def child(self, name: str, word: str) -> int:
        """Return the process id of a child whose command has a word."""
        children = psutil.Process(self.processes[name].pid).children()
        return next(child.pid for child in children if word in child.cmdline())

    def wait_for(
        self, true: Callable[[list[dict[str, Any]]], bool], within: int
    ) -> Any:
        end = time.monotonic() + within
        while time.monotonic() < end:
            files = sorted(self.rows.glob("*.json"), key=lambda path: int(path.stem))
            rows = [json.loads(path.read_text()) for path in files]
            if true(rows):
                return rows
            time.sleep(0.2)
        logs = [self.folder / "out.log", *self.folder.glob("*/*.log")]
        raise AssertionError("\n\n".join(path.read_text()[-2000:] for path in logs))

    def running(self) -> list[psutil.Process]:
        """Return processes that work in the folder, whoever has started them."""
        running = psutil.process_iter(["cwd"])
        return [one for one in running if one.info["cwd"] == str(self.folder)]

    def end(self) -> None:
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.wait(60)


@pytest.fixture
def deployment(tmp_path: Path) -> Iterator[Callable[[int], Deployment]]:
    made: list[Deployment] = []

    def make(epochs: int) -> Deployment:
        made.append(Deployment(tmp_path, epochs))
        assert made[0].deploy("keys", "keys", "--nodes", "a", "b").wait(60) == 0
        return made[0]

    yield make
    for one in made:
        one.end()


@pytest.mark.slow
def test_exchanges_go_on_while_processes_are_killed(deployment):
    here = deployment(epochs=40)
    here.start_server()
    here.start_shard("a")
    here.start_shard("b")
    rows = here.wait_for(lambda rows: len(rows) >= 2, within=90)
    assert all(row["whole"] and sorted(row["workers"]) == ["a", "b"] for row in rows)
    before = rows[-1]["workers"]
    assert len(here.running()) >= 10  # of each node three, a SuperLink and its own

    os.kill(here.child("b", "supernode"), signal.SIGKILL)
    os.kill(here.child("a", "worker"), signal.SIGKILL)
    assert here.deploy("keys", "keys", "--nodes", "c").wait(60) == 0
    here.start_shard("c")  # whose key the server has not registered

    # Exchanges end at their deadline; a worker of its own begins anew.
    here.wait_for(lambda rows: "b" not in rows[-1]["workers"], within=40)
    rows = here.wait_for(lambda rows: rows[-1]["workers"].get("a", 0) > before["a"], 90)
    assert all(row["whole"] and set(row["asked"]) <= {"a", "b"} for row in rows)

    # Without a SuperLink a run is over; the next one finds the nodes by their names,
    # also the one that was killed, with the worker that it had, and the new one.
    os.kill(here.child("server", "superlink"), signal.SIGKILL)
    assert here.processes["server"].wait(60) == 2
    assert "the SuperLink has ended with -9" in (here.folder / "out.log").read_text()
    for path in here.rows.iterdir():
        path.unlink()
    here.start_server()
    rows = here.wait_for(
        lambda rows: rows and set(rows[-1]["workers"]) == {*"abc"}, 150
    )
    assert rows[-1]["workers"]["b"] == before["b"]
    assert "code: 2004" in (here.folder / "c" / "supernode.log").read_text()

    here.end()
    assert not here.running()


def test_a_run_that_fails_says_why_and_leaves_nothing(deployment):
    here = deployment(epochs=1)
    here.rows.rmdir()
    here.start_server("--insecure")
    assert here.processes["server"].wait(90) == 2
    printed = (here.folder / "out.log").read_text()
    assert printed.splitlines()[-1].startswith(
        f"recbole-fedras: error: there is no {here.rows} (the run has finished:failed: "
    )
    assert "Traceback" not in printed
    assert "Exit Code" not in printed
    assert not here.running()
