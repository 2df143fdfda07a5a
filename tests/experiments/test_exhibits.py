"""What exhibits say: whole, as printed, and which keys they take."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import slow

from recbole_fedras.__main__ import main
from recbole_fedras.config import Config, registry
from recbole_fedras.experiments.exhibits import exhibit_keys, has_part, read_exhibit
from recbole_fedras.experiments.network import train_network


@pytest.mark.parametrize("every", [20, slow(1)])
@pytest.mark.parametrize("name", list(registry.names("experiment")))
def test_exhibits_are_whole(name, every):
    """Every setting of every method is a configuration, with the paper's numbers."""
    exhibit, seen = read_exhibit(name), set()
    for entry in exhibit.entries[::every]:
        assert entry.paper is not None or exhibit.figure is not None
        if entry.paper is not None:
            assert len(entry.paper) == len(exhibit.metrics)
            most = 1 if name not in ("table3", "table6") else 6
            assert all(0 <= value <= most for value in filter(None, entry.paper))
        if exhibit.measure is train_network:
            exhibit.resolver().identity(entry.keys, train_network)
            continue
        config = Config(config_dict=entry.keys)
        of_label = {
            "LightFR": "BinaryCodes", "SVD, full": "FullSVD", "FedRAS-E": "CE",
            "FedRAS-F": "FedRAS", "FedRAS-T": "FedRAS", "FedRAS, SAM": "FedRAS",
        }  # fmt: skip
        label = entry.method.partition(", 9")[0]  # sensitivity has rates in them
        method = of_label.get(label, label)
        if name in ("peft", "gel") and method != "FedRAS":
            method = "none"
        if name.startswith("robustness") or name == "privacy-noise":
            method = entry.keys["compressor"]
        if name in ("stragglers", "heterogeneity"):
            method = method.partition(",")[0]
        assert config.method == method
        tuned = repr(sorted(entry.tuning.items()))
        if tuned not in seen:  # settings of a method share it
            seen.add(tuned)
            Config(config_dict=entry.tuning)
        assert entry.learning_rates == sorted(entry.learning_rates)
    text = exhibit_keys(name)
    assert len(exhibit.entries) == len(text["settings"]) * sum(
        len(text["methods"]) * len(text["models"]) for _ in text["datasets"]
    )


def test_table1_reads_as_printed():
    entries = {
        (entry.dataset, entry.model, entry.method, entry.setting): entry
        for entry in read_exhibit("table1").entries
    }
    assert entries["ml-100k", "MF", "FedRAS", "93.75 %"].paper == [0.6331, 0.3499]
    assert entries["ml-1m", "NCF", "CoLR", "96.88 %"].paper == [0.5068, 0.2769]
    assert entries["lastfm-2k", "MF", "TopK", "90.63 %"].paper == [0.6837, 0.5282]
    keys = entries["ml-100k", "NCF", "Base", "90.63 %"].keys
    assert Config(config_dict=keys)["embedding_size"] == 3
    grids = {entry.model: entry.learning_rates for entry in entries.values()}
    assert max(grids["MF"]) == min(grids["NCF"]) == 0.2
    assert len(read_exhibit("table1", ["ml-1m"]).entries) == 30
    raw = read_exhibit("table1", ["lastfm-2k-raw"]).entries
    clean = read_exhibit("table1", ["lastfm-2k"]).entries
    assert [own.paper for own in raw] == [own.paper for own in clean]
    assert has_part("table1", ["lastfm-2k-raw"], ["NCF"])
    assert not has_part("table4", ["ml-1m"], [])
    part = read_exhibit("table1", ["ml-1m"], ["MF"], 30)
    assert part.title.endswith("rates, 30 rounds")
    assert (part.name, len(part.entries)) == ("table1-ml-1m-MF-30-rounds", 15)
    left = read_exhibit("peft", without=["FedRAS", "full, warm-up"] * 2)
    assert left.name == "peft-without-full-warm-up-without-FedRAS"
    assert left.title.endswith(", without full, warm-up, without FedRAS")
    assert {entry.method for entry in left.entries}.isdisjoint(
        {"full, warm-up", "FedRAS"}
    )
    assert len(left.entries) == 2 * 8 * 2
    twice = read_exhibit("peft", ["ml-1m", "ml-1m"])
    assert (twice.name, len(twice.entries)) == ("peft-ml-1m", 10 * 2)


def test_an_exhibit_like_another_has_what_it_does_not_say():
    whole, rows = read_exhibit("topk", ["ml-1m"]), read_exhibit("table1", ["ml-1m"])
    assert whole.name == "topk-ml-1m"
    assert [entry.paper for entry in whole.entries] == [e.paper for e in rows.entries]
    for entry, own in zip(whole.entries, rows.entries, strict=True):
        scope = {"topk_scope": "global"} if entry.method == "TopK" else {}
        assert entry.keys == own.keys | scope


def test_keys_of_all_runs_name_an_exhibit():
    keys = {"init_std": 0.1, "compression_rate": 0.5}
    exhibit = read_exhibit("fig5", rounds=3, keys=keys)
    assert exhibit.name == "fig5-compression_rate-0.5-init_std-0.1-3-rounds"
    assert exhibit.title == (
        "Figure 5: alpha, compression_rate=0.5, init_std=0.1, 3 rounds"
    )
    for entry in exhibit.entries:
        assert entry.keys["compression_rate"] == 0.5  # in place of the exhibit's
        assert entry.tuning["compression_rate"] == 0.9063  # its tuning's own
        assert entry.keys["init_std"] == entry.tuning["init_std"] == 0.1
    names = {
        read_exhibit("fig5", keys=keys).name
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
        read_exhibit("table4", keys={"resume": "x", "bandwidth": None})


def test_methods_keep_a_learning_rate_of_their_own():
    entries = read_exhibit("gel", keys={"learning_rate": 0.2}).entries
    rates = {entry.method: entry.keys["learning_rate"] for entry in entries}
    assert rates.pop("FedRecGEL") == rates.pop("MF, Adam on gradients") == 0.05
    assert set(rates.values()) == {0.2}


def test_learning_rates_by_setting():
    part = read_exhibit("table1", ["ml-1m"], ["MF"])
    assert len({entry.tuned for entry in part.entries}) == 5  # for all rates
    entries = read_exhibit("init", ["ml-100k"]).entries
    assert len({entry.tuned for entry in entries}) == len(entries) == 5 * 4
    for entry in entries:
        assert entry.tuning == entry.keys | {"compression_rate": 0.9063}


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
