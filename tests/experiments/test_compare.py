"""Sweeps and comparisons: each run once, and what is said of them true."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import select
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import COMMON
from scipy.stats import wilcoxon

from recbole_fedras.__main__ import main
from recbole_fedras.config import Config
from recbole_fedras.errors import DataError
from recbole_fedras.experiments import compare as comparing
from recbole_fedras.experiments import sweep
from recbole_fedras.experiments.measures import information_loss

COMPARE = [
    "compare",
    *COMMON,
    "--compressors=none SVD",
    "--compression_rates=0.75 0.5",
    "--seeds=1 2",
]


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
        return sweep.file_of(own, Path(), measure)

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


@pytest.mark.slow
def test_ones_own_compressor_compares_with_ours(workspace):
    (workspace / "own").mkdir()
    (workspace / "own" / "stronger.py").write_text(
        """
from recbole_fedras.compressor.svd import SVD

class Mine(SVD):
    def __init__(self, strength=1.0):
        assert strength == 2.0
"""
    )
    (workspace / "own" / "mine.yaml").write_text(
        "compressor: Mine\ncompressor_class: stronger.Mine\nstrength: 2.0\n"
    )
    command = ["compare", *COMMON, "--compressors=SVD Mine", "--seeds=1"]
    files = ["--compression_rates=0.75", "--config_files=own/mine.yaml", "--jobs=2"]
    assert main([*command, *files]) == 0
    with Path("comparison/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["ndcg@10 sd"] for row in rows} == {""}  # of one seed
    assert [row["method"] for row in rows] == ["SVD 75 %", "Mine 75 %"]
    assert rows[0]["ndcg@10"] == rows[1]["ndcg@10"]
    assert rows[0]["uplink MB"] == rows[1]["uplink MB"]


@pytest.mark.slow
def test_runs_under_way_are_kept_when_another_fails(workspace):
    good = [cell(seed=seed, epochs=30) for seed in (1, 2)]
    cells = [good[0], cell(dataset="nowhere"), good[1]]
    with pytest.raises(DataError, match="nowhere"):
        sweep.run_cells(cells, Path("cells"), 3)
    assert len(list(Path("cells").glob("*.json"))) == 2


def end_the_process(keys):
    os._exit(1)


@pytest.mark.slow
def test_a_process_that_was_killed_is_an_error_with_a_remedy(workspace):
    with pytest.raises(OSError, match="killed, maybe for want of memory: try fewer"):
        sweep.run_cells([cell()], Path("cells"), 1, measure=end_the_process)


def wait_for_ever(keys):
    with open(keys["pipe"], "wb", buffering=0) as pipe:
        pipe.write(b"at work")
        time.sleep(600)


def sweep_for_ever(pipe):
    sweep.run_cells([{"pipe": pipe}], Path("cells"), 1, measure=wait_for_ever)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_nobody_works_on_for_a_sweep_that_was_killed(workspace):
    pipe = str(workspace / "pipe")
    os.mkfifo(pipe)
    process = multiprocessing.get_context("spawn").Process(
        target=sweep_for_ever, args=(pipe,)
    )
    process.start()
    with open(pipe, "rb", buffering=0) as reader:
        assert reader.read(7) == b"at work"
        process.kill()
        ready, _, _ = select.select([reader], [], [], 60)
        assert ready, "the worker is still there"
        assert reader.read() == b""  # its end is closed
    process.join()


def test_metrics_without_hits_have_no_test(workspace, in_process):
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
    assert np.isnan(comparing.significance(first, [{"ranks": [1] * 59}])[2])
    lost = [{"ranks": [0] * 60} for _ in range(2)]  # not among the first is worst
    assert comparing.significance(lost, first)[:2] == (0, 60)


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
        (["--seeds="], "--seeds='' must name at least one"),
        (["--seeds=one"], "--seeds='one': invalid literal for int()"),
        (["--compressors="], "--compressors='' must name at least one"),
        (["--compressors=none SVD", "--compression_rates=0.99"], "a rank of 0"),
        (["--jobs=0"], "n_jobs=0 must be -1 or at least 1"),
    ],
)
def test_compare_refuses_bad_input_before_any_run(workspace, capsys, arguments, said):
    assert main([*COMPARE, *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not Path("comparison").exists()
