"""Reads config keys as typed settings."""

from __future__ import annotations

import os

import numpy as np

from recbole_fedras.config.forms import (
    ANYTHING,
    BOOLEAN,
    SEED,
    STRING,
    Form,
    integer,
    mapping,
    number,
    one_of,
    optional,
    several,
)
from recbole_fedras.config.settings import (
    DeploymentSettings,
    EvaluationSettings,
    RunSettings,
    Uncut,
)
from recbole_fedras.config.values import Keys, read, refuse
from recbole_fedras.data import lines
from recbole_fedras.data.settings import DataSettings
from recbole_fedras.federation.settings import (
    ALL_SAMPLES,
    BUDGETS,
    SAMPLINGS,
    SERVER_OPTIMIZERS,
    USER_OPTIMIZERS,
    Conditions,
    Federation,
    LocalTraining,
    SecureAggregation,
    ServerOptimization,
)
from recbole_fedras.model.settings import ModelSettings
from recbole_fedras.wire.ledger import DIRECTIONS

_POSITIVE = number(above=0)
_NOT_NEGATIVE = number(at_least=0)
_SHARE = number(at_least=0, below=1)
_DEMANDS = mapping(ANYTHING, "a dict of keys and values that a run must have")

#: RecBole's keys that leave interactions out, and their values that leave out none.
_FILTERS = (
    "rm_dup_inter",
    "val_interval",
    "user_inter_num_interval",
    "item_inter_num_interval",
)
_NO_FILTER: tuple[object, ...] = (None, {}, "[0,inf)")


def federation(config: Keys) -> Federation:
    """Return who takes part and how updates are combined."""
    return Federation(
        seed=read(config, "seed", SEED),
        client_fraction=read(config, "client_fraction", number(above=0, at_most=1)),
        compression_rates=_compression_rates(config),
        uplink_share=read(config, "uplink_share", number(above=0, below=1)),
        compress_network=read(config, "compress_network", BOOLEAN),
        aggregation=str(config["aggregation"]),
        replica=str(config["replica"]),
        budget=read(config, "budget", one_of(*BUDGETS)),
        downlink_feedback=read(config, "downlink_feedback", BOOLEAN),
        uplink_feedback=read(config, "uplink_feedback", BOOLEAN),
        optimization=_server_optimization(config),
        max_update_norm=read(config, "max_update_norm", _POSITIVE),
        report_loss=read(config, "report_loss", BOOLEAN),
        attack_share=read(config, "attack_share", _SHARE),
        sampling=read(config, "sampling", one_of(*SAMPLINGS)),
        secure=_secure_aggregation(config),
        client_seed=read(config, "client_seed", optional(integer(0, 2**64 - 1))),
        over_selection=read(config, "over_selection", number(at_least=1)),
        staleness_window=read(config, "staleness_window", integer(0)),
        staleness_exponent=read(config, "staleness_exponent", _NOT_NEGATIVE),
    )


def conditions(config: Keys) -> Conditions:
    """Return what a described world has in common for all its clients."""
    mb = 1e6
    return Conditions(
        uplink=mb * read(config, "uplink_mb_per_s", _POSITIVE),
        downlink=mb * read(config, "downlink_mb_per_s", _POSITIVE),
        flops=1e9 * read(config, "device_gflops", _POSITIVE),
        availability=read(config, "availability", number(above=0, at_most=1)),
        activity_correlation=read(
            config, "activity_correlation", number(at_least=-1, at_most=1)
        ),
        dropout=read(config, "dropout", _SHARE),
        deadline=read(config, "deadline", optional(_POSITIVE)),
        server_seconds=read(config, "server_seconds", _NOT_NEGATIVE),
        uplink_joules=read(config, "uplink_joules_per_mb", _NOT_NEGATIVE) / mb,
        downlink_joules=read(config, "downlink_joules_per_mb", _NOT_NEGATIVE) / mb,
        flop_joules=read(config, "joules_per_gflop", _NOT_NEGATIVE) / 1e9,
    )


