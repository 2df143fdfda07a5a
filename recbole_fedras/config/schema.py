"""Reads config keys as typed settings: the only reader, with ``rules``, of keys."""

from __future__ import annotations

import numpy as np

from recbole_fedras.config.settings import EvaluationSettings, RunSettings, Uncut
from recbole_fedras.config.values import (
    Keys,
    boolean,
    choice,
    integer,
    is_number,
    number,
    string,
)
from recbole_fedras.config.values import refuse as refuse
from recbole_fedras.data.lines import Form
from recbole_fedras.data.settings import DataSettings
from recbole_fedras.federation.settings import (
    ALL_SAMPLES,
    BUDGETS,
    SERVER_OPTIMIZERS,
    USER_OPTIMIZERS,
    Federation,
    LocalTraining,
    ServerOptimization,
)
from recbole_fedras.model.settings import ModelSettings
from recbole_fedras.wire.ledger import DIRECTIONS

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
        seed=integer(config, "seed", 0, 2**32 - 1),
        client_fraction=number(config, "client_fraction", above=0, at_most=1),
        compression_rates=_compression_rates(config),
        aggregation=str(config["aggregation"]),
        replica=str(config["replica"]),
        budget=choice(config, "budget", BUDGETS),
        downlink_feedback=boolean(config, "downlink_feedback"),
        uplink_feedback=boolean(config, "uplink_feedback"),
        optimization=_server_optimization(config),
        max_update_norm=number(config, "max_update_norm", above=0),
        report_loss=boolean(config, "report_loss"),
    )


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
    gradient = choice(config, "upload", ("delta", "gradient")) == "gradient"
    if gradient and config["local_epochs"] != 1:
        refuse(config, "local_epochs", "1 with upload=gradient, which is of one step")
    batch_size = integer(config, "train_batch_size", 1)
    own_rate = warmup and config["warmup_learning_rate"] is not None
    rate = "warmup_learning_rate" if own_rate else "learning_rate"
    user_rate = rate if config["user_learning_rate"] is None else "user_learning_rate"
    rates = {key: number(config, key, above=0) for key in (rate, "theta_learning_rate")}
    pairwise = _pairwise(config)
    if gradient:
        # A step at this rate is minus the gradient of what it says: of the mean loss of
        # a batch, added up over batches.
        rates = dict.fromkeys(rates, (1 + pairwise) / batch_size)
    return LocalTraining(
        learning_rate=rates[rate],
        theta_learning_rate=rates["theta_learning_rate"],
        user_learning_rate=number(config, user_rate, above=0),
        local_epochs=integer(config, "local_epochs", 1),
        batch_size=ALL_SAMPLES if gradient else batch_size,
        n_negatives=sample_num,
        rho_shared=_rho(config, "rho_shared"),
        rho_private=_rho(config, "rho_private"),
        pairwise=pairwise,
        upload_gradient=gradient,
        user_optimizer=choice(config, "user_optimizer", USER_OPTIMIZERS),
    )


def _pairwise(config: Keys) -> bool:
    pairwise = choice(config, "local_loss", ("bce", "bpr")) == "bpr"
    if pairwise and config["train_batch_size"] % 2:
        refuse(
            config, "train_batch_size", "even with local_loss=bpr, which takes pairs"
        )
    return pairwise


def _rho(config: Keys, key: str) -> float:
    rho = number(config, key, at_least=0)
    objective = choice(config, "local_objective", ("sgd", "sam"))
    return rho if objective == "sam" else 0.0


def _server_optimization(config: Keys) -> ServerOptimization:
    betas = config["server_betas"]
    if not (
        isinstance(betas, list | tuple)
        and len(betas) == 2
        and all(is_number(beta) and 0 <= beta < 1 for beta in betas)
    ):
        refuse(config, "server_betas", "two numbers >= 0 and < 1")
    return ServerOptimization(
        choice(config, "server_optimizer", SERVER_OPTIMIZERS),
        number(config, "server_learning_rate", above=0),
        (betas[0], betas[1]),
        number(config, "server_tau", above=0),
        _bias_correction(config),
    )


