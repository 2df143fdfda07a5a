"""Whole runs: what a RecBole user sees, on a tiny dataset."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from pathlib import Path

import pytest
import torch
import yaml
from conftest import COMMON, TINY, rounds_of, slow

import recbole_fedras
from recbole_fedras.__main__ import main
from recbole_fedras.config import Config, compat, registry
from recbole_fedras.errors import ConfigError
from recbole_fedras.numeric.theta import unflatten
from recbole_fedras.quick_start import objective_function, run_recbole_fedras
from recbole_fedras.run.setup import prepare_data, simulated
from recbole_fedras.run.trainer import FederatedTrainer


@pytest.mark.parametrize("model", ["NCF", slow("MF")])
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


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (
            "learning_rate=0.1",
            "its parameter 'learning_rate' is another key of this run",
        ),
        ("mlp_hidden_size=3", None),  # of NCF
        ("seed=0", "its parameter 'seed' is another key of this run"),
        ("rho_shared=1", "its parameter 'rho_shared' is another key of this run"),
        ("strength", "strength must be set: compressor='Mine' has no default"),
        ("strength=1.0, **others", None),
    ],
)
def test_parameters_of_ones_own_compressor(workspace, capsys, parameters, said):
    module = "own_" + re.sub(r"\W", "", parameters)
    (workspace / f"{module}.py").write_text(
        "from recbole_fedras.compressor.svd import SVD\n"
        f"class Mine(SVD):\n    def __init__(self, {parameters}):\n        pass\n"
    )
    (workspace / "mine.yaml").write_text(f"compressor_class: {module}.Mine\n")
    assert main(["--config_files=mine.yaml", *TINY]) == (2 if said else 0)
    assert (said or "") in capsys.readouterr().err


def test_ncf_trains_alike_compiled_and_not(workspace, run):
    (workspace / "slow.py").write_text(
        "from recbole_fedras.model import NCF\n"
        "class Slow(NCF):\n"
        "    def __init__(self, config, dataset, mlp_hidden_size):\n"
        "        super().__init__(config, dataset, mlp_hidden_size)\n"
    )
    states = []
    # Rounding differs, and grouping would make more of it.
    of_ncf = registry.read_properties("model", "NCF")
    of_ncf |= {"epochs": 4, "compressor": "none"}
    for name, own in (("NCF", {}), ("Slow", {"model_class": "slow.Slow"})):
        path = Path(run(name, **of_ncf | own)["run_folder"]) / "last.pth"
        states.append(torch.load(path, weights_only=True)["state_dict"])
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-4, atol=1e-6)


def test_runs_at_the_same_time_get_folders_of_their_own(run):
    folders = {run(epochs=1)["run_folder"] for _ in range(3)}
    assert len(folders) == 3


def test_our_models_train_centrally_with_recboles_trainer(workspace):
    from recbole.trainer import Trainer
    from recbole.utils import init_seed

    for name in ("MF", "NCF"):
        config = Config(name, "tiny", config_dict={"show_progress": False}, argv=TINY)
        init_seed(1, True)
        train_data, _, _ = prepare_data(config)
        config["learner"], config["learning_rate"] = "adam", 0.01
        model = config.make_model(train_data._dataset)
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
    with compat.recbole(), compat.trusted_checkpoints():
        loaders = data_preparation(config, create_dataset(config))
        train_data, valid_data, test_data = loaders
        trainer = Trainer(config, config.make_model(train_data._dataset))
        score, result = trainer.fit(train_data, valid_data)
        assert 0 <= score <= 1
        tested = trainer.evaluate(test_data)  # loads RecBole's checkpoint
        assert set(tested) == set(result)
        resumed = Trainer(config, config.make_model(train_data._dataset))
        resumed.resume_checkpoint(trainer.saved_model_file)
    assert resumed.start_epoch > 0
    with pytest.raises(ConfigError, match=f"model='{name}' is not a federated model"):
        run_recbole_fedras(name, "tiny")


def test_early_stopping_and_callbacks_are_recboles(workspace):
    config = Config("MF", "tiny", config_dict={"show_progress": False}, argv=[
        *TINY[:1], *TINY[2:], "--epochs=50", "--stopping_step=1",
        "--learning_rate=3",
    ])  # fmt: skip
    train_data, valid_data, _ = prepare_data(config)
    model = config.make_model(train_data._dataset)
    trainer = FederatedTrainer(config, model, simulated(config, train_data))
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
        mean = cost[f"{direction}_bytes"] / messages["uplink"]
        assert each[f"{direction}_bytes"] == pytest.approx(mean)
        assert each[f"{direction}_seconds"] == pytest.approx(mean / speed)
    assert each["catch_up_bytes"] == cost["catch_up_bytes"] / messages["uplink"]
    assert messages["downlink"] == 2 * messages["uplink"]  # each with a receipt


# Replicas, two compressors, presets.


@pytest.mark.parametrize("model", ["MF", "NCF"])
@pytest.mark.parametrize("policy", ["stale", "personal"])
def test_clients_are_evaluated_by_what_they_hold(workspace, policy, model):
    """Scores by the definition: its row, its table, its network."""
    keys = {"replica": policy, "show_progress": False}
    config = Config(model, config_dict=keys, argv=TINY)
    train, _, _ = prepare_data(config)
    network = config.make_model(train._dataset)
    trainer = FederatedTrainer(config, network, simulated(config, train))
    with torch.no_grad():
        for _ in range(6):
            trainer.simulation.run_round()
        replicas = trainer.simulation.shard.replicas
        slots = replicas.table_of(range(network.n_users - 1)).tolist()
        assert len(set(slots)) > 10
        n_items = network.n_items
        for user, slot in enumerate(slots, 1):
            table = replicas.tables[slot]
            theta = {}
            if model == "NCF":
                theta = unflatten(replicas.networks[slot], network.theta())
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
        {"preset": "best", "uplink_compressor": "FedRAS", "actions": "shape"},
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


@pytest.mark.parametrize(
    ("name", "key", "whole", "left"),
    [
        slow("Base", "embedding_size", 8, 2),
        ("RCR", "epochs", 8, 2),
        slow("RSC", "client_fraction", 0.5, 0.125),
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
    assert (result["compressor"], result["cut"]) == (name, key)
    by_key = run(compressor="none", cut=key, compression_rate=0.75, eval_step=1,
                 **{key: whole})  # fmt: skip
    assert (by_key["compressor"], by_key["cut"]) == ("none", key)
    for part in ("test_result", "communication"):
        assert by_key[part] == result[part]
    with pytest.raises(ValueError, match=f"serves both ways, not {name} and SVD"):
        run(compressor=name, downlink_compressor="SVD")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"cut": "seed"}, "cut='seed' is not .* one of embedding_size, epochs, client"),
        ({"cut": "epochs"}, "cut='epochs' is not .* ~ with FedRAS, or compressor must"),
        ({"compressor": "RCR", "cut": "embedding_size"}, "epochs, which RCR stands"),
        ({"compressor": "RCR", "cut": None}, "cut=None .* epochs, which RCR stands"),
        ({"compressor": "RSC", "bandwidth": [0.5, 0.9]}, "None with cut=client_fract"),
        ({"uplink_compressor": "RCR", "compressor": "none"}, "not RCR and none"),
    ],
)
def test_a_cut_is_refused_beside_what_compresses(workspace, keys, said):
    keys = {"compressor": "none"} | keys if keys.get("cut") == "seed" else keys
    with pytest.raises(ValueError, match=said):
        Config(config_dict=keys, argv=COMMON)


def test_dense_bytes_are_those_of_the_rounds_that_ran(run):
    keys = {"eval_step": 1, "stopping_step": 0}
    result = run(compressor="RSC", compression_rate=0.75, epochs=50, **keys)
    assert 1 < result["rounds"] < 50
    assert result["communication"]["dense_bytes"] == (
        result["rounds"] * 10 * 2 * 60 * 8 * 4
    )


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
    assert config["replica"] == "grid"
    assert (config["uplink_share"], config["uplink_feedback"]) == (0.2, False)
    config = Config("NCF", config_dict={"preset": "best"}, argv=TINY)
    assert (config["uplink_share"], config["uplink_feedback"]) == (0.5, True)
    config = Config("NCF", argv=["--preset=best", "--uplink_share=0.3"])
    assert (config["uplink_share"], config["uplink_feedback"]) == (0.3, True)
    config = Config(argv=["--preset=best", "--compressor=TopK", "--budget=nominal"])
    assert config["compressor"] == "TopK"
    assert config["compression_rate"] == 0.984375
    assert config.federation().budget == "nominal"


@pytest.mark.parametrize("algo", ["exhaustive", "random"])
def test_recboles_hyper_tuning_works(workspace, algo, capsys):
    from recbole.trainer import HyperTuning

    keys = Config(argv=TINY).external_config_dict | {"compressor": "SVD"}
    Path("fixed.yaml").write_text(yaml.safe_dump(keys))
    with compat.hyper_tuning():
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


def test_a_run_says_what_it_is(run, caplog):
    caplog.set_level(logging.INFO)
    file, screen = logging.FileHandler("run.log"), logging.StreamHandler(io.StringIO())
    for handler in (file, screen):
        logging.getLogger().addHandler(handler)
    result = run(alpha=0.4, eval_step=1, learning_rate=1.0, theta_learning_rate=0.5,
                 show_progress=True)  # fmt: skip
    folder, rows = Path(result["run_folder"]), rounds_of(result)
    said = {"epochs": 4, "client_fraction": 0.25, "alpha": 0.4, "learning_rate": 1.0}
    assert said.items() <= result["changed"].items()
    assert not {"model", "dataset", "show_progress"} & result["changed"].keys()
    assert folder.name.startswith("MF-FedRAS-tiny-epochs=4-client_fraction=0.25-")
    scores = [float(row["valid_ndcg@10"]) for row in rows]
    assert scores[result["best_round"]] == max(scores) == result["best_valid_score"]
    assert result["learning_rates"] == {
        "items": 1.0, "users": 1.0, "network": 0.5, "server": 1.0
    }  # fmt: skip
    assert result["versions"]["recbole-fedras"] == recbole_fedras.__version__
    assert (
        json.loads((folder / "result.json").read_text())["commit"] == result["commit"]
    )
    for handler in (file, screen):
        logging.getLogger().removeHandler(handler)
    file.close()
    logged, shown = Path("run.log").read_text(), screen.stream.getvalue()
    for said in (*(f"epoch {round} evaluating" for round in range(4)), "test, by"):
        assert said in logged
        assert said not in shown  # where the bar is
    assert "Read from" in shown
    with (folder / "ranks.csv").open() as file:
        ranks = list(csv.DictReader(file))
    found = {(row["rank"] == "0", row["among the first 10"]) for row in ranks}
    assert found == {(True, "no"), (False, "yes")}
    assert run(compressor="none", epochs=1)["compression_rate"] is None
