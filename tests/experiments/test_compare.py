"""Comparisons: what is said of runs is true."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import COMMON
from sweeps import runs_in

from recbole_fedras.__main__ import main

COMPARE = [
    "compare",
    *COMMON,
    "--compressors=none SVD",
    "--compression_rates=0.75 0.5",
    "--seeds=1 2",
]


def test_compare_runs_and_reports(workspace, in_process, capsys):
    assert main([*COMPARE, "--jobs=2"]) == 0
    printed = capsys.readouterr().out
    runs = runs_in("comparison")
    assert len(runs) == 2 * (1 + 2)
    with Path("comparison/table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["none", "SVD 50 %", "SVD 75 %"]
    table = Path("comparison/table.md").read_text()
    assert table in printed
    assert "other code" not in table  # there is none
    report = Path("comparison/report.html").read_text(encoding="utf-8")
    for said in (
        "Quality against cost",
        "against rounds",
        "against MB sent",
        "Wilcoxon",
    ):
        assert said in report
    assert "src=" not in report  # nothing is fetched
    assert report.count("<svg") == 3
    by_method = {}
    for outcome in runs:
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
def test_recboles_own_training_is_a_row_on_the_same_candidates(workspace, in_process):
    arguments = ["compare", *COMMON, "--compressors=none", "--centralised"]
    assert main(arguments) == 0
    with Path("comparison/table.csv").open() as file:
        federated, central = csv.DictReader(file)
    assert central["method"] == "RecBole's BPR, centralised"
    assert float(central["uplink MB"]) == float(central["catch-up MB"]) == 0
    assert np.isnan(float(central["CR wire"]))
    assert 0 <= float(central["p"]) <= 1
    assert central["hit@10"] != federated["hit@10"]
    sizes = {len(run["ranks"]) for run in runs_in("comparison")}
    assert len(sizes) == 1  # the same users
    assert Path("comparison/report.html").read_text().count("<svg") == 3


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
