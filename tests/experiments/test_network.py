"""Networks' runs: an exhibit like any other, with keys of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from recbole_fedras.beyond import datasets
from recbole_fedras.errors import ConfigError
from recbole_fedras.experiments.exhibits import read_exhibit
from recbole_fedras.experiments.network import NetworkResolver, train_network
from recbole_fedras.experiments.reproduce import reproduce
from recbole_fedras.experiments.sweep import Sweep

CELL = {"dataset": "digits", "model": "MLP", "compressor": "none", "seed": 1}


def sweep() -> Sweep:
    return Sweep(Path("out"), 1, resolver=NetworkResolver())


def test_the_exhibit_runs_like_any_other(tmp_path, monkeypatch, in_process):
    monkeypatch.chdir(tmp_path)
    others = ["KLT", "FedRAS", "SVD", "EDEN"]
    exhibit = read_exhibit(
        "beyond", ["digits"], ["MLP"], 2, others, {"learning_rate": 0.3}
    )
    assert len(exhibit.seeds) == 5
    for n_runs in (2 * 2, 0):  # a second time all are found
        rows = reproduce(exhibit, [1, 2], {}, sweep())
        assert len(in_process) == n_runs
        in_process.clear()
    none, top = rows
    assert 0.1 < none["ours low"] < none["ours"] < none["ours high"]
    assert (none["p"], top["p"] <= top["p adjusted"]) == ("", True)
    assert none["CR wire"] < 0.2  # clients without examples of a feature send no row
    assert 0.9375 <= top["CR wire"] < 0.94
    assert Path("out/figure.png").is_file()


def test_a_run_is_the_same_again_and_found_by_its_compressors_keys(tmp_path):
    first = train_network(CELL | {"epochs": 2, "n_jobs": 1, "checkpoint_dir": "here"})
    assert first == train_network(CELL | {"epochs": 2})
    assert first["result"]["test_result"]["hit@1"] == pytest.approx(
        sum(rank == 1 for rank in first["ranks"]) / len(first["ranks"])
    )
    resolver = NetworkResolver()

    def name(**keys: object) -> str:
        return resolver.identity(CELL | keys, train_network).name

    top = {"compressor": "TopK"}
    assert name(**top) == name(**top, topk_scope="row")
    assert name(**top) != name(**top, topk_scope="global")
    assert name(compression_rate=0.9375, data_path="here") == name()


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"init_std": 0.1}, "init_std=0.1 is no key of a network's run"),
        ({"epochs": 0}, "epochs=0"),
        ({"compressor": "SDV"}, "did you mean 'SVD'"),
        ({"dataset": "ml-100k"}, "dataset='ml-100k' must be one of digits, mnist"),
        ({"dataset": "watch"}, r"not installed .*pip install .*beyond"),
        ({"model": "MF"}, "model='MF' must be one of MLP, CNN"),
    ],
)
def test_what_cannot_be_is_refused_before_any_run(
    tmp_path, monkeypatch, in_process, keys, said
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(datasets._MODULES, "watch", "no_such_package")
    with pytest.raises(ConfigError, match=said):
        sweep().run([CELL, CELL | keys], measure=train_network)
    assert not in_process
