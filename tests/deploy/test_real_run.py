"""A run over real processes of Flower, one killed, one rogue: a simulation's bits."""

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
import rogue
import torch
from conftest import ROOT, TINY, rounds_of

from recbole_fedras.config import Config
from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.deploy.split import split
from recbole_fedras.federation import simulation
from recbole_fedras.quick_start import run_recbole_fedras
from recbole_fedras.wire.message import Message
from recbole_fedras.wire.transport import MemoryTransport

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
    "--model=NCF",
    "--client_fraction=0.8",
    "--replica=personal",
    "--uplink_feedback=True",
    "--epochs=4",
    "--eval_step=2",
    "--show_progress=False",
]

#: Number of the first client of shard 1, which is of the second block of two.
FIRST_OF_ROGUE = 20

#: Why the server refuses what the rogue sends.
REASONS = [
    "exceeds max_update_norm",
    "client 0: ",  # of the other shard
    "it is of round",
    "not a payload",
    "the client has answered already",
]

#: A class of the user's own, beside the configuration that names it.
HALVED = """
from recbole_fedras.compressor import RowUpdate
from recbole_fedras.federation.transforms import SharedUpdate, Transform


class Halved(Transform):
    def on_client(self, update, ctx):
        rows = RowUpdate(update.items.ids, update.items.rows / 2)
        return SharedUpdate(rows, update.theta / 2)
"""


def worker_of(shard: str) -> psutil.Process:
    """Return the worker whose data path ends with a shard's name."""
    for process in psutil.Process().children(recursive=True):
        words = process.cmdline()
        if "worker" in words and any(word.endswith(f"parts/{shard}") for word in words):
            return process
    raise AssertionError(f"no worker of shard {shard}")


class Absent(MemoryTransport):
    """Loses what the rogue node forges."""

    def exchange(self, messages, deadline=None):
        n_lost = 0
        for answer in super().exchange(messages, deadline):
            client = Message.from_parts(answer.head, answer.body).header.client
            lost = client >= FIRST_OF_ROGUE and n_lost < rogue.N_FORGED
            n_lost += lost
            if not lost:
                yield answer


def test_a_run_with_a_killed_worker_and_a_rogue_ends_with_the_simulations_bits(
    workspace, monkeypatch
):
    """Of a simulation with the same attack, in which whom the rogue forges is absent.

    A class of the user's own lies beside the configuration, on no path of Python's.
    """
    (workspace / "own").mkdir()
    (workspace / "own" / "halved.py").write_text(HALVED)
    (workspace / "own" / "my.yaml").write_text(
        "transform_class: halved.Halved\nattack: sign_flip\nattack_share: 0.2\n"
    )
    own = ["own/my.yaml"]
    with monkeypatch.context() as patched:
        patched.setattr(simulation, "MemoryTransport", Absent)
        simulated = run_recbole_fedras(config_file_list=own, argv=KEYS)
    split(Config(config_file_list=own, argv=KEYS), 2, workspace / "parts")
    command = [
        *(sys.executable, "-m", "recbole_fedras", "deploy", "local"),
        *("--shards", "parts/0", "parts/1", *KEYS, "--min_shards=2"),
        *("--config_files=own/my.yaml", "--handle=rogue:make_handle"),
        f"--catalogue={workspace}/parts/catalogue.txt",
        f"--checkpoint_dir={workspace}/deployed",
    ]
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    with (workspace / "out.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | {"PYTHONPATH": path},
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
    for key in ("test_result", "best_valid_result", "rounds"):
        assert json.loads(json.dumps(simulated[key])) == result[key], key
    for row, expected in zip(rounds_of(result), rounds_of(simulated), strict=True):
        for key in ("loss", "clients", "absent", "drift", "downlink_bytes"):
            assert row[key] == expected[key], key
        for reason in REASONS:
            assert reason in row["refused"]
    one, other = (
        read_checkpoint(path / "last.pth")["simulation"]["server"]
        for path in (Path(simulated["run_folder"]), folder)
    )
    torch.testing.assert_close(one, other, rtol=0, atol=0)
    kept = (workspace / "deployment" / "0" / "runs").rglob("*")
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept if path.is_file())
