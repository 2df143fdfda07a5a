"""Whole runs: what a RecBole user sees, on a tiny dataset."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import TINY, write_dataset
from test_compressors import CUTS

from recbole_fedras import registry
from recbole_fedras.__main__ import main
from recbole_fedras.checkpoint import read_checkpoint
from recbole_fedras.config import Config
from recbole_fedras.federation.simulation import NonFiniteError
from recbole_fedras.quick_start import (
    objective_function,
    prepare_data,
    run_recbole_fedras,
)
from recbole_fedras.theta import unflatten
from recbole_fedras.trainer import FederatedTrainer

ROOT = Path(__file__).parents[1]


def rounds_of(result: dict) -> list[dict[str, str]]:
    with (Path(result["run_folder"]) / "rounds.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("model", ["MF", "NCF"])
@pytest.mark.parametrize(
    "compressor", sorted({*registry.names("compressor")} - {"BinaryCodes"})
)
def test_every_model_runs_with_every_compressor(run, model, compressor):
    result = run(model, compressor=compressor)
    assert {
        "best_valid_score",
        "valid_score_bigger",
        "best_valid_result",
        "test_result",
    } < set(result)
    assert 0 < result["test_result"]["hit@10"] <= 1
    cost = result["communication"]
    assert 0 < cost["uplink_bytes"] + cost["downlink_bytes"] < cost["dense_bytes"]
    for direction in ("uplink", "downlink"):
        assert sum(cost["parts"][direction].values()) == cost[f"{direction}_bytes"]
    assert cost["wire_compression_rate"] < cost["nominal_compression_rate"] < 1


def test_the_run_folder_holds_what_the_result_says(run):
    result = run()
    folder = Path(result["run_folder"])
    saved = json.loads((folder / "result.json").read_text())
    assert saved == json.loads(json.dumps(result))
    rounds = rounds_of(result)
    assert [int(row["round"]) for row in rounds] == [0, 1, 2, 3]
    for direction in ("uplink", "downlink"):
        total = sum(int(row[f"{direction}_bytes"]) for row in rounds)
        assert total == result["communication"][f"{direction}_bytes"]
    assert [bool(row["valid_hit@10"]) for row in rounds] == [False, True] * 2
    assert (folder / "best.pth").is_file()
    seconds = result["seconds"]
    assert set(seconds) >= {
        "local_training", "compression", "serialisation", "evaluation", "total"
    }  # fmt: skip
    assert sum(seconds.values()) - seconds["total"] <= seconds["total"]


def test_the_written_config_repeats_the_run(run, workspace):
    result = run(compressor="TopK")
    config = str(Path(result["run_folder"]) / "config.yaml")
    again = run_recbole_fedras(config_file_list=[config])
    assert again["run_folder"] != result["run_folder"]
    assert again["test_result"] == result["test_result"]
    assert again["communication"] == result["communication"]


def test_a_class_goes_with_the_name_that_it_came_with(run, workspace):
    config = str(Path(run(epochs=2)["run_folder"]) / "config.yaml")
    plain = run_recbole_fedras(
        config_file_list=[config], config_dict={"compressor": "none"}
    )
    assert plain["communication"] == run(epochs=2, compressor="none")["communication"]
    ncf = run_recbole_fedras("NCF", config_file_list=[config])
    assert ncf["communication"]["parts"]["uplink"]["theta"] > 0


def test_a_model_of_ones_own_declares_its_keys(workspace, capsys):
    (workspace / "scaled.py").write_text(
        '''
from recbole_fedras.model import MF

class Scaled(MF):
    """MF with a scale."""

    train_clients = None

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        assert config["scale"] == 3
'''
    )
    (workspace / "scaled.yaml").write_text(
        "model: Scaled\nmodel_class: scaled.Scaled\nscale: 3\n"
    )
    assert main(["--config_files=scaled.yaml", "--list"]) == 0
    assert "MF with a scale." in capsys.readouterr().out
    assert main(["--config_files=scaled.yaml", *TINY]) == 0
    (last,) = workspace.glob("saved/*/last.pth")
    assert main([f"--resume={last}", "--epochs=4"]) == 0


def test_a_saved_dataset_is_split_as_configured(run):
    first = run(save_dataset=True)
    eval_args = {"split": {"LS": "test_only"}, "order": "TO", "mode": "uni20"}
    other = run(save_dataset=True, eval_args=eval_args)
    assert first["best_valid_result"] is not None
    assert other["best_valid_result"] is None


def test_runs_at_the_same_time_get_folders_of_their_own(run):
    folders = {run(epochs=1)["run_folder"] for _ in range(3)}
    assert len(folders) == 3


def test_evaluating_more_often_changes_no_training(run):
    often, seldom = (
        rounds_of(run(eval_step=step, epochs=4, stopping_step=99)) for step in (1, 4)
    )
    for key in ("loss", "uplink_bytes", "downlink_bytes"):
        assert [row[key] for row in often] == [row[key] for row in seldom]


def same_but_for_time(first: list[dict], second: list[dict]) -> bool:
    def clean(rows):
        return [
            {key: row[key] for key in row if not key.startswith("seconds")}
            for row in rows
        ]

    return clean(first) == clean(second)


@pytest.mark.parametrize("model", ["MF", "NCF"])
@pytest.mark.parametrize(
    "keys",
    [
        {"eval_candidates": "fixed"},
        {"eval_candidates": "recbole"},
        {"replica": "stale", "uplink_feedback": True},
        {"replica": "personal", "compressor": "EDEN"},
        {"downlink_feedback": True, "bandwidth": [0.5, 0.75]},
        {"preset": "best", "compression_rate": 0.1, "uplink_compressor": "SVD"},
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
        assert len(after["rows"]) == len(before["rows"])
        assert torch.equal(
            after["simulation"]["replicas"]["held"],
            before["simulation"]["replicas"]["held"],
        )
    assert len(after["rows"]) == after["epoch"] + 1


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

    result = run(eval_candidates="recbole", bandwidth=bandwidth, eval_args={
        "split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"
    })  # fmt: skip
    config = Config(config_file_list=[str(Path(result["run_folder"]) / "config.yaml")])
    _, _, test_data = prepare_data(config)
    model = config.model_class(config, test_data._dataset)
    config["learner"] = "adam"
    trainer = Trainer(config, model)
    file = str(Path(result["run_folder"]) / "best.pth")
    measured = trainer.evaluate(test_data, load_best_model=True, model_file=file)
    assert measured == pytest.approx(result["test_result"])


def test_our_models_train_centrally_with_recboles_trainer(workspace):
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    for name in ("MF", "NCF"):
        config = Config(name, "tiny", config_dict={"show_progress": False}, argv=TINY)
        init_seed(1, True)
        train_data, _, _ = prepare_data(config)
        config["learner"], config["learning_rate"] = "adam", 0.01
        model = config.model_class(config, train_data._dataset)
        trainer = Trainer(config, model)
        trainer.eval_collector.data_collect(train_data)
        losses = [trainer._train_epoch(train_data, epoch) for epoch in range(3)]
        assert losses[-1] < losses[0]


@pytest.mark.parametrize("name", ["BPR", "LightGCN"])
def test_recboles_own_models_work_through_our_config(workspace, name):
    from recbole.data import create_dataset, data_preparation
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    config = Config(name, "tiny", config_dict={"epochs": 3, "show_progress": False})
    assert config["learner"] == "adam"  # RecBole's defaults, not ours
    assert config["embedding_size"] == 64
    init_seed(1, True)
    train_data, valid_data, test_data = data_preparation(config, create_dataset(config))
    trainer = Trainer(config, config.model_class(config, train_data._dataset))
    score, result = trainer.fit(train_data, valid_data)
    assert 0 <= score <= 1
    assert set(trainer.evaluate(test_data)) == set(result)  # loads RecBole's checkpoint
    resumed = Trainer(config, config.model_class(config, train_data._dataset))
    resumed.resume_checkpoint(trainer.saved_model_file)
    assert resumed.start_epoch > 0
    with pytest.raises(ValueError, match=f"model='{name}' is not a federated model"):
        run_recbole_fedras(name, "tiny")


@pytest.mark.parametrize("mode", ["full", "uni20", {"valid": "uni10", "test": "full"}])
@pytest.mark.parametrize("split", [{"LS": "valid_and_test"}, {"RS": [8, 1, 1]}])
def test_recboles_splits_and_modes_work(run, split, mode):
    order = "TO" if "LS" in split else "RO"
    result = run(eval_args={"split": split, "order": order, "mode": mode})
    assert 0 <= result["test_result"]["hit@10"] <= 1


def test_without_validation_the_last_round_is_tested(run):
    result = run(eval_args={
        "split": {"LS": "test_only"}, "order": "TO", "mode": "uni20"
    })  # fmt: skip
    assert result["best_valid_result"] is None
    assert result["rounds"] == 4
    assert "hit@10" in result["test_result"]


def test_metrics_that_need_ranked_items(run):
    keys = {
        "metrics": ["Hit", "MRR", "ItemCoverage", "GiniIndex", "AveragePopularity"],
        "topk": [5, 10],
        "valid_metric": "MRR@5",
    }
    for mode in ("uni20", "full"):
        result = run(
            eval_args={"split": {"LS": "valid_and_test"}, "order": "TO", "mode": mode},
            **keys,
        )
        assert 0 < result["test_result"]["itemcoverage@10"] <= 1


def test_early_stopping_and_callbacks_are_recboles(workspace):
    config = Config("MF", "tiny", config_dict={"show_progress": False}, argv=[
        *TINY[:1], *TINY[2:], "--epochs=50", "--stopping_step=1",
        "--learning_rate=3",
    ])  # fmt: skip
    train_data, valid_data, _ = prepare_data(config)
    model = config.model_class(config, train_data._dataset)
    trainer = FederatedTrainer(config, model, train_data)
    seen = []
    trainer.fit(
        train_data, valid_data, saved=False, callback_fn=lambda *call: seen.append(call)
    )
    assert [epoch for epoch, _ in seen] == list(range(len(seen)))
    assert len(trainer.rows) == len(seen) < 50
    assert seen[-1][1] < max(score for _, score in seen)


def test_bandwidth_tiers_run_and_cost_by_tier(run):
    result = run(bandwidth=[0.1, 0.9], bandwidth_tiers=5)
    assert 0.1 < result["communication"]["nominal_compression_rate"] < 0.9
    with pytest.raises(ValueError, match="bandwidth="):
        run(compressor="CoLR", bandwidth=[0.1, 0.9])


def test_tensorboard_gets_bytes_beside_recboles_scalars(run, workspace):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run()
    tags: set[str] = set()
    for file in (workspace / "log_tensorboard").rglob("events*"):
        tags |= set(EventAccumulator(str(file)).Reload().Tags()["scalars"])
    assert {"Loss/Train", "Vaild_score", "Communication/uplink_bytes"} <= tags
    for direction in ("uplink", "downlink"):
        for part in ("items", "ids", "theta", "framing"):
            assert f"Communication/{direction}_{part}_bytes" in tags


def test_the_ledger_says_what_a_participation_costs(run):
    result = run(uplink_mb_per_s=0.5, downlink_mb_per_s=2.0)
    cost = result["communication"]
    each, messages = cost["per_participation"], cost["messages"]
    for direction, speed in (("uplink", 0.5e6), ("downlink", 2e6)):
        mean = cost[f"{direction}_bytes"] / messages[direction]
        assert each[f"{direction}_bytes"] == pytest.approx(mean)
        assert each[f"{direction}_seconds"] == pytest.approx(mean / speed)
    assert each["catch_up_bytes"] == cost["catch_up_bytes"] / messages["downlink"]


# Replicas, two compressors, presets.


@pytest.mark.parametrize("model", ["MF", "NCF"])
@pytest.mark.parametrize("policy", ["stale", "personal"])
def test_clients_are_evaluated_by_what_they_hold(workspace, policy, model):
    """Scores by the definition: his row, his table, his network."""
    keys = {"replica": policy, "show_progress": False}
    config = Config(model, config_dict=keys, argv=TINY)
    train, _, _ = prepare_data(config)
    network = config.model_class(config, train._dataset)
    trainer = FederatedTrainer(config, network, train)
    with torch.no_grad():
        for _ in range(6):
            trainer.simulation.run_round()
        replicas = network.replica_of_client()
        assert len(set(replicas.tolist())) > 10
        n_items = network.n_items
        for user in range(1, network.n_users):
            replica = int(replicas[user - 1])
            table = network.replicas()[replica]
            theta = {}
            if model == "NCF":
                theta = unflatten(network.networks[replica], network.theta())
            expected = network.score(
                network.user_embedding.weight[user][None, None],
                table[None],
                {name: value[None] for name, value in theta.items()},
            )[0]
            users = torch.full((n_items - 1,), user)
            asked = {"user_id": users, "item_id": torch.arange(1, n_items)}
            torch.testing.assert_close(network.predict(asked), expected)
            full = network.full_sort_predict({"user_id": torch.tensor([user])})
            torch.testing.assert_close(full[1:], expected)


def test_directions_may_have_compressors_of_their_own(run):
    both = run(compressor="SVD")["communication"]
    mixed = run(uplink_compressor="RankOne", downlink_compressor="SVD")
    assert mixed["compressor"] == "RankOne+SVD"
    cost = mixed["communication"]
    assert cost["uplink_bytes"] < both["uplink_bytes"]
    assert cost["messages"] == both["messages"]
    reverse = run(compressor="SVD", downlink_compressor="TopK", topk_scope="global")
    assert reverse["compressor"] == "SVD+TopK"


@pytest.mark.parametrize(
    "keys",
    [
        {"downlink_compressor": "KLT"},
        {"uplink_compressor": "RankOne"},
        {"preset": "best", "downlink_compressor": "FedRAS", "actions": "shape"},
        {"uplink_compressor": "SVD", "downlink_compressor": "EDEN"},
    ],
)
def test_what_is_resolved_names_the_same_compressors(keys):
    config = Config(config_dict=keys, argv=TINY)
    again = Config(config_dict=config.resolved)
    assert again.method == config.method
    kinds = [type(compressor) for compressor in config.make_compressors()]
    assert [type(own) for own in again.make_compressors()] == kinds
    read = {"gpu_id": 0}  # RecBole's default is a string
    assert again.resolved | read == config.resolved | read


def test_a_compressor_of_ones_own_for_one_direction(workspace):
    text = """
