"""What items are made of before training: warm-up, features, and codes of either."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import COMMON, rounds_of, slow

from recbole_fedras.config import Config, registry
from recbole_fedras.config.checkpoint import read_checkpoint
from recbole_fedras.data.features import item_features, principal_components
from recbole_fedras.embedding.quantizer import residual_kmeans, rq_vae
from recbole_fedras.federation.simulation import Simulation
from recbole_fedras.quick_start import run_recbole_fedras
from recbole_fedras.run.setup import prepare_data
from recbole_fedras.run.trainer import FederatedTrainer

NAMES = list(registry.names("item_embedding"))
WARM = {"use_base": True, "item_base": "warmup", "warmup_rounds": 2, "eval_step": 1}
WARM |= {"hash_rows": 16, "rq_codes": 8, "client_fraction": 1.0}


def state_of(result, name="last"):
    return read_checkpoint(Path(result["run_folder"]) / f"{name}.pth")["state_dict"]


@pytest.mark.parametrize("compressor", ["FedRAS", slow("none")])
def test_a_warm_up_is_full_training_and_then_the_base(run, compressor):
    full = run(compressor=compressor, epochs=2, client_fraction=1.0)
    path = Path(full["run_folder"]) / "last.pth"
    exact = read_checkpoint(path)["simulation"]["server"]["parameters"]["item_table"]
    for name in NAMES:
        warmed = run(epochs=4, item_embedding=name, compressor=compressor, **WARM)
        before, after = rounds_of(full), rounds_of(warmed)
        for old, new in zip(before, after, strict=False):
            for key in ("loss", "uplink_bytes", "downlink_bytes"):
                assert old[key] == new[key], name
        assert torch.equal(state_of(warmed)["embedding.base"], exact), name
        # E0 reaches every client once, and so do codes.
        sizes = [int(row["downlink_once_bytes"]) for row in after]
        codes = 60 * 4 * 3 // 8 if name == "rq" else 0
        assert sizes == [0, 0, 40 * (4 * 60 * 8 + codes), 0], name
        assert warmed["rounds"] == 4
        total = sum(int(row["downlink_bytes"]) for row in after)
        assert warmed["communication"]["downlink_bytes"] == total, name


@pytest.mark.parametrize("replica", ["broadcast", "stale", "personal"])
def test_who_takes_part_later_is_sent_it_later(run, replica):
    keys = WARM | {"item_embedding": "hash", "client_fraction": 0.5}
    result = run("NCF", epochs=8, replica=replica, **keys)
    sizes = [int(row["downlink_once_bytes"]) for row in rounds_of(result)]
    new = [size // (4 * 60 * 8) for size in sizes]
    assert new[:3] == [0, 0, 20]
    assert 20 < sum(new) <= 40
    assert new[3] < 20
    assert [size % (4 * 60 * 8) for size in sizes] == [0] * 8


@pytest.mark.parametrize(
    ("name", "use_base"),  # without a base nothing remains of a warm-up but rq's codes
    [
        ("full", True),
        ("rq", False),
        *(slow(name, True) for name in NAMES[1:]),
    ],
)
def test_a_resumed_run_ends_like_the_whole(run, name, use_base):
    keys = WARM | {"item_embedding": name, "warmup_rounds": 3, "use_base": use_base}
    keys |= {"user_optimizer": "adam"}
    keys |= {"client_fraction": 0.25, "compressor": "EDEN"}
    whole = run("NCF", epochs=6, **keys)
    assert "embedding.members" in state_of(whole, "best")
    short = run("NCF", epochs=4, **keys)
    last = str(Path(short["run_folder"]) / "last.pth")
    resumed = run("NCF", epochs=6, resume=last, eval_step=1)
    for key, value in state_of(whole).items():
        assert torch.equal(value, state_of(resumed)[key])
    assert resumed["test_result"] == whole["test_result"]
    assert resumed["communication"] == whole["communication"]


@pytest.mark.parametrize("name", ["rq", slow("full")])
def test_a_run_stopped_in_its_warm_up_goes_on(run, name, monkeypatch):
    keys = WARM | {"item_embedding": name, "warmup_rounds": 3}
    whole = run(epochs=5, **keys)
    real = Simulation.run_round
    for stopped_in in (1, 2):  # in the warm-up, and in its last round

        def stop(own, stopped_in=stopped_in):
            if own.round == stopped_in:
                signal.raise_signal(signal.SIGINT)
            return real(own)

        monkeypatch.setattr(Simulation, "run_round", stop)
        with pytest.raises(KeyboardInterrupt):
            run(epochs=5, **keys)
        monkeypatch.setattr(Simulation, "run_round", real)
        last = max(Path("saved").glob("*/last.pth"), key=lambda p: p.stat().st_mtime)
        assert "embedding.base" not in read_checkpoint(last)["state_dict"]
        resumed = run(epochs=5, resume=str(last), eval_step=1, client_fraction=1.0)
        assert resumed["test_result"] == whole["test_result"]
        assert resumed["communication"] == whole["communication"]


def test_codes_need_no_base(run):
    """Without one the codebooks found are what everybody starts from."""
    keys = WARM | {"item_embedding": "rq", "use_base": False}
    result = run(epochs=3, **keys)
    once = int(rounds_of(result)[2]["downlink_once_bytes"])
    assert once == 40 * (60 * 4 * 3 // 8 + 4 * 4 * 8 * 8)
    assert "embedding.base" not in state_of(result)


@pytest.mark.parametrize("stopping_step", [0, 1])
def test_early_stopping_waits_for_the_end_of_the_warm_up(
    run, monkeypatch, stopping_step
):
    def worse_and_worse(own, valid_data, show_progress=False):
        return -own.simulation.round, {"ndcg@10": 0.0}

    monkeypatch.setattr(FederatedTrainer, "_valid_epoch", worse_and_worse)
    keys = WARM | {"item_embedding": "hash", "warmup_rounds": 5}
    keys["stopping_step"] = stopping_step
    result = run(epochs=20, **keys)
    assert result["rounds"] == 7 + stopping_step
    assert result["best_valid_score"] == -6  # of the first round with the embedding


def test_residual_kmeans_leaves_less_with_every_level():
    rows = np.random.default_rng(1).standard_normal((300, 6)).astype(np.float32)
    codes, books = residual_kmeans(rows, 3, 16, seed=1)
    again, _ = residual_kmeans(rows, 3, 16, seed=1)
    assert (codes == again).all()
    assert codes.max() < 16
    errors = [
        np.square(rows - sum(books[k][codes[:, k]] for k in range(level))).sum()
        for level in range(4)
    ]
    assert errors[1] < 0.7 * errors[0]
    assert errors[3] < 0.7 * errors[2] < 0.5 * errors[1]


@pytest.mark.slow
def test_an_rq_vae_tells_groups_of_items_apart_and_draws_for_itself():
    rng = np.random.default_rng(1)
    centres = 4 * rng.standard_normal((8, 20))
    group = rng.integers(0, 8, 400)
    rows = (centres[group] + 0.1 * rng.standard_normal((400, 20))).astype(np.float32)
    before = torch.get_rng_state()
    codes, again = (rq_vae(rows, 2, 16, 1, dim=4, n_epochs=60) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert codes.shape == (400, 2)
    assert 0 <= codes.min() <= codes.max() < 16
    assert (codes == again).all()
    together = codes[:, 0][:, None] == codes[:, 0]
    same = group[:, None] == group
    assert together[~same].mean() < 0.02
    assert together[same].mean() > 0.4
    assert len(np.unique(codes[:, 1])) > 3  # dead codes start again


def test_a_warm_up_that_nothing_is_evaluated_after_is_refused(run):
    with pytest.raises(ValueError, match="the round of the last evaluation, 2"):
        run(epochs=3, **(WARM | {"eval_step": 2}))


ITEM = "item_id:token\tyear:float\tgenre:token_seq\tkind:token"


@pytest.fixture
def with_items(workspace):
    folder = workspace / "dataset" / "tiny"
    genres = ("action war", "drama")
    lines = [
        f"i{item}\t{1950 + item}.0\t{genres[item % 2]}\tk{item % 3}"
        for item in range(60)
    ]
    (folder / "tiny.item").write_text("\n".join([ITEM, *lines]) + "\n")
    columns = {"inter": ["user_id", "item_id", "timestamp"]}
    columns["item"] = ["item_id", "year", "genre", "kind"]
    return {"load_col": columns, "item_base": "features", "use_base": True}


def test_features_are_indicators_and_standardised_numbers(with_items):
    config = Config("MF", "tiny", config_dict=with_items, argv=COMMON)
    train, _, _ = prepare_data(config)
    dataset = train._dataset
    features = item_features(dataset, ["genre", "year"])
    tokens = [int(token[1:]) for token in dataset.id2token("item_id", range(1, 61))]
    assert features.shape == (60, 3 + 1)
    odd = np.array(tokens) % 2 == 1
    assert (features[odd, :3].sum(1) == 1).all()
    assert (features[~odd, :3].sum(1) == 2).all()
    year = (np.array(tokens) - np.mean(tokens)) / np.std(tokens)
    np.testing.assert_allclose(features[:, 3], year, atol=1e-5)
    assert item_features(dataset, None).shape == (60, 1 + 3 + 3)
    reduced = principal_components(features, 8, 0.1)
    assert reduced.shape == (60, 8)
    assert abs(reduced.std() - 0.1) < 1e-6
    centred = features - features.mean(0)
    gram, own = centred @ centred.T, reduced @ reduced.T
    np.testing.assert_allclose(own / own.max(), gram / gram.max(), atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_features_are_a_base_that_is_sent_once(run, with_items, name):
    keys = with_items | {"item_embedding": name, "hash_rows": 16, "rq_codes": 8}
    result = run(epochs=3, rq_epochs=3, client_fraction=1.0, **keys)
    codes = 60 * 4 * 3 // 8 if name == "rq" else 0
    sizes = [int(row["downlink_once_bytes"]) for row in rounds_of(result)]
    assert sizes == [40 * (4 * 60 * 8 + codes), 0, 0]
    base = state_of(result)["embedding.base"]
    assert base.shape == (60, 8)
    assert abs(float(base.std()) - 0.01) < 1e-4


def preloaded(workspace, side, lines):
    """Write vectors of users or items as docs/item_embeddings.md has it; the keys."""
    path = workspace / "dataset" / "tiny" / "tiny.text"
    header = "text_id:token\ttext_vector:float_seq"
    path.write_text("\n".join([header, *lines]) + "\n")
    return {
        "additional_feat_suffix": ["text"],
        "load_col": {
            "inter": ["user_id", "item_id", "timestamp"],
            "text": ["text_id", "text_vector"],
        },
        f"alias_of_{side}_id": ["text_id"],
        "preload_weight": {"text_id": "text_vector"},
        "item_base": "features",
        "use_base": True,
    }


def test_vectors_that_recbole_preloads_are_features(run, workspace):
    rng = np.random.default_rng(1)
    vectors = rng.standard_normal((60, 12)).round(4)
    lines = [f"i{item}\t{' '.join(map(str, vectors[item]))}" for item in range(60)]
    keys = preloaded(workspace, "item", lines)
    config = Config("MF", "tiny", config_dict=keys, argv=COMMON)
    train, _, _ = prepare_data(config)
    features = item_features(train._dataset, ["text_id"])
    tokens = train._dataset.id2token("item_id", range(1, 61))
    expected = vectors[[int(token[1:]) for token in tokens]]
    np.testing.assert_allclose(features, expected, rtol=1e-5)
    assert 0 < run(epochs=2, **keys)["test_result"]["hit@10"] <= 1


def test_a_short_run_is_evaluated_at_its_end_and_may_warm_up(run):
    keys = WARM | {"epochs": 4, "eval_step": 10, "item_embedding": "lora"}
    assert run(**keys)["rounds"] == 4


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"item_base": "text"}, "item_base='text' is not allowed"),
        ({"item_base": "warmup"}, "random without use_base"),
        (WARM | {"warmup_rounds": 3}, "warmup_rounds=3 is not allowed"),
        (WARM | {"warmup_rounds": 0}, "warmup_rounds=0 is not allowed"),
        ({"item_embedding": "rq", "item_base": "random"}, "warmup or features for"),
        ({"item_embedding": "rq", "rq_codes": 0}, "rq_codes=0 is not allowed"),
        ({"use_base": True, "item_base": "features"}, "item_base=features needs"),
        (
            {"use_base": True, "item_base": "features", "item_features": "year"},
            "item_features='year' is not allowed",
        ),
        ({"base_std": 0}, "base_std=0 is not allowed"),
    ],
)
def test_bad_bases_are_refused(workspace, keys, said):
    with pytest.raises(ValueError, match=said):
        run_recbole_fedras("MF", "tiny", config_dict=keys, argv=COMMON)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {"item_embedding": "rq", "rq_codes": 99},
            "rq_codes=99 is not allowed; it must be at most the number of items, 60",
        ),
        (
            {"item_embedding": "lora", "compressor": "SVD", "compression_rate": 0.8},
            "leaves a rank of 0 for 60 rows x 4 columns",
        ),
        (
            {"item_embedding": "lora", "budget": "wire", "compression_rate": 0.99},
            "with budget=wire leaves",
        ),
    ],
)
def test_what_would_fail_after_the_warm_up_is_refused_before(
    run, keys, said, monkeypatch
):
    monkeypatch.setattr(Simulation, "run_round", None)
    with pytest.raises(ValueError, match=said):
        run(epochs=4, **(WARM | keys))


def test_users_keep_their_adam_at_the_end_of_the_warm_up(run):
    result = run(epochs=5, item_embedding="hash", user_optimizer="adam", **WARM)
    path = Path(result["run_folder"]) / "last.pth"
    states = read_checkpoint(path)["simulation"]["shard"]["user_states"]
    steps = 5 * 2  # one batch in each of two epochs
    assert (states[:, -1] == steps).all()


def test_means_are_over_participations(run):
    cost = run(epochs=5, item_embedding="hash", **WARM)["communication"]
    each = cost["per_participation"]
    assert each["downlink_bytes"] * 5 * 40 == pytest.approx(cost["downlink_bytes"])
    # Five downlinks and receipts, and the introduction.
    assert cost["messages"]["downlink"] == (5 + 5 + 1) * 40


def test_features_that_are_not_finite_are_refused(run, with_items):
    path = Path("dataset/tiny/tiny.item")
    path.write_text(path.read_text().replace("\t1950.0\t", "\t1e40\t"))
    with pytest.raises(ValueError, match="field 'year' has values that are missing"):
        run(item_embedding="rq", rq_codes=8, **(with_items | {"use_base": False}))


def test_vectors_of_users_are_no_features_of_items(run, workspace):
    lines = [f"u{user}\t{user}.5 1.5" for user in range(40)]
    with pytest.raises(ValueError, match="item_base=features needs features of items"):
        run(**preloaded(workspace, "user", lines))


def test_features_that_are_not_there_are_refused(run, with_items):
    with pytest.raises(ValueError, match=r"\['colour'\] is not allowed; loaded are"):
        run(item_features=["colour"], **with_items)
