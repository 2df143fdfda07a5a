"""Which keys' values go together, and with the methods that are chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recbole.utils import EvaluatorType

from recbole_fedras.compressor import Compressor
from recbole_fedras.config import registry
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
from recbole_fedras.federation.server.aggregation import Aggregator

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

_Carrier = type[Compressor] | type[Aggregator]
_CARRIERS: dict[str, _Carrier] = {"compressor": Compressor, "aggregation": Aggregator}

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
    for name, _ in config.parts.metrics:
        if name not in config["metrics"]:
            refuse(config, "metrics", f"with {name}, which metric_class names")
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


def check_methods(config: Config) -> None:
    """Check that model, policy, aggregator and compressors go together."""
    _check_policy(config)
    for direction, (name, compressor_class) in config.compressors.items():
        own = config[f"{direction}_compressor"] is not None
        key = f"{direction}_compressor" if own else "compressor"
        _check_table_values(config, "compressor", key, name, compressor_class)
    _check_table_values(config, "aggregation", "aggregation", *config.parts.aggregation)
    for key, allowed in config.model_class.requires.items():
        if config[key] not in allowed:
            names = " or ".join(map(str, allowed))
            refuse(config, key, f"{names} with model={config.model}")


def _check_policy(config: Config) -> None:
    """Refuse what needs a table that both ends know to a policy without one."""
    policy = config.parts.replica[1]
    name, compressor_class = config.compressors["downlink"]
    reason = f"{name} needs to know the receiver's table"
    tiers = config["bandwidth"] is not None and policy.shared
    if compressor_class.needs_base and not policy.cumulative:
        refuse(config, "replica", f"broadcast or personal: {reason}")
    if compressor_class.needs_base and tiers and not config["downlink_feedback"]:
        refuse(config, "downlink_feedback", f"True with bandwidth: {reason}")
    if config["downlink_feedback"] and not policy.cumulative:
        allowed = (
            f"False with replica={config['replica']}, where everybody lacks something "
            "else: replica=personal sends each client what it lacks"
        )
        refuse(config, "downlink_feedback", allowed)


def _check_table_values(
    config: Config, kind: str, key: str, name: str, found: _Carrier
) -> None:
    """Refuse what is made for other tables than the model's."""
    values = config.model_class.table_values
    if _carries(found, values):
        return
    fit = [
        other
        for other, path in registry.shipped(kind).items()
        if _carries(registry.load_class(key, path, _CARRIERS[kind]), values)
    ]
    raise ConfigError(
        f"{key}={name!r} does not go with model={config.model!r}, whose tables hold "
        f"{values}; those that do: {', '.join(fit)}"
    )


def _carries(found: _Carrier, values: str) -> bool:
    return found.table_values is None or values in found.table_values
