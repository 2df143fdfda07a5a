"""Exhibits are fairly tuned, and stand beside the paper's numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from conftest import COMMON

from recbole_fedras.config import Config
from recbole_fedras.experiments.exhibits import Entry, Exhibit
from recbole_fedras.experiments.reproduce import reproduce
from recbole_fedras.experiments.sweep import run_cells


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
    reproduce(exhibit, [1, 2], {}, 1, "out", dry_run=True)
    assert "6 runs for learning rates, 0 of them finished" in capsys.readouterr().out
    assert not in_process
    rows = reproduce(exhibit, [1, 2], {}, 1, "out")
    assert len(in_process) == 6 + (3 * 2 - 2)  # those of the grid are not run again
    tried = {
        (own["compressor"], own["learning_rate"]): run_cells(
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
