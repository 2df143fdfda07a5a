"""Checkpoints: what they hold, and runs that continue from them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, rounds_of, slow

from recbole_fedras.__main__ import main
from recbole_fedras.config import Config, compat
from recbole_fedras.config.checkpoint import read_checkpoint, write_checkpoint
from recbole_fedras.errors import NonFiniteError
from recbole_fedras.quick_start import run_recbole_fedras
from recbole_fedras.run.setup import prepare_data


def same_but_for_time(first: list[dict], second: list[dict]) -> bool:
    def clean(rows):
        return [
            {key: row[key] for key in row if not key.startswith("seconds")}
            for row in rows
        ]

    return clean(first) == clean(second)


RESUMED = [
    {"eval_candidates": "fixed"},
    {"eval_candidates": "recbole"},
    {"replica": "stale", "uplink_feedback": True},
    {"replica": "personal", "compressor": "EDEN"},
    {"downlink_feedback": True, "bandwidth": [0.5, 0.75]},
    {
        "preset": "best",
        "compression_rate": 0.1,
        "uplink_compressor": "SVD",
        "uplink_share": 0.45,
    },
]


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        *zip(["MF", "NCF", "MF"], RESUMED[::2], strict=True),
        *map(slow, ["NCF", "MF", "NCF"], RESUMED[1::2]),
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(run, workspace, model, keys):
    keys = keys | {"eval_step": 2}
    whole = run(model, epochs=8, **keys)
    half = run(model, epochs=4, **keys)
    last = str(Path(half["run_folder"]) / "last.pth")
    resumed = run_recbole_fedras(config_dict={"resume": last, "epochs": 8})
    assert resumed["run_folder"] != half["run_folder"]
    for key in ("test_result", "best_valid_result", "communication", "rounds"):
        assert resumed[key] == whole[key], key
    assert same_but_for_time(rounds_of(resumed), rounds_of(whole))
    states = [
        read_checkpoint(Path(result["run_folder"]) / "last.pth")
        for result in (whole, resumed)
    ]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name
    torch.testing.assert_close(
        states[0]["simulation"], states[1]["simulation"], rtol=0, atol=0
    )


def test_a_best_checkpoint_survives_resuming_from_it(run):
    best = Path(run(epochs=4)["run_folder"]) / "best.pth"
    before = read_checkpoint(best)
    resumed = run_recbole_fedras(config_dict={"resume": str(best), "epochs": 7})
    after = read_checkpoint(Path(resumed["run_folder"]) / "best.pth")
    if after["epoch"] == before["epoch"]:
        assert json.loads(after["rows"]) == json.loads(before["rows"])
        held = [state["simulation"]["server"]["policy"] for state in (before, after)]
        assert torch.equal(held[0]["version_of"], held[1]["version_of"])
    assert len(json.loads(after["rows"])) == after["epoch"] + 1


@pytest.mark.parametrize(
    ("model", "come", "before"),
    [("MF", "uplink_share", 0.5), ("NCF", "uplink_feedback", False)],
)
def test_what_a_preset_has_come_to_set_does_not_change_a_run(run, model, come, before):
    keys = {"preset": "best", "compression_rate": 0.1, "uplink_compressor": "SVD"}
    last = Path(run(model, **keys)["run_folder"]) / "last.pth"
    state = read_checkpoint(last)
    assert state["config"].pop(come) != before
    write_checkpoint(state, last)
    config = Config(config_dict={"resume": str(last)})
    assert config[come] == before
    assert config["replica"] == "grid"


def test_resuming_with_another_compressor_is_refused(run):
    last = str(Path(run()["run_folder"]) / "last.pth")
    with pytest.raises(ValueError, match="compressor='SVD' cannot change when resum"):
        run_recbole_fedras(config_dict={"resume": last, "compressor": "SVD"})
    with pytest.raises(ValueError, match="model='NCF' cannot change when resum"):
        run_recbole_fedras("NCF", config_dict={"resume": last})


@pytest.mark.parametrize("bandwidth", [None, [0.2, 0.8]])
def test_recbole_reads_our_checkpoints(run, bandwidth):
    """RecBole's own evaluate(load_best_model=True), on our file, by its own Trainer."""
    from recbole.trainer import Trainer

    # RecBole knows one table: tiers hold the same one where nothing is lost.
    keys = {"bandwidth": bandwidth, "compressor": "none" if bandwidth else "FedRAS"}
    result = run(**keys, eval_candidates="recbole", eval_args={
        "split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"
    })  # fmt: skip
    config = Config(config_file_list=[str(Path(result["run_folder"]) / "config.yaml")])
    _, _, test_data = prepare_data(config)
    model = config.make_model(test_data._dataset)
    config["learner"] = "adam"
    trainer = Trainer(config, model)
    file = str(Path(result["run_folder"]) / "best.pth")
    with compat.recbole():
        measured = trainer.evaluate(test_data, load_best_model=True, model_file=file)
    assert measured == pytest.approx(result["test_result"])


