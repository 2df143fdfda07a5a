"""Reads config keys as typed settings; errors name key, value and what is allowed."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np
from recbole.utils import EvaluatorType

from recbole_fedras.compressor import Compressor
from recbole_fedras.config import registry
from recbole_fedras.embedding import ItemEmbedding
from recbole_fedras.federation.server.optimizer import OPTIMIZERS, ServerOptimization
from recbole_fedras.federation.settings import (
    AGGREGATIONS,
    ALL_SAMPLES,
    BUDGETS,
    REPLICAS,
    USER_OPTIMIZERS,
    Federation,
    LocalTraining,
)

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


def federation(config: Any) -> Federation:
    """Return who takes part and how updates are combined."""
    return Federation(
        seed=_integer(config, "seed", 0, 2**32 - 1),
        client_fraction=_number(config, "client_fraction", above=0, at_most=1),
        compression_rates=_compression_rates(config),
        aggregation=_choice(config, "aggregation", AGGREGATIONS),
        replica=_choice(config, "replica", REPLICAS),
        budget=_choice(config, "budget", BUDGETS),
        downlink_feedback=_downlink_feedback(config),
        uplink_feedback=_boolean(config, "uplink_feedback"),
        optimization=_server_optimization(config),
    )


def local_training(config: Any, warmup: bool) -> LocalTraining:
    """Return how clients train, in a warm-up or not."""
    negatives = config["train_neg_sample_args"]
    if not isinstance(negatives, dict):
        refuse(config, "train_neg_sample_args", "a dict with sample_num")
    if negatives.get("distribution") != "uniform" or negatives.get("dynamic"):
        refuse(
            config,
            "train_neg_sample_args",
            "distribution: uniform and not dynamic, as a client knows neither the "
            "popularity of items nor others' scores",
        )
    sample_num = negatives.get("sample_num")
    if type(sample_num) is not int or sample_num < 1:
        refuse(config, "train_neg_sample_args", "an integer sample_num >= 1")
    gradient = _choice(config, "upload", ("delta", "gradient")) == "gradient"
    if gradient and config["local_epochs"] != 1:
        refuse(config, "local_epochs", "1 with upload=gradient, which is of one step")
    batch_size = _integer(config, "train_batch_size", 1)
    own_rate = warmup and config["warmup_learning_rate"] is not None
    rate = "warmup_learning_rate" if own_rate else "learning_rate"
    user_rate = rate if config["user_learning_rate"] is None else "user_learning_rate"
    rates = {
        key: _number(config, key, above=0) for key in (rate, "theta_learning_rate")
    }
    pairwise = _pairwise(config)
    if gradient:
        # A step at this rate is minus the gradient of what it says: of the mean loss of
        # a batch, added up over batches.
        rates = dict.fromkeys(rates, (1 + pairwise) / batch_size)
    return LocalTraining(
        learning_rate=rates[rate],
        theta_learning_rate=rates["theta_learning_rate"],
        user_learning_rate=_number(config, user_rate, above=0),
        local_epochs=_integer(config, "local_epochs", 1),
        batch_size=ALL_SAMPLES if gradient else batch_size,
        n_negatives=sample_num,
        rho_shared=_rho(config, "rho_shared"),
        rho_private=_rho(config, "rho_private"),
        pairwise=pairwise,
        upload_gradient=gradient,
        user_optimizer=_choice(config, "user_optimizer", USER_OPTIMIZERS),
    )


def _pairwise(config: Any) -> bool:
    pairwise = _choice(config, "local_loss", ("bce", "bpr")) == "bpr"
    if pairwise and config["train_batch_size"] % 2:
        refuse(
            config, "train_batch_size", "even with local_loss=bpr, which takes pairs"
        )
    return pairwise


def _rho(config: Any, key: str) -> float:
    rho = _number(config, key, at_least=0)
    objective = _choice(config, "local_objective", ("sgd", "sam"))
    return rho if objective == "sam" else 0.0


def _server_optimization(config: Any) -> ServerOptimization:
    betas = config["server_betas"]
    if not (
        isinstance(betas, list | tuple)
        and len(betas) == 2
        and all(_is_number(beta) and 0 <= beta < 1 for beta in betas)
    ):
        refuse(config, "server_betas", "two numbers >= 0 and < 1")
    return ServerOptimization(
        _choice(config, "server_optimizer", OPTIMIZERS),
        _number(config, "server_learning_rate", above=0),
        (betas[0], betas[1]),
        _number(config, "server_tau", above=0),
        _bias_correction(config),
    )


def _bias_correction(config: Any) -> bool:
    wanted = _boolean(config, "server_bias_correction")
    if wanted and config["server_optimizer"] != "adam":
        refuse(config, "server_bias_correction", "False but for server_optimizer=adam")
    return wanted


def _compression_rates(config: Any) -> tuple[float, ...]:
    bandwidth = config["bandwidth"]
    if bandwidth is None:
        return (_number(config, "compression_rate", at_least=0, below=1),)
    allowed = "None or two rates [lowest, highest] with 0 <= lowest <= highest < 1"
    if not (
        isinstance(bandwidth, list | tuple)
        and len(bandwidth) == 2
        and all(_is_number(rate) for rate in bandwidth)
        and 0 <= bandwidth[0] <= bandwidth[1] < 1
    ):
        refuse(config, "bandwidth", allowed)
    n_tiers = _integer(config, "bandwidth_tiers", 1)
    rates = np.unique(np.linspace(bandwidth[0], bandwidth[1], n_tiers).round(10))
    return tuple(rates.tolist())


def _downlink_feedback(config: Any) -> bool:
    feedback = _boolean(config, "downlink_feedback")
    if feedback and config["replica"] == "stale":
        refuse(
            config,
            "downlink_feedback",
            "False with replica=stale, where everybody lacks something else: "
            "replica=personal sends each client what it lacks",
        )
    return feedback


def check_common(config: Any) -> None:
    """Check what RecBole would stumble over later."""
    for key in ("topk", "eval_args"):
        if config[key] is None:
            refuse(config, key, "set")
    for key in ("valid_metric", "data_path"):
        if not isinstance(config[key], str):
            refuse(config, key, "a string")
    metrics = config["metrics"]
    if not isinstance(metrics, str) and not (
        isinstance(metrics, list | tuple)
        and all(isinstance(metric, str) for metric in metrics)
    ):
        refuse(config, "metrics", "names of metrics")
    if not isinstance(config["eval_args"], dict):
        refuse(config, "eval_args", "a dict, of split, order and mode")
    for key in ("metrics", "topk"):
        if config[key] == []:
            refuse(config, key, "one at least")
    mode = config["eval_args"].get("mode", "full")
    if not isinstance(mode, str | dict):
        refuse(config, "eval_args", "with a mode like uni99 or full")


def check_bases(config: Any) -> None:
    """Check keys that an item embedding is made with."""
    _boolean(config, "use_base")
    _choice(config, "item_base", ("random", "warmup", "features"))
    _number(config, "base_std", above=0)
    _integer(config, "warmup_rounds", 1)
    fields = config["item_features"]
    if fields is not None and not (
        isinstance(fields, list)
        and fields
        and all(isinstance(field, str) for field in fields)
    ):
        refuse(config, "item_features", "None (all) or a list of fields")


def check_federated(config: Any) -> None:
    """Check what else a federated run depends on."""
    _number(config, "uplink_mb_per_s", above=0)
    _number(config, "downlink_mb_per_s", above=0)
    _integer(config, "epochs", 1)
    _integer(config, "embedding_size", 1)
    _integer(config, "eval_batch_size", 1)
    _integer(config, "stopping_step", 0)
    _integer(config, "eval_step", 0)
    n_jobs = config["n_jobs"]
    if type(n_jobs) is not int or (n_jobs < 1 and n_jobs != -1):
        refuse(config, "n_jobs", "-1 or an integer from 1")
    _number(config, "init_std", at_least=0)
    _choice(config, "eval_candidates", ("fixed", "recbole"))
    _choice(config, "short_users", ("refuse", "keep"))
    _choice(config, "tied_times", ("last", "first"))
    for key, only in _UNSUPPORTED.items():
        if config[key] != only:
            refuse(config, key, f"{only!r} in federated training")
    _check_dict(config, "eval_args", {"split", "group_by", "order", "mode"})
    negatives = {"distribution", "sample_num", "alpha", "dynamic", "candidate_num"}
    _check_dict(config, "train_neg_sample_args", negatives)
    eval_args = config["eval_args"]
    split = eval_args["split"]
    if not isinstance(split, dict) or len(split) != 1 or set(split) - {*_SPLITS}:
        refuse(config, "eval_args", f"with a split by one of {', '.join(_SPLITS)}")
    (way, how), parts = next(iter(split.items())), ("train", "valid", "test")
    if way == "LS" and how not in _LEAVE_ONE_OUT:
        refuse(config, "eval_args", f"with LS one of {', '.join(_LEAVE_ONE_OUT)}")
    if way != "LS" and not (
        isinstance(how, list)
        and len(how) == len(parts)
        and all(_is_number(ratio) and ratio >= 0 for ratio in how)
    ):
        refuse(config, "eval_args", f"with {way} three ratios >= 0, of {parts}")
    if eval_args["order"] not in ("RO", "TO"):
        refuse(config, "eval_args", "with order RO or TO")
    for phase, mode in eval_args["mode"].items():
        if mode[:3] == "uni" and max(config["topk"]) > int(mode[3:]) + 1:
            refuse(config, "topk", f"at most the candidates of mode {phase}: {mode}")
        if config["eval_candidates"] == "fixed" and mode.startswith("pop"):
            refuse(
                config,
                "eval_candidates",
                f"'recbole' for eval_args mode {phase}: {mode}",
            )
    if config["eval_type"] != EvaluatorType.RANKING:
        refuse(config, "metrics", "metrics of rankings: clients know no other labels")
    valid_metric = config["valid_metric"].lower()
    metrics = [metric.lower() for metric in config["metrics"]]
    names = [f"{metric}@{k}" for metric in metrics for k in config["topk"]]
    if valid_metric not in [*names, *metrics]:
        refuse(config, "valid_metric", f"one of {names}, from metrics and topk")


def check_item_embedding(config: Any, kind: type[ItemEmbedding]) -> None:
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
    config: Any, compressors: dict[str, tuple[str, type[Compressor]]]
) -> None:
    """Check that model, policies and the compressor of each direction go together."""
    _check_base(config, *compressors["downlink"])
    binary = config.model_class.binary
    for direction, (name, compressor_class) in compressors.items():
        fits = compressor_class.binary or compressor_class.lossless
        if (compressor_class.binary and not binary) or (binary and not fits):
            raise ValueError(
                f"model={config.model!r} does not go with {name!r} for the "
                f"{direction}: binary codes (LightFR) take BinaryCodes or none, "
                "and BinaryCodes takes nothing else"
            )
    if binary != (config["aggregation"] == "discrete"):
        refuse(config, "aggregation", "discrete for binary codes, and only then")
    if binary:
        _check_codes(config)


def _check_base(config: Any, name: str, compressor_class: type[Compressor]) -> None:
    """Refuse policies without a common table to a method that needs one."""
    if not compressor_class.needs_base:
        return
    reason = f"{name} needs to know the receiver's table"
    if config["replica"] == "stale":
        refuse(config, "replica", f"broadcast or personal: {reason}")
    tiers = config["bandwidth"] is not None and config["replica"] == "broadcast"
    if tiers and not config["downlink_feedback"]:
        refuse(config, "downlink_feedback", f"True with bandwidth: {reason}")


def _check_codes(config: Any) -> None:
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


def _check_dict(config: Any, key: str, allowed: set[str]) -> None:
    for name in set(config[key]) - allowed:
        near = registry.nearest(str(name), sorted(allowed))
        refuse(config, key, f"without {name!r}; {near}allowed: {sorted(allowed)}")


def _number(
    config: Any,
    key: str,
    above: float | None = None,
    at_least: float | None = None,
    below: float | None = None,
    at_most: float | None = None,
) -> float:
    value = config[key]
    bounds = [
        (above, ">", operator.gt),
        (at_least, ">=", operator.ge),
        (below, "<", operator.lt),
        (at_most, "<=", operator.le),
    ]
    used = [(bound, sign, test) for bound, sign, test in bounds if bound is not None]
    if not _is_number(value) or not all(test(value, b) for b, _, test in used):
        what = " and ".join(f"{sign} {bound}" for bound, sign, _ in used)
        refuse(config, key, f"a number {what}")
    return float(value)


def _integer(config: Any, key: str, at_least: int, at_most: int = 2**62) -> int:
    value = config[key]
    if type(value) is not int or not at_least <= value <= at_most:
        refuse(config, key, f"an integer from {at_least} to {at_most}")
    return int(value)


def _boolean(config: Any, key: str) -> bool:
    if type(config[key]) is not bool:
        refuse(config, key, "True or False")
    return bool(config[key])


def _choice(config: Any, key: str, choices: Iterable[str]) -> str:
    if config[key] not in choices:
        refuse(config, key, f"one of {', '.join(choices)}")
    return str(config[key])


def refuse(config: Any, key: str, allowed: str) -> NoReturn:
    """Raise the ValueError that a key's value calls for."""
    raise ValueError(f"{key}={config[key]!r} is not allowed; it must be {allowed}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and bool(np.isfinite(value))
