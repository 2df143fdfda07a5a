"""A federation that only exchanges bytes: what deployed processes run in the tests."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from recbole_fedras.errors import DataError

SHARDS, SIZE, DEADLINE = 2, 100_000, 10
HERE = Path(__file__).parent
SERVER_APP = """
from echo import run
from recbole_fedras.deploy.server import server_app
app = server_app(run)
"""


def make_app(folder: Path) -> Path:
    """Copy the package's Flower app, but for what it runs."""
    from recbole_fedras.deploy.superlink import APP

    app = Path(shutil.copytree(APP, folder / "app"))
    (app / "server_app.py").write_text(SERVER_APP)
    return app


def make_handle(
    data_path: Path, dataset: str, folder: Path, config_files: list[str] | None = None
) -> Callable[..., bytes]:
    """Answer with the request's bytes in reverse, behind a word of who answers."""

    def handle(request: bytes) -> bytes:
        return f"{dataset} {os.getpid()} ".encode() + request[::-1]

    return handle


def run(config: str, links: Any) -> None:
    """Exchange; a file for each exchange says who answered, and how long it took."""
    keys = yaml.safe_load(config)
    folder = Path(keys["checkpoint_dir"])
    if not folder.is_dir():
        raise DataError(f"there is no {folder}")
    while len(links.names()) < SHARDS:
        time.sleep(0.1)
    for step in range(keys["epochs"]):
        row = exchange(links, keys.get("size", SIZE))
        part = folder / f".{step}"
        part.write_text(json.dumps(row))
        part.rename(folder / f"{step}.json")
        print(f"exchange {step}: {sorted(row['workers'])}, {row['seconds']:.1f} s")


def exchange(links: Any, size: int) -> dict[str, Any]:
    """Ask all shards once."""
    requests = {name: os.urandom(size) for name in links.names()}
    begin, cpu = time.time(), sum(os.times()[:2])
    answers = dict(links.ask(requests, DEADLINE))
    told = {name: answer.split(b" ", 2) for name, answer in answers.items()}
    return {
        "asked": sorted(requests),
        "workers": {name: int(parts[1]) for name, parts in told.items()},
        "whole": all(told[name][2] == requests[name][::-1] for name in told),
        "seconds": time.time() - begin,
        "cpu": sum(os.times()[:2]) - cpu,
    }
