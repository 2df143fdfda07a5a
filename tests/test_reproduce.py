"""The paper's exhibits: whole, fairly tuned, measured and drawn as they say."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COMMON, CTX, budget, make_update

from recbole_fedras import figures, registry, sweep
from recbole_fedras import reproduce as reproducing
from recbole_fedras.__main__ import main
from recbole_fedras.compressor import RoundContext
from recbole_fedras.compressor.svd import SVD
from recbole_fedras.config import Config
from recbole_fedras.data.dataset import client_data
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.measures import (
    GROUP_SIZES,
    FullSVD,
    LossMeter,
    group_sizes,
    information_loss,
    transfer_time,
)
from recbole_fedras.quick_start import prepare_data


@pytest.mark.parametrize("name", list(registry.names("experiment")))
def test_exhibits_are_whole(name):
    """Every setting of every method is a configuration, with the paper's numbers."""
    exhibit = reproducing.read_exhibit(name)
    for entry in exhibit.entries:
        assert entry.paper is not None or exhibit.figure is not None
        if entry.paper is not None:
            assert len(entry.paper) == len(exhibit.metrics)
            most = 1 if name not in ("table3", "table6") else 6
            assert all(0 <= value <= most for value in filter(None, entry.paper))
        config = Config(config_dict=entry.keys)
        of_label = {
            "LightFR": "BinaryCodes", "SVD, full": "FullSVD", "FedRAS-E": "CE",
            "FedRAS-F": "FedRAS", "FedRAS-T": "FedRAS", "FedRAS, SAM": "FedRAS",
        }  # fmt: skip
        method = of_label.get(entry.method, entry.method)
        if name in ("peft", "gel") and method != "FedRAS":
            method = "none"
        assert config.method == method
        Config(config_dict=entry.tuning)
        assert entry.learning_rates == sorted(entry.learning_rates)
    text = registry.read_properties("experiment", name)
    assert len(exhibit.entries) == len(text["settings"]) * sum(
        len(text["methods"]) * len(text["models"]) for _ in text["datasets"]
    )


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
    grids = {entry.model: entry.learning_rates for entry in entries.values()}
    assert max(grids["MF"]) == min(grids["NCF"]) == 0.2
    assert len(reproducing.read_exhibit("table1", ["ml-1m"]).entries) == 30
    raw = reproducing.read_exhibit("table1", ["lastfm-2k-raw"]).entries
    clean = reproducing.read_exhibit("table1", ["lastfm-2k"]).entries
    assert [own.paper for own in raw] == [own.paper for own in clean]
    assert reproducing.has_part("table1", ["lastfm-2k-raw"], ["NCF"])
    assert not reproducing.has_part("table4", ["ml-1m"], [])
    part = reproducing.read_exhibit("table1", ["ml-1m"], ["MF"], 30)
    assert part.title.endswith("rates, 30 rounds")
    assert (part.name, len(part.entries)) == ("table1-ml-1m-MF-30-rounds", 15)
    left = reproducing.read_exhibit("peft", without=["FedRAS", "full, warm-up"] * 2)
    assert left.name == "peft-without-full-warm-up-without-FedRAS"
    assert left.title.endswith(", without full, warm-up, without FedRAS")
    assert {entry.method for entry in left.entries}.isdisjoint(
        {"full, warm-up", "FedRAS"}
    )
    assert len(left.entries) == 2 * 8 * 2
    twice = reproducing.read_exhibit("peft", ["ml-1m", "ml-1m"])
    assert (twice.name, len(twice.entries)) == ("peft-ml-1m", 10 * 2)


def test_keys_of_all_runs_name_an_exhibit():
    keys = {"init_std": 0.1, "compression_rate": 0.5}
    exhibit = reproducing.read_exhibit("fig5", rounds=3, keys=keys)
    assert exhibit.name == "fig5-compression_rate-0.5-init_std-0.1-3-rounds"
    assert exhibit.title == (
        "Figure 5: alpha, compression_rate=0.5, init_std=0.1, 3 rounds"
    )
    for entry in exhibit.entries:
        assert entry.keys["compression_rate"] == 0.5  # in place of the exhibit's
        assert entry.tuning["compression_rate"] == 0.9063  # its tuning's own
        assert entry.keys["init_std"] == entry.tuning["init_std"] == 0.1
    names = {
        reproducing.read_exhibit("fig5", keys=keys).name
        for keys in (
            {"mlp_hidden_size": [1, -2]},
            {"mlp_hidden_size": [1, 2]},
            {"mlp_hidden_size": "1 2"},
            {f"key_{i}": "x" * 50 for i in range(10)},
        )
    }
    assert len(names) == 4
    assert all(re.fullmatch("fig5-keys-[0-9a-f]{10}", name) for name in names)


