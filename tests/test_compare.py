"""Sweeps and comparisons: each run once, and what is said of them true."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon
from test_run import TINY

from recbole_fedras import compare as comparing
from recbole_fedras import registry, sweep
from recbole_fedras import reproduce as reproducing
from recbole_fedras.__main__ import main
from recbole_fedras.config import Config
from recbole_fedras.data.dataset import client_data
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.information_loss import LossMeter, information_loss
from recbole_fedras.quick_start import prepare_data

COMMON = [argument for argument in TINY if "compression_rate" not in argument]
COMPARE = [
    "compare",
    *COMMON,
    "--compressors=none SVD",
    "--compression_rates=0.75 0.5",
    "--seeds=1 2",
]


@pytest.fixture
def in_process(monkeypatch):
    """Run cells here, as a worker would, and count them."""
    started = []

    def outcomes(measure, missing, n_jobs):
        for path, cell in missing.items():
            started.append(cell)
            yield path, sweep._run_cell(measure, cell)

    monkeypatch.setattr(sweep, "_outcomes", outcomes)
    return started


def cell(**keys):
    return Config(argv=COMMON).external_config_dict | {"compressor": "none"} | keys


def test_a_finished_cell_never_runs_twice(workspace, in_process):
    cells = [cell(seed=seed) for seed in (1, 2)]
    first = sweep.run_cells(cells, Path("cells"), 1)
    assert len(in_process) == 2
    again = sweep.run_cells([*cells, cell(seed=3)], Path("cells"), 1)
    assert [own["seed"] for own in in_process] == [1, 2, 3]
    assert again[:2] == first
    for own, outcome in zip(cells, first, strict=True):
        assert outcome["keys"]["seed"] == own["seed"] == outcome["result"]["seed"]
        assert len(outcome["ranks"]) == 40
        assert [point["round"] for point in outcome["curve"]] == [0, 1, 2]
        cost = outcome["result"]["communication"]
        assert outcome["curve"][-1]["uplink_bytes"] == cost["uplink_bytes"]
        hits = np.mean([0 < rank <= 10 for rank in outcome["ranks"]])
        assert outcome["result"]["test_result"]["hit@10"] == pytest.approx(
            hits, abs=1e-4
        )
    assert not list(Path("cells").glob("*.tmp"))
    assert not Path("saved").exists()


def test_a_sweep_that_was_killed_goes_on(workspace, in_process, monkeypatch):
    run, calls = sweep._run_cell, []

    def killed_at_second(measure, own):
        calls.append(own)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return run(measure, own)

    cells = [cell(seed=seed) for seed in (1, 2, 3)]
    monkeypatch.setattr(sweep, "_run_cell", killed_at_second)
    with pytest.raises(KeyboardInterrupt):
        sweep.run_cells(cells, Path("cells"), 1)
    assert len(sweep.run_cells(cells, Path("cells"), 1)) == 3
    assert [own["seed"] for own in calls] == [1, 2, 2, 3]


def test_cells_are_told_apart_by_all_that_they_say():
    def name(own, measure=sweep.train_and_test):
        return sweep.digest(own, measure)

    assert name({"a": 1, "b": [2]}) == name({"b": [2], "a": 1})
    assert name({"a": 1}) != name({"a": 2})
    assert name({"a": 1}) != name({"b": 1})
    assert name({"a": 1, "data_path": "here"}) == name({"a": 1})
    assert name({"a": 1}, information_loss) != name({"a": 1})


def test_compare_runs_in_processes_and_reports(workspace, capsys):
    assert main([*COMPARE, "--jobs=2"]) == 0
    printed = capsys.readouterr().out
    assert len(list(Path("comparison/cells").glob("*.json"))) == 2 * (1 + 2)
    with Path("comparison/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["none", "SVD 50 %", "SVD 75 %"]
    assert Path("comparison/table.md").read_text().strip() in printed
    report = Path("comparison/report.html").read_text(encoding="utf-8")
    for said in (
        "Quality against cost",
        "against rounds",
        "against MB sent",
        "Wilcoxon",
    ):
        assert said in report
    assert "src=" not in report.split("<h1>")[0]  # nothing is fetched
    by_method = {}
    for path in Path("comparison/cells").glob("*.json"):
        outcome = json.loads(path.read_text())
        keys = outcome["keys"]
        name = (keys["compressor"], keys["compression_rate"])
        by_method.setdefault(name, []).append(outcome["result"])
    svd = by_method["SVD", 0.75]
    values = [result["test_result"]["ndcg@10"] for result in svd]
    assert float(rows[2]["ndcg@10"]) == pytest.approx(np.mean(values))
    assert float(rows[2]["ndcg@10 sd"]) == pytest.approx(np.std(values, ddof=1))
    sizes = [result["communication"]["uplink_bytes"] for result in svd]
    assert float(rows[2]["uplink MB"]) == pytest.approx(np.mean(sizes) / 1e6)


def test_ones_own_compressor_compares_with_ours(workspace):
    (workspace / "own").mkdir()
    (workspace / "own" / "mine.py").write_text(
        "from recbole_fedras.compressor.svd import SVD\nclass Mine(SVD):\n    pass\n"
    )
    (workspace / "own" / "mine.yaml").write_text(
        "compressor: Mine\ncompressor_class: mine.Mine\n"
    )
    command = ["compare", *COMMON, "--compressors=SVD Mine", "--seeds=1"]
    files = ["--compression_rates=0.75", "--config_files=own/mine.yaml", "--jobs=2"]
    assert main([*command, *files]) == 0
    with Path("comparison/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["SVD 75 %", "Mine 75 %"]
    assert rows[0]["ndcg@10"] == rows[1]["ndcg@10"]
    assert rows[0]["uplink MB"] == rows[1]["uplink MB"]


def test_runs_under_way_are_kept_when_another_fails(workspace):
    good = [cell(seed=seed, epochs=30) for seed in (1, 2)]
    cells = [good[0], cell(dataset="nowhere"), good[1]]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        sweep.run_cells(cells, Path("cells"), 3)
    assert len(list(Path("cells").glob("*.json"))) == 2


def test_metrics_that_rank_nothing_have_no_test(workspace, in_process):
    keys = {"metrics": ["ItemCoverage"], "valid_metric": "ItemCoverage@10"}
    outcome = sweep.run_cells([cell(**keys)], Path("cells"), 1)[0]
    assert outcome["ranks"] == []
    assert np.isnan(comparing.significance([outcome], [outcome])[2])


def test_significance_is_wilcoxons_over_users_with_its_direction():
    rng = np.random.default_rng(0)
    first = [{"ranks": rng.integers(2, 10, 60).tolist()} for _ in range(2)]
    better = [{"ranks": [max(rank - 1, 1) for rank in own["ranks"]]} for own in first]
    n_better, n_worse, p = comparing.significance(better, first)
    assert (n_better, n_worse) == (60, 0)
    change = np.mean([1 / np.array(own["ranks"]) for own in better], 0) - np.mean(
        [1 / np.array(own["ranks"]) for own in first], 0
    )
    assert p == pytest.approx(wilcoxon(change).pvalue)
    assert p < 1e-6
    assert comparing.significance(first, better)[:2] == (0, 60)
    assert comparing.significance(first, first) == (0, 0, 1.0)
    lost = [{"ranks": [0] * 60} for _ in range(2)]  # not among the first is worst
    assert comparing.significance(lost, first)[:2] == (0, 60)


# The paper's exhibits.


@pytest.mark.parametrize("name", list(registry.names("experiment")))
def test_exhibits_are_whole(name):
    """Every setting of every method is a configuration, with the paper's numbers."""
    exhibit = reproducing.read_exhibit(name)
    for entry in exhibit.entries:
        assert (entry.paper is None) == (exhibit.figure is not None)
        if entry.paper is not None:
            assert len(entry.paper) == len(exhibit.metrics)
            most = 1 if name != "table3" else 6
            assert all(0 <= value <= most for value in filter(None, entry.paper))
        config = Config(config_dict=entry.keys)
        assert config.method in (entry.method, "FedRAS", "CE")
    text = registry.read_properties("experiment", name)
    assert len(exhibit.entries) == len(text["settings"]) * sum(
        len(text["methods"]) * len(text["models"]) for _ in text["datasets"]
    )
    assert exhibit.learning_rates == sorted(exhibit.learning_rates)


