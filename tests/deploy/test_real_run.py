"""A run over real processes of Flower, one of them killed: the simulation's bits."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import ROOT, TINY

from recbole_fedras.config import Config
from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.deploy.split import split
from recbole_fedras.quick_start import run_recbole_fedras

pytestmark = [
    pytest.mark.deploy,
    pytest.mark.skipif(
        importlib.util.find_spec("flwr") is None,
        reason="Flower is not installed: the extra deploy has it",
    ),
]

#: Two blocks of users; rows of both shards in every round.
KEYS = [
    *(
        argument
        for argument in TINY
        if not {"epochs", "step", "fraction"} & set(re.split(r"[-_=]", argument))
    ),
    "--client_fraction=0.8",
    "--replica=personal",
    "--uplink_feedback=True",
    "--epochs=4",
    "--eval_step=2",
    "--show_progress=False",
]


def worker_of(shard: str) -> psutil.Process:
    """Return the worker whose data path ends with a shard's name."""
    for process in psutil.Process().children(recursive=True):
        words = process.cmdline()
        if "worker" in words and any(word.endswith(f"parts/{shard}") for word in words):
            return process
    raise AssertionError(f"no worker of shard {shard}")


def test_a_run_with_a_killed_worker_ends_with_the_simulations_bits(workspace):
    simulated = run_recbole_fedras(argv=KEYS)
    split(Config(argv=KEYS), 2, workspace / "parts")
    command = [
        *(sys.executable, "-m", "recbole_fedras", "deploy", "local"),
        *("--shards", "parts/0", "parts/1", *KEYS, "--min_shards=2"),
        f"--catalogue={workspace}/parts/catalogue.txt",
        f"--checkpoint_dir={workspace}/deployed",
    ]
    with (workspace / "out.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        try:
            end = time.monotonic() + 300
            while not list(workspace.glob("deployed/*/last.pth")):
                assert process.poll() is None, (workspace / "out.log").read_text()
                assert time.monotonic() < end, (workspace / "out.log").read_text()
                time.sleep(0.5)
            worker_of("1").send_signal(signal.SIGKILL)
            process.wait(max(end - time.monotonic(), 1))
        finally:
            process.terminate()
            process.wait(60)
    (folder,) = workspace.glob("deployed/*")
    result = json.loads((folder / "result.json").read_text())
    assert result["carried"]["answers"] > 0
    assert result["carried"]["carrier"]["from_nodes"] > result["carried"]["answers"]
    for key in ("test_result", "best_valid_result", "communication", "rounds"):
        assert json.loads(json.dumps(simulated[key])) == result[key], key
    one, other = (
        read_checkpoint(path / "last.pth")["simulation"]["server"]
        for path in (Path(simulated["run_folder"]), folder)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    kept = (workspace / "deployment" / "0" / "runs").rglob("*")
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept if path.is_file())
