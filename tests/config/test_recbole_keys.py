"""RecBole's keys: types and forms, keys without effect, dicts completed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recbole
import yaml
from conftest import TINY

from recbole_fedras.config import Config, recbole_keys, registry
from recbole_fedras.errors import ConfigError

LOO = {"LS": "valid_and_test"}


@pytest.mark.parametrize(
    ("key", "value", "read"),
    [
        ("learning_rate", np.float64(0.5), 0.5),
        ("embedding_size", np.int64(8), 8),
        ("embedding_size", 16.0, 16),
        ("kmeans_iterations", 5.0, 5),
        ("checkpoint_step", 2.0, 2.0),
        ("seed", np.int64(3), 3),
        ("data_path", Path("data"), "data"),
        ("data_path", 2024, "2024"),
        ("downlink_feedback", np.bool_(True), True),
        ("downlink_feedback", "yes", True),
        ("report_loss", "False", False),
        ("show_progress", "off", False),
        ("topk", (5, 10), [5, 10]),
        ("topk", np.array([5, 10]), [5, 10]),
        ("topk", 10, [10]),
        ("metrics", "NDCG", ["NDCG"]),
        ("gpu_id", (0, 1), "0,1"),
        ("gpu_id", 0, "0"),
        ("user_inter_num_interval", [2, 9], "[2, 9]"),
        ("val_interval", {"rating": "[4,inf)"}, {"rating": "[4,inf)"}),
        ("alias_of_item_id", "item_id", ["item_id"]),
        ("weight_decay", 0.0, 0.0),
        ("threshold", None, None),
        ("nproc", 1, 1),
    ],
)
def test_values_are_taken_as_what_they_are(key, value, read):
    rest = [text for text in TINY if text[2:].partition("=")[0] != key]
    found = Config(config_dict={key: value}, argv=rest).external_config_dict[key]
    assert (found, type(found)) == (read, type(read))


@pytest.mark.parametrize(
    ("argument", "read"),
    [
        ("--report_loss=no", False),
        ("--data_path=2024", "2024"),
        ("--data_path=1e5", "1e5"),
        ("--data_path='a b'", "a b"),
        ("--gpu_id=0,1", "0,1"),
        ("--gpu_id=", ""),
        ("--user_inter_num_interval=[2,9]", "[2,9]"),
    ],
)
def test_arguments_are_taken_as_they_are_written(argument, read):
    key = argument[2:].partition("=")[0]
    assert Config(argv=[*TINY, argument]).external_config_dict[key] == read


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("load_col", "inter:[user_id]", "a dict from a file's suffix"),
        ("unused_col", {"item": ["x"]}, "fields that load_col loads of item: []"),
        ("unused_col", "timestamp", "a dict from a file's suffix"),
        ("unload_col", ["rating"], "a dict from a file's suffix"),
        ("unload_col", {"inter": ["rating"]}, "loads whole"),
        ("seq_len", {"tags": 3}, "fields that load_col names"),
        ("alias_of_item_id", ["x"], "fields that load_col names"),
        ("normalize_field", "x", "fields that load_col names"),
        ("preload_weight", "x", "a dict from a field of ids"),
        ("val_interval", {"rating": "4+"}, "an interval"),
        ("user_inter_num_interval", "5", 'an interval, as "[5,inf)"'),
        ("field_separator", 1, "a string"),
        ("encoding", "utf8x", "an encoding that Python knows"),
        ("benchmark_filename", "train", "two or three names"),
        ("rm_dup_inter", "all", "one of first, last"),
        ("metric_decimal_place", "x", "an integer from 0"),
        ("eval_batch_size", 0, "an integer from 1"),
        ("eval_batch_size", 2.5, "an integer from 1"),
        ("use_gpu", "perhaps", "True or False"),
        ("log_wandb", 1, "True or False"),
        ("valid_metric", "NDCG", "one of ['hit@10', 'ndcg@10']"),
        ("valid_metric_bigger", False, "it follows from valid_metric"),
        ("tail_ratio", 0, "a number > 0"),
        ("tail_ratio", 0.3, "left out without TailPercentage"),
        ("repeatable", True, "False but for mode full"),
        ("state", "loud", "one of debug, info"),
    ],
)
def test_other_values_are_refused_by_key_and_value(key, value, said):
    with pytest.raises(ConfigError, match=key) as raised:
        Config(config_dict={key: value}, argv=TINY)
    assert said in str(raised.value)
    assert repr(value) in str(raised.value) or str(value) in str(raised.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("threshold", {"rating": 4}, "val_interval"),
        ("learner", "adam", "user_optimizer"),
        ("clip_grad_norm", {"max_norm": 1}, "transforms: [clip]"),
        ("enable_amp", True, "float32"),
        ("loss_type", "BPR", "local_loss"),
        ("reg_weight", 0.1, "regularisation"),
        ("training_neg_sample_num", 0, "train_neg_sample_args"),
        ("neg_sampling", {"uniform": 1}, "train_neg_sample_args"),
        ("save_dataset", True, "data_path"),
        ("save_dataset", "yes", "data_path"),
        ("dataset_save_path", "x.pth", "data_path"),
        ("nproc", 2, "n_jobs"),
        ("worker", 4, "n_jobs"),
        ("shuffle", False, "seed"),
        ("MAX_ITEM_LIST_LENGTH", 20, "sequences"),
        ("kg_reverse_r", True, "knowledge graphs"),
    ],
)
def test_keys_without_effect_are_refused_with_what_to_use(key, value, said):
    with pytest.raises(ConfigError, match=f"{key}=.* has no effect") as raised:
        Config(config_dict={key: value}, argv=TINY)
    assert said in str(raised.value)


def test_every_key_at_recboles_default_is_taken():
    folder = Path(recbole.__file__).parent / "properties"
    files = [folder / "overall.yaml", folder / "dataset" / "sample.yaml"]
    defaults: dict[str, Any] = {}
    for file in files:
        defaults |= registry.read_yaml(file)
    taken = {
        key: value
        for key, value in defaults.items()
        if key not in ("learner", "valid_metric", "data_path")
    }
    config = Config(config_dict=taken, argv=[*TINY, "--valid_metric=MRR@10"])
    assert config["weight_decay"] == 0
    in_table = recbole_keys.KEYS.keys() | recbole_keys.WITHOUT_EFFECT.keys()
    ours = Config(argv=TINY).internal_config_dict.keys()
    assert defaults.keys() <= in_table | ours


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"mode": "full"}, {"split": LOO, "order": "TO", "mode": "full"}),
        (
            {"mode": {"valid": "full"}},
            {"split": LOO, "mode": {"valid": "full", "test": "uni99"}},
        ),
        (
            {"split": {"RS": [0.8, 0, 0.2]}, "group_by": "none"},
            {"split": {"RS": [0.8, 0, 0.2]}, "order": "TO", "mode": "uni99"},
        ),
    ],
)
def test_parts_of_eval_args_keep_the_documented_defaults(given, read):
    found = Config(config_dict={"eval_args": given}).resolved["eval_args"]
    assert found | read == found


def test_dicts_are_completed_file_over_file(tmp_path):
    for name, keys in {
        "one": {"eval_args": {"order": "RO"}, "load_col": {"item": ["item_id"]}},
        "two": {
            "eval_args": {"mode": "full"},
            "train_neg_sample_args": {"sample_num": 2},
        },
    }.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(keys))
    files = [str(tmp_path / "one.yaml"), str(tmp_path / "two.yaml")]
    config = Config(config_file_list=files)
    args = config["eval_args"]
    assert (args["order"], args["split"]) == ("RO", LOO)
    assert args["mode"] == {"valid": "full", "test": "full"}
    assert config["train_neg_sample_args"]["distribution"] == "uniform"
    assert config.local_training().n_negatives == 2
    inter = ["user_id", "item_id", "rating", "timestamp"]
    assert config["load_col"] == {"inter": inter, "item": ["item_id"]}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"mode": "labeled"}, "mode like uni99 or full"),
        ({"mode": "uniform20"}, "mode like uni99 or full"),
        ({"mode": "uni0"}, "mode like uni99 or full"),
        ({"mode": {"validation": "full"}}, "of valid and test"),
        ({"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "item"}, "group_by user or no"),
        ({"group_by": "none"}, "group_by user for LS"),
        ({"split": {"RS": [0, 0, 0]}}, "three ratios"),
        ({"split": {"RS": [0, 0.5, 0.5]}}, "> 0 but for valid"),
        ({"split": {"TS": [0, 0, 1]}}, "> 0 but for valid"),
        ({"split": None}, "a split by one of LS, RS, TS"),
    ],
)
def test_what_nothing_can_evaluate_is_refused(args, said):
    with pytest.raises(ConfigError, match="eval_args=") as raised:
        Config(config_dict={"eval_args": args})
    assert said in str(raised.value)


@pytest.mark.parametrize("more", [{"alpha": 0.5}, {"candidate_num": 3}, {"sampel": 2}])
def test_negatives_have_no_more_than_a_number(more):
    with pytest.raises(ConfigError, match=f"train_neg_sample_args.*{min(more)}"):
        Config(config_dict={"train_neg_sample_args": more})
