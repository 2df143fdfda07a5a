"""A finished run is taken up again, and recommends what its users have not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_fedras import load_run
from recbole_fedras.__main__ import main
from recbole_fedras.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("MF", {"compressor": "none"}),
        ("NCF", {"replica": "personal"}),
        ("MF", {"item_embedding": "lora", "item_rank": 2, "item_base": "warmup",
                "warmup_rounds": 1}),
    ],
)  # fmt: skip
def test_the_best_unseen_items_come_first(run, model, keys):
    folder = run(model, **keys)["run_folder"]
    finished = load_run(folder)
    dataset, network = finished.dataset, finished.model
    best = finished.recommend(["u3", "u1"], k=7)
    assert best["user"].tolist() == ["u3"] * 7 + ["u1"] * 7
    for user, rows in best.groupby("user"):
        assert rows["score"].is_monotonic_decreasing
        number = dataset.token2id(dataset.uid_field, user)
        with torch.no_grad():
            batch = {network.USER_ID: torch.tensor([number])}
            scores = network.full_sort_predict(batch).numpy()
        seen = finished.seen[number].indices
        unseen = np.setdiff1d(np.arange(1, dataset.item_num), seen)
        order = unseen[np.argsort(-scores[unseen], kind="stable")][:7]
        assert rows["item"].tolist() == list(dataset.id2token(dataset.iid_field, order))
        np.testing.assert_allclose(rows["score"], scores[order], rtol=1e-5)


def test_all_unseen_items_and_no_more(run):
    finished = load_run(run()["run_folder"])
    n_seen = finished.seen[1].nnz
    user = finished.dataset.id2token(finished.dataset.uid_field, 1)
    best = finished.recommend([user, user], k=1000)
    assert len(best) == 2 * (finished.dataset.item_num - 1 - n_seen)


def test_what_filters_leave_out_has_been_seen(run, tiny_rows):
    keys = {
        "val_interval": {"rating": "[3,5]"},
        "user_inter_num_interval": "[3,inf)",
        "load_col": {"inter": ["user_id", "item_id", "rating", "timestamp"]},
    }
    finished = load_run(run(**keys)["run_folder"])
    left = finished.dataset.field2token_id
    seen = {(user, item) for user, item, *_ in tiny_rows if item in left["item_id"]}
    for user in list(left["user_id"])[1:]:
        best = finished.recommend([user], k=1000)
        assert not seen.intersection(zip(best["user"], best["item"], strict=True))
        n_seen = len({item for other, item in seen if other == user})
        assert len(best) == finished.dataset.item_num - 1 - n_seen


def test_it_goes_on_as_the_run_would(run):
    """The last round's state, so that a further round is the next of the run."""
    whole, part = run(epochs=4), run(epochs=2)
    finished = load_run(Path(part["run_folder"]) / "best.pth")
    rounds = finished.simulation.round
    while finished.simulation.round < whole["rounds"]:
        with torch.no_grad():
            finished.simulation.run_round()
    assert rounds <= 2
    total = finished.simulation.ledger.totals["uplink_bytes"]
    assert total == whole["communication"]["uplink_bytes"]


def test_what_cannot_be_recommended_is_named(run, tmp_path):
    folder = Path(run()["run_folder"])
    finished = load_run(folder)
    with pytest.raises(DataError, match="user 'nobody' is not in dataset='tiny'"):
        finished.recommend(["nobody"])
    with pytest.raises(DataError, match=r"user '\[PAD\]' is not in"):
        finished.recommend(["[PAD]"])
    with pytest.raises(ConfigError, match="k=0 is not allowed"):
        finished.recommend(["u1"], k=0)
    with pytest.raises(ConfigError, match="users='u1' is not allowed; it must be a l"):
        finished.recommend("u1")
    with pytest.raises(DataError, match="there is no such file"):
        load_run(tmp_path / "nothing")


def test_the_command_line_prints_and_writes(run, tmp_path, capsys):
    folder = run()["run_folder"]
    capsys.readouterr()
    output = tmp_path / "best.csv"
    arguments = ["recommend", folder, "--users", "u1", "u2", "-k", "3"]
    assert main([*arguments, f"--output={output}"]) == 0
    printed = capsys.readouterr().out
    best = load_run(folder).recommend(["u1", "u2"], 3)
    assert all(item in printed for item in best["item"])
    assert output.read_text(encoding="utf-8") == best.to_csv(index=False)
