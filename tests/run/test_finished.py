"""A finished run is taken up again, and recommends what its users have not seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import slow
from recbole.utils.case_study import full_sort_topk

from recbole_fedras import load_run
from recbole_fedras.__main__ import main
from recbole_fedras.errors import ConfigError, DataError
from recbole_fedras.numeric.theta import unflatten
from recbole_fedras.quick_start import load_data_and_model
from recbole_fedras.run.item_vectors import write_item_vectors


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


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("MF", {"compressor": "none"}),
        ("MF", {"replica": "personal", "user_optimizer": "adam"}),
        slow("MF", {"bandwidth": [0.5, 0.75], "bandwidth_tiers": 2}),
        slow("MF", {"item_embedding": "hash", "item_base": "warmup", "use_base": True,
                    "warmup_rounds": 1}),
        slow("MF", {"upload": "gradient", "local_epochs": 1,
                    "server_optimizer": "adam", "server_learning_rate": 0.01}),
        ("NCF", {"replica": "stale", "local_objective": "sam"}),
        ("GMF", {"item_embedding": "lora", "item_rank": 2}),
        ("LightFR", {"embedding_size": 16}),
        slow("FedBPR", {}),
        ("FedNeuMF", {"embedding_size": 8, "mf_embedding_size": 4,
                      "mlp_embedding_size": 4, "mlp_hidden_size": [4]}),
    ],
)  # fmt: skip
def test_somebody_new_is_known_by_their_items(run, model, keys):
    finished = load_run(run(model, **keys)["run_folder"])
    before = finished.simulation.shard.state_dict()
    before = {"rows": before["user_rows"].clone(), "all": finished.recommend(["u1"])}
    history = ["i3", "i7", "i11"]
    best = finished.recommend([history, "u1", ("i40",)], k=1000)
    n_items = finished.dataset.item_num - 1
    new = best[best["user"] == "new 1"]
    assert sorted([*new["item"], *history]) == sorted(
        finished.dataset.id2token(finished.dataset.iid_field, range(1, n_items + 1))
    )
    assert new["score"].is_monotonic_decreasing
    assert new["score"].nunique() > 1
    assert best["user"].unique().tolist() == ["new 1", "u1", "new 2"]
    # Neither others nor repetition, order or doubles change anything.
    again = finished.recommend([[*history[::-1], "i3"]], k=1000)
    pd.testing.assert_frame_equal(again, new)
    # And nothing stays behind.
    after = finished.simulation.shard.state_dict()
    torch.testing.assert_close(after["user_rows"], before["rows"], rtol=0, atol=0)
    pd.testing.assert_frame_equal(finished.recommend(["u1"]), before["all"])


@pytest.mark.slow
def test_similar_users_are_recommended_similar_items(run):
    """Users of the two groups of ``tiny`` like items below and from i30 only."""
    keys = {"client_fraction": 1.0, "init_std": 0.1, "epochs": 60, "eval_step": 60}
    finished = load_run(run(compressor="none", **keys)["run_folder"])
    low, high = [[f"i{n}" for n in range(start, start + 6)] for start in (0, 30)]
    best = finished.recommend([low, high], k=10)
    number = best["item"].str[1:].astype(int)
    assert (number[:10] < 30).mean() > 0.8
    assert (number[10:] >= 30).mean() > 0.8


def test_a_new_users_items_are_checked(run):
    finished = load_run(run()["run_folder"])
    with pytest.raises(DataError, match="item 'nothing' is not in dataset='tiny'"):
        finished.recommend([["i1", "nothing"]])
    with pytest.raises(DataError, match="a new user has 0 items; it must be from 1"):
        finished.recommend([[]])
    everything = finished.dataset.field2id_token["item_id"][1:]
    with pytest.raises(DataError, match="a new user has 60 items; it must be from 1 t"):
        finished.recommend([everything])


def test_the_command_line_takes_items(run, capsys):
    folder = run()["run_folder"]
    capsys.readouterr()
    assert main(["recommend", folder, "--items=i1 'i2' i3", "--items", "i4"]) == 0
    printed = capsys.readouterr().out
    best = load_run(folder).recommend([["i1", "i2", "i3"], ["i4"]])
    assert all(item in printed for item in best["item"])
    assert "new 2" in printed
    assert main(["recommend", folder]) == 2
    assert "--users or --items" in capsys.readouterr().err
    assert main(["recommend", folder, "--items='i1 i2"]) == 2
    assert "No closing quotation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "keys"),
    [
        ("MF", {"compressor": "none"}),
        ("MF", {"replica": "personal"}),
        ("MF", {"item_embedding": "lora", "item_rank": 2}),
        ("NCF", {}),
    ],
)
def test_item_vectors_are_what_is_scored_with(run, model, keys, tmp_path):
    finished = load_run(run(model, **keys)["run_folder"])
    vectors = finished.item_vectors(tmp_path / "items.npz")
    assert vectors.index.tolist() == list(
        finished.dataset.field2id_token["item_id"][1:]
    )
    written = np.load(tmp_path / "items.npz")
    assert written["tokens"].tolist() == vectors.index.tolist()
    np.testing.assert_array_equal(written["vectors"], vectors.to_numpy())
    given = finished.simulation.newcomers(finished.simulation.shard.user_rows[:1])
    with finished._looking_at(given.user_rows), torch.no_grad():
        scores = finished.model.full_sort_predict({"user_id": torch.tensor([1])})[1:]
    items = torch.from_numpy(vectors.to_numpy())
    theta = unflatten(given.theta[None], finished.model.theta())
    expected = finished.model.score_all(given.user_rows, items, theta)[0]
    torch.testing.assert_close(scores, expected)


def test_the_command_line_writes_vectors(run, tmp_path, capsys):
    folder = run()["run_folder"]
    path = tmp_path / "items.txt"
    assert main(["vectors", folder, f"--output={path}"]) == 0
    assert f"60 items, 8 values each, are in {path}" in capsys.readouterr().out
    header, *lines = path.read_text(encoding="utf-8").splitlines()
    assert header == "60 8"
    vectors = load_run(folder).item_vectors()
    for line, (token, vector) in zip(lines, vectors.iterrows(), strict=True):
        first, *values = line.split(" ")
        assert first == token
        np.testing.assert_array_equal(np.array(values, np.float32), vector)
    assert main(["vectors", folder, "--output=items.bin"]) == 2
    assert "it must end in .npz or .txt" in capsys.readouterr().err
    assert main(["vectors", folder, "--output=nowhere/items.txt"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_words_have_no_blanks(tmp_path):
    with pytest.raises(DataError, match=r"item 'a b' has a blank.*write \.npz"):
        write_item_vectors(tmp_path / "v.txt", ["a b"], np.ones((1, 2), np.float32))


@pytest.mark.parametrize("keys", [{}, {"eval_args": {"mode": "full"}}])
def test_recboles_case_study_works(run, keys):
    """It leaves out what was trained and validated on; the test's items are in."""
    folder = run(replica="personal", **keys)["run_folder"]
    _, model, dataset, train, _, test = load_data_and_model(Path(folder) / "best.pth")
    users = dataset.token2id(dataset.uid_field, ["u5", "u2"])
    scores, items = full_sort_topk(users, model, test, k=59)
    assert len(dataset.inter_feat) > len(train._dataset.inter_feat)
    best = load_run(folder).recommend(["u5", "u2"], k=59)
    for user, row, row_scores in zip(["u5", "u2"], items, scores, strict=True):
        names = dataset.id2token(dataset.iid_field, row[row_scores.isfinite()])
        ours = best[best["user"] == user]
        test_item = set(names) - set(ours["item"])
        assert len(test_item) == 1
        assert [name for name in names if name not in test_item] == list(ours["item"])
