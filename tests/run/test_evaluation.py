"""Evaluation: exact times, fixed candidates, ties, splits and modes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import TINY, rounds_of, write_dataset

from recbole_fedras.config import Config
from recbole_fedras.run.setup import prepare_data, simulated
from recbole_fedras.run.trainer import FederatedTrainer


def test_evaluating_more_often_changes_no_training(run):
    often, seldom = (
        rounds_of(run(eval_step=step, epochs=4, stopping_step=99)) for step in (1, 4)
    )
    for key in ("loss", "uplink_bytes", "downlink_bytes"):
        assert [row[key] for row in often] == [row[key] for row in seldom]


@pytest.mark.parametrize("mode", ["full", "uni20", {"valid": "uni10", "test": "full"}])
@pytest.mark.parametrize("split", [{"LS": "valid_and_test"}, {"RS": [8, 1, 1]}])
def test_recboles_splits_and_modes_work(run, split, mode):
    order = "TO" if "LS" in split else "RO"
    result = run(eval_args={"split": split, "order": order, "mode": mode})
    assert 0 <= result["test_result"]["hit@10"] <= 1


def test_without_validation_the_last_round_is_tested(run):
    result = run(eval_args={
        "split": {"LS": "test_only"}, "order": "TO", "mode": "uni20"
    })  # fmt: skip
    assert result["best_valid_result"] is None
    assert result["rounds"] == 4
    assert "hit@10" in result["test_result"]


def test_metrics_that_need_ranked_items(run):
    keys = {
        "metrics": ["Hit", "MRR", "ItemCoverage", "GiniIndex", "AveragePopularity"],
        "topk": [5, 10],
        "valid_metric": "MRR@5",
    }
    for mode in ("uni20", "full"):
        result = run(
            eval_args={"split": {"LS": "valid_and_test"}, "order": "TO", "mode": mode},
            **keys,
        )
        assert 0 < result["test_result"]["itemcoverage@10"] <= 1


@pytest.mark.parametrize("mode", ["uni20", "full"])
def test_gauc_is_the_share_of_candidates_below_the_held_out_item(workspace, mode):
    keys = {
        "metrics": ["GAUC"],
        "valid_metric": "GAUC",
        "init_std": 1.0,
        "eval_args": {"split": {"LS": "test_only"}, "order": "TO", "mode": mode},
    }
    config = Config("MF", "tiny", config_dict=keys)
    train, _, test = prepare_data(config)
    model = config.make_model(train._dataset)
    trainer = FederatedTrainer(config, model, simulated(config, train))
    trainer.eval_collector.data_collect(train)
    found = trainer.evaluate(test, load_best_model=False)["gauc"]
    users, table = model.user_embedding.weight.data, model.item_embedding.weight.data
    shares = []
    if mode == "full":
        known = train._dataset.inter_feat
        held_out = test._dataset.inter_feat
        for user, item in zip(held_out["user_id"], held_out["item_id"], strict=True):
            scores = table @ users[user]
            others = torch.ones(len(table), dtype=bool)
            others[0] = others[item] = False
            others[known["item_id"][known["user_id"] == user]] = False
            shares.append(float((scores[others] < scores[item]).float().mean()))
    else:
        for interaction, _, _, places in test:
            pairs = zip(interaction["user_id"], interaction["item_id"], strict=True)
            for (user, items), place in zip(pairs, places, strict=True):
                scores = table[items] @ users[user]
                below = int((scores < scores[place]).sum())
                shares.append(below / (len(items) - 1))
    assert found == pytest.approx(np.mean(shares), abs=1e-4)


def test_times_are_not_rounded_to_float32(workspace):
    rows = [
        (f"u{user}", f"i{item}", 5, 1_700_000_000 + (item * 7 + user) % 10)
        for user in range(5)
        for item in range(10)
    ]
    rows += [("other", f"o{item}", 5, item) for item in range(5)]
    write_dataset(workspace / "dataset", "seconds", rows)
    last_in_time = "{'split': {'LS': 'test_only'}, 'order': 'TO', 'mode': 'full'}"
    config = Config("MF", "seconds", argv=[f"--eval_args={last_in_time}"])
    _, _, test_data = prepare_data(config)
    feat = test_data._dataset
    for user, item in zip(
        feat.inter_feat["user_id"], feat.inter_feat["item_id"], strict=True
    ):
        name = feat.id2token("user_id", int(user))
        last = max((row for row in rows if row[0] == name), key=lambda row: row[3])
        assert feat.id2token("item_id", int(item)) == last[1]


def test_candidates_are_fixed_distinct_and_never_interacted(workspace):
    config = Config("MF", "tiny", argv=TINY)
    train, valid, test = prepare_data(config)
    parts = [train._dataset, valid._dataset, test._dataset]
    pairs = {
        (int(user), int(item))
        for part in parts
        for user, item in zip(
            part.inter_feat["user_id"], part.inter_feat["item_id"], strict=True
        )
    }
    for loader in (valid, test):
        (first,), (second,) = list(loader), list(loader)
        items = first[0]["item_id"]
        assert torch.equal(items, second[0]["item_id"])
        places = first[3].numpy()
        for user, row, place in zip(first[0]["user_id"], items, places, strict=True):
            assert len(set(row.tolist())) == 21
            known = [item for item in row.tolist() if (int(user), item) in pairs]
            assert known == [int(row[place])]
        assert len(set(places)) > 5  # the held-out item stands anywhere


def test_a_collapsed_model_scores_what_chance_does(workspace):
    """Equal scores: HR@10 of 1 + 20 candidates is 10 / 21 by chance."""
    rows = [
        (f"u{user}", f"i{(user * 7 + step) % 60}", 5, step)
        for user in range(2000)
        for step in range(4)
    ]
    write_dataset(workspace / "dataset", "many", rows)
    config = Config("MF", "many", argv=[*TINY[1:], "--init_std=0"])
    train, _, test = prepare_data(config)
    model = config.make_model(train._dataset)
    trainer = FederatedTrainer(config, model, simulated(config, train))
    trainer.eval_collector.data_collect(train)
    hit = trainer.evaluate(test, load_best_model=False)["hit@10"]
    assert hit == pytest.approx(10 / 21, abs=0.04)  # standard deviation 0.011