from recbole_fedras.compressor.svd import SVD

class Mine(SVD):
    pass
"""
    Path("mine.py").write_text(text)
    own = {"uplink_compressor": "Mine", "uplink_compressor_class": "mine.Mine"}
    for keys, method in (
        (own | {"downlink_compressor": "KLT"}, "Mine+KLT"),
        (own, "Mine+FedRAS"),
        ({"compressor_class": "mine.Mine", "uplink_compressor": "KLT"}, "KLT+Mine"),
        ({"compressor": "Mine", "compressor_class": "mine.Mine"}, "Mine"),
        ({"uplink_compressor_class": "mine.Mine"}, "Mine+FedRAS"),
    ):
        config = Config(config_dict=keys, argv=TINY)
        assert config.method == method
        again = Config(config_dict=config.resolved)
        assert again.method == method
        names = [type(made).__name__ for made in again.make_compressors()]
        assert names == (method.split("+") * 2)[:2]
    same = {"compressor": "SVD", "compressor_class": "mine.Mine"}
    config = Config(config_dict=same | {"uplink_compressor": "SVD"}, argv=TINY)
    assert [type(own).__name__ for own in config.make_compressors()] == ["Mine"] * 2
    with pytest.raises(ValueError, match="or set uplink_compressor_class"):
        Config(config_dict={"uplink_compressor": "Yours"}, argv=TINY)


def test_checkpoints_hold_the_replicas_that_clients_hold(run):
    """Not the room for those who have never taken part."""
    folder = Path(run("NCF", replica="personal", epochs=2)["run_folder"])
    state = read_checkpoint(folder / "last.pth")["state_dict"]
    n_used = 1 + int(state["replica_of_user"].max())
    assert n_used < 40
    assert len(state["networks"]) == n_used
    assert len(state["item_embedding.weight"]) == n_used * 61
    size = state["item_embedding.weight"].untyped_storage().nbytes()
    assert size == n_used * 61 * 8 * 4


@pytest.mark.parametrize(
    ("name", "key", "whole", "left"),
    [
        ("Base", "embedding_size", 8, 2),
        ("RCR", "epochs", 8, 2),
        ("RSC", "client_fraction", 0.5, 0.125),
    ],
)
def test_a_rate_may_be_met_by_doing_less(run, name, key, whole, left):
    result = run(compressor=name, compression_rate=0.75, eval_step=1, **{key: whole})
    exact = run(compressor="none", eval_step=1, **{key: left})
    assert result["test_result"] == exact["test_result"]
    assert result["rounds"] == exact["rounds"]
    cost = result["communication"]
    for part in ("parts", "messages", "per_participation"):
        assert cost[part] == exact["communication"][part]
    uncut = run(compressor="none", eval_step=1, **{key: whole})["communication"]
    assert cost["dense_bytes"] == uncut["dense_bytes"]
    sent = cost["uplink_bytes"] + cost["downlink_bytes"]
    assert cost["wire_compression_rate"] == 1 - sent / uncut["dense_bytes"]
    config = (Path(result["run_folder"]) / "config.yaml").read_text()
    assert yaml.safe_load(config)[key] == whole  # a run from it is cut as well
    with pytest.raises(ValueError, match=f"serves both ways, not {name} and SVD"):
        run(compressor=name, downlink_compressor="SVD")


def test_fewer_rounds_end_with_an_evaluation(run):
    result = run(compressor="RCR", compression_rate=0.4, epochs=20, eval_step=10)
    evaluated = [int(row["round"]) for row in rounds_of(result) if row["valid_ndcg@10"]]
    assert evaluated == [5, 11]


def test_papers_rates_leave_three_two_and_one_dimension(workspace):
    for rate, dims in ((0.9063, 3), (0.9375, 2), (0.9688, 1), (0.99, 1)):
        keys = {"compressor": "Base", "compression_rate": rate}
        assert Config(config_dict=keys)["embedding_size"] == dims


def test_a_preset_lies_beneath_what_is_set(workspace):
    config = Config("MF", config_dict={"preset": "best"}, argv=TINY)
    assert config["compressor"] == "KLT"
    assert config["compression_rate"] == 0.75  # TINY's
    assert config.federation().budget == "wire"
    assert config.federation().downlink_feedback
    config = Config(argv=["--preset=best", "--compressor=TopK", "--budget=nominal"])
    assert config["compressor"] == "TopK"
    assert config["compression_rate"] == 0.96875
    assert config.federation().budget == "nominal"


@pytest.mark.parametrize("algo", ["exhaustive", "random"])
def test_recboles_hyper_tuning_works(workspace, algo, capsys):
    from recbole.trainer import HyperTuning

    keys = Config(argv=TINY).external_config_dict | {"compressor": "SVD"}
    Path("fixed.yaml").write_text(yaml.safe_dump(keys))
    tuning = HyperTuning(
        objective_function,
        params_dict={"choice": {"learning_rate": [0.01, 0.2]}},
        fixed_config_file_list=["fixed.yaml"],
        algo=algo,
        max_evals=2,
    )
    tuning.run()
    assert tuning.best_params["learning_rate"] in (0.01, 0.2)
    scores = [own["best_valid_score"] for own in tuning.params2result.values()]
    assert tuning.best_score == max(scores)
    assert len(scores) == 2 or algo == "random"


# The command line.


def test_rate_distortion_captures_measures_and_reads_back(workspace, capsys):
    tiny = [argument for argument in TINY if "compression_rate" not in argument]
    rates = ["--rates", "0.5", "0.75"]
    command = ["rate-distortion", *tiny, *rates, "--rounds=3"]
    assert main([*command, "--output=one", "--direction=uplink"]) == 0
    printed = capsys.readouterr().out
    for name in set(registry.names("compressor")) - {*CUTS, "CE"}:
        assert f"| {name} " in printed
    assert "plotly" in (workspace / "one" / "rate_distortion.html").read_text()
    with (workspace / "one" / "points.csv").open() as file:
        points = list(csv.DictReader(file))
    assert {point["rate"] for point in points} == {"", "0.5", "0.75"}
    for point in points:
        if point["rate"]:
            allowed = 4 * 8 * (1 - float(point["rate"]))
            assert float(point["bytes_per_item"]) <= allowed
        else:
            assert float(point["error"]) == 0
    capsys.readouterr()
    for keys in (["--preset=best"], ["--replica=personal", "--uplink_feedback=True"]):
        assert main([*command, *keys, "--output=one", "--direction=uplink"]) == 0
        other = capsys.readouterr().out
        assert other == printed  # what is captured was not compressed
    again = ["--update=one/update.npz", "--direction=uplink", "--output=two"]
    assert main(["rate-distortion", *tiny, *rates, *again]) == 0
    csvs = [(workspace / name / "points.csv").read_text() for name in ("one", "two")]
    assert csvs[0] == csvs[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--direction=up"], "--direction='up' must be uplink or downlink"),
        (["--rates", "1.5"], "--rates=[1.5] must lie in [0, 1)"),
        (["--rounds=0"], "--rounds=0 must be at least 1"),
        (["--update=nothing.npz"], "--update='nothing.npz' cannot be read"),
        (["--update=empty.npz"], "--update='empty.npz' cannot be read"),
        (["--update=broken.npz"], "--update='broken.npz' cannot be read"),
        (["--update=number.npy"], "rows of shape"),
        (["--update=words.npy"], "--update='words.npy' cannot be read"),
        (["--update=halves.npz"], "ids must be integers"),
        (["--update=huge.npy"], "must hold finite float32 rows"),
        (["--update=falling.npz"], "ids must increase"),
        (["--update=zeros.npy"], "must hold finite float32 rows, some not zero"),
        (["--update=flat.npy"], "rows of shape"),
    ],
)
def test_rate_distortion_refuses_bad_input(workspace, capsys, arguments, said):
    np.save("zeros.npy", np.zeros((5, 3)))
    np.save("flat.npy", np.ones(5))
    np.save("number.npy", np.float32(1))
    np.save("words.npy", np.array([["a", "b"]]))
    np.save("huge.npy", np.full((3, 2), 1e300))
    Path("empty.npz").touch()
    Path("broken.npz").write_bytes(b"PK\x03\x04 and no more")
    np.savez("halves.npz", ids=[0.5, 1.2], rows=np.ones((2, 3)), n_items=4)
    np.savez("falling.npz", ids=[2, 1], rows=np.ones((2, 3)), n_items=4)
    assert main(["rate-distortion", *TINY, *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not (workspace / "rate_distortion").exists()


def test_the_command_line_prints_result_cost_and_folder(workspace, capsys):
    assert main(TINY) == 0
    output = capsys.readouterr()
    for text in ("test hit@10", "uplink", "wire", "saved/MF-FedRAS-tiny-"):
        assert text in output.out
    assert "Rounds" in output.err  # the bar
    assert "clients/s" in output.err
    assert "arning" not in output.err + output.out


def test_a_compressor_of_ones_own_is_one_file_and_one_yaml(workspace, capsys):
    (workspace / "plugin").mkdir()
    (workspace / "plugin" / "sign_of_mine.py").write_text(
        '''
import torch
from recbole_fedras.compressor import Compressor, RowUpdate
from recbole_fedras.compressor.base import put_update_rows, row_update
from recbole_fedras.wire.payload import Payload

class SignOfMine(Compressor):
    """One step up or down for every entry."""

    def __init__(self, strength=1.0):
        self.strength = strength

    def encode(self, update, budget, ctx):
        payload = put_update_rows(Payload(), update, ctx.n_items)
        return payload.put_ints("signs", (update.rows > 0).long().numpy(), 2)

    def decode(self, payload, ctx):
        ids = payload.rows("rows", ctx.n_items)
        signs = payload.ints("signs", 2, len(ids), ctx.dim)
        return row_update(ids, (2 * signs - 1) * self.strength)
'''
    )
    config = workspace / "plugin" / "mine.yaml"
    config.write_text(
        "compressor: Mine\ncompressor_class: sign_of_mine.SignOfMine\nstrength: 0.01\n"
    )
    assert main([f"--config_files={config}", "--list"]) == 0
    listing = capsys.readouterr().out
    assert "One step up or down" in listing
    assert "FedRAS" in listing
    assert main([f"--config_files={config}", *TINY]) == 0
    assert "MF + Mine on tiny" in capsys.readouterr().out
    assert main([f"--config_files={config}", "--strenght=2", *TINY]) == 2
    assert "did you mean 'strength'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--compressor=fedras"], "did you mean 'FedRAS'"),
        (["--compressor=Gzip"], "known: Base, BinaryCodes, CE, CoLR, EDEN, FedRAS, "),
        (["--model=MFF"], "did you mean 'MF'"),
        (["--model=bpr"], "model='bpr' is unknown"),
        (["--compresion_rate=0.5"], "did you mean 'compression_rate'"),
        (["--compression_rate=1"], "compression_rate=1 is not allowed"),
        (["--compression_rate=-0.1"], "number >= 0 and < 1"),
        (["--compression_rate=high"], "compression_rate='high'"),
        (["--compression_rate=0.99", "--compressor=SVD"], "leaves a rank of 0"),
        (["--compression_rate=0.99"], "number of groups"),
        (["--client_fraction=0.01"], "selects nobody"),
        (["--client_fraction=0"], "client_fraction=0 is not allowed"),
        (["--downlink_feedback=1"], "downlink_feedback=1 is not allowed"),
        (
            ["--downlink_feedback=True", "--replica=stale"],
            "downlink_feedback=True is not allowed; it must be False with replica=st",
        ),
        (["--uplink_feedback=yes"], "uplink_feedback='yes' is not allowed"),
        (["--budget=floats"], "budget='floats' is not allowed; it must be one of nom"),
        (["--budget=wire", "--compression_rate=0.97"], "with budget=wire leaves a"),
        (["--preset=Best"], "preset='Best' is unknown; did you mean 'best'"),
        (["--uplink_compressor=SVDD"], "uplink_compressor='SVDD' is unknown; did you"),
        (["--downlink_compressor=CoLR", "--bandwidth=[0.5,0.7]"],
         "bandwidth=[0.5, 0.7] is not allowed; it must be None: CoLR needs"),
        (["--actions=int4"], "actions='int4' must be one of"),
        (["--uplink_mb_per_s=0"], "uplink_mb_per_s=0 is not allowed"),
        (["--n_jobs=0"], "n_jobs=0 is not allowed; it must be -1 or"),
        (["--n_jobs=-2"], "n_jobs=-2 is not allowed; it must be -1 or"),
        (["--n_jobs=True"], "n_jobs=True is not allowed; it must be -1 or"),
        (["--aggregation=sum"], "one of inverse_frequency, fedavg"),
        (["--replica=mine"], "replica='mine'"),
        (["--learner=adam"], "learner='adam'"),
        (["--weight_decay=0.1"], "weight_decay=0.1"),
        (["--learning_rate=-1"], "learning_rate=-1"),
        (["--epochs=0"], "epochs=0"),
        (["--epochs=ten"], "epochs='ten'"),
        (["--local_epochs=1.5"], "local_epochs=1.5"),
        (["--strength=2"], "unknown config key 'strength'"),
        (["--topk=[30]"], "at most the candidates of mode valid: uni20"),
        (["--topk=abc"], "topk"),
        (["--metrics=Hits"], "no metric named 'Hits'"),
        (["--seed=-1"], "seed=-1"),
        (["--data_path=3"], "data_path=3"),
        (["--ITEM_ID_FIELD=what"], "ITEM_ID_FIELD='what'"),
        (["--load_col={'inter': ['nothing']}"], "USER_ID_FIELD='user_id'"),
        (["--eval_args={'split': {'LS': 'last'}}"], "LS one of valid_and_test"),
        (["--eval_args={'split': {'LS': 'valid_only'}}"], "LS one of valid_and_test"),
        (["--compressor=CE", "--replica=stale"], "CE needs to know the receiver's"),
        (["--compressor=CE", "--bandwidth=[0.5,0.7]", "--downlink_feedback=False"],
         "downlink_feedback=False is not allowed; it must be True with bandwidth"),
        (["--eval_args={'split': {'RS': [0.9, 0.1]}}"], "three ratios"),
        (["--eval_args={'order': 'by_time'}"], "order RO or TO"),
        (["--eval_args={'modes': 'uni20'}"], "did you mean 'mode'"),
        (["--model=NCF", "--mlp_hidden_size=[0]"], "mlp_hidden_size=[0]"),
        (["--alpha=2"], "alpha=2"),
        (["--bandwidth=[0.9,0.1]"], "bandwidth=[0.9, 0.1]"),
        (["--valid_metric=AUC"], "valid_metric='AUC'"),
        (["--eval_args={'mode': 'pop20'}"], "eval_candidates"),
        (["--train_neg_sample_args={'sample_num': 0, 'distribution': 'uniform'}"],
         "sample_num >= 1"),
        (["--train_neg_sample_args={'sample_num': 1, 'distribution': 'popularity'}"],
         "distribution: uniform"),
        (["--dataset=nowhere"], "there is no file"),
        (["--data_path=elsewhere"], "there is no file"),
        (["--config_files=no.yaml"], "no.yaml"),
        (["--resume=no.pth"], "no.pth"),
        (["--TIME_FIELD=when"], "TIME_FIELD='when'"),
        (["epochs=3"], "must read --key=value"),
        (["--eval_args={'split': {'LS': 'valid_and_test'}, 'order': 'TO', "
          "'mode': 'uni59'}"], "choose uni1 to uni"),
        (["--user_inter_num_interval=[1,2]"], "filtering settings"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_any_work(workspace, capsys, arguments, said):
    given = {argument.partition("=")[0] for argument in arguments}
    rest = [argument for argument in TINY if argument.partition("=")[0] not in given]
    assert main([*rest, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert not list(workspace.glob("saved/*"))


def test_bad_data_is_refused_by_line_and_field(workspace, tiny_rows, capsys):
    cases = {
        "nan": ([*tiny_rows, ("u1", "i59", "", 9)], "line " + str(len(tiny_rows) + 2)),
        "short": ([*tiny_rows, ("new", "i1", 3, 9)], "1 of 41 users have fewer"),
    }
    for name, (rows, said) in cases.items():
        write_dataset(workspace / "dataset", name, rows)
        assert main([*TINY[1:], f"--dataset={name}"]) == 2
        assert said in capsys.readouterr().err
    write_dataset(
        workspace / "dataset",
        "timeless",
        [row[:2] for row in tiny_rows],
        "user_id:token\titem_id:token",
    )
    assert main([*TINY[1:], "--dataset=timeless"]) == 2
    assert "TIME_FIELD='timestamp'" in capsys.readouterr().err


def test_divergence_keeps_the_last_good_state(workspace, capsys, monkeypatch):
    from recbole_fedras.federation import simulation

    assert main([*TINY, "--learning_rate=1e25", "--compressor=none"]) == 2
    assert "round 0: local training is not finite" in capsys.readouterr().err

    train = simulation.train_cohort

    def diverge(*arguments):
        trained = train(*arguments)
        rounds.append(trained)
        nowhere = trained.losses * torch.nan
        return replace(trained, losses=nowhere) if len(rounds) == 3 else trained

    rounds = []
    monkeypatch.setattr(simulation, "train_cohort", diverge)
    assert main(TINY) == 2
    error = capsys.readouterr().err
    last = Path(error[error.index("--resume=") + len("--resume=") :].strip())
    state = read_checkpoint(last)
    assert "round 2: local training is not finite" in error
    assert (state["epoch"], len(state["rows"])) == (1, 2)
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


def test_seeds_differ_and_repeat(run):
    first, again, other = run(seed=1), run(seed=1), run(seed=2)
    assert rounds_of(first)[0]["loss"] == rounds_of(again)[0]["loss"]
    assert first["test_result"] == again["test_result"]
    assert rounds_of(first)[0]["loss"] != rounds_of(other)[0]["loss"]


def test_config_order_and_files(workspace):
    (workspace / "a.yaml").write_text("epochs: 5\nalpha: 0.1\n")
    (workspace / "b.yaml").write_text("epochs: 6\n")
    files = [str(workspace / name) for name in ("a.yaml", "b.yaml")]
    config = Config(config_file_list=files, config_dict={"seed": 3}, argv=["--seed=4"])
    assert (config["epochs"], config["alpha"], config["seed"]) == (6, 0.1, 4)
    assert config["dataset"] == "ml-100k"
    assert yaml.safe_load(yaml.safe_dump(config.resolved)) == config.resolved
    assert Config(config_dict={"use_gpu": False})["device"].type == "cpu"


def test_times_are_not_rounded_to_float32(workspace):
    rows = [
        (f"u{user}", f"i{item}", 5, 1_700_000_000 + (item * 7 + user) % 10)
        for user in range(5)
        for item in range(10)
    ]
    rows += [("other", f"o{item}", 5, item) for item in range(5)]
    write_dataset(workspace / "dataset", "seconds", rows)
    last_in_time = "{'split': {'LS': 'test_only'}, 'order': 'TO', 'mode': 'full'}"
    config = Config("MF", "seconds", argv=[f"--eval_args={last_in_time}"])
    _, _, test_data = prepare_data(config)
    feat = test_data._dataset
    for user, item in zip(
        feat.inter_feat["user_id"], feat.inter_feat["item_id"], strict=True
    ):
        name = feat.id2token("user_id", int(user))
        last = max((row for row in rows if row[0] == name), key=lambda row: row[3])
        assert feat.id2token("item_id", int(item)) == last[1]


def test_candidates_are_fixed_distinct_and_never_interacted(workspace):
    config = Config("MF", "tiny", argv=TINY)
    train, valid, test = prepare_data(config)
    parts = [train._dataset, valid._dataset, test._dataset]
    pairs = {
        (int(user), int(item))
        for part in parts
        for user, item in zip(
            part.inter_feat["user_id"], part.inter_feat["item_id"], strict=True
        )
    }
    for loader in (valid, test):
        (first,), (second,) = list(loader), list(loader)
        items = first[0]["item_id"]
        assert torch.equal(items, second[0]["item_id"])
        places = first[3].numpy()
        for user, row, place in zip(first[0]["user_id"], items, places, strict=True):
            assert len(set(row.tolist())) == 21
            known = [item for item in row.tolist() if (int(user), item) in pairs]
            assert known == [int(row[place])]
        assert len(set(places)) > 5  # the held-out item stands anywhere


def test_a_collapsed_model_scores_what_chance_does(workspace):
    """Equal scores: HR@10 of 1 + 20 candidates is 10 / 21 by chance."""
    rows = [
        (f"u{user}", f"i{(user * 7 + step) % 60}", 5, step)
        for user in range(2000)
        for step in range(4)
    ]
    write_dataset(workspace / "dataset", "many", rows)
    config = Config("MF", "many", argv=[*TINY[1:], "--init_std=0"])
    train, _, test = prepare_data(config)
    model = config.model_class(config, train._dataset)
    trainer = FederatedTrainer(config, model, train)
    trainer.eval_collector.data_collect(train)
    hit = trainer.evaluate(test, load_best_model=False)["hit@10"]
    assert hit == pytest.approx(10 / 21, abs=0.04)  # standard deviation 0.011
