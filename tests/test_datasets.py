"""Real data: MovieLens-100K from RecBole's wheel, others where they are at hand."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import recbole
from conftest import shared_data

from recbole_fedras.__main__ import main
from recbole_fedras.config import Config
from recbole_fedras.quick_start import prepare_data, run_recbole_fedras

ROOT = Path(__file__).parents[1]
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


def test_fedras_learns_ml_100k_at_the_papers_cost(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keys = {"epochs": 60, "show_progress": False}
    result = run_recbole_fedras("MF", "ml-100k", config_dict=keys)
    assert result["test_result"]["hit@10"] > 0.3  # chance: 0.1
    cost = result["communication"]
    # C_e = floor(1682 * 0.0625) = 105 groups up, 84 to 126 down, 32 floats each.
    assert cost["parts"]["uplink"]["items"] <= 60 * 94 * 105 * 32 * 4
    assert cost["parts"]["downlink"]["items"] <= 59 * 94 * 126 * 32 * 4
    assert cost["parts"]["downlink"]["items"] >= 59 * 94 * 84 * 32 * 4
    assert cost["dense_bytes"] == 60 * 94 * 2 * 1682 * 32 * 4
    assert cost["messages"] == {"uplink": 60 * 94, "downlink": 60 * 94}
    assert 0.92 < cost["wire_compression_rate"] < cost["nominal_compression_rate"]


@needs_shared
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


def test_the_compressor_of_the_readme_works(workspace, capsys):
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