def test_table1_reads_as_printed():
    entries = {
        (entry.dataset, entry.model, entry.method, entry.setting): entry
        for entry in reproducing.read_exhibit("table1").entries
    }
    assert entries["ml-100k", "MF", "FedRAS", "93.75 %"].paper == [0.6331, 0.3499]
    assert entries["ml-1m", "NCF", "CoLR", "96.88 %"].paper == [0.5068, 0.2769]
    assert entries["lastfm-2k", "MF", "TopK", "90.63 %"].paper == [0.6837, 0.5282]
    keys = entries["ml-100k", "NCF", "Base", "90.63 %"].keys
    assert Config(config_dict=keys)["embedding_size"] == 3
    assert len(reproducing.read_exhibit("table1", ["ml-1m"]).entries) == 30
    raw = reproducing.read_exhibit("table1", ["lastfm-2k-raw"]).entries
    clean = reproducing.read_exhibit("table1", ["lastfm-2k"]).entries
    assert [own.paper for own in raw] == [own.paper for own in clean]
    assert reproducing.has_part("table1", ["lastfm-2k-raw"], ["NCF"])
    assert not reproducing.has_part("table4", ["ml-1m"], [])
    part = reproducing.read_exhibit("table1", ["ml-1m"], ["MF"], 30)
    assert part.title.endswith("rates, 30 rounds")
    assert (part.name, len(part.entries)) == ("table1-ml-1m-MF", 15)


