"""Runs whose clients are spread over processes: the bits of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, rounds_of, slow
from links import DirectLinks

from recbole_fedras import quick_start
from recbole_fedras.config import Config
from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.errors import ConfigError, FederationError
from recbole_fedras.federation import protocol
from recbole_fedras.federation.sharded import SimulatedNode
from recbole_fedras.quick_start import run_recbole_fedras
from recbole_fedras.run.finished import load_run
from recbole_fedras.run.shards import Loaded

#: Two blocks of clients, which two processes may hold.
WIDE = [argument.replace("fraction=0.25", "fraction=0.8") for argument in TINY]
HOSTILE = {
    "attack": "promote", "attack_target": "i3", "attack_share": 0.4,
    "aggregation": "krum", "transforms": ["clip_rows"],
}  # fmt: skip
FULL = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"}
WORLD = {
    "world": "lognormal", "activity_correlation": 0.5, "bandwidth": [0.5, 0.75],
    "compressor": "SVD", "uplink_mb_per_s": 0.01, "deadline": 0.5, "dropout": 0.1,
    "over_selection": 1.5, "staleness_window": 2, "n_jobs": 2,
}  # fmt: skip
WARM = {"item_embedding": "rq", "rq_codes": 8, "warmup_rounds": 2}
CASES = [
    slow("NCF", {"replica": "personal", "uplink_feedback": True}),
    ("NCF", {"compressor": "KLT", "bandwidth": [0.5, 0.75], "user_optimizer": "adam"}),
    ("MF", WARM | {"user_optimizer": "adam", "checkpoint_step": 9}),
    ("NCF", HOSTILE),
    ("MF", WORLD),
    slow("MF", {}),
    slow("MF", {"replica": "stale", "compressor": "TopK"}),
    slow("MF", {"preset": "best", "compression_rate": 0.1}),
    slow("NCF", {"preset": "best", "compression_rate": 0.1}),
    slow("GMF", {"item_embedding": "hash", "hash_rows": 20, "eval_args": FULL}),
    slow("FedNeuMF", {"mf_embedding_size": 3, "mlp_embedding_size": 5}),
    slow("MF", {"upload": "gradient", "local_epochs": 1, "server_optimizer": "adam"}),
    slow("LightFR", {"compressor": "none"}),
]


class Losses:
    """Loses all answers after some."""

    left = float("inf")

    def __call__(self, name: str) -> bool:
        self.left -= 1
        return self.left < 0


@pytest.fixture
def shards_here(monkeypatch):
    """Hold the shards of a run in this process; return what loses their answers."""
    losses = Losses()
    monkeypatch.setattr(protocol, "GROUP", 2)  # several blocks of 40 users

    @contextmanager
    def processes(config):
        n_shards = config.run_settings().n_shards
        links = None
        if n_shards > 1:
            nodes = {}
            for shard in range(n_shards):
                again = Config(config_dict=config.resolved)
                own = Loaded.part(again, shard, n_shards)
                first = own.begin(0, own.model.embedding is not None)
                nodes[str(shard)] = SimulatedNode(first, own.evaluate, own.begin).handle
            links = DirectLinks(nodes, losses)
        yield links

    monkeypatch.setattr(quick_start, "processes", processes)
    return losses


def assert_same(first, second) -> None:
    """Results, rounds, ranks and checkpoints are alike, but for seconds and places."""
    for key in ("test_result", "best_valid_result", "communication", "rounds"):
        assert first[key] == second[key], key
    for key in ("exposure", "world", "groups"):
        assert first.get(key) == second.get(key), key
    rows = [
        [
            {key: row[key] for key in row if not key.startswith("seconds")}
            for row in rounds_of(result)
        ]
        for result in (first, second)
    ]
    assert rows[0] == rows[1]
    folders = [Path(result["run_folder"]) for result in (first, second)]
    ranks = [(folder / "ranks.csv").read_text() for folder in folders]
    assert ranks[0] == ranks[1]
    for name in ("best.pth", "last.pth"):
        one, other = (read_checkpoint(folder / name) for folder in folders)
        torch.testing.assert_close(
            one["state_dict"], other["state_dict"], rtol=0, atol=0, equal_nan=True
        )
        for half in ("server", "ledger"):
            states = one["simulation"][half], other["simulation"][half]
            torch.testing.assert_close(*states, rtol=0, atol=0)
        rows = [state["simulation"]["shard"]["user_rows"] for state in (one, other)]
        assert torch.equal(*rows)


@pytest.mark.parametrize(("model", "keys"), CASES)
def test_the_bits_are_those_of_one_process(run, shards_here, model, keys):
    alone = run(model, **keys)
    spread = run(model, n_shards=3, **keys)
    assert_same(alone, spread)


OWN = {"compressor": "TopK", "replica": "personal", "uplink_feedback": True}


@pytest.mark.parametrize("keys", [OWN, slow(WORLD)])
def test_a_run_resumes_with_another_number_of_shards(run, workspace, shards_here, keys):
    whole = run(epochs=6, **keys)
    half = run(epochs=4, n_shards=2, **keys)
    last = str(Path(half["run_folder"]) / "last.pth")
    more = {"resume": last, "epochs": 6, "n_shards": 3}
    resumed = run_recbole_fedras(config_dict=more)
    assert_same(whole, resumed)
    best = [load_run(own["run_folder"]).recommend(["u1"]) for own in (whole, resumed)]
    assert best[0].equals(best[1])


@pytest.mark.slow
def test_there_are_no_more_shards_than_blocks_of_users(run):
    with pytest.raises(ConfigError, match="at most 1 with 40 users: those of 64 conse"):
        run(n_shards=2)


def test_what_cannot_be_spread_is_refused(run):
    with pytest.raises(ConfigError, match=r"metrics=.* means over users with n_shards"):
        run(n_shards=2, metrics=["Hit", "GAUC"], valid_metric="Hit@10")
    with pytest.raises(ConfigError, match="eval_candidates='recbole'"):
        run(n_shards=2, eval_candidates="recbole")
    with pytest.raises(ConfigError, match="n_shards=0 is not allowed"):
        run(n_shards=0)


def test_a_run_that_loses_a_process_can_be_resumed(run, workspace, shards_here):
    whole = run(epochs=4)
    saved = workspace / "lost"
    shards_here.left = 20
    with pytest.raises(FederationError, match=r"shard \d.* --resume=.*last.pth"):
        run(epochs=4, n_shards=2, checkpoint_dir=str(saved))
    shards_here.left = float("inf")
    (last,) = saved.glob("*/last.pth")
    assert 0 < read_checkpoint(last)["epoch"] < 3
    resumed = run_recbole_fedras(config_dict={"resume": str(last)})
    assert_same(whole, resumed)


@pytest.mark.long
def test_processes_end_with_the_bits_of_one(run):
    keys = {"client_fraction": 0.8, "replica": "personal"}
    assert_same(run("NCF", **keys), run("NCF", n_shards=2, **keys))


@pytest.mark.slow
def test_a_bug_in_a_shard_keeps_its_traceback(workspace):
    (workspace / "broken.py").write_text(
        "from recbole_fedras.compressor.none import NoCompression\n"
        "class Broken(NoCompression):\n"
        "    def encode(self, update, budget, ctx):\n"
        "        return 1 / (0 if ctx.sender >= 0 else 1) and super().encode("
        "update, budget, ctx)\n",
        encoding="utf-8",
    )
    command = [sys.executable, "-m", "recbole_fedras", *WIDE, "--n_shards=2"]
    command += ["--compressor_class=broken.Broken"]
    ran = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert ran.returncode == 1
    assert "broken.py" in ran.stderr
    assert "ZeroDivisionError" in ran.stderr


@pytest.mark.long
def test_ranks_of_torchrun_end_with_the_bits_of_one(workspace):
    alone = run_recbole_fedras(argv=WIDE)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["-m", "recbole_fedras", *WIDE, f"--checkpoint_dir={workspace}/ranks"]
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    (folder,) = workspace.glob("ranks/*")
    result = json.loads((folder / "result.json").read_text())
    assert_same(json.loads(json.dumps(alone)), result)