def _bias_correction(config: Keys) -> bool:
    wanted = boolean(config, "server_bias_correction")
    if wanted and config["server_optimizer"] != "adam":
        refuse(config, "server_bias_correction", "False but for server_optimizer=adam")
    return wanted


def _compression_rates(config: Keys) -> tuple[float, ...]:
    bandwidth = config["bandwidth"]
    if bandwidth is None:
        return (number(config, "compression_rate", at_least=0, below=1),)
    allowed = "None or two rates [lowest, highest] with 0 <= lowest <= highest < 1"
    if not (
        isinstance(bandwidth, list | tuple)
        and len(bandwidth) == 2
        and all(is_number(rate) for rate in bandwidth)
        and 0 <= bandwidth[0] <= bandwidth[1] < 1
    ):
        refuse(config, "bandwidth", allowed)
    n_tiers = integer(config, "bandwidth_tiers", 1)
    rates = np.unique(np.linspace(bandwidth[0], bandwidth[1], n_tiers).round(10))
    return tuple(rates.tolist())


def model_settings(config: Keys, warmup_rounds: int) -> ModelSettings:
    """Return what every model is made with."""
    return ModelSettings(
        dim=integer(config, "embedding_size", 1),
        init_std=number(config, "init_std", at_least=0),
        seed=integer(config, "seed", 0, 2**32 - 1),
        label_field=string(config, "LABEL_FIELD"),
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
        seed=integer(config, "seed", 0, 2**32 - 1),
        reproducibility=boolean(config, "reproducibility"),
        device=config["device"],
        rounds=integer(config, "epochs", 1),
        cut=config["cut"],
        uncut=Uncut(asked["epochs"], asked["client_fraction"], asked["embedding_size"]),
        n_jobs=n_jobs,
        data_path=string(config, "data_path"),
        checkpoint_dir=str(config["checkpoint_dir"]),
        resume=config["resume"],
        show_progress=boolean(config, "show_progress"),
        mb_per_s={
            direction: number(config, f"{direction}_mb_per_s", above=0)
            for direction in DIRECTIONS
        },
        random_base=config["item_base"] == "random",
        checkpoint_step=_checkpoint_step(config),
    )


def _checkpoint_step(config: Keys) -> int | None:
    if config["checkpoint_step"] is None:
        return None
    return integer(config, "checkpoint_step", 1)


def evaluation_settings(config: Keys) -> EvaluationSettings:
    """Return how quality is measured."""
    return EvaluationSettings(
        seed=integer(config, "seed", 0, 2**32 - 1),
        mode=dict(config["eval_args"]["mode"]),
        fixed_candidates=choice(config, "eval_candidates", ("fixed", "recbole"))
        == "fixed",
        batch_size=integer(config, "eval_batch_size", 1),
        topk=tuple(config["topk"]),
        bigger_is_better=config["valid_metric_bigger"],
        user_field=string(config, "USER_ID_FIELD"),
        item_field=string(config, "ITEM_ID_FIELD"),
    )


def data_settings(config: Keys) -> DataSettings:
    """Return how interactions are read and split."""
    eval_args = config["eval_args"]
    return DataSettings(
        user_field=config["USER_ID_FIELD"],
        item_field=config["ITEM_ID_FIELD"],
        by_time=eval_args["order"] == "TO" or "TS" in (eval_args["split"] or {}),
        leave_out=(eval_args["split"] or {}).get("LS"),
        keep_short_users=choice(config, "short_users", ("refuse", "keep")) == "keep",
        first_tie_is_latest=choice(config, "tied_times", ("last", "first")) == "first",
        keep_overlap=choice(config, "presplit_overlap", ("refuse", "keep")) == "keep",
        form=Form(
            config["field_separator"],
            config["seq_separator"],
            config["encoding"] or "utf-8",
        ),
        filters={key: config[key] for key in _FILTERS if config[key] not in _NO_FILTER},
    )
