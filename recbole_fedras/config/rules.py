"""Which keys' values go together, and with the methods that are chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recbole.utils import EvaluatorType

from recbole_fedras.compressor import Compressor
from recbole_fedras.config.values import (
    boolean,
    check_names,
    choice,
    integer,
    is_number,
    number,
    refuse,
    string,
    strings,
)
from recbole_fedras.embedding import ItemEmbedding
from recbole_fedras.errors import ConfigError

if TYPE_CHECKING:
    from recbole_fedras.config.config import Config

#: RecBole's training options that a federated client does not have, and their values.
_UNSUPPORTED = {
    "learner": "sgd",
    "weight_decay": 0,
    "clip_grad_norm": None,
    "enable_amp": False,
    "enable_scaler": False,
    "save_dataloaders": False,  # what RecBole takes up again whatever our keys say
    "dataloaders_save_path": None,
}

_SPLITS = ("LS", "RS", "TS")
_LEAVE_ONE_OUT = ("valid_and_test", "test_only")  # RecBole evaluates no other


def check_common(config: Config) -> None:
    """Check what RecBole would stumble over later."""
    for key in ("topk", "eval_args"):
        if config[key] is None:
            refuse(config, key, "set")
    for key in ("valid_metric", "data_path"):
        string(config, key)
    if not isinstance(config["metrics"], str):
        strings(config, "metrics", "names of metrics, one at least")
    if not isinstance(config["eval_args"], dict):
        refuse(config, "eval_args", "a dict, of split, order and mode")
    if config["topk"] == []:
        refuse(config, "topk", "one at least")
    mode = config["eval_args"].get("mode", "full")
    if not isinstance(mode, str | dict):
        refuse(config, "eval_args", "with a mode like uni99 or full")


def check_bases(config: Config) -> None:
    """Check keys that an item embedding is made with."""
    boolean(config, "use_base")
    choice(config, "item_base", ("random", "warmup", "features"))
    number(config, "base_std", above=0)
    integer(config, "warmup_rounds", 1)
    if config["item_features"] is not None:
        strings(config, "item_features", "None (all) or a list of fields")


def check_federated(config: Config) -> None:
    """Check what else a federated run depends on."""
    config.run_settings(), config.model_settings()
    integer(config, "stopping_step", 0)
    integer(config, "eval_step", 0)
    for key, only in _UNSUPPORTED.items():
        if config[key] != only:
            refuse(config, key, f"{only!r} in federated training")
    for key, only in getattr(config.model_class, "fixed_keys", {}).items():
        if config[key] != only:
            refuse(config, key, f"{only} in federated training")
    check_names(config, "eval_args", {"split", "group_by", "order", "mode"})
    negatives = {"distribution", "sample_num", "alpha", "dynamic", "candidate_num"}
    check_names(config, "train_neg_sample_args", negatives)
    _check_split(config)
    config.data_settings(), config.evaluation_settings()
    _check_candidates(config)
    _check_metrics(config)


def _check_split(config: Config) -> None:
    split = config["eval_args"]["split"]
    if not isinstance(split, dict) or len(split) != 1 or set(split) - {*_SPLITS}:
        refuse(config, "eval_args", f"with a split by one of {', '.join(_SPLITS)}")
    (way, how), parts = next(iter(split.items())), ("train", "valid", "test")
    if way == "LS" and how not in _LEAVE_ONE_OUT:
        refuse(config, "eval_args", f"with LS one of {', '.join(_LEAVE_ONE_OUT)}")
    if way != "LS" and not (
        isinstance(how, list)
        and len(how) == len(parts)
        and all(is_number(ratio) and ratio >= 0 for ratio in how)
    ):
        refuse(config, "eval_args", f"with {way} three ratios >= 0, of {parts}")
    if config["eval_args"]["order"] not in ("RO", "TO"):
        refuse(config, "eval_args", "with order RO or TO")


def _check_candidates(config: Config) -> None:
    for phase, mode in config["eval_args"]["mode"].items():
        if mode[:3] == "uni" and max(config["topk"]) > int(mode[3:]) + 1:
            refuse(config, "topk", f"at most the candidates of mode {phase}: {mode}")
        if config["eval_candidates"] == "fixed" and mode.startswith("pop"):
            allowed = f"'recbole' for eval_args mode {phase}: {mode}"
            refuse(config, "eval_candidates", allowed)


def _check_metrics(config: Config) -> None:
    if config["eval_type"] != EvaluatorType.RANKING:
        refuse(config, "metrics", "metrics of rankings: clients know no other labels")
    metrics = [metric.lower() for metric in config["metrics"]]
    names = [f"{metric}@{k}" for metric in metrics for k in config["topk"]]
    if config["valid_metric"].lower() not in [*names, *metrics]:
        refuse(config, "valid_metric", f"one of {names}, from metrics and topk")


def check_item_embedding(config: Config, kind: type[ItemEmbedding]) -> None:
    """Check what items are made of, and that a warm-up leaves rounds to train in."""
    if kind.fitted and config["item_base"] == "random":
        refuse(
            config,
            "item_base",
            f"warmup or features for item_embedding={config['item_embedding']}, whose "
            "codes are found from these",
        )
    if config["item_base"] != "random" and not (config["use_base"] or kind.fitted):
        refuse(config, "item_base", "random without use_base, as nothing remains of it")
    config.make_item_embedding(1, config["embedding_size"])
    step = min(config["eval_step"], config["epochs"])  # as RecBole evaluates
    last = config["epochs"] if not step else config["epochs"] // step * step
    if config.warmup_rounds and config.warmup_rounds >= last:
        refuse(
            config,
            "warmup_rounds",
            f"less than the round of the last evaluation, {last}",
        )


def check_compressors(
    config: Config, compressors: dict[str, tuple[str, type[Compressor]]]
) -> None:
    """Check that model, policies and the compressor of each direction go together."""
    _check_base(config, *compressors["downlink"])
    binary = config.model_class.binary
    for direction, (name, compressor_class) in compressors.items():
        fits = compressor_class.binary or compressor_class.lossless
        if (compressor_class.binary and not binary) or (binary and not fits):
            raise ConfigError(
                f"model={config.model!r} does not go with {name!r} for the "
                f"{direction}: binary codes (LightFR) take BinaryCodes or none, "
                "and BinaryCodes takes nothing else"
            )
    if binary != (config["aggregation"] == "discrete"):
        refuse(config, "aggregation", "discrete for binary codes, and only then")
    if binary:
        _check_codes(config)


def _check_base(config: Config, name: str, compressor_class: type[Compressor]) -> None:
    """Refuse policies without a common table to a method that needs one."""
    if not compressor_class.needs_base:
        return
    reason = f"{name} needs to know the receiver's table"
    if config["replica"] == "stale":
        refuse(config, "replica", f"broadcast or personal: {reason}")
    tiers = config["bandwidth"] is not None and config["replica"] == "broadcast"
    if tiers and not config["downlink_feedback"]:
        refuse(config, "downlink_feedback", f"True with bandwidth: {reason}")


def _check_codes(config: Config) -> None:
    """Refuse to binary codes what is made for real numbers."""
    if not config.federation().optimization.is_plain:
        refuse(config, "server_optimizer", "sgd of rate 1 for binary codes")
    if config.make_item_embedding(1, config["embedding_size"]) is not None:
        refuse(config, "item_embedding", "full, without use_base, for binary codes")
    if config["local_loss"] != "bce":
        refuse(config, "local_loss", "bce for binary codes, which have their own")
    for key, only in (("upload", "delta"), ("user_optimizer", "sgd")):
        if config[key] != only:
            refuse(config, key, f"{only} for binary codes")
    if config["local_objective"] != "sgd":
        refuse(config, "local_objective", "sgd for binary codes")
    if config["replica"] == "stale":  # half an update leaves no codes
        refuse(config, "replica", "broadcast or personal for binary codes")