def test_an_exhibit_is_tuned_on_validation_and_stands_beside_the_paper(
    workspace, in_process, capsys
):
    common = Config(argv=COMMON).external_config_dict
    entries = [
        reproducing.Entry("tiny", "MF", method, setting, common | keys, paper)
        for method, setting, keys, paper in (
            ("none", "a", {"compressor": "none"}, [0.5]),
            ("SVD", "a", {"compressor": "SVD", "compression_rate": 0.5}, [0.25]),
            ("SVD", "b", {"compressor": "SVD", "compression_rate": 0.75}, None),
        )
    ]
    exhibit = reproducing.Exhibit(
        "mine", "Mine", ["hit@10"], [0.01, 0.2, 1e9], entries, figure="settings"
    )
    reproducing.reproduce(exhibit, [1, 2], {}, 1, "out", dry_run=True)
    assert "6 runs for learning rates, 0 of them finished" in capsys.readouterr().out
    assert not in_process
    rows = reproducing.reproduce(exhibit, [1, 2], {}, 1, "out")
    assert len(in_process) == 6 + (3 * 2 - 2)  # those of the grid are not run again
    tried = {
        (own["compressor"], own["learning_rate"]): sweep.run_cells(
            [own], Path("out/cells"), 1
        )[0]["result"]
        for own in in_process[:6]
    }
    assert tried["none", 1e9] is None  # it diverged, and is no candidate
    for row in rows:
        scores = {
            rate: tried[row["method"], rate]["best_valid_score"] for rate in (0.01, 0.2)
        }
        assert row["learning rate"] == max(scores, key=scores.get)
    outcomes = [
        json.loads(path.read_text()) for path in Path("out/cells").glob("*.json")
    ]
    values = [
        outcome["result"]["test_result"]["hit@10"]
        for outcome in outcomes
        if outcome["result"]
        and outcome["keys"]["compressor"] == "SVD"
        and outcome["keys"]["compression_rate"] == 0.5
        and outcome["keys"]["learning_rate"] == rows[1]["learning rate"]
    ]
    assert len(values) == 2
    assert rows[1]["ours"] == pytest.approx(np.mean(values))
    assert rows[1]["sd"] == pytest.approx(np.std(values, ddof=1))
    assert rows[1]["difference"] == pytest.approx(np.mean(values) - 0.25)
    assert rows[2]["paper"] is None
    printed = capsys.readouterr().out
    assert Path("out/mine.md").read_text().split("\n")[2] in printed
    assert Path("out/mine.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in Path("out/mine.svg").read_text()
    assert "toprule" in Path("out/mine.tex").read_text()
    with Path("out/mine.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3


def losses(**keys):
    own = Config(argv=COMMON).external_config_dict | {"n_jobs": 1, "epochs": 4} | keys
    return information_loss(own)["result"]


def test_information_loss_is_that_of_aggregates_and_tables(workspace):
    """Of no compression none; of clusters what the definition says."""
    exact = losses(compressor="none")["test_result"]
    assert exact["server sum"] == 0
    assert exact["client"] < 1e-12
    clusters = losses(compressor="FedRAS", compression_rate=0.75)
    lost = clusters["test_result"]
    assert lost["client"] > 0
    assert lost["total"] == pytest.approx(lost["client"] + lost["server"])
    assert lost["client sum"] == pytest.approx(lost["client"] * 60 * 8)
    assert clusters["communication"]["uplink_bytes"] > 0
    # CoLR's clients train in a subspace: what they did not learn is lost too.
    assert losses(compressor="CoLR", compression_rate=0.75)["test_result"]["client"] > 0


def test_the_loss_meter_changes_no_training(workspace):
    for name in ("FedRAS", "CoLR"):
        keys = {"compressor": name, "compression_rate": 0.75, "n_jobs": 1}
        config = Config(config_dict=keys, argv=COMMON)
        tables = []
        for kind in (Simulation, LossMeter):
            train, _, _ = prepare_data(config)
            model = config.model_class(config, train._dataset)
            simulation = kind(
                model, client_data(train._dataset), *config.make_compressors(),
                config.federation(), config.local_training(),
            )  # fmt: skip
            with torch.no_grad():
                for _ in range(3):
                    before = simulation.server.item_table.clone()
                    simulation.run_round()
            tables.append(simulation.server.item_table)
        assert torch.equal(*tables)
        lacking = tables[1] - simulation.replicas.tables[0]
        assert simulation.losses[-1]["server"] == pytest.approx(
            float(lacking.square().sum()), rel=1e-4
        )
        assert not torch.equal(before, tables[1])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["table9"], "exhibit 'table9' is unknown; did you mean 'table"),
        (["table4", "--dataset=ml-1m"], "--dataset='ml-1m' is not in table4"),
        (["table4", "--model=NCF"], "--model='NCF' is not in table4, which has MF"),
        (["table5", "--jobs=0"], "--jobs=0 must be -1 or at least 1"),
        (["table5", "--rounds=-1"], "epochs=-1"),
    ],
)
def test_reproduce_refuses_bad_input_before_any_run(workspace, capsys, arguments, said):
    assert main(["reproduce", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--compressors=none Gzip"], "compressor='Gzip' is unknown"),
        (["--compression_rates=2"], "compression_rate=2.0 is not allowed"),
        (["--compression_rates=high"], "could not convert string to float: 'high'"),
        (["--compressor=SVD"], "compressor must not be set: that is what is compared"),
        (["--seed=3"], "seed must not be set: that is what is compared, by --compre"),
        (["--uplink_compressor=SVD"], "uplink_compressor must not be set"),
        (["--bandwidth=[0.5,0.7]"], "bandwidth must not be set"),
        (["--jobs=0"], "--jobs=0 must be -1 or at least 1"),
    ],
)
def test_compare_refuses_bad_input_before_any_run(workspace, capsys, arguments, said):
    assert main([*COMPARE, *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not Path("comparison").exists()