def _secure_aggregation(config: Keys) -> SecureAggregation | None:
    found = SecureAggregation(
        read(config, "secure_neighbours", integer(2)),
        read(config, "secure_bound", number(at_least=1e-6, at_most=1e6)),
    )
    return found if read(config, "secure_aggregation", BOOLEAN) else None


def local_training(config: Keys, warmup: bool) -> LocalTraining:
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
    gradient = _is(config, "upload", "gradient", other="delta")
    if gradient and config["local_epochs"] != 1:
        refuse(config, "local_epochs", "1 with upload=gradient, which is of one step")
    batch_size = read(config, "train_batch_size", integer(1))
    own_rate = warmup and config["warmup_learning_rate"] is not None
    rate = "warmup_learning_rate" if own_rate else "learning_rate"
    user_rate = rate if config["user_learning_rate"] is None else "user_learning_rate"
    rates = {key: read(config, key, _POSITIVE) for key in (rate, "theta_learning_rate")}
    pairwise = _pairwise(config)
    if gradient:
        # A step at this rate is minus the gradient of what it says: of the mean loss of
        # a batch, added up over batches.
        rates = dict.fromkeys(rates, (1 + pairwise) / batch_size)
    return LocalTraining(
        learning_rate=rates[rate],
        theta_learning_rate=rates["theta_learning_rate"],
        user_learning_rate=read(config, user_rate, _POSITIVE),
        local_epochs=read(config, "local_epochs", integer(1)),
        batch_size=ALL_SAMPLES if gradient else batch_size,
        n_negatives=sample_num,
        rho_shared=_rho(config, "rho_shared"),
        rho_private=_rho(config, "rho_private"),
        pairwise=pairwise,
        upload_gradient=gradient,
        user_optimizer=read(config, "user_optimizer", one_of(*USER_OPTIMIZERS)),
        weight_decay=_weight_decay(config, gradient),
    )


def _weight_decay(config: Keys, gradient: bool) -> float:
    decay = read(config, "weight_decay", number(at_least=0))
    if decay and gradient:
        allowed = "0 with upload=gradient, which is the loss's alone"
        refuse(config, "weight_decay", allowed)
    return decay


def _pairwise(config: Keys) -> bool:
    pairwise = _is(config, "local_loss", "bpr", other="bce")
    if pairwise and config["train_batch_size"] % 2:
        refuse(
            config, "train_batch_size", "even with local_loss=bpr, which takes pairs"
        )
    return pairwise


def _rho(config: Keys, key: str) -> float:
    rho = read(config, key, number(at_least=0))
    return rho if _is(config, "local_objective", "sam", other="sgd") else 0.0


def _server_optimization(config: Keys) -> ServerOptimization:
    betas = read(config, "server_betas", _pair("two numbers >= 0 and < 1"))
    return ServerOptimization(
        read(config, "server_optimizer", one_of(*SERVER_OPTIMIZERS)),
        read(config, "server_learning_rate", _POSITIVE),
        (betas[0], betas[1]),
        read(config, "server_tau", _POSITIVE),
        _bias_correction(config),
    )


def _bias_correction(config: Keys) -> bool:
    wanted = read(config, "server_bias_correction", BOOLEAN)
    if wanted and config["server_optimizer"] != "adam":
        refuse(config, "server_bias_correction", "False but for server_optimizer=adam")
    return wanted


def _compression_rates(config: Keys) -> tuple[float, ...]:
    if config["bandwidth"] is None:
        return (read(config, "compression_rate", _SHARE),)
    allowed = "None or two rates [lowest, highest] with 0 <= lowest <= highest < 1"
    lowest, highest = read(config, "bandwidth", _pair(allowed))
    if lowest > highest:
        refuse(config, "bandwidth", allowed)
    n_tiers = read(config, "bandwidth_tiers", integer(1))
    rates = np.unique(np.linspace(lowest, highest, n_tiers).round(10))
    return tuple(rates.tolist())


def _is(config: Keys, key: str, value: str, other: str) -> bool:
    """Whether a key that must be one of two values is the first of these."""
    return read(config, key, one_of(other, value)) == value


