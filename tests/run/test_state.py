"""State: nothing is taken up by its name, and resumed runs are what they say."""

from __future__ import annotations

import json
import logging
import pickle
import zipfile
from pathlib import Path

import pytest
from conftest import TINY, write_dataset
from recbole.data.dataset import Dataset

from recbole_fedras.__main__ import main
from recbole_fedras.config import Config
from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.errors import ConfigError, DataError
from recbole_fedras.quick_start import run_recbole_fedras
from recbole_fedras.run.setup import prepare_data


def interactions(argv):
    """Count the rows of all parts."""
    loaders = prepare_data(Config(argv=argv))
    return sum(len(loader._dataset.inter_feat) for loader in loaders)


def test_a_data_path_is_used_for_ml_100k_too(workspace, tiny_rows):
    own = [*TINY[1:], "--dataset=ml-100k"]
    write_dataset(workspace / "dataset", "ml-100k", tiny_rows)
    assert interactions(own) == len(tiny_rows)
    (workspace / "elsewhere").mkdir()
    shipped = Config(argv=[*own, "--data_path=elsewhere"]).run_settings().data_path
    assert Path(shipped, "ml-100k.inter").is_file()
    with pytest.raises(DataError, match="there is no folder 'nowhere/ml-100k'"):
        interactions([*own, "--data_path=nowhere"])


def test_files_are_read_and_never_what_was_saved_under_the_name(workspace, tiny_rows):
    Path("saved").mkdir()
    with Path("saved/tiny-FederatedDataset.pth").open("wb") as file:
        pickle.dump("no dataset", file)
    Path("saved/tiny-for-MF-dataloader.pth").write_text("rubbish")
    assert interactions(TINY) == len(tiny_rows)
    write_dataset(workspace / "dataset", "tiny", tiny_rows[:-1])
    assert interactions(TINY) == len(tiny_rows) - 1


@pytest.fixture
def served(workspace, tiny_rows, monkeypatch):
    """Return the address of an archive of ``tiny``: for RecBole, of every name."""
    archive = workspace / "archive.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write("dataset/tiny/tiny.inter", "archive.inter")
    url = archive.as_uri()
    monkeypatch.setattr(Dataset, "_get_download_url", lambda *of, **how: url)
    return url


def test_the_first_command_that_names_a_dataset_downloads_it(
    served, workspace, tiny_rows, caplog
):
    caplog.set_level(logging.INFO)
    known = [*TINY[1:], "--dataset=known", "--data_path=new"]
    assert interactions(known) == len(tiny_rows)
    assert f"Read from new/known, downloaded from {served}" in caplog.text
    (workspace / "archive.zip").unlink()
    assert interactions(known) == len(tiny_rows)


def test_a_download_that_fails_leaves_nothing(served, workspace, capsys):
    (workspace / "archive.zip").write_bytes(b"no archive")
    known = [*TINY[1:], "--dataset=known", "--data_path=new"]
    assert main(known) == 2
    assert f"'known' could not be downloaded from {served}" in capsys.readouterr().err
    assert not list((workspace / "new").iterdir())


def test_dislikes_are_no_positives(workspace, tiny_rows):
    rows = [(*row, place % 2) for place, row in enumerate(tiny_rows)]
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\tlabel:float"
    write_dataset(workspace / "dataset", "liked", rows, header)
    columns = ["user_id", "item_id", "timestamp", "label"]
    own = [*TINY[1:], "--dataset=liked", f"--load_col={{'inter': {columns}}}"]
    with pytest.raises(DataError, match="'label' is loaded, which LABEL_FIELD names"):
        interactions(own)
    assert interactions([*own, "--val_interval={'label': '[1,1]'}"]) == len(rows) // 2


def outcome(result):
    """Return what a run computed."""
    kept = ("rounds", "best_valid_score", "test_result", "communication")
    return {key: result[key] for key in kept}


def last_of(result):
    return str(Path(result["run_folder"]) / "last.pth")


