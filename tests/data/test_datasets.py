"""Real data: MovieLens-100K from RecBole's wheel, others where they are at hand."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pandas as pd
import pytest
import recbole
from conftest import long, shared_data

from recbole_fedras.__main__ import main
from recbole_fedras.compressor import check_compressor
from recbole_fedras.config import Config
from recbole_fedras.data.prepare import prepare
from recbole_fedras.quick_start import run_recbole_fedras
from recbole_fedras.run.setup import prepare_data

ROOT = Path(__file__).parents[2]
needs_shared = pytest.mark.skipif(
    shared_data() is None,
    reason="ML-1M and Lastfm-2K are not there; set RECBOLE_DATA to their folder",
)


def ml_100k() -> pd.DataFrame:
    folder = Path(recbole.__file__).parent / "dataset_example" / "ml-100k"
    frame = pd.read_csv(folder / "ml-100k.inter", sep="\t", dtype=str)
    frame.columns = [name.split(":")[0] for name in frame]
    return frame


def test_every_user_of_ml_100k_has_his_true_last_item_held_out():
    _, valid, test = prepare_data(Config("MF", "ml-100k"))
    frame = ml_100k()
    frame["time"] = frame["timestamp"].astype(int)
    ordered = frame.sort_values("time", kind="stable").groupby("user_id")["item_id"]
    for part, place in ((test, -1), (valid, -2)):
        dataset = part._dataset
        feat = dataset.inter_feat
        users = dataset.id2token("user_id", feat["user_id"].numpy())
        items = dataset.id2token("item_id", feat["item_id"].numpy())
        expected = ordered.nth(place)
        truth = dict(zip(frame.loc[expected.index, "user_id"], expected, strict=True))
        assert dict(zip(users, items, strict=True)) == truth
        assert len(truth) == 943


def tag_rows() -> list[tuple[int, ...]]:
    """User 3 and 4 made fewer than five tags, user 5 tagged one artist only."""
    rows = [
        (2, 50, 1, 1, 4, 2009), (2, 50, 2, 1, 3, 2009), (2, 60, 1, 1, 5, 2009),
        (2, 70, 9, 1, 5, 2009), (2, 50, 3, 2, 6, 2010), (2, 80, 1, 1, 5, 2009),
        (3, 50, 1, 1, 1, 2009), (4, 60, 1, 1, 1, 2009),
    ]  # fmt: skip
    rows += [(5, 60, tag, 1, 1, 2009) for tag in range(6)]
    rows += [(6, item, 1, 1, 1 + item // 10, 2008) for item in (90, 60, 50, 80, 70)]
    return rows + [(7, item, 1, 1, item - 99, 2008) for item in range(100, 105)]


@pytest.mark.parametrize("whole_folder", [True, False])
def test_prepare_keeps_pairs_dates_and_order_of_lastfm(tmp_path, capsys, whole_folder):
    header = "userID\tartistID\ttagID\tday\tmonth\tyear"
    lines = [header, *("\t".join(map(str, row)) for row in tag_rows())]
    file = tmp_path / "user_taggedartists.dat"
    file.write_text("\n".join(lines) + "\n")
    source = tmp_path if whole_folder else file
    for name in ("lastfm-2k", "lastfm-2k-raw"):
        assert main(["prepare", name, str(source), f"--output={tmp_path}/out"]) == 0
    assert "14 interactions of 3 users with 10 items" in capsys.readouterr().out
    pairs = pd.read_csv(tmp_path / "out/lastfm-2k/lastfm-2k.inter", sep="\t")
    assert list(pairs) == ["user_id:token", "item_id:token", "timestamp:float"]
    assert pairs["item_id:token"].tolist() == [
        *(50, 60, 70, 80),
        *(90, 60, 50, 80, 70),
        *range(100, 105),
    ]
    dates = pd.to_datetime(pairs["timestamp:float"], unit="s").dt.strftime("%Y-%m-%d")
    assert dates[:4].tolist() == ["2009-03-01", *["2009-05-01"] * 3]
    raw = pd.read_csv(tmp_path / "out/lastfm-2k-raw/lastfm-2k-raw.inter", sep="\t")
    assert len(raw) == 16
    config = Config("MF", "lastfm-2k", config_dict={
        "data_path": str(tmp_path / "out"), "topk": [1], "valid_metric": "Hit@1",
        "eval_candidates": "recbole", "client_fraction": 1.0,
    })  # fmt: skip
    _, valid, test = prepare_data(config)
    held_out = {}
    for phase, part in (("valid", valid), ("test", test)):
        feat = part._dataset.inter_feat
        users = part._dataset.id2token("user_id", feat["user_id"].numpy())
        items = part._dataset.id2token("item_id", feat["item_id"].numpy())
        held_out[phase] = dict(zip(users, items, strict=True))
    # Of user 2's tied latest artists, 60, 70, 80, the first of the file is the last.
    assert held_out["test"] == {"2": "60", "6": "90", "7": "104"}
    assert held_out["valid"] == {"2": "70", "6": "80", "7": "103"}


@pytest.mark.parametrize("tied_times", ["last", "first"])
def test_parts_that_come_split_stay_so(tmp_path, tied_times):
    """Neither rule moves a row from one file's part to another's."""
    folder = tmp_path / "split"
    folder.mkdir()
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    items = {"train": range(8), "valid": [8], "test": [9]}
    for part, own in items.items():
        rows = [f"u{u}\ti{item}\t{item}\n" for u in range(4) for item in own]
        text = (
            header
            + "".join(rows)
            + "".join(f"x\ti{item}\t1\n" for item in range(10, 14) if part == "train")
        )
        (folder / f"split.{part}.inter").write_text(text)
    config = Config("MF", "split", config_dict={
        "data_path": str(tmp_path), "benchmark_filename": list(items),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "tied_times": tied_times, "client_fraction": 1.0, "topk": [1],
        "valid_metric": "Hit@1",
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
    })  # fmt: skip
    _, valid, test = prepare_data(config)
    for part, held_out in ((valid, "i8"), (test, "i9")):
        items_of = part._dataset.inter_feat["item_id"].numpy()
        assert set(part._dataset.id2token("item_id", items_of)) == {held_out}


def test_prepare_reads_ml_1m(tmp_path, capsys):
    (tmp_path / "ratings.dat").write_text(
        "1::1193::5::978300760\n1::661::3::978302109\n"
    )
    assert main(["prepare", "ml-1m", str(tmp_path), f"--output={tmp_path}"]) == 0
    assert (tmp_path / "ml-1m/ml-1m.inter").read_text().split("\n")[:2] == [
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        "1\t1193\t5.0\t978300760.0",
    ]


@pytest.mark.parametrize(
    ("dataset", "content", "said"),
    [
        ("ml-20m", "", "dataset='ml-20m' must be one of lastfm-2k"),
        ("ml-1m", None, "download ratings.dat from https://grouplens.org"),
        ("ml-1m", "user,item\n1,2\n", "is not the ratings.dat of"),
        ("lastfm-2k", "1::2::3::4\n", "is not the user_taggedartists.dat of"),
        ("lastfm-2k", "userID\tartistID\ttagID\tday\tmonth\tyear\n", "no interactions"),
    ],
)
def test_prepare_says_what_it_needs(tmp_path, capsys, dataset, content, said):
    file = tmp_path / "file.dat"
    if content is not None:
        file.write_text(content)
    command = ["prepare", dataset, str(file), f"--output={tmp_path}/out"]
    assert main(command) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@needs_shared
@pytest.mark.slow
def test_prepare_yields_the_papers_lastfm(tmp_path):
    data = shared_data()
    raw = data / "hetrec2011-lastfm-2k"
    if not raw.is_dir():
        pytest.skip("the published file is not there")
    prepare("lastfm-2k", raw, tmp_path)
    made = (tmp_path / "lastfm-2k" / "lastfm-2k.inter").read_bytes()
    assert made == (data / "lastfm-2k" / "lastfm-2k.inter").read_bytes()


@pytest.mark.parametrize(
    ("n_rounds", "hit"),  # chance: 0.1
    [(10, 0.2), long(60, 0.3)],
)
def test_fedras_learns_ml_100k_at_the_papers_cost(tmp_path, monkeypatch, n_rounds, hit):
    monkeypatch.chdir(tmp_path)
    keys = {"epochs": n_rounds, "show_progress": False}
    result = run_recbole_fedras("MF", "ml-100k", config_dict=keys)
    assert result["test_result"]["hit@10"] > hit
    cost = result["communication"]
    # C_e = floor(1682 * 0.0625) = 105 groups up, 84 to 126 down, 32 floats each.
    assert cost["parts"]["uplink"]["items"] <= n_rounds * 94 * 105 * 32 * 4
    assert cost["parts"]["downlink"]["items"] <= (n_rounds - 1) * 94 * 126 * 32 * 4
    assert cost["parts"]["downlink"]["items"] >= (n_rounds - 1) * 94 * 84 * 32 * 4
    assert cost["dense_bytes"] == n_rounds * 94 * 2 * 1682 * 32 * 4
    # Each participation has a downlink, an update and a receipt.
    assert cost["messages"] == {"uplink": n_rounds * 94, "downlink": 2 * n_rounds * 94}
    assert 0.92 < cost["wire_compression_rate"] < cost["nominal_compression_rate"]


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [("ml-1m", (6040, 3706, 1000209)), ("lastfm-2k", (1482, 12399, 70390))],
)
def test_other_datasets_run_as_they_are(name, sizes, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = [
        f"--dataset={name}",
        f"--data_path={shared_data()}",
        "--epochs=2",
        "--client_fraction=0.02",
        "--show_progress=False",
    ]
    config = Config(argv=arguments)
    parts = [part._dataset for part in prepare_data(config)]
    users, items, interactions = sizes
    assert (parts[0].user_num - 1, parts[0].item_num - 1) == (users, items)
    assert sum(len(part) for part in parts) == interactions
    assert main(arguments) == 0
    assert "test hit@10" in capsys.readouterr().out


def test_the_compressor_of_the_readme_works(workspace, capsys, monkeypatch):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for language, name in (("python", "halves.py"), ("yaml", "halves.yaml")):
        (block,) = re.findall(rf"```{language}\n(# {name}\n.*?)```", readme, re.DOTALL)
        (workspace / name).write_text(block, encoding="utf-8")
    arguments = ["--config_files=halves.yaml", "--dataset=tiny", "--epochs=2",
                 "--show_progress=False", "--embedding_size=8",
                 "--compression_rate=0.5", "--client_fraction=0.2",
                 "--eval_args={'split': {'LS': 'test_only'}, 'order': 'TO',"
                 " 'mode': 'full'}"]  # fmt: skip
    assert main(arguments) == 0
    assert "MF + Halves on tiny" in capsys.readouterr().out
    monkeypatch.syspath_prepend(str(workspace))
    check_compressor(importlib.import_module("halves").Halves)
    assert main(["rate-distortion", *arguments, "--rounds=2", "--rates=0.5"]) == 0
    assert re.search(r"50.* \| Halves ", capsys.readouterr().out)
