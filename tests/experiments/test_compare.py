"""Comparisons: what is said of runs is true."""

from __future__ import annotations

import csv
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import COMMON
from sweeps import runs_in

from recbole_fedras import load_run
from recbole_fedras.__main__ import main
from recbole_fedras.config import Config, registry
from recbole_fedras.errors import ConfigError
from recbole_fedras.experiments import compare as comparison
from recbole_fedras.experiments.methods import methods_of, read_runs

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
    assert printed == table
    assert "other code" not in table  # there is none
    report = Path("comparison/report.html").read_text(encoding="utf-8")
    for said in (
        "Quality against cost",
        "validation",
        "MB, everything charged",
        "Wilcoxon",
        "better users",
        "interactions in training",
        "catch-up",
    ):
        assert said in report
    assert "src=" not in report  # nothing is fetched
    assert report.count("<svg") == 6
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
    assert "centralised" in Path("comparison/report.html").read_text()


PLUG_IN = """
from recbole_fedras.compressor.none import NoCompression

class Broken(NoCompression):
    lossless = False

    def encode(self, update, budget, ctx):
        if ctx.round == 2:
            raise KeyError("a bug")
        return super().encode(update, budget, ctx)

class Fixed(NoCompression):
    lossless, fixed_rate = False, True

    def __init__(self, strength=1.0):
        self.strength = strength
"""


@pytest.fixture
def plug_in(workspace, monkeypatch):
    Path("plug_in.py").write_text(PLUG_IN)
    for name in ("Broken", "Fixed"):
        Path(f"{name}.yaml").write_text(f"compressor_class: plug_in.{name}\n")
    yield
    sys.modules.pop("plug_in", None)


@pytest.fixture
def no_page(in_process, monkeypatch):
    """Run cells here, and draw no page."""
    monkeypatch.setattr(comparison, "write_page", lambda *_: None)
    return in_process


def test_a_method_that_fails_costs_its_own_row_only(plug_in, no_page, capsys):
    arguments = ["compare", *COMMON, "--run=Broken.yaml"]
    assert main(arguments) == 2
    error = "all methods failed: Broken, seed 2020: KeyError: 'a bug', in compressor_c"
    assert error in capsys.readouterr().err
    small = "--run=SVD compression_rate=0.99"
    assert main([*arguments, "--run=none", "--run=Fixed.yaml", small]) == 0
    output = capsys.readouterr()
    assert "KeyError: 'a bug'" in output.err  # the traceback
    told = "recbole-fedras: SVD compression_rate=0.99 is left out: compression_rate="
    assert told in output.err.partition("Compare:")[0]
    assert re.search(r"\| Broken +\| failed +\|", output.out)
    assert "Broken failed, seed 2020: KeyError: 'a bug', in comp" in output.out
    with Path("comparison/table.csv").open() as file:
        broken, none, fixed, left_out = csv.DictReader(file)
    assert broken["hit@10"] == none["failed"] == ""
    assert broken["failed"].startswith("seed 2020: KeyError")
    assert "leaves a rank of 0" in left_out["failed"]
    assert (none["better users"], fixed["better users"]) == ("0", "0")
    kept = {run["keys"]["compressor"] for run in runs_in("comparison")}
    assert kept == {"none", "Fixed"}


def test_runs_have_classes_and_settings_of_their_own(plug_in):
    declared = Config(config_file_list=["Fixed.yaml"], argv=["--strength=3"])
    runs = ["none", "Fixed learning_rate=1|2", "strength=5", "FedRAS --preset=best",
            "Broken.yaml epochs=7", "compressor=SVD"]  # fmt: skip
    keys = declared.external_config_dict | {"epochs": 5}
    read = read_runs(runs, keys)
    assert list(read) == [
        "none", "Fixed learning_rate=1", "Fixed learning_rate=2", "strength=5",
        "FedRAS preset=best", "Broken epochs=7", "compressor=SVD",
    ]  # fmt: skip
    fixed = {"compressor": "Fixed", "compressor_class": "plug_in.Fixed"}
    assert read["none"] == {"compressor": "none", "epochs": 5}
    assert read["strength=5"] == fixed | {"strength": 5, "epochs": 5}
    assert read["Fixed learning_rate=2"] == fixed | {
        "strength": 3, "epochs": 5, "learning_rate": 2.0
    }  # fmt: skip
    broken = {"compressor": "Broken", "compressor_class": "plug_in.Broken"}
    assert read["Broken epochs=7"] == broken | {"epochs": 7}
    assert read["FedRAS preset=best"]["preset"] == "best"
    with registry.importable([]):
        labels = methods_of(["none", "Fixed", "SVD"], [0.5, 0.75], keys)
    assert list(labels) == ["none", "Fixed", "SVD 50 %", "SVD 75 %"]
    with pytest.raises(ConfigError, match=r"--run='Broken.yaml epochs=a': epochs='a'"):
        read_runs(["Broken.yaml epochs=a"], {})


@pytest.mark.slow
def test_learning_rates_are_chosen_and_models_kept(workspace, no_page, capsys):
    arguments = ["compare", *COMMON, "--run=none", "--run=none learning_rate=0.5"]
    arguments += ["--learning_rates=0.001 1", "--keep_models", "--format=latex"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "\\toprule" in printed
    assert printed == Path("comparison/table.tex").read_text()
    with Path("comparison/table.csv").open() as file:
        chosen, named = csv.DictReader(file)
    scores = {
        run["keys"]["learning_rate"]: run["result"]["best_valid_score"]
        for run in runs_in("comparison")
    }
    assert scores.keys() == {0.001, 0.5, 1.0}
    best = max((0.001, 1.0), key=scores.__getitem__)
    assert (chosen["learning rate"], named["learning rate"]) == (str(best), "0.5")
    assert len(no_page) == 3
    models = sorted(Path("comparison/models").iterdir())
    assert len(models) == 3
    assert len(load_run(models[0]).recommend(["u1"], 3)) == 3
    shutil.rmtree(models[0])
    assert main(arguments) == 0  # which runs again what has no model
    assert len(no_page) == 4
    assert len(list(Path("comparison/models").iterdir())) == 3


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
        (["--run=Gzip"], "--run='Gzip': there is no compressor, preset or YAML file"),
        (["--run=fedras"], "did you mean 'FedRAS'? keys are given as key=value"),
        (["--run=none epoch=3"], "--run='none epoch=3': unknown config key 'epoch'"),
        (["--run=none.yaml"], "there is no file 'none.yaml'"),
        (["--run=none", "--run=none"], "--run='none' says 'none' again"),
        (["--run="], "--run='' names nothing"),
        (["--run=none dataset=other"], "are not tested alike, their dataset differ"),
        (["--learning_rates="], "--learning_rates='' must name at least one"),
        (["--learning_rates=1", "--learning_rate=1"], "has no effect; leave one of"),
        (["--compressors=SVD", "--compression_rates=0.99"], "a rank of 0"),
        (["--jobs=0"], "n_jobs=0 must be -1 or at least 1"),
    ],
)
def test_compare_refuses_bad_input_before_any_run(workspace, capsys, arguments, said):
    assert main([*COMPARE, *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not Path("comparison").exists()
