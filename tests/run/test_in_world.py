"""Runs in a described world: what they leave behind, what is refused, resuming."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from conftest import COMMON, rounds_of

from recbole_fedras.__main__ import main
from recbole_fedras.config import Config
from recbole_fedras.errors import ConfigError
from recbole_fedras.quick_start import run_recbole_fedras
from recbole_fedras.run.groups import hits_by_group

WORLD = {
    "world": "lognormal", "uplink_mb_per_s": 0.01, "deadline": 0.4, "dropout": 0.1,
    "over_selection": 1.3, "availability": 0.8, "compressor": "SVD",
}  # fmt: skip


def test_a_run_in_a_world_says_what_it_took_and_goes_on(run, workspace, capsys):
    whole = run(**WORLD)
    rows = rounds_of(whole)
    for total, column in (("world_seconds", "world_seconds"), ("late", "late")):
        added = sum(float(row[column]) for row in rows)
        assert whole["world"][total] == pytest.approx(added)
    assert float(rows[-1]["world_hours"]) * 3600 == whole["world"]["world_seconds"]
    assert whole["world"]["late"] > 0
    assert sum(int(row["dropped"]) for row in rows) > 0
    for row in rows:
        assert int(row["absent"]) == int(row["late"]) + int(row["dropped"])
    printed = capsys.readouterr().out
    assert "time in the world" in printed
    assert "hit@10, worst by downlink_mb_per_s" in printed
    last = str(Path(run(**WORLD, epochs=2)["run_folder"]) / "last.pth")
    resumed = run_recbole_fedras(config_dict={"resume": last, "epochs": 4})
    assert resumed["world"] == whole["world"]
    assert resumed["test_result"] == whole["test_result"]
    with pytest.raises(ConfigError, match="deadline=9 cannot change when resuming"):
        run_recbole_fedras(config_dict={"resume": last, "deadline": 9})


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"dropout": 0.1},
            "dropout=0.1 is not allowed; it must be 0.0 without a world",
        ),
        ({"over_selection": 1.3}, "must be 1.0 without a world"),
        ({"world": "constant", "over_selection": 0.9}, "over_selection=0.9 is not all"),
        ({"world": "constant", "availability": 0}, "availability=0 is not allowed"),
        ({"world": "logarithmic"}, "world='logarithmic' is unknown; did you mean"),
        ({"world": "trace"}, "world_trace must be set: world='trace' has no default"),
        ({"world": "trace", "world_trace": "x.csv"}, "world_trace='x.csv' cannot be"),
        ({"world": "constant", "staleness_window": 1}, "over_selection=1.0 is not all"),
        (
            {"world": "constant", "staleness_window": 1, "replica": "personal"},
            "replica='personal' is not allowed; it must be broadcast with staleness",
        ),
        ({"world": "two_classes", "slow_share": 2}, "slow_share=2 must be from 0 to 1"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(keys, said):
    with pytest.raises(ConfigError, match=said):
        Config("MF", "ml-100k", config_dict=keys)


def test_hits_of_groups_by_hand():
    ranks = np.array([1, 0, 3, 12, 2, 11])
    rate = np.array([0.9, 0.9, 0.5, 0.5, 0.5, 0.9])
    found = hits_by_group(ranks, 10, rate=rate)["rate"]
    assert found["hit@10"] == pytest.approx([2 / 3, 1 / 3])
    assert found["upto"] == [0.5, 0.9]
    assert found["worst"] == pytest.approx(1 / 3)
    assert found["gap"] == pytest.approx(1 / 3)
    hits = np.repeat([1, 0], [7, 33])
    tenths = hits_by_group(hits, 1, activity=np.arange(40))["activity"]
    assert tenths["hit@1"] == [1, 0.75, 0, 0, 0, 0, 0, 0, 0, 0]
    assert tenths["upto"][:2] == [3, 7]


@pytest.mark.slow
def test_compare_tells_hours_to_a_target(workspace, in_process):
    keys = [f"--{key}={WORLD[key]}" for key in ("world", "uplink_mb_per_s")]
    arguments = ["--compressors=none SVD", "--compression_rates=0.75", *keys]
    assert main(["compare", *COMMON, *arguments, "--target=0.5"]) == 0
    with Path("comparison/table.csv").open() as file:
        none, svd = csv.DictReader(file)
    assert 0 < float(none["hours to 50 %"]) <= float(none["hours"])
    assert float(svd["hours"]) < float(none["hours"])
    assert float(none["client peak MB"]) > 0
    report = Path("comparison/report.html").read_text(encoding="utf-8")
    assert "hours in the described world" in report  # the axis of a figure
    with Path("comparison/clients.csv").open() as file:
        rows = list(csv.DictReader(file))
    by_activity = [row for row in rows if row["by"] == "activity"]
    of_none = [float(row["hit@10"]) for row in by_activity if row["method"] == "none"]
    assert min(of_none) == pytest.approx(float(none["worst tenth"]))
    assert {row["by"] for row in rows} == {"activity", "downlink_mb_per_s"}