def test_a_run_that_stopped_early_or_was_complete_stays_as_it_is(run):
    stopping = {"eval_step": 1, "stopping_step": 0, "init_std": 0.3}
    for keys in ({"epochs": 100} | stopping, {"epochs": 4}):
        first = run(**keys)
        assert first["rounds"] < 100
        again = run_recbole_fedras(config_dict={"resume": last_of(first)})
        twice = run_recbole_fedras(config_dict={"resume": last_of(again)})
        assert outcome(first) == outcome(again) == outcome(twice)
        written = json.loads((Path(again["run_folder"]) / "result.json").read_text())
        assert written["resumed_from"] == last_of(first)
    stopped = last_of(run(epochs=100, **stopping))
    more = {"resume": stopped, "stopping_step": 3, "epochs": 30}
    assert run_recbole_fedras(config_dict=more)["rounds"] > 2


def test_a_resumed_run_takes_a_folder_and_the_same_data_only(run, workspace, tiny_rows):
    first = run()
    folder = first["run_folder"]
    (workspace / "moved").mkdir()
    (workspace / "dataset" / "tiny").rename(workspace / "moved" / "tiny")
    more = {"resume": folder, "epochs": 6, "data_path": "moved"}
    assert run_recbole_fedras(config_dict=more)["rounds"] == 6
    swapped = [(row[0], f"i{59 - int(row[1][1:])}", *row[2:]) for row in tiny_rows]
    write_dataset(workspace / "dataset", "tiny", swapped)
    with pytest.raises(DataError, match="is of a run on other data: what is in data"):
        run_recbole_fedras(config_dict={"resume": folder, "epochs": 6})
    assert read_checkpoint(last_of(first))["data_digest"]
    with pytest.raises(DataError, match=r"dataset/last.pth': there is no such file"):
        run_recbole_fedras(config_dict={"resume": "dataset"})


BIASED = """
from recbole_fedras.model import MF

class Biased(MF):
    pass
"""


@pytest.mark.parametrize("named", [[], ["--model=Mine"]])
def test_a_model_of_ones_own_is_named_by_its_class_or_as_one_says(
    workspace, capsys, named
):
    Path("biased.py").write_text(BIASED)
    assert main([*TINY, *named, "--model_class=biased.Biased"]) == 0
    name = "Mine" if named else "Biased"
    (file,) = Path("saved").glob(f"{name}-FedRAS-tiny-*/result.json")
    assert json.loads(file.read_text())["model"] == name
    again = Config(config_file_list=[str(file.with_name("config.yaml"))])
    assert again.model_class.__name__ == "Biased"


def test_a_name_of_ours_for_another_class_is_refused(workspace):
    Path("biased.py").write_text(BIASED)
    with pytest.raises(ConfigError, match="model='MF' names a class of ours, but"):
        Config("MF", config_dict={"model_class": "biased.Biased"}, argv=TINY)


@pytest.mark.parametrize(
    ("keys", "owner"),
    [
        (["--dropout_prob=0.5"], "model=FedNeuMF"),
        (["--mlp_hidden_size=[64, 32]"], "model=NCF"),
        (["--topk_scope=global"], "compressor=TopK"),
        (["--compressor=SVD", "--alpha=0.3"], "compressor=FedRAS"),
        (["--item_rank=2"], "item_embedding=lora"),
    ],
)
def test_keys_of_other_methods_are_refused_with_whose_they_are(
    workspace, capsys, keys, owner
):
    assert main([*TINY, *keys]) == 2
    error = capsys.readouterr().err
    assert f"{keys[-1][2:].partition('=')[0]}=" in error
    assert owner in error
    assert not Path("saved").exists()


def test_files_with_blanks_in_their_names(workspace):
    Path("with blank").mkdir()
    Path("with blank/c.yaml").write_text("epochs: 2\n")
    Path("d.yaml").write_text("eval_step: 2\n")
    rest = [argument for argument in TINY if "epochs" not in argument]
    for files in ("with blank/c.yaml", "'with blank/c.yaml' d.yaml"):
        assert main([*rest, f"--config_files={files}"]) == 0
    for file in Path("saved").glob("*/result.json"):
        assert json.loads(file.read_text())["rounds"] == 2