def _pair(allowed: str) -> Form[list[float]]:
    return several(_SHARE, allowed, sizes=(2,))


def model_settings(config: Keys, warmup_rounds: int) -> ModelSettings:
    """Return what every model is made with."""
    return ModelSettings(
        dim=read(config, "embedding_size", integer(1)),
        init_std=read(config, "init_std", number(at_least=0)),
        seed=read(config, "seed", SEED),
        label_field=read(config, "LABEL_FIELD", STRING),
        warmup_rounds=warmup_rounds,
    )


def run_settings(config: Keys, asked: Keys) -> RunSettings:
    """Return what is run, and what was ``asked`` for before a cut."""
    n_jobs = config["n_jobs"]
    if type(n_jobs) is not int or (n_jobs < 1 and n_jobs != -1):
        refuse(config, "n_jobs", "-1 or an integer from 1")
    return RunSettings(
        model=config["model"],
        dataset=config["dataset"],
        item_embedding=config["item_embedding"],
        seed=read(config, "seed", SEED),
        reproducibility=read(config, "reproducibility", BOOLEAN),
        device=config["device"],
        rounds=read(config, "epochs", integer(1)),
        cut=config["cut"],
        uncut=Uncut(asked["epochs"], asked["client_fraction"], asked["embedding_size"]),
        n_jobs=n_jobs,
        n_shards=read(config, "n_shards", integer(1)),
        data_path=read(config, "data_path", STRING),
        checkpoint_dir=str(config["checkpoint_dir"]),
        resume=config["resume"],
        show_progress=read(config, "show_progress", BOOLEAN),
        mb_per_s={
            direction: read(config, f"{direction}_mb_per_s", _POSITIVE)
            for direction in DIRECTIONS
        },
        random_base=config["item_base"] == "random",
        checkpoint_step=read(config, "checkpoint_step", optional(integer(1))),
    )


def deployment_settings(config: Keys) -> DeploymentSettings:
    """Return what a deployment needs beside a run's settings."""
    return DeploymentSettings(
        min_shards=read(config, "min_shards", integer(1)),
        deadline=read(config, "deadline", optional(_POSITIVE)),
        catalogue=read(config, "catalogue", optional(STRING)),
        drop_unknown_items=_is(config, "unknown_items", "drop", other="refuse"),
        demands=read(config, "demands", optional(_DEMANDS)),
    )


def evaluation_settings(config: Keys) -> EvaluationSettings:
    """Return how quality is measured."""
    return EvaluationSettings(
        seed=read(config, "seed", SEED),
        mode=dict(config["eval_args"]["mode"]),
        candidates=read(config, "eval_candidates", one_of("fixed", "recbole", "file")),
        listed=os.path.join(config["data_path"], config["dataset"]),
        encoding=config["encoding"] or "utf-8",
        batch_size=read(config, "eval_batch_size", integer(1)),
        topk=tuple(config["topk"]),
        decimals=read(config, "metric_decimal_place", integer(0)),
        bigger_is_better=config["valid_metric_bigger"],
        user_field=read(config, "USER_ID_FIELD", STRING),
        item_field=read(config, "ITEM_ID_FIELD", STRING),
    )


def data_settings(config: Keys) -> DataSettings:
    """Return how interactions are read and split."""
    eval_args = config["eval_args"]
    return DataSettings(
        user_field=config["USER_ID_FIELD"],
        item_field=config["ITEM_ID_FIELD"],
        by_time=eval_args["order"] == "TO" or "TS" in (eval_args["split"] or {}),
        leave_out=(eval_args["split"] or {}).get("LS"),
        keep_short_users=_is(config, "short_users", "keep", other="refuse"),
        first_tie_is_latest=_is(config, "tied_times", "first", other="last"),
        keep_overlap=_is(config, "presplit_overlap", "keep", other="refuse"),
        form=lines.Form(
            config["field_separator"],
            config["seq_separator"],
            config["encoding"] or "utf-8",
        ),
        filters={key: config[key] for key in _FILTERS if config[key] not in _NO_FILTER},
    )
