"""Exhibits are fairly tuned, and stand beside the paper's numbers."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import COMMON, ROOT
from sweeps import runs_in

from recbole_fedras.config import Config
from recbole_fedras.experiments.entries import Entry
from recbole_fedras.experiments.exhibits import Exhibit
from recbole_fedras.experiments.identity import identity_of
from recbole_fedras.experiments.reproduce import _rows, reproduce
from recbole_fedras.experiments.runs import Runs
from recbole_fedras.experiments.sweep import Sweep


def test_an_exhibit_is_tuned_on_validation_and_stands_beside_the_paper(
    workspace, in_process, capsys
):
    common = Config(argv=COMMON).external_config_dict
    svd, tuned_at = {"compressor": "SVD"}, {"compression_rate": 0.75}
    entries = [
        Entry(
            "tiny",
            "MF",
            method,
            setting,
            common | keys,
            common | tuning,
            [0.01, 0.2, 1e9],
            ("tiny", "MF", method),
            paper,
        )
        for method, setting, keys, tuning, paper in (
            ("none", "a", {"compressor": "none"}, {"compressor": "none"}, [0.5]),
            ("SVD", "a", svd | {"compression_rate": 0.5}, svd | tuned_at, [0.25]),
            ("SVD", "b", svd | {"compression_rate": 0.75}, svd | tuned_at, None),
        )
    ]
    exhibit = Exhibit("mine", "Mine", ["hit@10"], entries, figure="settings")
    reproduce(exhibit, [1, 2], {}, Sweep(Path("out/mine"), 1), dry_run=True)
    assert "6 runs for learning rates, 0 of them finished" in capsys.readouterr().out
    assert not in_process
    rows = reproduce(exhibit, [1, 2], {}, Sweep(Path("out/mine"), 1))
    assert len(in_process) == 6 + (3 * 2 - 2)  # those of the grid are not run again
    tried = {
        (own["compressor"], own["learning_rate"]): Sweep(Path("out/mine")).find(own)[
            "result"
        ]
        for own in in_process[:6]
    }
    assert tried["none", 1e9] is None  # it diverged, and is no candidate
    for row in rows:
        scores = {
            rate: tried[row["method"], rate]["best_valid_score"] for rate in (0.01, 0.2)
        }
        assert row["learning rate"] == max(scores, key=scores.get)
    outcomes = runs_in("out/mine")
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
    assert Path("out/mine/table.md").read_text() in printed
    assert Path("out/mine/figure.png").read_bytes().startswith(b"\x89PNG")
    assert "toprule" in Path("out/mine/table.tex").read_text()
    with Path("out/mine/table.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 3
    shown = sorted(path.name for path in Path("out/mine").iterdir() if path.is_file())
    assert shown == [
        "figure.png", "runs.jsonl.xz", "table.csv", "table.md", "table.tex"
    ]  # fmt: skip


@pytest.mark.slow
def test_runs_that_we_publish_are_found():
    """Each is complete: what it computed, what made it, and what came of it."""
    folders = [path.parent for path in (ROOT / "results").glob("*/runs.jsonl.xz")]
    assert len(folders) > 40
    for folder in folders:
        runs = Runs(folder)
        for run in runs_in(str(folder)):
            assert run["made"].keys() & {"added", "commit"}
            assert runs.find(identity_of(run)) == run
            assert run["result"] is None or run["result"]["test_result"]


def test_exposure_is_a_metric_of_runs_that_have_it():
    """Of a diverged entry, which has no metric at all, all are shown as missing."""
    sent = {"uplink_bytes": 1, "downlink_bytes": 1, "catch_up_bytes": 0}
    sent |= {"dense_bytes": 4, "wire_compression_rate": 0.5}
    pushed, calm, lost = (
        Entry("tiny", "MF", "none", setting, {}, {}, [0.1], (setting,), None)
        for setting in ("pushed", "calm", "lost")
    )
    exhibit = Exhibit("mine", "Mine", ["hit@10", "er@10"], [pushed, calm, lost])
    quality = {"test_result": {"hit@10": 0.5}, "communication": sent}

    exposed = quality | {"exposure": {"er@10": 0.25}}

    def rows_of(entry, result):
        run = {"result": result, "made": {"code": None, "commit": "abc"}}
        return {
            row["metric"]: row["ours"]
            for row in _rows(exhibit, entry, [run], [run | {"result": exposed}], {})
        }

    assert rows_of(pushed, exposed) == {"hit@10": 0.5, "er@10": 0.25}
    assert rows_of(calm, quality) == {"hit@10": 0.5}
    noisy, bare = ({"privacy": {"epsilon": value}} for value in (2.0, None))
    exhibit = Exhibit("mine", "Mine", ["hit@10", "epsilon"], [calm])
    assert rows_of(calm, quality | noisy) == {"hit@10": 0.5, "epsilon": 2.0}
    assert rows_of(calm, quality | bare) == {"hit@10": 0.5}
    assert all(np.isnan(value) for value in rows_of(lost, None).values())