def test_keys_of_a_machine_name_nothing(workspace, capsys):
    local = ["--use_gpu=False", "--data_path", "nowhere"]
    assert main(["reproduce", "fig5", "--dry_run", "--init_std=0.1", *local]) == 0
    assert capsys.readouterr().out.startswith("Figure 5: alpha, init_std=0.1: ")


def test_a_checkpoint_is_not_resumed_by_many_runs():
    with pytest.raises(ValueError, match=r"--resume=.* finished runs are kept"):
        reproducing.read_exhibit("table4", keys={"resume": "x", "bandwidth": None})


def test_methods_keep_a_learning_rate_of_their_own():
    entries = reproducing.read_exhibit("gel", keys={"learning_rate": 0.2}).entries
    rates = {entry.method: entry.keys["learning_rate"] for entry in entries}
    assert rates.pop("FedRecGEL") == rates.pop("MF, Adam on gradients") == 0.05
    assert set(rates.values()) == {0.2}


def test_learning_rates_by_setting():
    part = reproducing.read_exhibit("table1", ["ml-1m"], ["MF"])
    assert len({entry.tuned for entry in part.entries}) == 5  # for all rates
    entries = reproducing.read_exhibit("init", ["ml-100k"]).entries
    assert len({entry.tuned for entry in entries}) == len(entries) == 5 * 4
    for entry in entries:
        assert entry.tuning == entry.keys | {"compression_rate": 0.9063}