def test_checkpoints_hold_the_replicas_that_clients_hold(run):
    """Not the room for those who have never taken part."""
    folder = Path(run("NCF", replica="personal", epochs=2)["run_folder"])
    state = read_checkpoint(folder / "last.pth")["simulation"]
    held = state["shard"]["replicas"]
    n_used = 1 + max(held["tables"]["slot_of_client"].values())
    assert n_used < 40
    assert len(held["networks"]["slots"]) == n_used
    assert held["tables"]["slots"].shape == (n_used, 60, 8)
    size = held["tables"]["slots"].untyped_storage().nbytes()
    assert size == n_used * 60 * 8 * 4


def test_divergence_keeps_the_last_good_state(workspace, capsys, monkeypatch):
    from recbole_fedras.federation.client import shard

    assert main([*TINY, "--learning_rate=1e25", "--compressor=none"]) == 2
    assert "round 0: local training is not finite" in capsys.readouterr().err

    train = shard.train_cohort

    def diverge(*arguments):
        trained = train(*arguments)
        rounds.append(trained)
        nowhere = trained.losses * torch.nan
        return replace(trained, losses=nowhere) if len(rounds) == 3 else trained

    rounds = []
    monkeypatch.setattr(shard, "train_cohort", diverge)
    assert main(TINY) == 2
    error = capsys.readouterr().err
    last = Path(error[error.index("--resume=") + len("--resume=") :].strip())
    state = read_checkpoint(last)
    assert "round 2: local training is not finite" in error
    assert (state["epoch"], len(json.loads(state["rows"]))) == (1, 2)
    monkeypatch.undo()
    monkeypatch.chdir(workspace)
    assert main([f"--resume={last}"]) == 0


def test_a_score_that_is_not_finite_stops_the_run(workspace, monkeypatch):
    from recbole_fedras.model import MF

    def broken(self, interaction):
        return torch.full(interaction["item_id"].shape, torch.nan)

    monkeypatch.setattr(MF, "predict", broken)
    with pytest.raises(NonFiniteError, match="score is not finite"):
        run_recbole_fedras(argv=TINY)


@pytest.mark.long
def test_ctrl_c_leaves_a_checkpoint_that_continues(workspace):
    """Interrupt a real process; its last.pth continues to the uninterrupted end."""
    import os
    import signal
    import time

    arguments = [*TINY[:1], *TINY[2:5], TINY[6], "--epochs=60", "--eval_step=7"]
    command = [sys.executable, "-m", "recbole_fedras", *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=workspace, env=environment, stderr=subprocess.PIPE
    )
    while not list(workspace.glob("saved/*/last.pth")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in (0, 130)  # 0: it had ended by then
    (last,) = workspace.glob("saved/*/last.pth")
    resumed = run_recbole_fedras(config_dict={"resume": str(last)})
    whole = run_recbole_fedras(argv=arguments)
    assert resumed["test_result"] == whole["test_result"]
    assert resumed["communication"] == whole["communication"]