def test_an_exhibit_is_tuned_on_validation_and_stands_beside_the_paper(
    workspace, in_process, capsys
):
    common = Config(argv=COMMON).external_config_dict
    svd, tuned_at = {"compressor": "SVD"}, {"compression_rate": 0.75}
    entries = [
        reproducing.Entry(
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
    exhibit = reproducing.Exhibit(
        "mine", "Mine", ["hit@10"], entries, figure="settings"
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
    return information_loss(whole(**keys))["result"]


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
    assert losses(model="LightFR")["test_result"]["total"] == 0
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


def whole(**keys):
    common = Config(argv=COMMON).external_config_dict
    return common | {"n_jobs": 1, "epochs": 4} | keys


def downlinks(**keys):
    """Yield each round's aggregate, and what clients receive of it."""
    config = Config(config_dict=whole(**keys))
    train, _, _ = prepare_data(config)
    uplink, downlink = config.make_compressors()
    simulation = Simulation(
        config.model_class(config, train._dataset), client_data(train._dataset),
        uplink, downlink, config.federation(), config.local_training(),
    )  # fmt: skip
    for _ in range(4):
        before = simulation.server.item_table.clone()
        with torch.no_grad():
            simulation.run_round()
        change = simulation.server.item_table - before
        payload = simulation.replicas.messages[0].payload
        received = downlink.decode(payload, RoundContext(0, 0, 60, 8))
        yield change[received.ids], received.rows, payload


def measured(measure, **keys):
    return measure(whole(**keys))["result"]["test_result"]


def test_groups_are_counted_by_their_rows_and_cosines_averaged(workspace):
    keys = {"compressor": "FedRAS", "compression_rate": 0.75, "clustering": "fixed"}
    found = measured(group_sizes, **keys)
    cosines, worst, sizes = [], [], []
    for change, rows, _ in downlinks(**keys):
        dots = (change * rows).sum(1) / change.norm(dim=1) / rows.norm(dim=1)
        cosines.append(float(dots.mean()))
        actions = list(map(tuple, rows.tolist()))
        counts = Counter(actions)
        of_group = dict.fromkeys(counts, 0.0)
        for action, dot in zip(actions, dots.tolist(), strict=True):
            of_group[action] += dot / counts[action]
        worst.append(min(of_group.values()))
        assert len(counts) == 15  # 60 items, 75 %
        sizes += counts.values()
    assert found["mean cosine"] == pytest.approx(np.mean(cosines), abs=1e-4)
    assert found["worst group"] == pytest.approx(np.mean(worst), abs=1e-4)
    bounds = [0, *GROUP_SIZES.values()]
    for name, below, most in zip(GROUP_SIZES, bounds[:-1], bounds[1:], strict=True):
        share = sum(below < size <= most for size in sizes) / len(sizes)
        assert found[name] == pytest.approx(share)


def test_transfer_time_is_that_of_the_bytes_after_the_first_round(workspace):
    keys = {"compressor": "none", "client_fraction": 0.05, "downlink_mb_per_s": 0.5}
    found = measured(transfer_time, **keys)
    sizes = [len(payload.to_bytes()) for _, _, payload in downlinks(**keys)]
    assert len({np.mean(sizes), np.mean(sizes[1:])}) == 2  # the first is another
    assert found["transfer s"] == pytest.approx(np.mean(sizes[1:]) / 0.5e6, rel=1e-12)
    assert found["compute s"] > 0


@pytest.mark.parametrize("feedback", [True, False])
def test_downlinks_with_feedback_are_noted_too(workspace, feedback):
    keys = {"compressor": "FedRAS", "compression_rate": 0.75, "clustering": "fixed"}
    found = measured(group_sizes, downlink_feedback=feedback, **keys)
    assert 0 < found["mean cosine"] <= 1


@pytest.mark.parametrize(
    ("measure", "keys", "said"),
    [
        (group_sizes, {"replica": "personal"}, "replica='personal' is not allowed"),
        (group_sizes, {"bandwidth": [0.5, 0.7]}, r"bandwidth=\[0.5, 0.7\] is not al"),
        (information_loss, {"server_optimizer": "adam"}, "sgd of rate 1 to compare"),
        (
            transfer_time,
            {"epochs": 1},
            "epochs=1 is not allowed; it must be at least 2",
        ),
    ],
)
def test_what_cannot_be_noted_is_refused(workspace, measure, keys, said):
    with pytest.raises(ValueError, match=said):
        measured(measure, compressor="none", **keys)


def test_a_full_svd_sends_what_ours_does():
    update = make_update(40)
    first, second = (
        kind().decode(kind().encode(update, budget(0.75), CTX), CTX)
        for kind in (SVD, FullSVD)
    )
    torch.testing.assert_close(first.rows, second.rows, rtol=1e-4, atol=1e-5)


def row(dataset, method, metric, ours, setting="a", sd=0.1, paper=None):
    return {
        "dataset": dataset, "method": method, "metric": metric, "ours": ours,
        "setting": setting, "sd": sd, "paper": paper,
    }  # fmt: skip


def test_settings_are_drawn_as_lines_of_methods():
    rows = [
        row(dataset, method, metric, ours, setting)
        for dataset in ("x", "y")
        for method, ours in (("A", 0.25), ("B", 0.5))
        for metric in ("hit@10", "ndcg@10")
        for setting in ("10 %", "20 %")
    ]
    panels = figures.draw_settings(rows, "rate").axes
    assert [panel.get_title() for panel in panels] == ["x", "y"] * 2
    assert [panel.get_ylabel() for panel in panels] == ["hit@10"] * 2 + ["ndcg@10"] * 2
    for line, height in zip(panels[0].get_lines()[::3], (0.25, 0.5), strict=True):
        assert line.get_ydata().tolist() == [height, height]


def test_settings_may_differ_by_dataset():
    exhibit = reproducing.read_exhibit("peft")
    sizes = {
        (entry.dataset, entry.setting): entry.keys["hash_rows"]
        for entry in exhibit.entries
    }
    assert sizes["ml-100k", "1/8"] == 214
    assert sizes["ml-1m", "1/16"] == 232
    for (dataset, setting), rows in sizes.items():  # equal values, to a hundredth
        n_items = {"ml-100k": 1682, "ml-1m": 3706}[dataset]
        share = {"1/8": 0.125, "1/16": 0.0625}[setting]
        own = next(
            entry.keys
            for entry in exhibit.entries
            if (entry.dataset, entry.setting) == (dataset, setting)
        )
        whole = n_items * 32
        for values in (
            rows * 32, 4 * own["rq_codes"] * 32, own["item_rank"] * (n_items + 32)
        ):  # fmt: skip
            assert values / whole == pytest.approx(share, rel=0.03)
        assert own["compression_rate"] == 1 - share
    for entry in exhibit.entries:
        tuned = {key: entry.tuning[key] for key in ("item_rank", "hash_rows")}
        assert tuned == {"item_rank": 2, "hash_rows": sizes[entry.dataset, "1/16"]}


def test_quality_is_drawn_against_bytes():
    rows = [
        {"dataset": "tiny", "metric": "hit@10", "method": method, "setting": setting,
         "ours": ours, "sd": 0.01, "uplink MB": size, "downlink MB": 1.0}
        for method, setting, ours, size in (
            ("a", "1/8", 0.5, 2.0), ("a", "1/4", 0.6, 4.0), ("b", "1/8", 0.4, 3.0),
            ("b", "1/4", np.nan, np.nan),
        )
    ]  # fmt: skip
    (panel,) = figures.draw_bytes(rows, "megabytes").axes
    best = panel.lines[-1]
    assert list(best.get_xdata()) == [3.0, 5.0]  # b is beaten
    assert list(best.get_ydata()) == [0.5, 0.6]
    assert [text.get_text() for text in panel.texts] == ["1/8", "1/4", "1/8"]


def test_metrics_without_a_number_of_the_paper_are_drawn_as_bars():
    rows = [row("x", "A", "cosine", 0.9, paper=0.7)]
    rows += [row("x", "A", name, share) for name, share in (("1", 0.25), ("2", 0.75))]
    (panel,) = figures.draw_metrics(rows, "rows").axes
    assert [bar.get_height() for bar in panel.patches] == [0.25, 0.75]
    assert [label.get_text() for label in panel.get_xticklabels()] == ["1", "2"]


def test_curves_are_means_over_seeds():
    curves = [
        figures.Curve("x", "A", [{"round": 9, "valid_hit@10": value}])
        for value in (0.25, 0.75)
    ]
    (panel,) = figures.draw_curves(curves, ["hit@10"], "round").axes
    assert panel.get_lines()[0].get_xydata().tolist() == [[9, 0.5]]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["table9"], "exhibit 'table9' is unknown; did you mean 'table"),
        (["table4", "--dataset=ml-1m"], "--dataset='ml-1m' is not in table4"),
        (["table4", "--model=NCF"], "--model='NCF' is not in table4, which has MF"),
        (
            ["table4", "--without=SVD"],
            "--without='SVD' is not in table4, which has Fed",
        ),
        (["table4", "--without=FedRAS"], "--without leaves no method in table4"),
        (["table5", "--jobs=0"], "n_jobs=0 must be -1 or at least 1"),
        (["table5", "--rounds=-1"], "epochs=-1"),
        (["table5", "--rounds=0"], "epochs=0"),
        (["table5", "--seed=1"], "--seed=1 cannot be set for table5: say --seeds"),
        (["table5", "--epochs=1"], "for table5: say --rounds"),
        (["table5", "--n_jobs=1"], "for table5: say --jobs"),
        (["table5", "--topk=[5]", "--valid_metric=NDCG@5"], "the exhibit has its own"),
        (["table5", "--uplink_compressor=SVD"], "table5: the exhibit has its own"),
        (["table5", "--preset=best"], "table5: the exhibit has its own"),
        (["fig3", "--bandwidth=[0.1,0.5]"], "fig3: the exhibit has its own"),
        (["fig5", "--alpha=0.3"], "fig5: its methods or settings differ in it"),
        (["gel", "--local_objective=sam"], "gel: its methods or settings differ"),
        (["table5", "--config_files=none.yaml"], "there is no file 'none.yaml'"),
        (["table5", "--inti_std=1"], "did you mean 'init_std'"),
        (["table5", "--seeds="], "--seeds='' must name at least one"),
        (["all", "--without=SVD"], "--without takes exhibits by name, not all"),
        (["all", "--init_std=1"], "keys take exhibits by name, not all"),
        (["all", "--dataset=nonsense"], "no exhibit has --dataset=['nonsense']"),
    ],
)
def test_reproduce_refuses_bad_input_before_any_run(workspace, capsys, arguments, said):
    assert main(["reproduce", *arguments]) == 2
    assert said in capsys.readouterr().err
    assert not Path("results").exists()
